"""Batches whose share of rehearsal changes, and the arithmetic of how much rehearsal holds a drift."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.dynamics.mixture import Mixture, MixtureSampler
from hf_lifealign.dynamics.rehearsal import (
    Reach,
    calibrate,
    horizon,
    logit,
    reach,
    rehearsal_fraction,
    share_bounds,
    tolerated_drift,
)

FLAGS = [False] * 30 + [True] * 10
small = st.floats(-5, 5)


def batches(sampler: MixtureSampler) -> list[list[int]]:
    rows = list(sampler)
    return [rows[i : i + sampler.batch_size] for i in range(0, len(rows), sampler.batch_size)]


def test_the_share_is_that_of_the_mixture() -> None:
    mixture = Mixture(0.3)
    found = batches(MixtureSampler(FLAGS, 4, 4000, mixture, seed=1))
    counts = [sum(FLAGS[i] for i in batch) for batch in found]
    assert set(counts) == {1, 2}, "floor(1.2 + u)"
    assert sum(counts) / 4000 == pytest.approx(0.3, abs=0.01)
    # each kind is taken in turn: none twice before all were taken once
    new = [i for batch in found for i in batch if not FLAGS[i]][:60]
    assert sorted(new[:30]) == sorted(new[30:]) == list(range(30))
    assert new[:30] != new[30:]


def test_a_change_holds_from_its_batch_on_and_after_a_resume() -> None:
    mixture = Mixture(0.0)
    stream = iter(MixtureSampler(FLAGS, 4, 80, mixture, seed=2))
    first = list(itertools.islice(stream, 20))
    mixture.change(1.0, 6)
    mixture.change(0.5, 10)
    rest = list(stream)
    whole = first + rest
    kinds = [sum(FLAGS[i] for i in whole[4 * b : 4 * b + 4]) for b in range(20)]
    assert kinds[:6] == [0] * 6
    assert kinds[6:10] == [4] * 4
    assert kinds[10:] == [2] * 10
    again = Mixture(0.0)
    again.load(mixture.to_json())
    assert list(MixtureSampler(FLAGS, 4, 80, again, seed=2)) == whole
    assert MixtureSampler(FLAGS, 4, 80, again, seed=2).counts(8) == (24, 8)
    assert list(MixtureSampler(FLAGS, 4, 80, again, seed=3)) != whole


def test_a_last_batch_that_is_not_full() -> None:
    assert len(list(MixtureSampler(FLAGS, 4, 10, Mixture(0.5), seed=0))) == 10


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_no_share_outside_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Mixture(0.2).change(share, 3)


def test_the_past_does_not_change() -> None:
    mixture = Mixture(0.2)
    mixture.change(0.4, 5)
    with pytest.raises(ValueError, match="5"):
        mixture.change(0.3, 4)
    mixture.change(0.6, 5)
    assert mixture.to_json() == [[0, 0.2], [5, 0.6]]
    assert [mixture.at(i) for i in (0, 4, 5, 99)] == [0.2, 0.2, 0.6, 0.6]


@pytest.mark.parametrize("flags", [[True] * 3, [False] * 3])
def test_a_mixture_needs_both_kinds(flags: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs both"):
        MixtureSampler(flags, 2, 4, Mixture(0.5), 0)


# How much


@given(new=small, old=small, tolerated=st.floats(-2, 2))
def test_the_fraction_is_the_least_that_holds_the_drift(new: float, old: float, tolerated: float) -> None:
    found = rehearsal_fraction(new, old, tolerated)
    assert 0 <= found.value <= 1

    def drift(share: float) -> float:
        return (1 - share) * new + share * old

    if found.feasible:
        assert drift(found.value) >= -tolerated - 1e-9
        if found.value > 1e-6:
            assert drift(found.value * 0.99) < -tolerated + 1e-9, "less would not do"
    else:
        assert all(drift(share / 10) < -tolerated for share in range(11))
        assert drift(found.value) == max(new, old), "the end that drifts less"
        assert found.reason is not None


def test_the_fraction_in_numbers() -> None:
    assert rehearsal_fraction(-0.1, 0.3).value == pytest.approx(0.25)
    assert rehearsal_fraction(-0.1, 0.3, tolerated=0.06).value == pytest.approx(0.1)
    assert rehearsal_fraction(0.2, 0.3).value == 0
    assert not rehearsal_fraction(-0.5, -0.1).feasible
    assert rehearsal_fraction(-0.1, 0.3, tolerated=-0.1).value == pytest.approx(0.5), "it has to rise"
    assert rehearsal_fraction(0.05, 0.3, tolerated=-0.1).value == pytest.approx(0.2)
    for bad in ((math.nan, 0.1, 0.0), (0.1, math.inf, 0.0), (0.1, 0.1, math.nan)):
        with pytest.raises(ValueError, match="finite"):
            rehearsal_fraction(*bad)


rate_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def adam_steps(rates: list[float], decay: float, begun: int, moment: float, gradients: list[float]) -> float:
    """Sum of Adam's steps at a second moment of 1, from a corrected first moment after `begun` steps."""
    held, total = moment * (1 - decay**begun), 0.0
    for i, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        held = decay * held + (1 - decay) * gradient
        total += rate * held / (1 - decay ** (begun + i))
    return total


