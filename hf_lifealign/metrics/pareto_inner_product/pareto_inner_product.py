"""The mean inner product of user weights and mean rewards as an `evaluate` metric; the maths is in `pareto_front`."""

from typing import Any

import datasets
import evaluate

from hf_lifealign.metrics.pareto_front import PointsInput, inner_products, mean_inner_product

_DESCRIPTION = """
The mean inner product of user weights and the mean rewards reached under them, 1/N * sum_i w[i] . r[i]: what users get
on average, each judged by their own weights. Higher is better.
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
    pareto_inner_product (float): the mean over the rows, in the unit of the rewards.
    inner_products (list of N floats): that of each row.

Examples:
    >>> import hf_lifealign
    >>> inner_product = hf_lifealign.load_metric("pareto_inner_product")
    >>> inner_product.compute(predictions=[[4.0, 0.0], [1.0, 2.0]], references=[[0.75, 0.25], [0.5, 0.5]])
    {'pareto_inner_product': 2.25, 'inner_products': [3.0, 1.5]}
"""

_CITATION = """
@misc{xu2026metaaligner,
    title         = {Meta-Aligner: Bidirectional Preference-Policy Optimization for Multi-Objective {LLMs} Alignment},
    author        = {Xu, Wenzhe and Liu, Biao and Sun, Yiyang and Geng, Xin and Xu, Ning},
    year          = {2026},
    eprint        = {2604.24178},
    archivePrefix = {arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ParetoInnerProduct(PointsInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {name: datasets.Sequence(datasets.Value("float64")) for name in ("predictions", "references")}
            ),
            reference_urls=["https://arxiv.org/abs/2604.24178", "https://arxiv.org/abs/2402.10207"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {
            "pareto_inner_product": mean_inner_product(references, predictions),
            "inner_products": inner_products(references, predictions),
        }
