"""The alignment score of judged samples as an `evaluate` metric; the maths is in `alignment_dynamics`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.alignment_dynamics import WholeInput, alignment_score

_DESCRIPTION = """
The alignment score is the probability that a model's answer to a probe prompt is aligned, S = E_x sum_y 1[(x, y)
aligned] pi(y | x), estimated from judged samples: the mean over the prompts of the share of a prompt's samples that are
aligned, with a bootstrap interval over prompts. From 0 to 1, higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float or bool, or array):
        The label of each sample, from 0 (not aligned) to 1 (aligned), as a judge gave it.
    references (list of str or int, or array):
        The id of the prompt that each sample answers. Samples of one prompt need not stand together, and prompts may
        have different numbers of them.
    log_weights (list of float, or array): optional; the log importance weight of each sample, in nats: its
        log-probability under the model whose score is wanted, less that under the model that it was drawn from.
    replicates (int): how often the prompts are redrawn for the interval. 1000 by default.
    level (float): confidence of the interval. 0.95 by default.
    seed (int): seed of the redraws. 0 by default.
    least_ess (float): below this effective share of the samples, the reason says that it collapsed. 0 by default.

Returns:
    alignment_score (float): the estimate.
    low (float): lower end of its interval.
    high (float): upper end of its interval.
    standard_error (float or None): standard deviation over the redraws; None where it is not estimable.
    prompts (int): number of different prompts.
    samples (int): number of samples.
    ess (float): effective sample size as a share of the samples, mean over the prompts. 1.0 without log_weights.
    reason (str or None): what is not estimable, and why.

Examples:
    >>> import hf_lifealign
    >>> alignment_score = hf_lifealign.load_metric("alignment_score")
    >>> result = alignment_score.compute(predictions=[1, 0, 1, 1], references=["a", "a", "b", "c"])
    >>> round(result["alignment_score"], 3), result["prompts"], result["samples"], result["ess"]
    (0.833, 3, 4, 1.0)
"""

_CITATION = """
@misc{huang2026alignment,
    title         = {Alignment Dynamics in {LLM} Fine-Tuning},
    author        = {Huang, Yuhan and Chen, Huanran and Dong, Yinpeng},
    year          = {2026},
    eprint        = {2605.18309},
    archivePrefix = {arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AlignmentScore(WholeInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Strings first: a number handed over by `add` does not pass for one, and a string would for a number.
            features=[
                datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value(kind)})
                for kind in ("string", "int64")
            ],
            reference_urls=["https://arxiv.org/abs/2605.18309"],
        )

    def _rows(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {
            "predictions": [float(label) for label in predictions],
            "references": [str(each) for each in references],
        }

    def _compute(self, predictions: Any, references: Any, log_weights: Any = None, **options: Any) -> dict[str, Any]:
        labels = _by_prompt(predictions, references, "predictions")
        weights = None if log_weights is None else _by_prompt(log_weights, references, "log_weights")
        found = alignment_score(labels, weights, **options).to_json()
        return {"alignment_score": found.pop("score")} | found


def _by_prompt(values: Any, prompts: Any, place: str) -> list[list[Any]]:
    """The values of all samples, one list for each prompt in the order in which its id first occurs in `prompts`."""
    cells, ids = _entries(values, place), _entries(prompts, "references")
    if len(cells) != len(ids):
        raise ValueError(
            f"{place} has {len(cells)} entries, but references has {len(ids)}. Give one of each for every sample: "
            "references says which prompt it answers."
        )
    rows: dict[str, list[Any]] = {}
    for i, (cell, each) in enumerate(zip(cells, ids, strict=True)):
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise ValueError(f"references[{i}] is {each!r}. Give the id of the prompt, a string or a whole number.")
        # As a string, which is what Arrow makes of it.
        rows.setdefault(str(each), []).append(cell)
    return list(rows.values())


def _entries(values: Any, place: str) -> list[Any]:
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, str) or not hasattr(plain, "__len__") or not len(plain):
        raise ValueError(f"{place} is {plain!r}. Give a list or an array with one entry for every sample.")
    return [each.tolist() if hasattr(each, "tolist") else each for each in plain]
