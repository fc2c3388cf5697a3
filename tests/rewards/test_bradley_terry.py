"""The linear Bradley-Terry fit against closed forms, gradients and a different solver."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.rewards.bradley_terry import bradley_terry_fit, bradley_terry_objective


def embeddings(pairs: int, dimension: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(pairs, dimension, generator=generator, dtype=torch.float64) for _ in range(2))


def root(function, low: float, high: float) -> float:
    """Where an increasing function is zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


def test_one_pair_has_the_solution_of_a_scalar_equation() -> None:
    # u = a d, where a l2 = sigmoid(-a |d|^2)
    chosen, rejected = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    d, l2 = (chosen - rejected)[0].double(), 0.05
    a = root(lambda a: a * l2 - 1 / (1 + math.exp(a * float(d @ d))), 0, 100)
    torch.testing.assert_close(bradley_terry_fit(chosen, rejected, l2), a * d, rtol=1e-8, atol=1e-9)


def test_contrary_pairs_in_one_dimension_give_the_log_odds() -> None:
    # 3 of 4 pairs prefer +1: without penalty the maximum is log 3, which a vanishing one comes to
    chosen = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    rejected = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    assert float(bradley_terry_fit(chosen, rejected, 1e-12)) == pytest.approx(math.log(3), abs=1e-6)


def test_a_strong_penalty_leaves_the_mean_difference() -> None:
    chosen, rejected = embeddings(30, 5)
    u = bradley_terry_fit(chosen, rejected, 1e6)
    torch.testing.assert_close(u * 2e6, (chosen - rejected).mean(0), rtol=1e-4, atol=1e-6)


def test_the_objective_has_the_gradient_that_the_solver_uses() -> None:
    chosen, rejected = embeddings(7, 4)
    u = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: bradley_terry_objective(u, chosen - rejected, 0.3), (u,))
    by_hand = sum(
        math.log(1 / (1 + math.exp(-float(u.detach() @ (c - r))))) for c, r in zip(chosen, rejected, strict=True)
    )
    expected = by_hand / 7 - 0.15 * float(u.detach() @ u.detach())
    assert float(bradley_terry_objective(u, chosen - rejected, 0.3)) == pytest.approx(expected, rel=1e-12)


def test_another_solver_comes_to_the_same() -> None:
    chosen, rejected = embeddings(60, 6)
    u = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [u], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = -bradley_terry_objective(u, chosen - rejected, 1e-2)
        loss.backward()
        return loss

    solver.step(closure)
    torch.testing.assert_close(bradley_terry_fit(chosen, rejected, 1e-2), u.detach(), rtol=1e-6, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.floats(-6, 2).map(lambda e: 10.0**e),
    st.floats(-3, 3).map(lambda e: 10.0**e),
)
def test_the_maximum_is_one_whatever_the_data(pairs: int, dimension: int, seed: int, l2: float, scale: float) -> None:
    chosen, rejected = (side * scale for side in embeddings(pairs, dimension, seed))
    u = bradley_terry_fit(chosen, rejected, l2).requires_grad_()
    bradley_terry_objective(u, chosen - rejected, l2).backward()
    assert float(u.grad.abs().max()) <= 1e-6 * max(1.0, scale * 10)
    # turned about, the same head with the other sign; and a bound on its length
    torch.testing.assert_close(bradley_terry_fit(rejected, chosen, l2), -u.detach(), rtol=1e-5, atol=1e-7)
    assert float(u.detach().norm()) <= float((chosen - rejected).norm(dim=1).max()) / l2


def test_the_same_pairs_give_the_same_bits() -> None:
    chosen, rejected = embeddings(50, 16)
    assert torch.equal(bradley_terry_fit(chosen, rejected, 1e-3), bradley_terry_fit(chosen, rejected, 1e-3))


@pytest.mark.parametrize(
    ("chosen", "rejected", "l2", "told"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), 0.1, "at least one pair"),
        (torch.ones(2, 3), torch.ones(2, 4), 0.1, "shape"),
        (torch.ones(3), torch.zeros(3), 0.1, "shape"),
        (torch.ones(2, 3), torch.ones(2, 3), 0.1, "same embedding"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), 0.1, "not finite"),
        (torch.ones(2, 3), torch.zeros(2, 3), 0.0, "l2=0.0"),
        (torch.ones(2, 3), torch.zeros(2, 3), -1, "above 0"),
        (torch.ones(2, 3), torch.zeros(2, 3), math.nan, "above 0"),
    ],
)
def test_what_cannot_be_fitted_is_said(chosen, rejected, l2, told) -> None:
    with pytest.raises(ValueError, match=told):
        bradley_terry_fit(chosen, rejected, l2)
