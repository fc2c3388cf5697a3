"""The gate against a regression over all prompts at once, and its file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_lifealign.routing import Gate, view_weights

Array = NDArray[np.float64]


def clouds(seed: int, tasks: int, width: int, spread: float = 1.0) -> list[Array]:
    """Features of tasks of different sizes, each around a centre of its own."""
    draws = np.random.default_rng(seed)
    scale = draws.uniform(0.1, 10, size=width)
    return [
        scale * (draws.standard_normal(width) + spread * draws.standard_normal((int(draws.integers(2, 30)), width)))
        for _ in range(tasks)
    ]


def gate_of(features: list[Array], ridge: float = 0.1) -> Gate:
    gate = Gate.empty(features[0].shape[1], ridge)
    for i, each in enumerate(features):
        gate = gate.added(f"task-{i}", each)
    return gate


def at_once(features: list[Array], ridge: float, asked: Array) -> Array:
    """Weighted ridge regression of one-hot tasks on standardised features, as least squares with rows of the ridge."""
    count = len(features)
    x = np.concatenate(features)
    y = np.concatenate([np.tile(np.eye(count)[i], (len(each), 1)) for i, each in enumerate(features)])
    weights = np.concatenate([np.full(len(each), 1 / len(each) / count) for each in features])
    centre = weights @ x
    deviation = np.sqrt(weights @ (x - centre) ** 2)
    z = (x - centre) / deviation
    left = np.vstack([np.sqrt(weights)[:, None] * z, np.sqrt(ridge) * np.eye(z.shape[1])])
    right = np.vstack([np.sqrt(weights)[:, None] * (y - 1 / count), np.zeros((z.shape[1], count))])
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    return np.asarray((asked - centre) / deviation @ solved + 1 / count)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 12), st.sampled_from([1e-3, 0.1, 10.0]))
def test_task_by_task_it_is_the_regression_over_all_prompts(seed: int, tasks: int, width: int, ridge: float) -> None:
    features = clouds(seed, tasks, width)
    asked = np.concatenate(features)
    scores = gate_of(features, ridge).scores(asked)
    np.testing.assert_allclose(scores, at_once(features, ridge, asked), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-9)


def test_the_order_of_the_tasks_makes_no_difference() -> None:
    features = clouds(3, 4, 6)
    there, back = gate_of(features), gate_of(features[::-1])
    np.testing.assert_allclose(there.scores(features[1]), back.scores(features[1])[:, ::-1], rtol=1e-9, atol=1e-12)


def test_prompts_apart_find_their_task_and_what_never_varies_tells_nothing() -> None:
    features = [np.hstack([each, np.full((len(each), 2), 7.0)]) for each in clouds(1, 3, 8, spread=0.05)]
    gate = gate_of(features)
    for i, each in enumerate(features):
        assert gate.route(each) == [f"task-{i}"] * len(each)
    assert gate.route(features[0] + np.r_[np.zeros(8), 100, 100]) == ["task-0"] * len(features[0])


def test_one_task_takes_everything() -> None:
    (features,) = clouds(0, 1, 3)
    assert gate_of([features]).route(features * 100) == ["task-0"] * len(features)


def test_file(tmp_path: Path) -> None:
    gate = gate_of(clouds(2, 3, 5), ridge=0.3)
    gate.save(tmp_path / "gate.safetensors", lean="0.25")
    read, told = Gate.load(tmp_path / "gate.safetensors")
    assert (read.tasks, read.ridge, told["lean"]) == (gate.tasks, 0.3, "0.25")
    np.testing.assert_array_equal(read.means, gate.means)
    np.testing.assert_array_equal(read.second, gate.second)
    content = (tmp_path / "gate.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "other.safetensors").write_bytes(content.replace(b"lifealign-gate-1", b"lifealign-gate-9"))
    for name in ("cut", "other", "none"):
        with pytest.raises(ValueError, match="not a gate that can be read"):
            Gate.load(tmp_path / f"{name}.safetensors")


def test_what_does_not_fit_is_refused() -> None:
    (features,) = clouds(0, 1, 3)
    gate = gate_of([features])
    with pytest.raises(ValueError, match="already"):
        gate.added("task-0", features)
    for wrong in (features[:, :2], features[:0], features[0]):
        with pytest.raises(ValueError, match="of another base"):
            gate.added("other", wrong)
    with pytest.raises(ValueError, match="no task"):
        Gate.empty(3).scores(features)


def test_views_lean_on_the_mean() -> None:
    tasks = ["a", "b", "c", "d"]
    assert view_weights(tasks, "b", 0.0) == {"a": 0, "b": 1, "c": 0, "d": 0}
    assert view_weights(tasks, "b", 1.0) == dict.fromkeys(tasks, 0.25)
    leaning = view_weights(tasks, "b", 0.4)
    assert leaning == pytest.approx({"a": 0.1, "b": 0.7, "c": 0.1, "d": 0.1})
