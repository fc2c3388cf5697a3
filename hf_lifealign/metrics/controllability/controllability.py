"""Controllability, by rank correlation, as an `evaluate` metric; the maths is in `pareto_front`."""

# scipy is used in there, and imported here as well: evaluate reads this file line by line to say what is missing.
# ruff: noqa: F401

from typing import Any

import datasets
import evaluate
import scipy

from hf_lifealign.metrics.pareto_front import PointsInput, controllability, controllability_per_objective

_DESCRIPTION = """
Controllability says how surely more weight on an objective brings more of it: Spearman's rank correlation between the
user weight of an objective and its mean reward, averaged over the objectives. From -1 to 1, higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The mean rewards: predictions[i][k] is that of objective k under the i-th user weights, higher is better. N rows
        of K >= 2 numbers.
    references (list of lists of float, or array):
        The user weights: references[i] is the share of each of the K objectives. N rows, each non-negative and with the
        sum 1, both within 1e-4.

Returns:
    controllability (float): the mean over the objectives whose correlation is defined.
    controllability_per_objective (list of K floats or None): that of each objective; None where the weights or the
        rewards are the same in all rows. If that is so for every objective, a ValueError is raised.

Examples:
    >>> import hf_lifealign
    >>> controllability = hf_lifealign.load_metric("controllability")
    >>> result = controllability.compute(
    ...     predictions=[[0.1, 0.7], [0.4, 0.9], [0.6, 0.2]],
    ...     references=[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]],
    ... )
    >>> round(result["controllability"], 2), [round(value, 2) for value in result["controllability_per_objective"]]
    (0.75, [1.0, 0.5])
"""

_CITATION = """
@article{spearman1904proof,
    title     = {The Proof and Measurement of Association between Two Things},
    author    = {Spearman, Charles},
    journal   = {The American Journal of Psychology},
    volume    = {15},
    number    = {1},
    pages     = {72--101},
    year      = {1904}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Controllability(PointsInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {name: datasets.Sequence(datasets.Value("float64")) for name in ("predictions", "references")}
            ),
            reference_urls=["https://arxiv.org/abs/2402.10207", "https://arxiv.org/abs/2604.24178"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {
            "controllability": controllability(references, predictions),
            "controllability_per_objective": controllability_per_objective(references, predictions),
        }
