"""The mathematics of a prompt pool."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign import L2PConfig
from hf_lifealign.prompt_pool.pool import chosen_prompts, mean_features, prompt_mask, pull_loss

SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.integers(1, 6))
def test_the_most_similar_keys_are_chosen(seed: int, top_k: int) -> None:
    query, keys = normal(seed, 5, 3), normal(seed + 1, 6, 3)
    indices, similarity = chosen_prompts(query, keys, top_k)
    for row in range(5):
        cosines = torch.stack([torch.cosine_similarity(query[row], key, dim=0) for key in keys])
        best = cosines.sort(descending=True)
        torch.testing.assert_close(similarity[row], best.values[:top_k])
        assert indices[row].tolist() == best.indices[:top_k].tolist()


@given(SEEDS, st.floats(0.1, 10))
def test_lengths_of_queries_and_keys_do_not_count(seed: int, scale: float) -> None:
    query, keys = normal(seed, 4, 3), normal(seed + 1, 6, 3)
    found, other = chosen_prompts(query, keys, 2), chosen_prompts(query * scale, keys / scale, 2)
    assert torch.equal(found[0], other[0])
    torch.testing.assert_close(found[1], other[1])


def test_the_pull_ends_where_keys_point_at_the_query() -> None:
    query, keys = normal(0, 1, 4), normal(1, 3, 4)
    keys = torch.cat([keys, query * 2]).requires_grad_()
    _, similarity = chosen_prompts(query, keys, 1)
    assert pull_loss(similarity).item() == pytest.approx(0)
    (gradient,) = torch.autograd.grad(pull_loss(similarity), keys)
    assert gradient.abs().max() < 1e-12
    # opposite: a distance of 2 for each
    assert pull_loss(torch.full((3, 2), -1.0)).item() == 4


def test_the_pull_moves_chosen_keys_towards_the_query() -> None:
    query, keys = normal(2, 3, 4), normal(3, 5, 4).requires_grad_()
    indices, before = chosen_prompts(query, keys, 2)
    (gradient,) = torch.autograd.grad(pull_loss(before), keys)
    untouched = sorted(set(range(5)) - set(indices.flatten().tolist()))
    assert not gradient[untouched].any()
    moved = keys.detach() - 1e-3 * gradient
    after = torch.cosine_similarity(query[:, None], moved[indices], dim=-1)
    assert after.sum() > before.sum()
    assert torch.autograd.gradcheck(lambda k: pull_loss(chosen_prompts(query, k, 2)[1]), keys)


def test_a_mask_ends_with_the_prompt_on_either_side() -> None:
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    lengths = torch.tensor([2, 3])
    assert prompt_mask(right, lengths).tolist() == [[True, True, False, False], [True, True, True, False]]
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert prompt_mask(left, lengths).tolist() == [[False, True, True, False], [True, True, True, False]]
    assert torch.equal(prompt_mask(left, None), left.bool())


@given(SEEDS)
def test_features_are_the_mean_of_what_counts(seed: int) -> None:
    hidden = normal(seed, 2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    found = mean_features(hidden, mask)
    torch.testing.assert_close(found[0], hidden[0, :2].float().mean(dim=0))
    torch.testing.assert_close(found[1], hidden[1, 1:].float().mean(dim=0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool_size": 0}, "pool_size=0"),
        ({"prompt_length": 1.5}, "prompt_length=1.5"),
        ({"top_k": True}, "top_k=True"),
        ({"top_k": 11}, "top_k=11 and pool_size=10"),
        ({"pull_weight": -1.0}, "pull_weight=-1.0"),
        ({"pull_weight": float("nan")}, "pull_weight=nan"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        L2PConfig(**options)
