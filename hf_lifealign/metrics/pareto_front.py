"""What a policy steered by user weights reaches, as pure functions: hypervolume, inner product, controllability.

`rewards[i][k]` is the mean reward of objective `k` under the user weights `weights[i]`, both counted from 0, and higher
is better. This file imports nothing but the standard library and numpy, and moocore or scipy only where one of them is
used, so that it can be copied beside a metric script and run with the libraries of that metric alone.
"""

import math
import numbers
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = Sequence[Sequence[float]] | NDArray[Any]
Point = Sequence[float] | NDArray[Any]

# How far a row of weights may be off the simplex: what is left of weights that were written with four digits.
_TOLERANCE = 1e-4
# What moocore takes for a hypervolume.
_MOST_OBJECTIVES = 31


def read_points(points: Points, place: str = "points") -> NDArray[np.float64]:
    """Read rows of objective values into a new array, checking its shape and that it holds finite numbers.

    Args:
        points (nested sequences, or anything with `tolist()` such as a numpy array or a tensor):
            N >= 1 rows of K >= 2 numbers, one for each objective.
        place (`str`): what they are called in the error text.

    Returns:
        `np.ndarray` of shape `(N, K)`, float64. The input is left as it was.

    Raises:
        ValueError: if it is not a list of rows, has no rows, has fewer than 2 objectives or rows of different length,
            or holds something that is not a finite real number (a bool and a numeric string included).
    """
    rows = [_sequence(row, f"{place}[{i}]") for i, row in enumerate(_sequence(points, place))]
    if not rows:
        raise ValueError(
            f"{place} has no rows. Give one row of K numbers, one per objective, for each evaluated point."
        )
    k = len(rows[0])
    if k < 2:
        raise ValueError(
            f"{place}[0] has length {k}. A trade-off needs at least 2 objectives: give K >= 2 numbers in every row."
        )
    for i, row in enumerate(rows):
        if len(row) != k:
            raise ValueError(
                f"{place}[{i}] has length {len(row)}, but {place}[0] has {k}. Give the same K objectives, in the same "
                "order, in every row."
            )
    return np.array([_finite_row(row, f"{place}[{i}]") for i, row in enumerate(rows)])


def hypervolume(points: Points, reference_point: Point | None) -> float:
    """Hypervolume: the volume between a reference point and the front, in the product of the objectives' units.

    The Lebesgue measure of the union of the boxes `[reference_point, p]` over the points `p` that are better than the
    reference point in every objective (the size of the space covered: Zitzler & Thiele 1999), each
    objective to be maximised. Computed exactly, by moocore.

    Args:
        points (N rows of K numbers): objective values, higher is better; see [`read_points`]. A point that is not
            better than the reference point in every objective contributes nothing.
        reference_point (sequence of K numbers): the worst value of each objective. Volumes compare only where it is the
            same, so it is fixed before the runs, never taken from their results.

    Returns:
        `float`: 0 if no point is better than the reference point in every objective.

    Raises:
        ValueError: as `read_points`; for a reference point that is missing, has not K entries or holds something that
            is not a finite number; for more than 31 objectives; if the volume is beyond the range of a float.
    """
    cells = read_points(points)
    k = cells.shape[1]
    if reference_point is None:
        raise ValueError(
            "hypervolume was given no reference_point. It is what the volume is measured from: give it, the worst "
            f"value of each of the {k} objectives, fixed before the runs."
        )
    row = _sequence(reference_point, "reference_point")
    if len(row) != k:
        raise ValueError(
            f"reference_point has length {len(row)} for points of {k} objectives. Give one per objective, in the same "
            "order."
        )
    if k > _MOST_OBJECTIVES:
        raise ValueError(
            f"hypervolume was given points of {k} objectives. It is computed for up to {_MOST_OBJECTIVES}, and takes "
            "long well below that. Merge objectives, or measure groups of them."
        )
    worst = np.array(_finite_row(row, "reference_point"))
    import moocore

    return _in_range(float(moocore.hypervolume(cells, ref=worst, maximise=True)), "hypervolume")


