"""What an optimizer makes of a gradient: directions of AdamW and SGD, and AdamW's step split exactly."""

from collections.abc import Sequence
from typing import Any

import torch

Tensors = list[torch.Tensor]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def inner_product(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Sum of the products of all entries of two lists of tensors of the same shapes, summed in float64."""
    return sum(float((_wide(a) * _wide(b)).sum(dtype=torch.float64)) for a, b in zip(first, second, strict=True))


def norm(tensors: Sequence[torch.Tensor]) -> float:
    """Euclidean norm of all entries."""
    return float(inner_product(tensors, tensors) ** 0.5)


def snapshot(parameters: Sequence[torch.Tensor]) -> Tensors:
    """Copies of parameters, in float32."""
    return [p.detach().float().clone() for p in parameters]


def difference(parameters: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> Tensors:
    """Parameters less an earlier snapshot, in float32."""
    return [p.detach().float() - b for p, b in zip(parameters, before, strict=True)]


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def scales_of(
    optimizer: Any, parameters: Sequence[torch.Tensor], second: Sequence[torch.Tensor]
) -> list[torch.Tensor | float] | None:
    """By what an optimizer multiplies a lasting gradient in one step, for each parameter: ``lr`` for SGD, ``lr /
    (sqrt(max(v, s)) + eps)`` for Adam and AdamW, with its present second moments `v` and those `s` that it tends to.

    A gradient that lasts passes the first moment unchanged, and a momentum of SGD multiplies it by ``1 / (1 -
    momentum)``; what the moments still carry of earlier gradients is not counted. Weight decay is not either. Without
    `s`, entries which the steps so far have hardly touched would seem to leap.

    Args:
        optimizer (`torch.optim.Optimizer`): or accelerate's wrapper of one.
        parameters (`list[torch.Tensor]`): those whose scales are wanted.
        second (`list[torch.Tensor]`): mean square of the gradient of an update.

    Returns:
        `list` of scalars or `torch.Tensor`; `None` if the optimizer is of another kind.
    """
    plain = plain_optimizer(optimizer)
    groups = {id(p): group for group in plain.param_groups for p in group["params"]}
    found: list[torch.Tensor | float] = []
    for parameter, tended in zip(parameters, second, strict=True):
        group = groups.get(id(parameter))
        if group is None:
            return None
        rate = float(group["lr"])
        if isinstance(plain, torch.optim.SGD):
            found.append(rate * (1 - group["dampening"]) / (1 - group["momentum"]) if group["momentum"] else rate)
        elif isinstance(plain, torch.optim.Adam | torch.optim.AdamW):
            state = plain.state.get(parameter) or {}
            moment = tended.float()
            if "exp_avg_sq" in state:
                seen = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
                moment = torch.maximum(moment, seen.float() / (1 - group["betas"][1] ** float(state["step"])))
            found.append(rate / (moment.sqrt() + group["eps"]))
        else:
            return None
    return found


def step_of(gradient: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | float]) -> Tensors:
    """The change of the parameters by one step on a lasting gradient; see [`scales_of`]."""
    return [-scale * g.float() for g, scale in zip(gradient, scales, strict=True)]


class AdamWSplit:
    r"""
    AdamW's steps as a sum over the parts of their gradients, exactly.

    Each part has a first moment of its own; the second moment is that of the whole gradient. Since the step is linear
    in the first moment, the steps of the parts and of the weight decay add up to the step of AdamW.

    Args:
        parameters (`list[torch.Tensor]`): those that are trained, before the first step.
        parts (`int`): how many.
        betas, eps, weight_decay: as of [`torch.optim.AdamW`].
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        parts: int = 2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.first = [[torch.zeros_like(p) for p in parameters] for _ in range(parts)]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.steps = 0

    @torch.no_grad()
    def step(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[Sequence[torch.Tensor]], rate: float
    ) -> tuple[list[Tensors], Tensors]:
        """One step of all parts.

        Args:
            parameters (`list[torch.Tensor]`): before the step; they are not changed.
            gradients (`list` of lists of `torch.Tensor`): of each part; their sum is the gradient of the step.
            rate (`float`): learning rate of the step.

        Returns:
            The changes by each part, and that by the weight decay.
        """
        self.steps += 1
        b1, b2 = self.betas
        corrected = [1 - b1**self.steps, 1 - b2**self.steps]
        changes: list[Tensors] = [[] for _ in self.first]
        for k in range(len(self.second)):
            whole = sum((part[k] for part in gradients), torch.zeros_like(self.second[k]))
            self.second[k].mul_(b2).addcmul_(whole, whole, value=1 - b2)
            scale = rate / corrected[0] / ((self.second[k] / corrected[1]).sqrt() + self.eps)
            for moments, part, change in zip(self.first, gradients, changes, strict=True):
                moments[k].mul_(b1).add_(part[k], alpha=1 - b1)
                change.append(-scale * moments[k])
        return changes, [-rate * self.weight_decay * p for p in parameters]
