"""Average performance (AP) as an `evaluate` metric; the maths is in `performance_matrix`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.performance_matrix import MatrixInput, average_performance, average_performance_per_stage

_DESCRIPTION = """
Average performance (AP) is the mean over all stages of a stream of the mean performance on the tasks met so far:
1/N * sum_k (1/k * sum_{i<=k} m[k][i]). It judges the whole way, not only its end.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        The performance matrix: predictions[i][j] is the performance on task j after training through task i. Either a
        triangle (row i holds tasks 0..i) or a square (every row holds all N tasks). All entries on and below the
        diagonal are needed; those above may be None.

Returns:
    average_performance (float): the mean over the N stages, in the unit of the matrix.
    average_performance_per_stage (list of N floats): the mean over the tasks met so far, after each task.

Examples:
    >>> import hf_lifealign
    >>> average_performance = hf_lifealign.load_metric("average_performance")
    >>> average_performance.compute(predictions=[[0.75], [0.5, 1.0]])
    {'average_performance': 0.75, 'average_performance_per_stage': [0.75, 0.75]}
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
class AveragePerformance(MatrixInput, evaluate.Metric):
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
            "average_performance": average_performance(predictions),
            "average_performance_per_stage": average_performance_per_stage(predictions),
        }
