"""Realised preferences, their divergence, likelihoods and reward statistics, against closed forms and float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.meta_aligner.preferences import (
    RewardStatistics,
    check_preference,
    preference_divergence,
    realised_preference,
    sequence_nll,
)
from hf_lifealign.meta_aligner.weight_net import PreferenceWeightNet

NUMBERS = st.floats(-8, 8, allow_nan=False, width=32)
PAIRS = st.integers(2, 5).flatmap(
    lambda k: st.tuples(*[st.lists(NUMBERS, min_size=k, max_size=k) for _ in range(2)])
)  # fmt: skip


def test_realised_preference_is_the_softmax_of_scores_over_tau() -> None:
    scores = [0.3, -1.2, 2.0]
    powers = [math.exp(s / 0.5) for s in scores]
    expected = [p / sum(powers) for p in powers]
    assert realised_preference(torch.tensor([scores]), 0.5)[0].tolist() == pytest.approx(expected, rel=1e-6)
    flat = realised_preference(torch.tensor([scores]), 1e6)
    assert flat[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_divergence_is_a_divergence_and_its_gradient_is_w_minus_target(pair: tuple[list[float], list[float]]) -> None:
    logits, wanted = (torch.tensor(values, dtype=torch.float64) for values in pair)
    target = torch.softmax(wanted, -1)
    logits.requires_grad_(True)
    divergence = preference_divergence(torch.log_softmax(logits, -1), target)
    by_hand = sum(t * math.log(t / w) for t, w in zip(target.tolist(), logits.softmax(-1).tolist(), strict=True))
    assert divergence.item() == pytest.approx(by_hand, rel=1e-9, abs=1e-12)
    assert divergence.item() >= -1e-14
    divergence.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, logits.softmax(-1).detach() - target, rtol=0, atol=1e-14)


def test_divergence_is_zero_only_at_the_target() -> None:
    target = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert abs(preference_divergence(target.log(), target).item()) < 1e-15
    assert preference_divergence(torch.tensor([0.3, 0.4, 0.3]).double().log(), target).item() > 1e-3


def test_divergence_passes_gradcheck_in_both_arguments() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: preference_divergence(torch.log_softmax(a, -1), torch.softmax(b, -1)), (logits, wanted)
    )


def test_a_target_of_zero_is_no_term() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_weights = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    expected = [math.log(1 / 0.25), math.log(1 / 0.75)]
    assert preference_divergence(log_weights, target).tolist() == pytest.approx(expected)


def test_a_sleeping_objective_gives_no_nan_value_or_gradient() -> None:
    torch.manual_seed(0)
    net = PreferenceWeightNet(6, 2, 5)
    torch.nn.init.normal_(net.output.weight)
    net.grow(3)
    log_weights = net.log_weights(torch.randn(4, 6))
    assert log_weights[:, 2].eq(-math.inf).all()
    target = torch.tensor([[0.3, 0.7, 0.0]]).expand(4, -1)
    preference_divergence(log_weights, target).mean().backward()
    for parameter in net.parameters():
        assert torch.isfinite(parameter.grad).all()
    # the gradient reaches the objectives that are awake, and nothing else
    assert net.output.bias.grad is not None
    assert net.output.bias.grad[2] == 0
    assert net.output.bias.grad[:2].abs().sum() > 0


@pytest.mark.parametrize("per_token", [False, True])
def test_sequence_nll_reads_the_masked_tokens_alone(per_token: bool) -> None:
    logps = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -9.0, -9.0], [-7.0, -7.0, -7.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    expected = [7 / 3, 0.5, 0.0] if per_token else [7.0, 0.5, 0.0]
    assert sequence_nll(logps, mask, per_token).tolist() == pytest.approx(expected)


def test_statistics_against_a_float64_oracle() -> None:
    torch.manual_seed(0)
    rewards = torch.randn(200, 3) * torch.tensor([1.0, 40.0, 1e-3]) + torch.tensor([5.0, -300.0, 0.0])
    found = RewardStatistics.of(rewards)
    columns = rewards.double().T.tolist()
    for k, column in enumerate(columns):
        mean = math.fsum(column) / len(column)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column))
        assert found.mean[k].item() == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert found.std[k].item() == pytest.approx(std, rel=1e-5)
    z = found.normalise(rewards)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_unrated_answers_do_not_count() -> None:
    nan = math.nan
    whole = RewardStatistics.of(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    holed = RewardStatistics.of(torch.tensor([[1.0, 2.0], [nan, 500.0], [3.0, 8.0], [700.0, nan]]))
    assert torch.equal(whole.mean, holed.mean)
    assert torch.equal(whole.std, holed.std)
    assert whole.mean.tolist() == [2.0, 5.0]
    assert whole.std.tolist() == [1.0, 3.0]
    assert holed.normalise(torch.tensor([[nan, 5.0]]))[0].isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="Not one answer was rated"):
        RewardStatistics.of(torch.tensor([[nan, 1.0], [1.0, nan]]))


@pytest.mark.parametrize("value", [0.0, 7.0, 1e8 + 0.1, -3e-9])
def test_a_constant_reward_has_score_zero_even_where_its_sum_rounds(value: float) -> None:
    rewards = torch.stack([torch.full((7,), value), torch.arange(7.0)], dim=1)
    found = RewardStatistics.of(rewards)
    assert found.constant() == [0]
    assert found.normalise(rewards)[:, 0].tolist() == [0.0] * 7
    assert found.normalise(rewards)[:, 1].abs().max() > 1
    # an answer without a rating has no score either
    assert found.normalise(torch.tensor([[math.nan, 1.0]])).isnan().tolist() == [[True, False]]
    # a later answer that does differ is not blown up by a standard deviation of 0
    assert found.normalise(torch.tensor([[value + 5, 0.0]]))[0, 0].item() == 0


def test_grown_statistics_keep_the_old_scales() -> None:
    old = RewardStatistics(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    new = RewardStatistics(torch.tensor([9.0, 9.0, 5.0]), torch.tensor([9.0, 9.0, 6.0]))
    grown = old.grow(new)
    assert grown.mean.tolist() == [1.0, 2.0, 5.0]
    assert grown.std.tolist() == [3.0, 4.0, 6.0]


def test_preferences_as_a_user_gives_them() -> None:
    names = ["helpful", "harmless"]
    assert check_preference([0.25, 0.75], names, 3).tolist() == [[0.25, 0.75]] * 3
    assert check_preference({"harmless": 1}, names, 2).tolist() == [[0.0, 1.0]] * 2
    each = [[0.5, 0.5], [1.0, 0.0]]
    assert check_preference(each, names, 2).tolist() == each
    assert check_preference(torch.tensor(each), names, 2).tolist() == each


@pytest.mark.parametrize(
    ("preference", "rows", "text"),
    [
        ([0.5, 0.6], 1, "sum to 1"),
        ([1.5, -0.5], 1, "at least 0"),
        ([math.nan, 1.0], 1, "at least 0"),
        ([math.inf, 0.0], 1, "at least 0"),
        ([1.0], 1, "needs 2 weights"),
        ([0.2, 0.3, 0.5], 1, "needs 2 weights"),
        ([[[0.5, 0.5]]], 1, "needs 2 weights"),
        ([[0.5, 0.5]] * 2, 3, "2 preferences for 3 prompts"),
        ({"b": 1.0, "c": 0.0}, 1, r"weights for \['c'\]"),
        ({"b": 0.4}, 1, "sum to 1"),
    ],
)
def test_preferences_off_the_simplex_are_refused(preference: Any, rows: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_preference(preference, ["a", "b"], rows)
