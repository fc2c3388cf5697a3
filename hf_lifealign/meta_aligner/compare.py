"""Whether one front is better than another: paired bootstrap intervals over prompts, and over seeds.

Pure functions of z-scored rewards; nothing here needs torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign.meta_aligner.front_figures import Front
from hf_lifealign.metrics.pareto_front import hypervolume, mean_inner_product

REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A difference between two arms, first minus second, with its interval.

    Args:
        first, second (`float`): the figure of each, the mean over seeds.
        difference (`float`): first minus second.
        low, high (`float`): ends of the percentile interval.
        standard_error (`float`): standard deviation of the replicates.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    standard_error: float

    def to_json(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)


def paired_bootstrap(
    first: NDArray[Any],
    second: NDArray[Any],
    weights: NDArray[Any],
    reference: Sequence[float],
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    r"""
    Percentile bootstrap of the differences in hypervolume and mean inner product (Efron & Tibshirani 1993, chapter 13).

    A replicate draws prompts with replacement, the same ones for both arms, all weights and all seeds; with several
    seeds it also draws seeds, the same ones for both arms. A front's figure is that of its mean rewards over the drawn
    prompts, averaged over the drawn seeds. The hypervolume of noisy means is biased upwards; pairing takes out what
    both arms share of it.

    Args:
        first, second (`np.ndarray` of shape `(points, prompts, objectives)` or `(seeds, points, prompts, objectives)`):
            rewards of both arms on one scale, of the same prompts in the same order. A prompt with a NaN anywhere is
            left out of everything.
        weights (`np.ndarray` of shape `(points, objectives)`): user weights of the points.
        reference (`list[float]` of length `objectives`): reference point on the same scale.
        replicates (`int`): how many.
        level (`float`): coverage of the interval.
        seed (`int`): of the draws.

    Returns:
        `dict` with `"hypervolume"` and `"inner_product"`.

    Raises:
        ValueError: if the shapes differ, or no prompt is rated throughout.
    """
    a, b = (np.asarray(x, dtype=float) for x in (first, second))
    a, b = (x[None] if x.ndim == 3 else x for x in (a, b))
    if a.ndim != 4 or a.shape != b.shape or np.shape(weights) != (a.shape[1], a.shape[3]):
        raise ValueError(
            f"You gave rewards of shape {np.shape(first)} and {np.shape(second)} for weights of shape "
            f"{np.shape(weights)}. Both arms need the same seeds, weights, prompts and objectives."
        )
    if replicates < 2 or not 0 < level < 1:
        raise ValueError(f"You set replicates={replicates} and level={level}. At least 2, and between 0 and 1.")
    whole = np.isfinite(a).all(axis=(0, 1, 3)) & np.isfinite(b).all(axis=(0, 1, 3))
    if not whole.any():
        raise ValueError("Not one prompt was rated by every reward function under all weights in both arms.")
    a, b = a[:, :, whole], b[:, :, whole]
    seeds, prompts = a.shape[0], a.shape[2]
    draws = np.random.default_rng(seed)
    found = np.empty((replicates, 2, 2))
    for i in range(replicates):
        share = draws.multinomial(prompts, np.full(prompts, 1 / prompts)) / prompts
        chosen = draws.integers(seeds, size=seeds) if seeds > 1 else np.zeros(1, dtype=int)
        for side, rewards in enumerate((a, b)):
            found[i, side] = _figures(np.einsum("swpk,p->swk", rewards[chosen], share), weights, reference)
    plain = [_figures(x.mean(axis=2), weights, reference) for x in (a, b)]
    tail = 100 * (1 - level) / 2
    result = {}
    for k, name in enumerate(("hypervolume", "inner_product")):
        differences = found[:, 0, k] - found[:, 1, k]
        low, high = np.percentile(differences, [tail, 100 - tail])
        mine, theirs = float(plain[0][k]), float(plain[1][k])
        result[name] = Difference(mine, theirs, mine - theirs, float(low), float(high), float(differences.std(ddof=1)))
    return result


def _figures(means: NDArray[Any], weights: NDArray[Any], reference: Sequence[float]) -> NDArray[Any]:
    """Hypervolume and inner product, each the mean over seeds, of means of shape `(seeds, points, objectives)`."""
    rows = [(hypervolume(front, reference), mean_inner_product(weights, front)) for front in means]
    return np.mean(rows, axis=0)


def compare_fronts(
    first: Front | Sequence[Front],
    second: Front | Sequence[Front],
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """[`paired_bootstrap`] of two arms.

    Args:
        first, second ([`Front`] or `list[Front]`): an arm, or one front for each of its seeds, in the same order.
        replicates, level, seed: as there.

    Raises:
        ValueError: if the fronts differ in objectives, scale, reference point, weights, prompts or decoding: such a
            difference would not be one of the arms.
    """
    arms = [[arm] if isinstance(arm, Front) else list(arm) for arm in (first, second)]
    if not arms[0] or len(arms[0]) != len(arms[1]):
        raise ValueError(f"You gave {len(arms[0])} and {len(arms[1])} fronts. Give one for each seed in both arms.")
    one = arms[0][0]
    for a, b in zip(*arms, strict=True):
        for front in (a, b):
            _check_alike(one, front)
        if a.settings.get("seed") != b.settings.get("seed"):
            raise ValueError(
                f"The fronts {a.name!r} and {b.name!r} were sampled with the seeds {a.settings.get('seed')} and "
                f"{b.settings.get('seed')}. Sweep both with the same one to compare them in pairs."
            )
    mine, theirs = (np.stack([front.rewards() for front in arm]) for arm in arms)
    return paired_bootstrap(mine, theirs, one.weights(), one.scale.reference, replicates, level, seed)


def _check_alike(one: Front, other: Front) -> None:
    weights = (one.weights().tolist(), other.weights().tolist())
    for what, mine, theirs in (
        ("objectives", one.objectives, other.objectives),
        ("scale and reference point", one.scale, other.scale),
        ("user weights", *weights),
        ("prompts and decoding", *({k: v for k, v in front.settings.items() if k != "seed"} for front in (one, other))),
    ):
        if mine != theirs:
            raise ValueError(
                f"The fronts {one.name!r} and {other.name!r} differ in their {what} ({mine} and {theirs}). Sweep both "
                "in the same way to compare them."
            )