@given(rate_lists, st.sampled_from([0.5, 0.9]), st.integers(0, 40), st.floats(-2, 2))
def test_reach_is_what_adam_does(rates: list[float], decay: float, begun: int, moment: float) -> None:
    left, new = reach(rates, decay, begun), -0.3
    exact = adam_steps(rates, decay, begun, moment if begun else 0.0, [new] * len(rates))
    assert left.coming * new + left.carried * moment == pytest.approx(exact, abs=1e-9)
    assert left.carried + left.coming == pytest.approx(sum(rates)), "a lasting gradient makes whole steps"
    assert reach(rates) == Reach(0.0, pytest.approx(sum(rates)))


errors = st.floats(0, 1)


@given(small, errors, small, errors, st.floats(-2, 2))
def test_bounds_of_the_share(new: float, one: float, old: float, other: float, tolerated: float) -> None:
    low, high = share_bounds((new, one), (old, other), tolerated)
    assert 0 <= low <= high <= 1
    found = rehearsal_fraction(new, old, tolerated)
    if found.feasible:
        assert low - 1e-9 <= found.value <= high + 1e-9
    if rehearsal_fraction(new - one, old - other, tolerated).feasible:
        assert (1 - high) * (new - one) + high * (old - other) >= -tolerated - 1e-9, "that does in the worse case"
    else:
        assert high == 1
    exact = share_bounds((new, 0.0), (old, 0.0), tolerated)
    assert exact[0] == found.value or not found.feasible
    assert share_bounds((new, math.nan), (old, other), tolerated) == (0, 1), "nothing is sure"


def test_horizon_and_tolerance_are_each_others_inverse() -> None:
    assert horizon(0.9, 0.8, -0.05) == pytest.approx((logit(0.9) - logit(0.8)) / 0.05)
    assert horizon(0.9, 0.8, -tolerated_drift(0.9, 0.8, 40)) == pytest.approx(40)
    assert horizon(0.9, 0.8, -0.05, calibration=0.5) == pytest.approx(2 * horizon(0.9, 0.8, -0.05))
    assert horizon(0.7, 0.8, -0.05) == 0
    assert horizon(0.9, 0.8, 0.05) == math.inf
    assert tolerated_drift(0.7, 0.8, 10) == 0
    assert tolerated_drift(1.0, 0.8, 10) == 0, "an infinite room says nothing"
    with pytest.raises(ValueError, match="steps=0"):
        tolerated_drift(0.9, 0.8, 0)
    assert (logit(0), logit(1), logit(0.5)) == (-math.inf, math.inf, 0)


def test_calibration_is_the_slope_through_the_origin() -> None:
    assert calibrate([1.0, 2.0, -1.0], [0.5, 1.0, -0.5]) == pytest.approx(0.5)
    assert calibrate([], []) is None
    assert calibrate([0.0], [1.0]) is None
    assert calibrate([1.0], [-1.0]) is None
