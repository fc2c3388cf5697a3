"""Which generated answers are trained on: rejection sampling by preference (pure functions of tensors)."""

import math
from typing import Literal, get_args

import torch

Selection = Literal["weighted_top", "any_quantile"]
Scope = Literal["buffer", "prompt"]
SELECTIONS, SCOPES = get_args(Selection), get_args(Scope)


def kept_count(answers: int, rho: float) -> int:
    """How many of `answers` are kept: ``ceil(rho * answers)``; a product such as 0.7 * 10 is not rounded up to 8."""
    return min(answers, math.ceil(rho * answers - 1e-9))


def select(
    scores: torch.Tensor, weights: torch.Tensor, prompts: torch.Tensor, rho: float, selection: str, scope: str
) -> torch.Tensor:
    r"""
    Indices of the answers to train on, ascending (arXiv 2604.24178, rejection sampling; the ranking is our choice).

    `"weighted_top"` ranks by ``w . r`` with the weights under which each answer was generated. `"any_quantile"` is the
    rule of Rewards-in-Context (arXiv 2402.10207): an answer stays if *some* objective finds it among its best. The
    threshold is the highest for which enough stay, so that both keep the same number. Ties go to the earlier answer.

    Args:
        scores (`torch.Tensor` of shape `(answers, objectives)`): z-scored rewards, all finite.
        weights (`torch.Tensor` of shape `(answers, objectives)`): preferences the answers were generated with.
        prompts (`torch.Tensor` of shape `(answers,)`): which prompt each answers; used with `scope="prompt"`.
        rho (`float`): share to keep, in (0, 1].
        selection (`str`): `"weighted_top"` or `"any_quantile"`.
        scope (`str`): `"buffer"` ranks all answers of a round together, `"prompt"` those of a prompt.

    Returns:
        `torch.Tensor` of shape `(kept,)` and dtype int64.
    """
    groups = [torch.arange(len(scores))]
    if scope == "prompt":
        groups = [torch.nonzero(prompts == prompt).flatten() for prompt in prompts.unique(sorted=True)]
    kept = []
    for group in groups:
        if selection == "any_quantile":
            merit = quantile_rank(scores[group]).amax(-1)
        else:
            merit = (scores[group] * weights[group]).sum(-1)
        order = torch.sort(merit, descending=True, stable=True).indices
        kept.append(group[order[: kept_count(len(group), rho)]])
    return torch.cat(kept).sort().values if kept else torch.empty(0, dtype=torch.int64)


def quantile_rank(scores: torch.Tensor) -> torch.Tensor:
    """Share of answers that an answer is at least as good as, for each objective.

    Args:
        scores (`torch.Tensor` of shape `(answers, objectives)`).

    Returns:
        `torch.Tensor` of the same shape, in (0, 1]; equal scores have equal ranks.
    """
    columns = scores.T.contiguous()
    ordered = columns.sort(dim=-1).values.contiguous()
    return torch.searchsorted(ordered, columns, right=True).T.double() / max(len(scores), 1)
