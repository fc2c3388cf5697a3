"""The figures of a comparison against the project's own metrics and against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.compare.figures import METRICS, Margins, compared, drawn, resampled, summarise, wins
from hf_lifealign.metrics import performance_matrix as pm


def run_of(seed: int, tasks: int = 3, pairs: int = 40, shift: float = 0.0) -> Margins:
    generator = np.random.default_rng(seed)
    return [[generator.normal(0.3 + shift, 1, pairs + j) for j in range(i + 1)] for i in range(tasks)]


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_figures_are_those_of_the_metrics(seed: int, tasks: int) -> None:
    cells = np.tril(np.random.default_rng(seed).random((tasks, tasks)))
    triangle = [list(row[: i + 1]) for i, row in enumerate(cells)]
    expected = [pm.backward_transfer(triangle), pm.forgetting(triangle), pm.last_performance(triangle),
                pm.average_performance(triangle)]  # fmt: skip
    np.testing.assert_allclose(summarise(cells), expected, atol=1e-12)


def test_a_single_task_has_neither_transfer_nor_forgetting() -> None:
    found = compared({"a": {0: [[np.array([1.0, -1.0, 2.0, 0.0])]]}}, "a", replicates=10)["a"]["figures"]
    assert found["bwt"] is None
    assert found["forgetting"] is None
    last = found["last_performance"]
    assert last is not None
    assert last.value == pytest.approx(2.5 / 4)


def test_a_margin_of_zero_is_half_a_win() -> None:
    assert wins(np.array([-1.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]


def test_the_sample_itself_comes_first() -> None:
    runs = [run_of(0), run_of(1)]
    found = resampled(runs, drawn([40, 41, 42], 5, 0), accuracy=False)
    assert found.shape == (6, 2, 3, 3)
    assert found[0, 1, 2, 1] == pytest.approx(runs[1][2][1].mean())
    assert found[0, 1, 0, 1] == 0


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    """One task, one seed: the mean of n values has a standard error of their deviation over the root of n."""
    margins = np.random.default_rng(0).normal(1, 2, 400)
    figure = compared({"a": {0: [[margins]]}}, "a", accuracy=False, replicates=4000)["a"]["figures"]["last_performance"]
    assert figure is not None
    half = 1.96 * margins.std() / 20
    assert figure.value == pytest.approx(margins.mean())
    assert figure.high - figure.value == pytest.approx(half, rel=0.08)
    assert figure.value - figure.low == pytest.approx(half, rel=0.08)


def test_equal_methods_do_not_differ_and_pairing_takes_out_what_they_share() -> None:
    runs = {seed: run_of(seed) for seed in range(3)}
    better = {seed: [[cell + 0.2 for cell in row] for row in run] for seed, run in runs.items()}
    found = compared({"a": runs, "b": better, "same": runs}, "a", accuracy=False)
    for name in METRICS:
        same, base = found["same"]["differences"][name], found["a"]["figures"][name]
        assert same is not None
        assert base is not None
        assert (same.value, same.low, same.high) == (0, 0, 0)
        assert found["a"]["differences"][name] is None
    gain = found["b"]["differences"]["last_performance"]
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2))


def test_seeds_widen_the_interval() -> None:
    """Pairs that are all alike leave only what the seeds do."""
    runs = {seed: [[np.full(10, float(seed))]] for seed in range(4)}
    figure = compared({"a": runs}, "a", accuracy=False)["a"]["figures"]["last_performance"]
    assert figure is not None
    assert figure.value == 1.5
    assert figure.low < 0.8
    assert figure.high > 2.2
    alone = compared({"a": {1: runs[1]}}, "a", accuracy=False)["a"]["figures"]["last_performance"]
    assert alone is not None
    assert alone.low == alone.high == 1


def test_differences_are_taken_over_shared_seeds() -> None:
    runs = {seed: run_of(seed) for seed in range(3)}
    one = {2: [[cell + 1 for cell in row] for row in runs[2]]}
    gain = compared({"a": runs, "b": one}, "a", accuracy=False)["b"]["differences"]["last_performance"]
    assert gain is not None
    assert gain.value == pytest.approx(1)


def test_other_test_pairs_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"The run of 'b' with seed 0 has other test pairs"):
        compared({"a": {0: run_of(0)}, "b": {0: run_of(0, pairs=39)}}, "a")
    with pytest.raises(ValueError, match="no run"):
        compared({}, "a")


def test_what_depends_on_a_stage_that_nobody_measured_is_not_known() -> None:
    whole = run_of(0)
    end = [[], [], whole[2]]
    told = compared({"whole": {0: whole}, "end": {0: end}}, "whole", accuracy=False)
    assert told["end"]["figures"]["last_performance"] == told["whole"]["figures"]["last_performance"]
    gain = told["end"]["differences"]["last_performance"]
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    for name in ("bwt", "forgetting", "average_performance"):
        assert told["end"]["figures"][name] is None
        assert told["end"]["differences"][name] is None
    with pytest.raises(ValueError, match="other test pairs"):
        compared({"no end": {0: [*whole[:2], []]}}, "no end")
