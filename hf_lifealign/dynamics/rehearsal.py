r"""How much rehearsal holds a drift, and for how long a score stands without it: pure functions of measured forces.

Ours, in no paper: to first order the change of a score is linear in the mixture of the data it is trained on.
Forces are changes of logit S in one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fraction:
    """Share of a batch that has to be rehearsal.

    Args:
        value (`float`): in [0, 1].
        feasible (`bool`): whether rehearsal of that share holds the drift.
        reason (`str`, *optional*): why it does not, or why nothing is needed.
    """

    value: float
    feasible: bool
    reason: str | None = None


def logit(p: float) -> float:
    """Log-odds of a probability; infinite at 0 and 1."""
    if p <= 0:
        return -math.inf
    return math.inf if p >= 1 else math.log(p / (1 - p))


def rehearsal_fraction(new: float, rehearsal: float, tolerated: float = 0.0) -> Fraction:
    r"""
    The least share `r` of rehearsal at which the score drifts by no more than is tolerated:
    ``(1 - r) F_new + r F_reh >= -tolerated``, so ``r* = max(0, (-tolerated - F_new) / (F_reh - F_new))``.

    Args:
        new (`float`): force of the new task's data, in logit S for each step.
        rehearsal (`float`): force of the rehearsed data.
        tolerated (`float`): drift downwards that is tolerated in a step; below 0 where the score has to rise.

    Returns:
        [`Fraction`]; where even a batch of nothing but rehearsal drifts further, `feasible` is false, and `value` is
        the end that drifts less: 1, or 0 where rehearsal is worse than the new data.

    Raises:
        ValueError: if one of them is not finite.
    """
    if not (math.isfinite(new) and math.isfinite(rehearsal) and math.isfinite(tolerated)):
        raise ValueError(
            f"You gave the forces {new} and {rehearsal} and tolerated={tolerated}. They have to be finite."
        )
    if new >= -tolerated:
        return Fraction(0.0, True, "the new data alone stay within what is tolerated")
    if rehearsal < -tolerated:
        asked = f"{-tolerated:+.3g} is {'tolerated' if tolerated >= 0 else 'asked for'}"
        reason = f"even rehearsal alone moves it by {rehearsal:+.3g} a step; {asked}"
        return Fraction(1.0 if rehearsal > new else 0.0, False, reason)
    return Fraction(min(1.0, (-tolerated - new) / (rehearsal - new)), True)


@dataclass(frozen=True)
class Reach:
    r"""
    How many steps' worth of change is still to come, in steps at the highest learning rate on a lasting gradient.

    With momentum a batch moves the parameters over the steps after it, so that the last ones before the end move them
    by a part of a step only, and what earlier batches left in the moment moves them on.

    Args:
        carried (`float`): by what the moment carries of the batches so far.
        coming (`float`): by all batches to come.
    """

    carried: float
    coming: float


def reach(rates: Sequence[float], decay: float = 0.0, steps: float = math.inf) -> Reach:
    r"""
    [`Reach`] of coming steps under a first moment that decays.

    The update of step `i = 1, 2, ...` is ``rates[i-1] / (1 - b**(t+i)) * (b**i (1 - b**t) m + (1 - b) sum over j <= i
    of b**(i-j) g_j)``, `m` the moment as corrected by Adam after `t` steps and `g_j` the coming gradients; without the
    denominators for an infinite `t`, as of SGD.

    Args:
        rates (`list[float]`): of the coming steps, as shares of the highest rate.
        decay (`float`): `b` in [0, 1).
        steps (`float`): `t`.
    """
    carried = coming = 0.0
    for i, rate in enumerate(rates, 1):
        begun = 1 - decay ** (steps + i)
        carried += rate * decay**i * (1 - decay**steps) / begun
        coming += rate * (1 - decay**i) / begun
    return Reach(carried, coming)


def share_bounds(
    new: tuple[float, float], rehearsal: tuple[float, float], tolerated: float = 0.0
) -> tuple[float, float]:
    """What a share of rehearsal is surely too little below, and surely more than is needed above: that of
    [`rehearsal_fraction`] if both forces were better by a standard error, and if they were worse.

    Args:
        new, rehearsal (`tuple[float, float]`): force of the data, in logit S for each step, and its standard error; an
            error that is not finite is not known, and nothing is sure then.
        tolerated (`float`): as of [`rehearsal_fraction`].

    Returns:
        `tuple[float, float]`: both in [0, 1]. The upper one is 1 where rehearsal might not hold the score at all.
    """
    (one, one_error), (other, other_error) = new, rehearsal
    if not (math.isfinite(one_error) and math.isfinite(other_error)):
        return 0.0, 1.0
    better = rehearsal_fraction(one + one_error, other + other_error, tolerated)
    worse = rehearsal_fraction(one - one_error, other - other_error, tolerated)
    high = worse.value if worse.feasible else 1.0
    return min(better.value, high), high


def tolerated_drift(score: float, floor: float, steps: float) -> float:
    """Drift of logit S in each step that leaves the score at its floor after `steps`; 0 if it is there already."""
    if steps <= 0:
        raise ValueError(f"You set steps={steps}. Give more than 0.")
    room = logit(score) - logit(floor)
    return max(0.0, room / steps) if math.isfinite(room) else 0.0


def horizon(score: float, floor: float, force: float, calibration: float = 1.0) -> float:
    r"""
    Steps until a score reaches its floor: ``(logit S - logit S_floor) / (c |F|)``.

    Args:
        score, floor (`float`): probabilities.
        force (`float`): change of logit S in a step, as predicted.
        calibration (`float`): measured over predicted change; see [`calibrate`].

    Returns:
        `float`: 0 if it is there already, infinite if the force does not lead there.
    """
    room = logit(score) - logit(floor)
    if room <= 0:
        return 0.0
    pull = -force * calibration
    return room / pull if pull > 0 else math.inf


def calibrate(predicted: list[float], measured: list[float], least: int = 1) -> float | None:
    """Slope through the origin of measured on predicted changes, by least squares; `None` where fewer than `least`
    were predicted, or the slope is not positive, so that it says nothing about the size of a force."""
    below = sum(p * p for p in predicted)
    if not below or len(predicted) < least:
        return None
    slope = sum(p * m for p, m in zip(predicted, measured, strict=True)) / below
    return slope if slope > 0 else None
