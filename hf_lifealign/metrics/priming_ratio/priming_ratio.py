"""The priming ratio of two training curves as an `evaluate` metric; the maths is in `alignment_dynamics`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.alignment_dynamics import WholeInput, priming_ratio

_DESCRIPTION = """
The priming ratio says how much faster a model that was aligned once, and then trained away from it, aligns again: the
steps to a target score the second time over those the first time. Below 1 the model is primed.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float, or array):
        The curve of the second training: its scores, higher is better, the first one taken before its first step.
    references (list of float, or array):
        The curve of the first training, likewise. It may have another number of scores.
    steps (list of float, or array): optional; the steps at which predictions were measured, counted from the start of
        that training. 0, 1, 2, ... by default. Give both steps and reference_steps, or neither.
    reference_steps (list of float, or array): optional; the steps at which references were measured, likewise.
    target (float): optional; the score that both are to reach. By default the first score of references, plus share of
        what they gain up to their highest.
    share (float): that share. 0.9 by default.
    area_steps (float): over how many steps the areas are taken, at most. 128 by default.
    tolerance (float): by how much the two first scores may differ before the reason says so. 0.1 by default.

Returns:
    priming_ratio (float or None): again_steps / first_steps.
    first_steps (float or None): steps to the target in the first training; None if it never reaches it.
    again_steps (float or None): steps to the target in the second training; None if it never reaches it.
    target (float): the target.
    area_ratio (float or None): area between the curve and its first score, second training over first. Above 1 the
        model is primed.
    area_steps (float): over how many steps the areas were taken.
    reason (str or None): what is missing, or what the figures cannot carry.

Examples:
    >>> import hf_lifealign
    >>> priming_ratio = hf_lifealign.load_metric("priming_ratio")
    >>> result = priming_ratio.compute(
    ...     predictions=[0.5, 0.875, 1.0],
    ...     references=[0.5, 0.625, 0.75, 0.875, 1.0],
    ...     steps=[0, 16, 32],
    ...     reference_steps=[0, 16, 32, 48, 64],
    ...     target=0.875,
    ... )
    >>> result["priming_ratio"], result["first_steps"], result["again_steps"]
    (0.3333333333333333, 48.0, 16.0)
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
class PrimingRatio(WholeInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # A curve is one row: evaluate wants as many predictions as references, and two curves differ in length.
            features=datasets.Features(
                {name: datasets.Sequence(datasets.Value("float64")) for name in ("predictions", "references")}
            ),
            reference_urls=["https://arxiv.org/abs/2605.18309"],
        )

    def _rows(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"predictions": [_curve(predictions)], "references": [_curve(references)]}

    def _compute(
        self, predictions: Any, references: Any, steps: Any = None, reference_steps: Any = None, **options: Any
    ) -> dict[str, Any]:
        again, first = _curve(predictions), _curve(references)
        if (steps is None) != (reference_steps is None):
            raise ValueError(
                "priming_ratio was given steps of one curve alone. The unit of the other's would be unknown: give both "
                "steps and reference_steps, or neither if both curves were measured at the same distances from the "
                "start on."
            )
        if steps is None:
            steps, reference_steps = range(len(again)), range(len(first))
        found = priming_ratio((reference_steps, first), (steps, again), **options).to_json()
        return {"priming_ratio": found.pop("ratio")} | found


def _curve(scores: Any) -> Any:
    """The scores of a curve, which may be given bare or as the only row."""
    rows = scores.tolist() if hasattr(scores, "tolist") else scores
    if isinstance(rows, str) or not hasattr(rows, "__len__"):
        raise ValueError(f"A curve was given as {scores!r}. Give its scores as a list or an array.")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if not any(isinstance(row, list | tuple) for row in rows):
        return rows
    if len(rows) == 1:
        return list(rows[0])
    raise ValueError(f"priming_ratio was given {len(rows)} curves of one training. It compares one with one: give one.")
