"""Last performance (Last) as an `evaluate` metric; the maths is in `performance_matrix`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.performance_matrix import MatrixInput, last_performance, last_performance_per_task

_DESCRIPTION = """
Last performance (Last) is the mean performance on all tasks of a stream after its last task: 1/N * sum_i m[N][i]. It
judges the model one is left with.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The performance matrix: predictions[i][j] is the performance on task j after training through task i. Either a
        triangle (row i holds tasks 0..i) or a square (every row holds all N tasks). Only the last row is needed; any
        other entry may be None.

Returns:
    last_performance (float): the mean over the N tasks, in the unit of the matrix.
    last_performance_per_task (list of N floats): the last row.

Examples:
    >>> import hf_lifealign
    >>> last_performance = hf_lifealign.load_metric("last_performance")
    >>> last_performance.compute(predictions=[[0.75], [0.5, 1.0]])
    {'last_performance': 0.75, 'last_performance_per_task': [0.5, 1.0]}
"""

_CITATION = """
@article{li2026lifealign,
    title   = {LifeAlign: Lifelong Alignment for Large Language Models with Memory-Augmented Focalized Preference
               Optimization},
    author  = {Li, Junsong and Zhou, Jie and Zhan, Bihao and Yang, Yutao and Pan, Qianjun and Chen, Shilian and
               Huai, Tianyu and Li, Xin and Chen, Qin and He, Liang},
    journal = {Proceedings of the AAAI Conference on Artificial Intelligence},
    volume  = {40},
    number  = {37},
    year    = {2026},
    doi     = {10.1609/aaai.v40i37.40428}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class LastPerformance(MatrixInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/2509.17183"],
        )

    def _compute(self, predictions: Any) -> dict[str, Any]:
        return {
            "last_performance": last_performance(predictions),
            "last_performance_per_task": last_performance_per_task(predictions),
        }
