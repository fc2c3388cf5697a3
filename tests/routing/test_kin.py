"""What earlier tasks are worth to a later one, against cases whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.tiny import tiny_model

from hf_lifealign.routing import kinship, start_weights, view_weights
from hf_lifealign.strategies.merging import begun_with, summed_updates
from hf_lifealign.strategies.tensors import copied, trainable_parameters


def test_what_prefers_the_new_pairs_already_is_taken_over_whole() -> None:
    draws = np.random.default_rng(0)
    helps, hurts = 5 + draws.normal(size=48), -5 + draws.normal(size=48)
    assert start_weights(np.stack([helps, hurts], axis=1)) == pytest.approx([1, 0])
    assert start_weights(np.stack([hurts, hurts], axis=1)) == pytest.approx([0, 0], abs=0)
    assert start_weights(np.zeros((48, 2))) == pytest.approx([0, 0], abs=0)
    assert start_weights(np.zeros((48, 0))).shape == (0,)


def test_what_tells_nothing_is_mostly_left_out() -> None:
    """One standard error is its price: of chance alone one in six is above it."""
    draws = np.random.default_rng(0)
    taken = [start_weights(draws.normal(size=(48, 1)))[0] > 0 for _ in range(600)]
    assert np.mean(taken) == pytest.approx(0.16, abs=0.04)


def test_two_that_help_different_pairs_are_both_taken() -> None:
    half = np.repeat([[4.0, 0.0], [0.0, 4.0]], 24, axis=0) + np.random.default_rng(1).normal(size=(48, 2)) * 0.1
    assert start_weights(half) == pytest.approx([0.5, 0.5], abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(8, 40), st.integers(0, 10_000))
def test_no_other_direction_is_better(updates: int, pairs: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    margins = draws.normal(size=(pairs, updates)) * 3 + draws.normal(size=updates)
    size = np.sqrt((margins**2).mean())
    price = np.sqrt((margins**2).mean(axis=0) / pairs) / size / 2

    def least(direction: np.ndarray) -> float:
        """Of the loss on the ray in a direction."""
        scales = np.concatenate([[0.0], np.geomspace(1e-3, 100, 400)])
        z = np.outer(scales, margins @ direction / size)
        return float((np.logaddexp(0, -z).mean(axis=1) + scales * (price @ direction)).min())

    found = start_weights(margins)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1) or not found.any()
    for other in [*np.eye(updates), *draws.dirichlet(np.ones(updates), size=60)]:
        assert least(found) <= least(other) + 1e-4


def test_margins_in_other_units_change_nothing() -> None:
    margins = np.random.default_rng(2).normal(size=(48, 3)) + np.array([1.0, 0.2, -1.0])
    assert start_weights(100 * margins) == pytest.approx(start_weights(margins), abs=1e-3)


def test_kin_is_known_both_ways_and_views_lean_on_it() -> None:
    tasks = ("a", "b", "c", "d")
    starts = {"b": {"a": 0.5}, "c": {"a": 0.0, "b": 1.0}}
    assert kinship(tasks, "b", starts) == {"a": 0.5, "b": 1.0, "c": 1.0, "d": 0.0}
    assert view_weights(tasks, "b", 0.5, starts) == pytest.approx({"a": 0.1, "b": 0.7, "c": 0.2})
    # without kin a task answers for itself
    assert view_weights(tasks, "d", 0.5, starts) == {"d": 1.0}
    assert view_weights(tasks, "b", 0.0, starts) == {"b": 1.0}
    everybody = view_weights(tasks, "b", 0.4)
    assert everybody == pytest.approx({"a": 0.1, "b": 0.7, "c": 0.1, "d": 0.1})


def test_a_start_is_the_same_product_and_can_learn() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    initial = copied(trainable_parameters(model))
    torch.manual_seed(0)
    # an update of rank 2: two directions have nothing in them
    update = {name: torch.randn_like(tensor) for name, tensor in initial.items()}
    for name, tensor in update.items():
        (tensor[2:] if "lora_A" in name else tensor[:, 2:]).zero_()
    product, _ = summed_updates(model, {"a": update}, {"a": 0.5})
    start = begun_with(model, product, initial)
    for a in (name for name in start if "lora_A" in name):
        b = a.replace("lora_A", "lora_B")
        torch.testing.assert_close(start[b] @ start[a], 0.5 * update[b] @ update[a], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(start[a].norm(dim=1), initial[a].norm(dim=1), rtol=1e-4, atol=1e-6)
        assert (start[b].norm(dim=0) > 0).tolist() == [True, True, False, False]
