"""The focal loss against its closed forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign import focal_preference_loss, focal_weight


@given(st.floats(-1e4, 1e4), st.floats(0, 8))
@settings(max_examples=300, deadline=None)
def test_finite_value_and_gradient_in_float32(margin: float, gamma: float) -> None:
    r = torch.tensor(margin, dtype=torch.float32, requires_grad=True)
    loss = focal_preference_loss(r, gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(r.grad)
    assert r.grad <= 0


@given(st.floats(-30, 30), st.floats(0, 6))
@settings(max_examples=200, deadline=None)
def test_gradient_equals_closed_form(margin: float, gamma: float) -> None:
    r = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    focal_preference_loss(r, gamma).backward()
    p = torch.sigmoid(r.detach())
    q = torch.sigmoid(-r.detach())
    expected = -(q**gamma) * (q - gamma * p * F.logsigmoid(r.detach()))
    torch.testing.assert_close(r.grad, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_gradcheck(gamma: float) -> None:
    r = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: focal_preference_loss(x, gamma), (r,))


def test_gamma_zero_is_the_sigmoid_loss() -> None:
    r = torch.linspace(-50, 50, 101)
    assert torch.equal(focal_preference_loss(r, 0.0), -F.logsigmoid(r))


def test_weights_that_the_method_names() -> None:
    """A new pair weighs 0.25, a mastered one next to nothing, a forgotten one nearly 1 (gamma 2)."""
    margins = torch.tensor([0.0, 1.8, -3.0])
    torch.testing.assert_close(focal_weight(margins, 2.0), torch.tensor([0.25, 0.0201, 0.9074]), atol=1e-3, rtol=0)


@given(st.floats(-20, 20), st.floats(0, 4), st.floats(0.01, 4))
@settings(deadline=None)
def test_a_larger_gamma_never_raises_the_loss(margin: float, gamma: float, more: float) -> None:
    r = torch.tensor(margin, dtype=torch.float64)
    assert focal_preference_loss(r, gamma + more) <= focal_preference_loss(r, gamma) + 1e-15
