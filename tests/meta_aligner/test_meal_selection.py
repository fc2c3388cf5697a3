"""Rejection sampling against a brute force that asks the definition."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.meta_aligner.selection import kept_count, quantile_rank, select

# few distinct values, so that ties are common
VALUES = st.integers(-3, 3)


@st.composite
def buffers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    answers, objectives = draw(st.integers(1, 12)), draw(st.integers(2, 3))
    row = st.lists(VALUES, min_size=objectives, max_size=objectives)
    scores = torch.tensor(draw(st.lists(row, min_size=answers, max_size=answers)), dtype=torch.float32)
    # halves and quarters, so that sums are exact
    weights = torch.tensor([[0.5, 0.5, 0.0][:objectives], [0.25, 0.75, 0.0][:objectives]])
    picks = draw(st.lists(st.integers(0, 1), min_size=answers, max_size=answers))
    prompts = draw(st.lists(st.integers(0, 3), min_size=answers, max_size=answers))
    return scores, weights[picks], torch.tensor(prompts), draw(st.sampled_from([0.05, 0.3, 0.5, 0.7, 1.0]))


def best(indices: list[int], merit: list[float], rho: float) -> set[int]:
    """Those with fewer better, or equal but earlier, answers than are kept."""
    keep = math.ceil(Fraction(str(rho)) * len(indices))
    rank = {i: sum(merit[j] > merit[i] or (merit[j] == merit[i] and j < i) for j in indices) for i in indices}
    return {i for i in indices if rank[i] < keep}


def groups_of(prompts: torch.Tensor, scope: str) -> list[list[int]]:
    if scope == "buffer":
        return [list(range(len(prompts)))]
    return [[i for i, p in enumerate(prompts.tolist()) if p == prompt] for prompt in sorted(set(prompts.tolist()))]


@pytest.mark.parametrize("scope", ["buffer", "prompt"])
@settings(max_examples=80, deadline=None)
@given(buffers())
def test_weighted_top(scope: str, buffer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]) -> None:
    scores, weights, prompts, rho = buffer
    merit = [sum(a * b for a, b in zip(s, w, strict=True)) for s, w in zip(scores.tolist(), weights.tolist(), strict=True)]  # fmt: skip # noqa: E501
    expected = set().union(*(best(group, merit, rho) for group in groups_of(prompts, scope)))
    assert select(scores, weights, prompts, rho, "weighted_top", scope).tolist() == sorted(expected)


@pytest.mark.parametrize("scope", ["buffer", "prompt"])
@settings(max_examples=80, deadline=None)
@given(buffers())
def test_any_quantile(scope: str, buffer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]) -> None:
    scores, weights, prompts, rho = buffer
    expected: set[int] = set()
    rows = scores.tolist()
    for group in groups_of(prompts, scope):
        merit = [0.0] * len(rows)
        for i in group:
            merit[i] = max(
                sum(rows[j][k] <= rows[i][k] for j in group) / len(group) for k in range(scores.shape[1])
            )  # fmt: skip
        expected |= best(group, merit, rho)
    assert select(scores, weights, prompts, rho, "any_quantile", scope).tolist() == sorted(expected)


def test_any_quantile_keeps_specialists_that_weighted_top_rejects() -> None:
    scores = torch.tensor([[3.0, -3.0], [1.0, 1.0], [0.9, 0.9], [-3.0, 3.0]])
    weights, prompts = torch.full((4, 2), 0.5), torch.zeros(4)
    assert select(scores, weights, prompts, 0.5, "weighted_top", "buffer").tolist() == [1, 2]
    assert select(scores, weights, prompts, 0.5, "any_quantile", "buffer").tolist() == [0, 3]


def test_the_ranking_uses_the_weights_each_answer_was_generated_with() -> None:
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert select(scores, weights, torch.zeros(2), 0.5, "weighted_top", "buffer").tolist() == [1]


def test_with_scope_prompt_no_prompt_goes_without_answers() -> None:
    scores = torch.tensor([[9.0, 9.0], [8.0, 8.0], [0.0, 0.0], [1.0, 1.0]])
    weights, prompts = torch.full((4, 2), 0.5), torch.tensor([4, 4, 2, 2])
    assert select(scores, weights, prompts, 0.5, "weighted_top", "prompt").tolist() == [0, 3]
    assert select(scores, weights, prompts, 0.5, "weighted_top", "buffer").tolist() == [0, 1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 100))
def test_the_number_kept_is_the_exact_ceiling(answers: int, percent: int) -> None:
    kept = kept_count(answers, percent / 100)
    assert kept == math.ceil(Fraction(percent, 100) * answers)
    assert 1 <= kept <= answers


def test_equal_scores_have_equal_ranks() -> None:
    ranks = quantile_rank(torch.tensor([[1.0, 5.0], [1.0, 4.0], [2.0, 3.0]]))
    assert ranks.T.tolist() == [[2 / 3, 2 / 3, 1.0], [1.0, 2 / 3, 1 / 3]]
