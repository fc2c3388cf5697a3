"""Paired bootstrap of two fronts against closed forms."""

import math

import numpy as np
import pytest

from hf_lifealign.meta_aligner.compare import compare_fronts, paired_bootstrap
from hf_lifealign.meta_aligner.front_figures import Front, FrontPoint, Scale, distinct_n

WEIGHTS = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
REFERENCE = [-3.0, -3.0]


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_inner_product_has_the_interval_of_a_paired_mean() -> None:
    """Under the weights (1, 0) alone, the difference is the mean of paired differences, with its known error."""
    a, b = draws(1, 400, 2), draws(1, 400, 2, seed=1)
    found = paired_bootstrap(a, b, np.array([[1.0, 0.0]]), REFERENCE)["inner_product"]
    paired = a[0, :, 0] - b[0, :, 0]
    error = paired.std() / math.sqrt(400)
    assert found.difference == pytest.approx(paired.mean(), abs=1e-12)
    assert found.standard_error == pytest.approx(error, rel=0.05)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.07)


def test_hypervolume_of_one_point_is_a_box() -> None:
    a, b = draws(1, 50, 2), draws(1, 50, 2, seed=1)
    found = paired_bootstrap(a, b, np.array([[0.5, 0.5]]), REFERENCE, replicates=50)["hypervolume"]
    mine, theirs = (float(np.prod(x[0].mean(axis=0) + 3)) for x in (a, b))
    assert (found.first, found.second) == (pytest.approx(mine), pytest.approx(theirs))
    assert found.difference == pytest.approx(mine - theirs)


def test_pairing_takes_out_what_both_arms_share() -> None:
    """A constant shift of the rewards: however noisy the prompts are, the difference is known exactly."""
    a = draws(3, 30, 2) * 10
    found = paired_bootstrap(a + 0.25, a, WEIGHTS, [-1000.0, -1000.0], replicates=100)["inner_product"]
    assert found.low == pytest.approx(0.25) == found.high
    same = paired_bootstrap(a, a, WEIGHTS, [-1000.0, -1000.0], replicates=100)
    assert all(d.low == d.high == d.difference == 0 for d in same.values())


def test_seeds_are_drawn_as_well() -> None:
    """Prompts alike, seeds apart: the error is that of a mean over seeds."""
    seeds = np.linspace(-1, 1, 8)
    a = np.zeros((8, 1, 5, 2)) + seeds[:, None, None, None]
    found = paired_bootstrap(a, np.zeros_like(a), np.array([[1.0, 0.0]]), REFERENCE)["inner_product"]
    assert found.difference == pytest.approx(0, abs=1e-12)
    assert found.standard_error == pytest.approx(seeds.std() / math.sqrt(8), rel=0.05)


