r"""How often a model finds the best of given answers, with intervals: pure functions.

A question is asked in two orders of its answers, and its score is the share of them in which the best one was found: 0,
1/2 or 1. Both orders are of one question and not independent, so that intervals are over questions. A model that always
says the same letter has a score of 1/2 of every question with two answers, whatever else it knows; so what it finds
likeliest is also told over both orders together, where the letters cancel out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class ChoiceResult:
    """How often the best answer was found.

    Args:
        accuracy (`float`): mean score of the questions.
        low, high (`float`): its 95 % interval, see [`wilson_interval`].
        chance (`float`): what guessing comes to: the mean of one over the number of answers.
        consistency (`float`): share of questions to which both orders have the same answer. Low where a model goes by
            the letter.
        first (`float`): share of all asked that were answered by the first letter; about `chance` where a model goes by
            what the answers say.
        combined (`float`): share of questions whose best answer is the likeliest over both orders together: by the sum
            of the logarithms of its probabilities among the letters. Of two answers a preference for a letter cancels
            out; of more it is mere noise, as their orders are drawn.
        combined_low, combined_high (`float`): its 95 % interval.
        questions (`int`): each asked twice.
        answers (`tuple[tuple[int, int]]`): of each question, the answer that was chosen in each order, by its place in
            the question as it was given.
        likeliest (`tuple[int]`): of each question, the answer that is so over both orders together.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    consistency: float
    first: float
    combined: float
    combined_low: float
    combined_high: float
    questions: int
    answers: tuple[tuple[int, int], ...]
    likeliest: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ChoiceDifference:
    """What an adapter changes, on the same questions.

    Args:
        difference (`float`): accuracy with it minus accuracy without it, in [-1, 1].
        low, high (`float`): its 95 % interval, see [`paired_interval`].
        better, worse (`int`): questions whose score rose, and fell.
    """

    difference: float
    low: float
    high: float
    better: int
    worse: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def choice_result(
    best: Sequence[int],
    choices: Sequence[int],
    answers: Sequence[tuple[int, int]],
    likeliest: Sequence[int],
    first: float,
) -> ChoiceResult:
    """The figures of what was chosen.

    Args:
        best (`list[int]`): place of the best answer of each question.
        choices (`list[int]`): number of answers of each.
        answers (`list[tuple[int, int]]`): place of the chosen one, in each order.
        likeliest (`list[int]`): place of the one that is so over both orders together.
        first (`float`): share of the first letter.

    Raises:
        ValueError: without questions.
    """
    scores = question_scores(best, answers)
    accuracy = float(scores.mean())
    combined = float(np.mean([place == right for place, right in zip(likeliest, best, strict=True)]))
    low, high = wilson_interval(combined, len(scores))
    return ChoiceResult(
        accuracy,
        *wilson_interval(accuracy, len(scores)),
        chance=float(np.mean([1 / count for count in choices])),
        consistency=float(np.mean([one == other for one, other in answers])),
        first=first,
        combined=combined,
        combined_low=low,
        combined_high=high,
        questions=len(scores),
        answers=tuple((int(one), int(other)) for one, other in answers),
        likeliest=tuple(int(place) for place in likeliest),
    )


def question_scores(best: Sequence[int], answers: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Score of each question: 0, 1/2 or 1.

    Args:
        best (`list[int]`): place of the best answer of each question.
        answers (`list[tuple[int, int]]`): place of the chosen one, in each order.

    Raises:
        ValueError: without questions.
    """
    if not answers:
        raise ValueError("There are no questions. Give at least one.")
    return np.array([[place == right for place in pair] for pair, right in zip(answers, best, strict=True)]).mean(1)


def compared_choices(
    best: Sequence[int], before: ChoiceResult, after: ChoiceResult, combined: bool = False
) -> ChoiceDifference:
    """The paired difference of two results on the same questions.

    Args:
        best (`list[int]`): place of the best answer of each question.
        before, after ([`ChoiceResult`]): of these questions, in their order.
        combined (`bool`): of `combined` and not of `accuracy`.

    Raises:
        ValueError: if they are not of as many questions.
    """
    if not before.questions == after.questions == len(best):
        raise ValueError(
            f"You gave results of {before.questions} and {after.questions} questions for {len(best)}. Give results of "
            "the same questions."
        )
    # the likeliest over both orders is one answer, as if it were that of either order
    pairs = [[(p, p) for p in told.likeliest] if combined else told.answers for told in (before, after)]
    changes = question_scores(best, pairs[1]) - question_scores(best, pairs[0])
    return ChoiceDifference(
        float(changes.mean()), *paired_interval(changes), int((changes > 0).sum()), int((changes < 0).sum())
    )


def wilson_interval(share: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    r"""
    Wilson's score interval of a share (Wilson 1927, JASA 22, p. 209), which does not shrink to a point at 0 and 1:

    $$\frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}$$

    It is one of `trials` independent zeros and ones. Scores that can also be 1/2 vary at most as much as zeros and ones
    of the same mean, so that for them it is rather too wide than too narrow.

    Args:
        share (`float`): mean of the scores, in [0, 1].
        trials (`int`): number of questions, at least 1.
        level (`float`): in (0, 1).

    Raises:
        ValueError: for values out of their ranges.
    """
    z = _quantile(level)
    if trials < 1 or not 0 <= share <= 1:
        raise ValueError(f"You gave a share of {share} of {trials} trials. Give one in [0, 1], of at least 1.")
    centre, spread = share + z * z / (2 * trials), share * (1 - share) / trials + z * z / (4 * trials**2)
    ends = [(centre + sign * z * spread**0.5) / (1 + z * z / trials) for sign in (-1, 1)]
    # at 0 and 1 an end is the share itself, which rounding may miss
    return min(share, max(0.0, ends[0])), max(share, min(1.0, ends[1]))


def paired_interval(changes: Sequence[float] | NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    r"""
    Interval of a mean change, by two imagined questions more, one that rises by 1 and one that falls by 1:

    $$\bar d \pm z\sqrt{(\overline{d^2} - \bar d^2)/(n+2)}\quad\text{over the}\ n + 2\ \text{changes}$$

    Of changes that are -1, 0 or 1 it is the adjusted Wald interval of Bonett and Price (2012, Journal of Educational
    and Behavioral Statistics 37, p. 479), which is no point either where nothing or everything changed; here the halves
    of two orders are changes, too. The mean change lies in it, but not in its middle.

    Args:
        changes (`list[float]` or `np.ndarray`): of each question, in [-1, 1].
        level (`float`): in (0, 1).

    Raises:
        ValueError: without changes, or for values out of their ranges.
    """
    z, found = _quantile(level), np.asarray(changes, dtype=np.float64)
    if found.size < 1 or not (np.abs(found) <= 1).all():
        raise ValueError(f"You gave {found.size} changes from {found.tolist()[:5]} on. Give at least one, in [-1, 1].")
    more = np.append(found, [1.0, -1.0])
    spread = z * float(np.sqrt(more.var() / more.size))
    return max(-1.0, float(more.mean()) - spread), min(1.0, float(more.mean()) + spread)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"You set level={level} of an interval. Set a number in (0, 1).")
    return NormalDist().inv_cdf((1 + level) / 2)
