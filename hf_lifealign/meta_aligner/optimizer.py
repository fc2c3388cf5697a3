"""Two optimizers, of the policy and of the preference-weight-net, that a trainer sees as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

POLICY, WEIGHTS = "policy", "weights"
SIDES = (POLICY, WEIGHTS)


class PairedOptimizer(torch.optim.Optimizer):
    """Carries two optimizers; a step moves those that are `active`.

    The state of both is one state dict. `begin("meta")` clears it, since the moments of pre-training say nothing about
    the meta phase.

    Args:
        policy (`torch.optim.Optimizer`): of what conditions the policy (theta).
        weights (`torch.optim.Optimizer`): of the preference-weight-net (psi).
    """

    def __init__(self, policy: torch.optim.Optimizer, weights: torch.optim.Optimizer):
        self.pair = {POLICY: policy, WEIGHTS: weights}
        self.active: tuple[str, ...] = SIDES
        self.phase = "pretrain"
        super().__init__([p for side in SIDES for g in self.pair[side].param_groups for p in g["params"]], {})
        self._gather_groups()

    def _gather_groups(self) -> None:
        self.param_groups = [group for side in SIDES for group in self.pair[side].param_groups]

    def parameters(self, *sides: str) -> list[torch.nn.Parameter]:
        """Parameters of the given sides."""
        return [p for side in sides for group in self.pair[side].param_groups for p in group["params"]]

    def begin(self, phase: str) -> None:
        """Starts a phase; a new one starts with empty moments."""
        if phase != self.phase:
            self.phase = phase
            for optimizer in self.pair.values():
                optimizer.state.clear()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Steps the active optimizers."""
        for side in self.active:
            self.pair[side].step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.pair.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {side: self.pair[side].state_dict() for side in SIDES} | {"phase": self.phase}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for side in SIDES:
            self.pair[side].load_state_dict(state_dict[side])
        self.phase = state_dict["phase"]
        self._gather_groups()


class PairedSchedule:
    """The learning rates of a [`PairedOptimizer`]: each side counts its own steps, phase after phase.

    Args:
        optimizer (`PairedOptimizer`): whose last step decides which side goes on.
        kind (`str`): name of a schedule of transformers, e.g. `"linear"`; it starts anew with each phase.
        phases (`dict[str, Sequence[Sequence[tuple[int, float]]]]`): for each parameter group of each side the steps
            and the highest learning rate of each phase.
        warmup (`float`): share of a phase's steps for warmup if below 1, else steps.
        kwargs (`dict`): further arguments of that schedule.

    Raises:
        ValueError: if the schedule is not a plain function of the step.
    """

    def __init__(
        self,
        optimizer: PairedOptimizer,
        kind: str,
        phases: dict[str, Sequence[Sequence[tuple[int, float]]]],
        warmup: float = 0.0,
        kwargs: dict[str, Any] | None = None,
    ):
        self.optimizer = optimizer
        self.pair: dict[str, LambdaLR] = {}
        for side in SIDES:
            # LambdaLR multiplies; a rate of 0 in the first phase must not silence the later ones
            for group in optimizer.pair[side].param_groups:
                group["lr"] = 1.0
            rates = [self._rate(kind, group, warmup, kwargs or {}) for group in phases[side]]
            self.pair[side] = LambdaLR(optimizer.pair[side], rates)

    @staticmethod
    def _rate(
        kind: str, phases: Sequence[tuple[int, float]], warmup: float, kwargs: dict[str, Any]
    ) -> Callable[[int], float]:
        curves = []
        for steps, _ in phases:
            dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            ramp = int(warmup) if warmup >= 1 else int(warmup * steps)
            made = get_scheduler(kind, dummy, ramp, max(steps, 1), kwargs)
            if not isinstance(made, LambdaLR):
                raise ValueError(
                    f"You set lr_scheduler_type={kind!r}, which needs more than the number of the step. Use one such "
                    "as 'linear', 'cosine', 'constant' or 'constant_with_warmup'."
                )
            curves.append(made.lr_lambdas[0])

        def rate_at(step: int) -> float:
            last = len(phases) - 1
            for index, ((steps, rate), curve) in enumerate(zip(phases, curves, strict=True)):
                if step < steps or index == last:
                    return float(curve(min(step, max(steps, 1)))) * rate
                step -= steps
            raise AssertionError("unreachable")

        return rate_at

    def step(self) -> None:
        """Goes on with the sides whose optimizers have just stepped."""
        for side in self.optimizer.active:
            self.pair[side].step()

    def get_last_lr(self) -> list[float]:
        """The learning rates of all groups: of the policy, of the preference-weight-net, of a trainable encoder."""
        return [float(rate) for side in SIDES for rate in self.pair[side].get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """How far each side has come."""
        # a LambdaLR's own state would hold the functions, which are made from the settings
        return {side: {"last_epoch": self.pair[side].last_epoch} for side in SIDES}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a saved state; the optimizers' own learning rates come with theirs."""
        for side in SIDES:
            self.pair[side].last_epoch = state_dict[side]["last_epoch"]
            self.pair[side]._last_lr = [group["lr"] for group in self.optimizer.pair[side].param_groups]
