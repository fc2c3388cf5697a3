"""Forgetting, in its two definitions, as an `evaluate` metric; the maths is in `performance_matrix`."""

from typing import Any, Literal

import datasets
import evaluate

from hf_lifealign.metrics.performance_matrix import MatrixInput, forgetting, forgetting_per_task

_DESCRIPTION = """
Forgetting says how much the tasks of a stream have lost, on average, at its end: against their best earlier stage
(definition "max", Chaudhry et al. 2018) or against the stage of their own training (definition "first", the negative of
backward transfer). Lower is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The performance matrix: predictions[i][j] is the performance on task j after training through task i. Either a
        triangle (row i holds tasks 0..i) or a square (every row holds all N tasks). "max" needs the entries on and
        below the diagonal, "first" only the diagonal and the last row; any other entry may be None. At least 2 tasks.
    definition (str): "max" (default), a task's best stage from its own training to the last but one, minus the last;
        or "first", the stage of its own training minus the last.

Returns:
    forgetting (float): the mean over the tasks before the last, in the unit of the matrix.
    forgetting_per_task (list of N - 1 floats): the loss of each of them.

Examples:
    >>> import hf_lifealign
    >>> forgetting = hf_lifealign.load_metric("forgetting")
    >>> forgetting.compute(predictions=[[0.5], [0.75, 1.0], [0.25, 0.75, 1.0]])
    {'forgetting': 0.375, 'forgetting_per_task': [0.5, 0.25]}
    >>> forgetting.compute(predictions=[[0.5], [0.75, 1.0], [0.25, 0.75, 1.0]], definition="first")
    {'forgetting': 0.25, 'forgetting_per_task': [0.25, 0.25]}
"""

_CITATION = """
@inproceedings{chaudhry2018riemannian,
    title     = {Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence},
    author    = {Chaudhry, Arslan and Dokania, Puneet K. and Ajanthan, Thalaiyasingam and Torr, Philip H. S.},
    booktitle = {Proceedings of the European Conference on Computer Vision (ECCV)},
    year      = {2018}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Forgetting(MatrixInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/1801.10112"],
        )

    def _compute(self, predictions: Any, definition: Literal["max", "first"] = "max") -> dict[str, Any]:
        return {
            "forgetting": forgetting(predictions, definition),
            "forgetting_per_task": forgetting_per_task(predictions, definition),
        }
