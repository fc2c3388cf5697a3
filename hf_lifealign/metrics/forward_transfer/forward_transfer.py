"""Forward transfer (FWT) as an `evaluate` metric; the maths is in `performance_matrix`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.performance_matrix import MatrixInput, forward_transfer, forward_transfer_per_task

_DESCRIPTION = """
Forward transfer (FWT) says how much the earlier tasks of a stream helped or hurt a task, on average, before its own
training, against the untrained model: 1/(N-1) * sum_{i>=2} (m[i-1][i] - baseline[i]).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The performance matrix: predictions[i][j] is the performance on task j after training through task i. A square
        (every row holds all N tasks), since the entries just above the diagonal are needed; any other entry may be
        None. At least 2 tasks.
    baseline (list of N floats, or array): the untrained model's performance on each task. The first entry is not read.

Returns:
    forward_transfer (float): the mean over the tasks from the second on, in the unit of the matrix.
    forward_transfer_per_task (list of N - 1 floats): the gain of each of them.

Examples:
    >>> import hf_lifealign
    >>> forward_transfer = hf_lifealign.load_metric("forward_transfer")
    >>> forward_transfer.compute(predictions=[[0.75, 0.5], [0.5, 1.0]], baseline=[0.25, 0.25])
    {'forward_transfer': 0.25, 'forward_transfer_per_task': [0.25]}
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
class ForwardTransfer(MatrixInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/1706.08840"],
        )

    def _compute(self, predictions: Any, baseline: Any = None) -> dict[str, Any]:
        return {
            "forward_transfer": forward_transfer(predictions, baseline),
            "forward_transfer_per_task": forward_transfer_per_task(predictions, baseline),
        }
