"""The mathematics of a prompt pool: which prompts a query chooses, and what pulls their keys to it."""

import torch
import torch.nn.functional as F


def chosen_prompts(query: torch.Tensor, keys: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts whose keys are most like the query, the most alike first (L2P, arXiv 2112.08654, eq. 3).

    Args:
        query (`torch.Tensor` of shape `(rows, features)`), keys (`torch.Tensor` of shape `(prompts, features)`).
        top_k (`int`): prompts for each row, at most as many as there are.

    Returns:
        indices and cosine similarities, each a `torch.Tensor` of shape `(rows, top_k)`.
    """
    similarity = F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T
    indices = similarity.detach().topk(top_k, dim=-1).indices
    return indices, similarity.gather(-1, indices)


def pull_loss(similarity: torch.Tensor) -> torch.Tensor:
    """Cosine distance of queries to the keys they chose, summed over a row's keys, mean over rows (L2P, eq. 5).

    Args:
        similarity (`torch.Tensor` of shape `(rows, top_k)`): cosines.

    Returns:
        scalar `torch.Tensor`.
    """
    return (1 - similarity).sum(dim=-1).mean()


def mean_features(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of token features, in float32.

    Args:
        hidden (`torch.Tensor` of shape `(rows, tokens, features)`).
        mask (`torch.Tensor` of shape `(rows, tokens)`): which tokens count; at least one of each row.

    Returns:
        `torch.Tensor` of shape `(rows, features)`.
    """
    weight = mask.to(torch.float32)[..., None]
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1)


def prompt_mask(attention_mask: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Which tokens are the prompt: the first `lengths` of each row that are no padding, on whichever side that is.

    Args:
        attention_mask (`torch.Tensor` of shape `(rows, tokens)`): 0 where padding is.
        lengths (`torch.Tensor` of shape `(rows,)`, *optional*): tokens of each prompt; all by default.

    Returns:
        boolean `torch.Tensor` of shape `(rows, tokens)`.
    """
    real = attention_mask.bool()
    if lengths is None:
        return real
    return real & (real.cumsum(dim=1) <= lengths.to(real.device)[:, None])
