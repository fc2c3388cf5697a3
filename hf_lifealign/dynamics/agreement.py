"""How well predicted changes agree with measured ones: correlation, slope, and an interval by bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL, REPLICATES = 0.95, 2000
# Two points always lie on a line.
LEAST_POINTS = 3
# Variance, relative to the mean square, below which numbers count as all the same.
_SAME = 1e-20


@dataclass(frozen=True)
class Agreement:
    """How two quantities go together.

    Args:
        points (`int`): pairs.
        clusters (`int`): independent groups of them, which the bootstrap redraws.
        correlation (`float`, *optional*): Pearson's, in [-1, 1].
        low, high (`float`, *optional*): ends of its 95 % interval.
        slope (`float`, *optional*): of the second on the first, by least squares through the origin; 1 where they have
            the same size.
        reason (`str`, *optional*): what is not estimable, and why.
    """

    points: int
    clusters: int
    correlation: float | None = None
    low: float | None = None
    high: float | None = None
    slope: float | None = None
    reason: str | None = None


def agreement(
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[int] | None = None,
    names: tuple[str, str] = ("first", "second"),
    seed: int = 0,
) -> Agreement:
    """Correlation and slope of pairs, with a percentile bootstrap over whole clusters of them.

    Args:
        x, y (`list[float]`): the pairs; finite.
        clusters (`list[int]`, *optional*): which cluster each pair is in; each its own by default. Pairs that share
            their start are not independent, and belong in one.
        names (`tuple[str, str]`): of both, for reasons.
        seed (`int`): of the bootstrap. Equal inputs give equal bits.

    Raises:
        ValueError: if lengths differ.
    """
    groups = list(range(len(x))) if clusters is None else list(clusters)
    if not len(x) == len(y) == len(groups):
        raise ValueError(f"You gave {len(x)} and {len(y)} values in {len(groups)} clusters. Give one for each pair.")
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    index = np.unique(np.asarray(groups, dtype=int), return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    # scaled to at most 1, since the square of a small number may vanish
    sizes = [float(np.abs(values).max(initial=0.0)) or 1.0 for values in (a, b)]
    a, b = a / sizes[0], b / sizes[1]
    slope = float((a * b).sum() / np.square(a).sum() * (sizes[1] / sizes[0])) if a.any() else None
    if len(a) < LEAST_POINTS:
        points = "1 point" if len(a) == 1 else f"{len(a)} points"
        return Agreement(len(a), count, slope=slope, reason=f"{points}: a correlation needs at least {LEAST_POINTS}")
    for values, name in ((a, names[0]), (b, names[1])):
        if values.var() <= _SAME * np.square(values).mean():
            return Agreement(len(a), count, slope=slope, reason=f"all {len(a)} values are the same: {name}")
    sums = _cluster_sums((a - a.mean()) / a.std(), (b - b.mean()) / b.std(), index, count)
    value = float(_correlation(sums.sum(axis=0)[None])[0])
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    found = _correlation(drawn @ sums)
    found = found[np.isfinite(found)]
    if REPLICATES - len(found) > (1 - LEVEL) * REPLICATES:
        why = f"no interval: {count} independent {'group' if count == 1 else 'groups'} of points"
        return Agreement(len(a), count, value, slope=slope, reason=why)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Agreement(len(a), count, value, min(float(low), value), max(float(high), value), slope)


def _cluster_sums(
    a: NDArray[np.float64], b: NDArray[np.float64], index: NDArray[np.intp], count: int
) -> NDArray[np.float64]:
    """Of each cluster, what a correlation is made of: `(count, 6)` of n, sums, squares and products."""
    terms = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1)
    sums = np.zeros((count, 6))
    np.add.at(sums, index, terms)
    return sums


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of each row of sums; NaN where one side does not vary."""
    n, a, b, aa, bb, ab = sums.T
    va, vb = aa - a * a / n, bb - b * b / n
    varies = (va > 1e-12 * n) & (vb > 1e-12 * n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, np.clip((ab - a * b / n) / np.sqrt(va * vb), -1.0, 1.0), np.nan)
