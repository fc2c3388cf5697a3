"""Hypervolume as an `evaluate` metric; the maths is in `pareto_front`."""

# moocore is used in there, and imported here as well: evaluate reads this file line by line to say what is missing.
# ruff: noqa: F401

from typing import Any

import datasets
import evaluate
import moocore

from hf_lifealign.metrics.pareto_front import PointsInput, hypervolume, nondominated

_DESCRIPTION = """
Hypervolume is the volume that a set of points, one for each trade-off between objectives, dominates above a reference
point (Zitzler & Thiele 1999): one number for how far a front reaches and how well it is covered. Higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or array):
        N points of K >= 2 objectives, higher is better: predictions[i][k] is, say, the mean reward of objective k under
        the i-th user weights. A point that is not better than the reference point in every objective contributes
        nothing to the volume.
    reference_point (list of K floats, or array): the worst value of each objective, fixed before the runs.

Returns:
    hypervolume (float): the volume, in the product of the units of the objectives.
    n_nondominated (int): how many different points no other point equals or betters in every objective, wherever the
        reference point lies.

Examples:
    >>> import hf_lifealign
    >>> hypervolume = hf_lifealign.load_metric("hypervolume")
    >>> hypervolume.compute(predictions=[[3.0, 1.0], [2.0, 2.0], [1.0, 1.0]], reference_point=[0.0, 0.0])
    {'hypervolume': 5.0, 'n_nondominated': 2}
"""

_CITATION = """
@article{zitzler1999multiobjective,
    title     = {Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength {P}areto Approach},
    author    = {Zitzler, Eckart and Thiele, Lothar},
    journal   = {IEEE Transactions on Evolutionary Computation},
    volume    = {3},
    number    = {4},
    pages     = {257--271},
    year      = {1999}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Hypervolume(PointsInput, evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://doi.org/10.1109/4235.797969", "https://multi-objective.github.io/moocore/python/"],
        )

    def _compute(self, predictions: Any, reference_point: Any = None) -> dict[str, Any]:
        return {
            "hypervolume": hypervolume(predictions, reference_point),
            "n_nondominated": int(nondominated(predictions).sum()),
        }
