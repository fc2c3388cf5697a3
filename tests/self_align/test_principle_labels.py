"""Drawn principles by their statistics, and labels by closed forms and properties."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.self_align.principle_labels import (
    DrawnPrinciple,
    combined_scores,
    draw_principles,
    label_of,
    order_consistency,
)

scores = st.lists(st.floats(-9, 9).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=3, max_size=8)


def test_the_number_is_geometric_and_capped() -> None:
    draws = np.random.default_rng(0)
    counts = Counter(len(draw_principles(draws, [True] * 16)) for _ in range(20_000))
    assert set(counts) == set(range(1, 9))
    for k in range(1, 8):
        expected = 0.2 * 0.8 ** (k - 1)
        assert counts[k] / 20_000 == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5), k
    assert counts[8] / 20_000 == pytest.approx(0.8**7, abs=0.012), "all the rest"
    few = Counter(len(draw_principles(draws, [True] * 3)) for _ in range(5_000))
    assert set(few) == {1, 2, 3}


def test_each_principle_and_its_opposite_come_equally_often() -> None:
    draws = np.random.default_rng(1)
    drawn = [each for _ in range(8_000) for each in draw_principles(draws, [True] * 5 + [False], most=6)]
    total = len(drawn) / 6
    for index in range(6):
        own = [each for each in drawn if each.index == index]
        assert len(own) == pytest.approx(total, rel=0.05)
        share = sum(each.negated for each in own) / len(own)
        assert share == (0 if index == 5 else pytest.approx(0.5, abs=0.04)), "the last one has no opposite"
    pairs = Counter(tuple(e.index for e in draw_principles(draws, [True] * 3)[:2]) for _ in range(9_000))
    orders = [count for chosen, count in pairs.items() if len(chosen) == 2]
    assert len(orders) == 6
    assert min(orders) > 0.85 * max(orders), "in every order"


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_nothing_is_drawn_twice(seed: int, count: int) -> None:
    drawn = draw_principles(np.random.default_rng(seed), [True] * count)
    assert 1 <= len({each.index for each in drawn}) == len(drawn) <= min(8, count)
    assert drawn == draw_principles(np.random.default_rng(seed), [True] * count)


def test_scores_of_both_orders() -> None:
    forward, backward = np.array([[2.0, -1.0, 3.0], [0.0, 1.0, -4.0]]), np.array([[4.0, 1.0, 0.0], [1.0, 1.0, -2.0]])
    assert combined_scores(forward, backward).tolist() == [[3.0, 0.0, 0.0], [0.0, 1.0, -3.0]]
    assert order_consistency(forward, backward) == pytest.approx(3 / 6)
    always_first = np.full((4, 2), 2.0)
    assert order_consistency(always_first, -always_first) == 0.0
    chance = np.random.default_rng(0).normal(size=(2, 5000, 4))
    assert order_consistency(chance[0], chance[1]) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="no judgements"):
        order_consistency(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="one for each order"):
        combined_scores(np.zeros((2, 3)), np.zeros((3, 2)))


def test_the_strongest_principle_decides() -> None:
    told = [0.5, -2.0, 0.0, 2.0]
    one, two, three, four = (DrawnPrinciple(i, False) for i in range(4))
    assert label_of(told, [one]) == 1
    assert label_of(told, [one, two]) == -1
    assert label_of(told, [three]) == 0
    assert label_of(told, [one, three]) == 1
    assert label_of(told, [one, two, four]) == 0, "two that contradict each other"
    assert label_of(told, [DrawnPrinciple(1, True), four]) == 1


@given(scores, st.integers(0, 2**32))
def test_opposites_turn_the_label(told: list[float], seed: int) -> None:
    drawn = draw_principles(np.random.default_rng(seed), [True] * len(told))
    turned = [DrawnPrinciple(each.index, not each.negated) for each in drawn]
    assert label_of(told, turned) == -label_of(told, drawn)
    assert label_of([-score for score in told], drawn) == -label_of(told, drawn), "and so do exchanged answers"
    assert label_of([3 * score for score in told], drawn) == label_of(told, drawn)


@pytest.mark.parametrize("change", [{"rate": 0.0}, {"rate": 1.5}, {"most": 0}, {"negation": 2.0}])
def test_what_cannot_be_drawn(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="principles"):
        draw_principles(np.random.default_rng(0), [True] * 3, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 principles"):
        draw_principles(np.random.default_rng(0), [])
