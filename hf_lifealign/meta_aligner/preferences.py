"""Preference weights and rewards of several objectives: pure functions of tensors (Meta-Aligner, arXiv 2604.24178)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# A standard deviation below this share of the rewards' size is rounding, not variance.
_CONSTANT = 1e-6


def realised_preference(scores: torch.Tensor, tau: float) -> torch.Tensor:
    r"""
    The preference that an answer realises: ``w~_k = softmax_k(r_k / tau)`` (arXiv 2604.24178, realised preference).

    Args:
        scores (`torch.Tensor` of shape `(..., objectives)`): rewards, z-scored so that no objective's scale decides.
        tau (`float`): temperature, above 0.

    Returns:
        `torch.Tensor` of the same shape; the last dimension sums to 1.
    """
    return torch.softmax(scores / tau, dim=-1)


def preference_divergence(log_weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r"""
    ``KL(target || w)``, the supervised loss of the preference-weight-net (arXiv 2604.24178, L_sup). Its gradient in
    the logits of ``w`` is ``w - target``.

    Args:
        log_weights (`torch.Tensor` of shape `(..., objectives)`): logarithms of the net's weights.
        target (`torch.Tensor` of the same shape): realised preferences. Where one is 0, so is its term.

    Returns:
        `torch.Tensor` of shape `(...)`, in nats.
    """
    wanted = torch.xlogy(target, target)
    # a sleeping objective has weight 0 and log-weight -inf; 0 * -inf is no term
    given = torch.where(target > 0, target * log_weights, torch.zeros_like(target))
    return (wanted - given).sum(-1)


def sequence_nll(logps: torch.Tensor, mask: torch.Tensor, per_token: bool = False) -> torch.Tensor:
    r"""
    Negative log-likelihood of each answer: ``- sum_j log pi(y_j | y_<j, x, w)`` (arXiv 2604.24178, L_inner).

    Args:
        logps (`torch.Tensor` of shape `(answers, tokens)`): log-probabilities of the answers' tokens.
        mask (`torch.Tensor` of the same shape): 1 for tokens of the answer, 0 for padding.
        per_token (`bool`): mean over the tokens instead of the sum.

    Returns:
        `torch.Tensor` of shape `(answers,)`, in nats.
    """
    total = -(logps * mask).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if per_token else total


@dataclass(frozen=True)
class RewardStatistics:
    """Mean and standard deviation of each objective's reward, by which rewards are made comparable.

    Args:
        mean (`torch.Tensor` of shape `(objectives,)`): in the unit of the reward.
        std (`torch.Tensor` of shape `(objectives,)`): in the same unit; 0 for a reward that never varied.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, rewards: torch.Tensor) -> "RewardStatistics":
        """Statistics of `rewards` (`torch.Tensor` of shape `(answers, objectives)`), rows with a NaN left out.

        The standard deviation is that of the population. One that is nothing but rounding counts as 0.

        Raises:
            ValueError: if no row is whole.
        """
        whole = rewards[torch.isfinite(rewards).all(-1)].double()
        if not len(whole):
            raise ValueError(
                "Not one answer was rated by every reward function, so that their scales are unknown. Let each return "
                "a number for the answers it is given (None leaves an answer out)."
            )
        mean, std = whole.mean(0), whole.std(0, correction=0)
        std = torch.where(std <= _CONSTANT * whole.abs().amax(0), torch.zeros_like(std), std)
        return cls(mean.float(), std.float())

    def normalise(self, rewards: torch.Tensor) -> torch.Tensor:
        """Z-scores of `rewards` (`torch.Tensor` of shape `(answers, objectives)`); 0 where a reward never varied, NaN
        where there is none."""
        mean, std = self.mean.to(rewards), self.std.to(rewards)
        return torch.where(
            (std > 0) | rewards.isnan(), (rewards - mean) / std.clamp(min=torch.finfo(std.dtype).tiny), 0.0
        )

    def constant(self) -> list[int]:
        """Objectives whose reward never varied: their z-score is 0 for every answer."""
        return [i for i, value in enumerate(self.std.tolist()) if value == 0]

    def grow(self, later: "RewardStatistics") -> "RewardStatistics":
        """These statistics, with those of the objectives that only `later` knows appended."""
        known = len(self.mean)
        return RewardStatistics(torch.cat([self.mean, later.mean[known:]]), torch.cat([self.std, later.std[known:]]))


def check_preference(preference: Any, names: Sequence[str], rows: int) -> torch.Tensor:
    """Preference weights that a user gave, for `rows` prompts.

    Args:
        preference (`Sequence[float]`, `Sequence[Sequence[float]]`, `dict[str, float]` or `torch.Tensor`):
            one weight for each objective, for all prompts alike or for each of them.
        names (`Sequence[str]`): the objectives.
        rows (`int`): prompts.

    Returns:
        `torch.Tensor` of shape `(rows, objectives)`.

    Raises:
        ValueError: for a wrong number of weights, or weights that are negative or do not sum to 1.
    """
    if isinstance(preference, dict):
        unknown = sorted(set(preference) - set(names))
        if unknown:
            raise ValueError(f"You gave weights for {unknown}. The objectives of this policy are {list(names)}.")
        preference = [float(preference.get(name, 0.0)) for name in names]
    weights = torch.as_tensor(preference, dtype=torch.float32)
    if weights.dim() == 1:
        weights = weights.unsqueeze(0)
    if weights.dim() != 2 or weights.shape[1] != len(names):
        raise ValueError(
            f"You gave a preference of shape {tuple(weights.shape)}. It needs {len(names)} weights, one for each of "
            f"{list(names)}, once or for each prompt."
        )
    off = (weights.sum(-1) - 1).abs() > 1e-4
    if not torch.isfinite(weights).all() or (weights < 0).any() or off.any():
        raise ValueError(
            f"You gave the preference {weights[0].tolist() if len(weights) == 1 else weights.tolist()}. Weights have "
            f"to be at least 0 and sum to 1, e.g. {[round(1 / len(names), 3)] * len(names)}."
        )
    if len(weights) not in (1, rows):
        raise ValueError(f"You gave {len(weights)} preferences for {rows} prompts. Give one, or one for each prompt.")
    return weights.expand(rows, -1)
