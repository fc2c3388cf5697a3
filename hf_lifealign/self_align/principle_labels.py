r"""Which of two answers keeps to some principles: pure functions of a judge's scores (SALMON, arXiv 2310.05910,
section 3.2).

A judge is shown a request with two answers and one principle, and says by its log-odds how much sooner the first answer
keeps to it. It is asked twice, with the answers in both orders. A reward model is then trained to follow whatever
principles it is shown: some are drawn for each pair, each is turned into its opposite half of the time, and the label
is that of the one that tells the answers apart best.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class DrawnPrinciple:
    """A principle for one pair.

    Args:
        index (`int`): in the constitution.
        negated (`bool`): whether its opposite is meant.
    """

    index: int
    negated: bool


def draw_principles(
    draws: np.random.Generator, negatable: Sequence[bool], rate: float = 0.2, most: int = 8, negation: float = 0.5
) -> list[DrawnPrinciple]:
    """Draws principles without repetition, in random order: so many as a geometric distribution says, as published.

    Args:
        draws (`numpy.random.Generator`): source of randomness.
        negatable (`list[bool]`): of each principle, whether it has an opposite.
        rate (`float`): of the geometric distribution, whose mean is one over it, in (0, 1].
        most (`int`): at most so many.
        negation (`float`): probability that a principle that has an opposite is turned into it.

    Raises:
        ValueError: without principles, or for values out of their ranges.
    """
    if not negatable or not 0 < rate <= 1 or most < 1 or not 0 <= negation <= 1:
        raise ValueError(
            f"You set rate={rate}, most={most}, negation={negation} for {len(negatable)} principles. Set a rate in "
            "(0, 1], at least 1, a probability, and at least one principle."
        )
    count = min(int(draws.geometric(rate)), most, len(negatable))
    chosen = draws.permutation(len(negatable))[:count]
    turned = draws.random(count) < negation
    return [DrawnPrinciple(int(i), bool(turn) and negatable[int(i)]) for i, turn in zip(chosen, turned, strict=True)]


def combined_scores(forward: _Array, backward: _Array) -> _Array:
    """The judge's scores of both orders as one: their mean, and 0 where the two disagree.

    Args:
        forward (`np.ndarray` of shape `(pairs, principles)`): log-odds that the first answer keeps to the principle
            sooner, asked in this order.
        backward (`np.ndarray` of the same shape): the same log-odds, asked in the other order.
    """
    told = np.asarray(forward, dtype=np.float64), np.asarray(backward, dtype=np.float64)
    if told[0].shape != told[1].shape:
        raise ValueError(f"You gave scores of the shapes {told[0].shape} and {told[1].shape}. Give one for each order.")
    return np.where(told[0] * told[1] > 0, (told[0] + told[1]) / 2, 0.0)


def order_consistency(forward: _Array, backward: _Array) -> float:
    """Share of the judgements that both orders agree on; one half is what a judge comes to that goes by chance, and
    none what one comes to that always takes the first.

    Raises:
        ValueError: if there is none.
    """
    told = np.asarray(forward, dtype=np.float64) * np.asarray(backward, dtype=np.float64)
    if not told.size:
        raise ValueError("There are no judgements. Ask for at least one.")
    return float((told > 0).mean())


def label_of(scores: Sequence[float], drawn: Sequence[DrawnPrinciple]) -> int:
    """Which answer is preferred under some principles: 1 the first, -1 the second, 0 if they do not tell.

    It is the one for which the principle speaks that tells the answers apart best; a negated one speaks against. Where
    two that contradict each other tell them apart equally well, there is no label.

    Args:
        scores (`list[float]`): of all principles, of [`combined_scores`].
        drawn (`list[DrawnPrinciple]`): at least one.
    """
    decides = deciding_principle(scores, drawn)
    return 0 if decides is None else int(np.sign(_signed(scores, decides)))


def deciding_principle(scores: Sequence[float], drawn: Sequence[DrawnPrinciple]) -> DrawnPrinciple | None:
    """The principle that gives a pair its label; the first of several that agree; `None` if there is no label.
    Arguments as of [`label_of`]."""
    signed = [_signed(scores, each) for each in drawn]
    size = max(abs(score) for score in signed)
    strongest = [(each, score) for each, score in zip(drawn, signed, strict=True) if abs(score) == size]
    if size == 0 or len({np.sign(score) for _, score in strongest}) > 1:
        return None
    return strongest[0][0]


def _signed(scores: Sequence[float], each: DrawnPrinciple) -> float:
    return -scores[each.index] if each.negated else scores[each.index]