def test_level_seed_and_missing_rewards() -> None:
    a, b = draws(3, 40, 2), draws(3, 40, 2, seed=1)
    wide, narrow = (paired_bootstrap(a, b, WEIGHTS, REFERENCE, 200, level)["hypervolume"] for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert paired_bootstrap(a, b, WEIGHTS, REFERENCE, 50) == paired_bootstrap(a, b, WEIGHTS, REFERENCE, 50)
    holed = a.copy()
    holed[1, 7, 0] = np.nan
    kept = np.delete(np.arange(40), 7)
    expected = paired_bootstrap(a[:, kept], b[:, kept], WEIGHTS, REFERENCE, 50)
    assert paired_bootstrap(holed, b, WEIGHTS, REFERENCE, 50) == expected
    with pytest.raises(ValueError, match="Not one prompt"):
        paired_bootstrap(a * np.nan, b, WEIGHTS, REFERENCE)
    with pytest.raises(ValueError, match="same seeds, weights, prompts"):
        paired_bootstrap(a, b[:, :-1], WEIGHTS, REFERENCE)
    with pytest.raises(ValueError, match="replicates=1"):
        paired_bootstrap(a, b, WEIGHTS, REFERENCE, 1)


def front(name: str, rewards: np.ndarray, **settings: int) -> Front:
    points = [
        FrontPoint(
            str(i), WEIGHTS[i].tolist(), rewards[i], [3] * rewards.shape[1], [1.0] * rewards.shape[1], [0.5, 0.9]
        )
        for i in range(3)
    ]
    scale = Scale.of([1.0, 2.0], [2.0, 4.0])
    return Front(name, ["a", "b"], scale, points, None, None, {"seed": 0, **settings})


def test_fronts_are_compared_on_their_scale() -> None:
    a = draws(3, 20, 2)
    scale = np.array([2.0, 4.0])
    one, two = front("one", a * scale + [1, 2]), front("two", (a - 0.5) * scale + [1, 2])
    found = compare_fronts(one, two, replicates=50)
    expected = paired_bootstrap(a, a - 0.5, WEIGHTS, REFERENCE, 50)
    for name in ("hypervolume", "inner_product"):
        assert found[name].to_json() == pytest.approx(expected[name].to_json())
    assert found["inner_product"].difference == pytest.approx(0.5)
    assert one.figures()["hypervolume"] == pytest.approx(found["hypervolume"].first)
    several = compare_fronts([one, one], [two, two], replicates=50)
    assert several["inner_product"].difference == pytest.approx(0.5)


def test_fronts_that_differ_in_more_than_the_arm_are_refused() -> None:
    a = draws(3, 20, 2)
    with pytest.raises(ValueError, match="differ in their prompts and decoding"):
        compare_fronts(front("one", a), front("two", a, prompts=3))
    with pytest.raises(ValueError, match="sampled with the seeds 0 and 1"):
        compare_fronts(front("one", a), front("two", a, seed=1))
    with pytest.raises(ValueError, match="one for each seed"):
        compare_fronts([], [])


def test_front_figures_by_hand() -> None:
    """Three points on a line from (0, 1) to (1, 0) in z-scores, from a reference point at (0, 0)."""
    z = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    points = [FrontPoint(str(i), WEIGHTS[i].tolist(), z[i : i + 1] * 2 + 1, [4], [8.0], [1.0, 1.0]) for i in range(3)]
    made = Front("x", ["a", "b"], Scale.of([1.0, 1.0], [2.0, 2.0], [1.0, 1.0]), points, points[0], None, {})
    figures = made.figures()
    assert figures["hypervolume"] == pytest.approx(0.25)
    assert figures["inner_product"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert figures["controllability"] == pytest.approx(1)
    again = Front.from_json(made.to_json())
    assert again.to_json() == made.to_json()
    point = made.to_json()["points"][1]
    assert point["mean"] == [2.0, 2.0]
    assert point["z"] == [0.5, 0.5]
    assert (point["mean_length"], point["nll_per_token"], point["perplexity"]) == (4.0, 2.0, pytest.approx(math.e**2))


def test_scale() -> None:
    default = Scale.of([1.0, 2.0], [2.0, 0.0])
    assert default.reference == [-3.0, -3.0]
    assert default.reference_point() == [-5.0, 2.0]
    assert default.z(np.array([[3.0, 7.0]])).tolist() == [[1.0, 0.0]]
    assert Scale.of([1.0, 2.0], [2.0, 4.0], [0.0, 0.0]).reference == [-0.5, -0.5]
    with pytest.raises(ValueError, match="never varied"):
        Scale.of([1.0, 2.0], [2.0, 0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="1 numbers for 2"):
        Scale.of([1.0, 2.0], [2.0, 1.0], [0.0])


def test_distinct_n() -> None:
    assert distinct_n(["a b a", "A c"], 1) == pytest.approx(3 / 5)
    assert distinct_n(["a b a", "A c"], 2) == 1.0
    assert distinct_n(["", "x"], 2) == 0.0