def nondominated(points: Points) -> NDArray[np.bool_]:
    """Which points form the front: those that no other point equals or betters in every objective.

    Args:
        points (N rows of K numbers): objective values, higher is better; see [`read_points`].

    Returns:
        `np.ndarray` of shape `(N,)`, bool. Of equal points only the first is counted, so the sum is the number of
        different trade-offs.

    Raises:
        ValueError: as `read_points`.
    """
    cells = read_points(points)
    import moocore

    return np.asarray(moocore.is_nondominated(cells, maximise=True), dtype=bool)


def mean_inner_product(weights: Points, rewards: Points) -> float:
    """The mean over the rows of `w . r`: what users get by their own weights, in the unit of the rewards.

    `1/N * sum_i sum_k w[i][k] * r[i][k]`, with `w . r` the weighted reward `R(x, y, w)` of Meta-Aligner (arXiv
    2604.24178); Rewards-in-Context (arXiv 2402.10207) is steered by the same kind of weights.

    Args:
        weights (N rows of K numbers): user weights; each row is non-negative and sums to 1, both within 1e-4.
        rewards (N rows of K numbers): mean reward of each objective under these weights; see [`read_points`].

    Raises:
        ValueError: as `read_points`, for either; if the two differ in shape or a row of weights is off the simplex; if
            the mean is beyond the range of a float.
    """
    with np.errstate(over="ignore"):
        mean = float(np.mean(inner_products(weights, rewards)))
    return _in_range(mean, "mean_inner_product")


def inner_products(weights: Points, rewards: Points) -> list[float]:
    """The N terms `w . r` of [`mean_inner_product`], in the order of the rows."""
    w, r = _read_pair(weights, rewards)
    with np.errstate(over="ignore"):
        return (w * r).sum(axis=1).tolist()


def controllability(weights: Points, rewards: Points) -> float:
    """Controllability: how surely more weight on an objective brings more of it, from -1 to 1.

    The mean over the objectives of Spearman's rank correlation between `w[:, k]` and `r[:, k]` (Spearman 1904, ties
    take their mean rank). That a policy follows the weights is what Rewards-in-Context (arXiv 2402.10207) and
    Meta-Aligner (arXiv 2604.24178) are for; the rank correlation as its measure is the choice of this project.

    Args:
        weights (N rows of K numbers): user weights; each row is non-negative and sums to 1, both within 1e-4.
        rewards (N rows of K numbers): mean reward of each objective under these weights; see [`read_points`].

    Returns:
        `float`: the mean over the objectives whose correlation is defined.

    Raises:
        ValueError: as `read_points`, for either; if the two differ in shape or a row of weights is off the simplex; if
            the correlation is defined for no objective.
    """
    defined = [value for value in controllability_per_objective(weights, rewards) if value is not None]
    if not defined:
        raise ValueError(_undefined(*_read_pair(weights, rewards)))
    return float(np.mean(defined))


def controllability_per_objective(weights: Points, rewards: Points) -> list[float | None]:
    """The K rank correlations of [`controllability`]; `None` where the weights or the rewards are all the same.

    A constant column has no ranks to compare. It is left out rather than counted as 0, since constant weights say that
    nothing was asked, not that nothing was answered.
    """
    w, r = _read_pair(weights, rewards)
    from scipy.stats import spearmanr

    return [
        None if _constant(asked) or _constant(got) else float(spearmanr(asked, got).statistic)
        for asked, got in zip(w.T, r.T, strict=True)
    ]


