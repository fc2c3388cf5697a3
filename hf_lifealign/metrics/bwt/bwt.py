"""Backward transfer (BWT) as an `evaluate` metric; the maths is in `performance_matrix`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.performance_matrix import MatrixInput, backward_transfer, backward_transfer_per_task

_DESCRIPTION = """
Backward transfer (BWT) says how much the tasks of a stream gained or lost, on average, between their own training and
the end of the stream: 1/(N-1) * sum_{i<N} (m[N][i] - m[i][i]). Negative values mean forgetting.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The performance matrix: predictions[i][j] is the performance on task j after training through task i. Either a
        triangle (row i holds tasks 0..i) or a square (every row holds all N tasks). The diagonal and the last row are
        needed; any other entry may be None. At least 2 tasks.

Returns:
    bwt (float): the mean over the tasks before the last, in the unit of the matrix.
    bwt_per_task (list of N - 1 floats): the change of each of them.

Examples:
    >>> import hf_lifealign
    >>> bwt = hf_lifealign.load_metric("bwt")
    >>> bwt.compute(predictions=[[0.75], [0.5, 1.0]])
    {'bwt': -0.25, 'bwt_per_task': [-0.25]}
"""

_CITATION = """
@inproceedings{lopezpaz2017gradient,
    title     = {Gradient Episodic Memory for Continual Learning},
    author    = {Lopez-Paz, David and Ranzato, Marc'Aurelio},
    booktitle = {Advances in Neural Information Processing Systems},
    volume    = {30},
    year      = {2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BWT(MatrixInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/1706.08840", "https://arxiv.org/abs/2509.17183"],
        )

    def _compute(self, predictions: Any) -> dict[str, Any]:
        return {"bwt": backward_transfer(predictions), "bwt_per_task": backward_transfer_per_task(predictions)}
