"""What an optimizer makes of a gradient: directions of AdamW and SGD, and AdamW's step split exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensors = list[torch.Tensor]

# By how much Adam's second moment is below what it tends to where the steps so far have hardly touched an entry.
_HARDLY = 100


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


def coming_rates(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    """Learning rate of each parameter group, as the mean over the coming steps; see [`rates_between`].

    A force is what a step does, and the rate of a single step may be 0: at the start of a warm-up, or at the end of a
    decay. Where no step is to come, the present rates are given.

    Args:
        optimizer (`torch.optim.Optimizer`): or accelerate's wrapper of one.
        scheduler (`LRScheduler`, *optional*): its schedule.
        steps (`int`): how many are to come.
    """
    now = scheduler.last_epoch if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) else 0
    told = rates_between(optimizer, scheduler, now, now + steps)
    if not told:
        return [float(group["lr"]) for group in plain_optimizer(optimizer).param_groups]
    return [sum(rates) / len(told) for rates in zip(*told, strict=True)]


def rates_between(optimizer: Any, scheduler: Any, start: int, end: int) -> list[list[float]]:
    """Learning rates of the steps `start` to `end - 1`, and in each of the parameter groups.

    A `LambdaLR`, which all schedules of transformers by a formula are, tells the rates of other steps without being
    stepped. Of any other schedule the present rates are given.
    """
    groups = plain_optimizer(optimizer).param_groups
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) and len(scheduler.lr_lambdas) == len(groups):
        told = list(zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True))
        return [[float(base) * float(rate(step)) for base, rate in told] for step in range(start, end)]
    return [[float(group["lr"]) for group in groups]] * max(0, end - start)


@dataclass(frozen=True)
class Momentum:
    """The first moment that an optimizer carries into the coming steps.

    Args:
        decay (`float`): what of it is left after a step; 0 without momentum.
        steps (`float`): of which it is the mean, so that Adam divides by ``1 - decay ** steps``; infinite where it is
            not corrected for having begun at 0.
        gradient (`list[torch.Tensor]`, *optional*): the lasting gradient that it stands for, on the scale of
            [`scales_of`]; `None` before the first step, and without momentum.
    """

    decay: float
    steps: float
    gradient: Tensors | None


def momentum_of(optimizer: Any, parameters: Sequence[torch.Tensor]) -> Momentum:
    """What SGD, Adam or AdamW carries of earlier gradients; nothing of any other optimizer.

    The decay is that of the first parameter group.
    """
    plain = plain_optimizer(optimizer)
    group, states = plain.param_groups[0], [plain.state.get(p) or {} for p in parameters]
    if isinstance(plain, torch.optim.Adam | torch.optim.AdamW):
        decay = float(group["betas"][0])
        steps = max((float(state["step"]) for state in states if "exp_avg" in state), default=0.0)
        if not steps or not decay:
            return Momentum(decay, steps, None)
        share = 1 - decay**steps
        found = [
            s["exp_avg"] / share if "exp_avg" in s else p.new_zeros(p.shape)
            for s, p in zip(states, parameters, strict=True)
        ]
        return Momentum(decay, steps, found)
    decay = float(group.get("momentum", 0.0)) if isinstance(plain, torch.optim.SGD) else 0.0
    if not decay or not any(state.get("momentum_buffer") is not None for state in states):
        return Momentum(decay, math.inf, None)
    scale = (1 - decay) / (1 - float(group["dampening"]))
    held = [state.get("momentum_buffer") for state in states]
    return Momentum(
        decay,
        math.inf,
        [p.new_zeros(p.shape) if h is None else scale * h for h, p in zip(held, parameters, strict=True)],
    )


def scales_of(
    optimizer: Any,
    parameters: Sequence[torch.Tensor],
    second: Sequence[torch.Tensor],
    rate: Sequence[float] | None = None,
    updates: int = 1,
) -> list[torch.Tensor | float] | None:
    """By what an optimizer multiplies a lasting gradient in one step, for each parameter: ``lr`` for SGD, ``lr /
    (sqrt(v) + eps)`` for Adam and AdamW.

    `v` is the second moment that the optimizer has, and before its first step the mean square `s` of the gradients that
    are given. Both estimate the same, the one from as many updates as its average reaches back, the other from
    `updates`, and so they are pooled by these numbers: after some tens of steps it is the optimizer's own. Where that
    is below a hundredth of `s`, the steps so far have hardly touched an entry; it is no estimate there, the entry
    would seem to leap, and `s` is taken.

    A gradient that lasts passes the first moment unchanged, and a momentum of SGD multiplies it by ``1 / (1 -
    momentum)``; what the moments still carry of earlier gradients is not counted, see [`momentum_of`]. Weight decay is
    not either.

    Args:
        optimizer (`torch.optim.Optimizer`): or accelerate's wrapper of one.
        parameters (`list[torch.Tensor]`): those whose scales are wanted.
        second (`list[torch.Tensor]`): mean square of the gradient of an update.
        rate (`list[float]`, *optional*): learning rate of each parameter group; the present ones by default. See
            [`coming_rates`].
        updates (`int`): over which `second` is a mean.

    Returns:
        `list` of scalars or `torch.Tensor`; `None` if the optimizer is of another kind.
    """
    plain = plain_optimizer(optimizer)
    rates = [float(group["lr"]) for group in plain.param_groups] if rate is None else list(rate)
    groups = {id(p): i for i, group in enumerate(plain.param_groups) for p in group["params"]}
    found: list[torch.Tensor | float] = []
    for parameter, tended in zip(parameters, second, strict=True):
        place = groups.get(id(parameter))
        if place is None:
            return None
        group, lr = plain.param_groups[place], rates[place]
        if isinstance(plain, torch.optim.SGD):
            found.append(lr * (1 - group["dampening"]) / (1 - group["momentum"]) if group["momentum"] else lr)
        elif isinstance(plain, torch.optim.Adam | torch.optim.AdamW):
            moment = _second_moment(group, plain.state.get(parameter) or {}, tended.float(), updates)
            found.append(lr / (moment.sqrt_() + group["eps"]))
        else:
            return None
    return found


def _second_moment(group: dict[str, Any], state: dict[str, Any], tended: torch.Tensor, updates: int) -> torch.Tensor:
    """A new tensor with the second moment by which Adam divides; see [`scales_of`]."""
    if "exp_avg_sq" not in state:
        return tended.clone()
    seen, decay = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"], group["betas"][1]
    share = 1 - decay ** float(state["step"])
    own = seen.float() / share
    # the weights of its average add up to `share`, and that of its last update is 1 - decay
    back = share / (1 - decay)
    pooled = (own * back + tended * updates) / (back + updates)
    return torch.where(own * _HARDLY < tended, tended, pooled)


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
