"""Space "factors" against an independent float64 NumPy oracle of the published algorithm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slmc_helpers import disturb, tiny_model

from hf_lifealign.slmc.consolidation import Settings, consolidate_factor
from hf_lifealign.slmc.linalg import denoise, history_basis, leading_mixture, leading_rank, refine
from hf_lifealign.slmc.model import find_tuner


def oracle(before, now, past, threshold, weight):
    """RSM by the paper's formulas: SVD of SM, SVD of the stacked history with every non-zero direction."""
    U, S, Vt = np.linalg.svd(now - before, full_matrices=False)
    share = np.cumsum(S**2) / np.sum(S**2) if S.any() else np.ones_like(S)
    k = min(int(np.sum(share < threshold)) + 1, len(S))
    vector = ((U[:, :k] * S[:k]) @ Vt[:k]).ravel()
    if past:
        _, s, V = np.linalg.svd(np.stack([p.ravel() for p in past]), full_matrices=False)
        V = V[s > 1e-12 * s[0]] if s[0] > 0 else V[:0]
        vector = vector - (1 - weight) * (V.T @ (V @ vector))
    return vector.reshape(before.shape)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 30)),
    threshold=st.sampled_from([0.3, 0.5, 0.9, 0.99]),
    weight=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    seed=st.integers(0, 10_000),
)
def test_six_task_histories_agree_with_the_oracle(shape, threshold, weight, scale, seed):
    rng = np.random.default_rng(seed)
    W = scale * rng.standard_normal(shape)
    past, history = [], []
    options = Settings(threshold, weight)
    for _ in range(6):
        # Overlapping updates: a shared direction makes the projection matter.
        now = W + scale * (rng.standard_normal(shape) + 2 * np.outer(np.ones(shape[0]), np.ones(shape[1])))
        RSM = oracle(W, now, past, threshold, weight)
        staged = consolidate_factor("w", torch.tensor(W), torch.tensor(now), history, options)
        reached = staged.weights[0].numpy()
        if np.linalg.matrix_rank(np.stack([*(p.ravel() for p in past), RSM.ravel()])) <= len(past):
            break  # the space is full: what is left is rounding, in which both sides may differ
        assert np.linalg.norm(reached - (W + RSM)) <= 1e-6 * np.linalg.norm(RSM)
        past.append(RSM)
        history.extend(staged.added)
        W = reached


def test_float32_model_follows_the_oracle_over_six_tasks():
    model = tiny_model(target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 3})
    tuner = find_tuner(model)
    past = {key: [] for key in tuner._adapter_parameters()}
    for task in range(6):
        model.begin_task(f"t{task}")
        before = {key: p.detach().double().numpy().copy() for key, p in tuner._adapter_parameters().items()}
        disturb(model, task)
        now = {key: p.detach().double().numpy().copy() for key, p in tuner._adapter_parameters().items()}
        model.consolidate()
        for key, parameter in tuner._adapter_parameters().items():
            RSM = oracle(before[key], now[key], past[key], 0.9, 0.5)
            past[key].append(RSM)
            wanted = before[key] + RSM
            assert np.linalg.norm(parameter.detach().double().numpy() - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_leading_rank_is_the_smallest_that_reaches_the_threshold():
    S = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    assert leading_rank(S, 9 / 11 - 1e-9)[0] == 1
    assert leading_rank(S, 0.9)[0] == 2
    assert leading_rank(S, 1.0) == (3, pytest.approx(1.0))
    assert leading_rank(torch.zeros(3), 0.9) == (0, 1.0)
    assert leading_rank(torch.tensor([1e-200], dtype=torch.float64), 0.9)[0] == 1


def test_zero_update_stays_zero():
    result = denoise(torch.zeros(3, 5, dtype=torch.float64), 0.9)
    assert (result.rank, float(result.update.norm())) == (0, 0.0)
    staged = consolidate_factor("w", torch.ones(3, 5), torch.ones(3, 5), [(torch.randn(3, 5),)], Settings())
    assert torch.equal(staged.weights[0], torch.ones(3, 5))


def test_basis_drops_zero_and_dependent_vectors():
    torch.manual_seed(0)
    a, b = torch.randn(2, 20, dtype=torch.float64)
    history = torch.stack([torch.zeros_like(a), a, 1e-8 * b, a + a.float().double() * 1e-9], dim=1)
    V = history_basis(history)
    assert V.shape == (20, 2)
    assert torch.allclose(V.T @ V, torch.eye(2, dtype=torch.float64), atol=1e-12)
    for vector in (a, b):
        assert (vector - V @ (V.T @ vector)).norm() <= 1e-6 * vector.norm()


def test_nearly_dependent_history_still_gives_an_orthonormal_basis():
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, dtype=torch.float64)
    V = history_basis(torch.stack([a, a + 1e-5 * b], dim=1))
    assert torch.allclose(V.T @ V, torch.eye(2, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("weight", "left"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_projection_weight_scales_what_lies_in_the_history(weight, left):
    V = history_basis(torch.eye(6, dtype=torch.float64)[:, :2])
    x = torch.tensor([1.0, 2.0, 0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    refined, share = refine(x, V, weight)
    assert torch.allclose(refined, torch.tensor([left, 2 * left, 0, 2, 0, 0], dtype=torch.float64))
    assert share == pytest.approx(5 / 9)


def test_leading_mixture_gives_the_leading_singular_directions():
    torch.manual_seed(0)
    H = torch.randn(40, 5, dtype=torch.float64)
    U, S, _ = torch.linalg.svd(H, full_matrices=False)
    mixture, kept = leading_mixture(H.T @ H, 3)
    got = H @ mixture
    assert torch.allclose(got @ got.T, (U[:, :3] * S[:3] ** 2) @ U[:, :3].T, atol=1e-10)
    assert kept == pytest.approx(float(S[:3].square().sum() / S.square().sum()))