def _read_pair(weights: Points, rewards: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as arrays of one shape `(N, K)`, the weights on the simplex."""
    r = read_points(rewards, "rewards")
    w = read_points(weights, "weights")
    if w.shape != r.shape:
        raise ValueError(
            f"weights has {w.shape[0]} rows of {w.shape[1]} numbers, but rewards has {r.shape[0]} of {r.shape[1]}. "
            "Give one row of rewards for each row of weights, with the same objectives in the same order."
        )
    for i, row in enumerate(w):
        if row.min() < -_TOLERANCE:
            j = int(row.argmin())
            wrong = f"weights[{i}][{j}] is {row[j]:g}, which is negative."
        # Not >: a sum that overflows is off the simplex as well.
        elif not abs(row.sum() - 1) <= _TOLERANCE:
            wrong = f"weights[{i}] sums to {row.sum():.6g}, not to 1 (within {_TOLERANCE:g})."
        else:
            continue
        raise ValueError(
            f"{wrong} A row of weights is a user's share for each objective. Divide non-negative weights by their sum, "
            "and make sure that weights and rewards are not exchanged."
        )
    return w, r


def _constant(column: NDArray[np.float64]) -> bool:
    return bool((column == column[0]).all())


def _undefined(w: NDArray[np.float64], r: NDArray[np.float64]) -> str:
    n, k = w.shape
    if n == 1:
        return (
            "controllability was given 1 row. It compares what different weights bring and is undefined below 2 rows. "
            "Evaluate the policy under more weights."
        )
    same = ", ".join(f"{j}: {'weights' if _constant(w[:, j]) else 'rewards'}" for j in range(min(k, 8)))
    return (
        f"controllability was given {n} rows of {k} objectives, and for every objective the weights or the rewards are "
        f"the same in all rows ({same}{', ...' if k > 8 else ''}), so no rank correlation is defined. Evaluate the "
        "policy under different weights; if it was, it does not follow them at all: report that instead of a number."
    )


def _in_range(value: float, function: str) -> float:
    if math.isfinite(value):
        return value
    raise ValueError(
        f"{function} came out as {value}: the values it was given are so large that the result is beyond the range of "
        "a float. Rescale each objective by a constant fixed before the runs, say its standard deviation."
    )


def _plain(value: Any) -> Any:
    # Arrays and tensors, scalars too, become plain Python values without losing a digit; a masked entry becomes None.
    return value.tolist() if hasattr(value, "tolist") else value


def _sequence(value: Any, place: str) -> Sequence[Any]:
    plain = _plain(value)
    if isinstance(plain, (str, bytes)) or not isinstance(plain, Sequence):
        raise ValueError(
            f"{place} is {reprlib.repr(value)} ({type(value).__name__}), not a sequence. Points, rewards and weights "
            "are lists of rows with one number per objective, and a reference point is one row. Give lists, tuples or "
            "arrays."
        )
    return plain


def _finite_row(row: Sequence[Any], place: str) -> list[float]:
    return [_finite(cell, f"{place}[{j}]") for j, cell in enumerate(row)]


def _finite(value: Any, place: str) -> float:
    plain = _plain(value)
    # bool is a Real to Python, but a reward of True is a comparison that slipped in.
    if plain is not None and (isinstance(plain, bool) or not isinstance(plain, numbers.Real)):
        raise ValueError(f"{place} is {reprlib.repr(value)} ({type(value).__name__}), not a number. Give int or float.")
    try:
        number = math.nan if plain is None else float(plain)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(
            f"{place} is {'missing (None or NaN)' if math.isnan(number) else 'infinite'}. Give a finite number for "
            "every objective, or leave the whole row out."
        )
    return number


class PointsInput:
    """Put before `evaluate.Metric` among the bases of a metric on rows of objectives: checks them before Arrow does.

    Arrow would read True as 1.0 and report bad input in its own terms, and evaluate leaves its cache file behind on an
    error. So whole inputs are checked first; rows that come by `add` or in several processes, at the end.
    """

    def compute(self: Any, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Compute the metric from whole inputs, or from the rows given to `add` before."""
        given = {"predictions": predictions, "references": references}
        # evaluate.combine hands references to every metric; one without them leaves them out.
        given = {name: given[name] for name in self._feature_names()}
        if self.num_process == 1 and len(self) == 0:
            self._compute(**given, **kwargs)
            given = {name: read_points(rows, name) for name, rows in given.items()}
        return super().compute(**given, **kwargs)  # type: ignore[misc]
