"""Intervals of shares and of paired changes, against closed forms, another implementation, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from hf_lifealign.self_align.choice_figures import (
    choice_result,
    compared_choices,
    paired_interval,
    question_scores,
    wilson_interval,
)

Z = 1.959963984540054


def test_wilson() -> None:
    for right, trials in ((0, 10), (3, 10), (10, 10), (17, 40), (1, 1)):
        told = binomtest(right, trials).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / trials, trials) == pytest.approx((told.low, told.high), abs=1e-12)
    assert wilson_interval(1.0, 20) == pytest.approx((20 / (20 + Z**2), 1.0))
    assert wilson_interval(0.5, 100, 0.5)[0] > wilson_interval(0.5, 100)[0]


def test_paired_changes_of_zeros_and_ones() -> None:
    rose, fell, same = 9, 4, 27
    n = rose + fell + same
    up, down = (rose + 1) / (n + 2), (fell + 1) / (n + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    found = paired_interval([1.0] * rose + [-1.0] * fell + [0.0] * same)
    assert found == pytest.approx((up - down - half, up - down + half)), "Bonett and Price (2012), adjusted Wald"
    nothing = paired_interval([0.0] * 50)
    assert nothing == pytest.approx((-Z * math.sqrt(2) / 52, Z * math.sqrt(2) / 52))


@settings(deadline=None)
@example([-1.0] * 5)
@example([1.0] * 7)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_an_interval_holds_what_was_found(changes: list[float]) -> None:
    low, high = paired_interval(changes)
    assert -1 <= low < high <= 1
    assert low - 1e-9 <= float(np.mean(changes)) <= high + 1e-9
    assert paired_interval([-change for change in changes]) == pytest.approx((-high, -low))
    share = (float(np.mean(changes)) + 1) / 2
    low, high = wilson_interval(share, len(changes))
    assert 0 <= low <= share <= high <= 1


def test_how_often_intervals_hold_the_truth() -> None:
    """Questions with scores of 0, 1/2 and 1, before and after a change."""
    draws = np.random.default_rng(0)
    held = {"share": 0, "change": 0}
    for _ in range(600):
        ease = draws.random((80, 1))
        before = (draws.random((80, 2)) < ease).mean(1)
        after = (draws.random((80, 2)) < np.sqrt(ease)).mean(1)
        low, high = wilson_interval(float(before.mean()), 80)
        held["share"] += low <= 1 / 2 <= high
        low, high = paired_interval(after - before)
        held["change"] += low <= 2 / 3 - 1 / 2 <= high
    assert held["share"] / 600 > 0.96, "rather too wide: a half varies less than a whole"
    assert 0.92 < held["change"] / 600 < 0.98


def test_results_and_their_difference() -> None:
    best, choices = [0, 2, 1, 0], [2, 3, 2, 4]
    before = choice_result(best, choices, [(0, 1), (2, 2), (0, 0), (0, 0)], [1, 2, 0, 0], first=0.5)
    after = choice_result(best, choices, [(0, 0), (2, 1), (1, 1), (0, 0)], [0, 2, 0, 1], first=0.25)
    assert question_scores(best, before.answers).tolist() == [0.5, 1.0, 0.0, 1.0]
    assert (before.accuracy, before.consistency, before.first, before.questions) == (0.625, 0.75, 0.5, 4)
    assert (before.low, before.high) == wilson_interval(0.625, 4), "four questions, not eight"
    assert before.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
    change = compared_choices(best, before, after)
    assert (change.difference, change.better, change.worse) == (0.25, 2, 1)
    assert (change.low, change.high) == paired_interval([0.5, -0.5, 1.0, 0.0])
    assert (before.combined, before.combined_low, before.combined_high) == (0.5, *wilson_interval(0.5, 4))
    together = compared_choices(best, before, after, combined=True)
    assert (together.difference, together.better, together.worse) == (0.0, 1, 1)
    assert (together.low, together.high) == paired_interval([1.0, 0.0, 0.0, -1.0])
    assert compared_choices(best, before, before).difference == 0.0
    assert change.to_json()["better"] == 2


def test_what_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no questions"):
        choice_result([], [], [], [], 0.0)
    one = choice_result([0], [2], [(0, 0)], [0], 0.5)
    with pytest.raises(ValueError, match="1 and 1 questions for 2"):
        compared_choices([0, 1], one, one)
    for share, trials in ((1.1, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="You gave a share of"):
            wilson_interval(share, trials)
    for changes in ([], [1.5], [float("nan")]):
        with pytest.raises(ValueError, match="changes from"):
            paired_interval(changes)
    with pytest.raises(ValueError, match="level=1"):
        wilson_interval(0.5, 3, 1)
