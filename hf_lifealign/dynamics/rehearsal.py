r"""How much rehearsal holds a drift, and for how long a score stands without it: pure functions of measured forces.

Ours, in no paper: to first order the change of a score is linear in the mixture of the data it is trained on.
Forces are changes of logit S in one step.
"""

import math
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
        tolerated (`float`): drift downwards that is tolerated in a step, at least 0.

    Returns:
        [`Fraction`]; where even a batch of nothing but rehearsal drifts further, `feasible` is false, and `value` is
        the end that drifts less: 1, or 0 where rehearsal is worse than the new data.

    Raises:
        ValueError: if `tolerated` is negative, or a force is not finite.
    """
    if tolerated < 0 or not (math.isfinite(new) and math.isfinite(rehearsal) and math.isfinite(tolerated)):
        raise ValueError(
            f"You gave the forces {new} and {rehearsal} and tolerated={tolerated}. Forces have to be finite, and what "
            "is tolerated at least 0."
        )
    if new >= -tolerated:
        return Fraction(0.0, True, "the new data alone stay within what is tolerated")
    if rehearsal < -tolerated:
        reason = f"even rehearsal alone drifts by {rehearsal:.3g} a step; {-tolerated:.3g} is tolerated"
        return Fraction(1.0 if rehearsal > new else 0.0, False, reason)
    return Fraction(min(1.0, (-tolerated - new) / (rehearsal - new)), True)


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
