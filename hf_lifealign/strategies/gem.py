"""Gradient episodic memory: a step never raises, to first order, the loss on what is remembered of earlier tasks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls
from transformers import TrainerCallback

from hf_lifealign.strategies.base import Phase, Run
from hf_lifealign.strategies.memory import MemoryStrategy
from hf_lifealign.strategies.tensors import trainable_parameters

if TYPE_CHECKING:
    from transformers import Trainer


def averaged_projection(gradient: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """A-GEM (Chaudhry et al. 2019, arXiv 1812.00420), eq. 11: the gradient without its part against the memory's.

    Args:
        gradient, memory (`torch.Tensor` of shape `(parameters,)`): of the new loss, and of the loss on the memory.

    Returns:
        `torch.Tensor` of shape `(parameters,)`, the nearest one whose product with `memory` is not below 0.
    """
    product = torch.dot(gradient, memory)
    if product >= 0:
        return gradient
    return gradient - product / torch.dot(memory, memory) * memory


def constrained_projection(gradient: torch.Tensor, memories: torch.Tensor, strength: float = 0.0) -> torch.Tensor:
    """GEM (Lopez-Paz and Ranzato 2017, arXiv 1706.08840), eq. 11: the nearest gradient whose product with the gradient
    of each earlier task is not below 0, by the dual with one variable a task.

    Args:
        gradient (`torch.Tensor` of shape `(parameters,)`): of the new loss.
        memories (`torch.Tensor` of shape `(tasks, parameters)`): of the losses on what is remembered of each task.
        strength (`float`): least value of the dual variables once anything is violated, which moves the step further
            towards the memories (0.5 in the published experiments).

    Returns:
        `torch.Tensor` of shape `(parameters,)`.
    """
    products = memories @ gradient
    if bool((products >= 0).all()):
        return gradient
    gram = (memories @ memories.T).double().cpu().numpy()
    linear = products.double().cpu().numpy() + gram @ np.full(len(gram), strength)
    # min 1/2 v'Pv + q'v over v >= 0 as least squares ||R v + R^-T q||; what is nearly dependent is left out
    values, vectors = np.linalg.eigh(gram)
    held = values > 1e-10 * values.max()
    root = np.sqrt(values[held])[:, None] * vectors[:, held].T
    target = -(vectors[:, held].T @ linear) / np.sqrt(values[held])
    dual = nnls(root, target)[0] + strength
    return gradient + torch.as_tensor(dual, dtype=gradient.dtype, device=gradient.device) @ memories


def clipped(gradient: torch.Tensor, norm: float | None) -> torch.Tensor:
    """A gradient no longer than `norm` (none or 0: as it is), which is what the trainer does to its own before a step.

    Args:
        gradient (`torch.Tensor` of shape `(parameters,)`).
        norm (`float`, *optional*): greatest 2-norm.

    Returns:
        `torch.Tensor` of shape `(parameters,)`.
    """
    return gradient * min(1.0, norm / max(float(gradient.norm()), 1e-12)) if norm else gradient


class _ProjectingCallback(TrainerCallback):
    """Replaces the gradients of a step, after clipping and before the optimizer takes it."""

    def __init__(self, strategy: "GEMStrategy"):
        self.strategy = strategy

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.strategy.project_step()


class GEMStrategy(MemoryStrategy):
    """GEM: a constraint for each earlier task.

    A trainer clips the gradient before a step can be projected. Those of the memories are clipped by the same
    `max_grad_norm`, so that `strength` weighs likes with likes; the constraints are the same at any scale.

    Args:
        fraction, capacity: what is kept of each task, see [`ReplayStrategy`].
        batch_size (`int`, *optional*, defaults to `4`): pairs of each task that stand for its memory in a step.
        strength (`float`, *optional*, defaults to `0.5`): see [`constrained_projection`].
    """

    name = "gem"

    def __init__(self, fraction: float = 0.2, capacity: int | None = None, batch_size: int = 4, strength: float = 0.5):
        super().__init__(fraction, capacity, batch_size)
        if not strength >= 0:
            raise ValueError(f"You set strength={strength} of the strategy 'gem'. It has to be at least 0.")
        self.strength = float(strength)
        self._steps = self._violated = 0

    def callbacks(self, run: Run, phase: Phase) -> Sequence[TrainerCallback]:
        self._steps = self._violated = 0
        return (_ProjectingCallback(self),) if self._memory else ()

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if self._memory and trainer.accelerator.mixed_precision == "fp16":
            raise ValueError(
                f"You set fp16=True with the strategy {self.name!r}. Gradients that are scaled cannot be compared with "
                "those of the memory. Set bf16=True, or neither."
            )
        super().before_phase(run, phase, trainer)

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        told = {"projected_steps": self._violated, "watched_steps": self._steps} if self._memory else {}
        return super().record(run, phase) | told

    def project_step(self) -> None:
        """Replaces the gradients that the model has now."""
        parameters = list(trainable_parameters(self._run.model).values())
        gradient = torch.cat([_gradient(parameter) for parameter in parameters])
        memories = torch.stack([self._gradient_of(drawn, parameters) for drawn in self._drawn()])
        projected = self._projected(gradient, memories)
        self._steps += 1
        if projected is gradient:
            return
        self._violated += 1
        at = 0
        for parameter in parameters:
            part = projected[at : at + parameter.numel()].view_as(parameter).to(parameter.dtype)
            parameter.grad = part.clone()
            at += parameter.numel()

    def _drawn(self) -> list[list[Any]]:
        return [self._draw(pairs, task) for task, pairs in self._memory.items()]

    def _projected(self, gradient: torch.Tensor, memories: torch.Tensor) -> torch.Tensor:
        return constrained_projection(gradient, memories, self.strength)

    def _gradient_of(self, drawn: list[Any], parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        with self._trainer.accelerator.autocast():
            loss = self._losses(self._run.model, drawn).mean()
        found = torch.autograd.grad(loss, parameters)
        return clipped(torch.cat([part.detach().float().flatten() for part in found]), self._trainer.args.max_grad_norm)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.detach().float().flatten()


class AGEMStrategy(GEMStrategy):
    """A-GEM: one constraint, on a batch from the memories of all earlier tasks together.

    Args:
        fraction, capacity: what is kept of each task, see [`ReplayStrategy`].
        batch_size (`int`, *optional*, defaults to `4`): pairs that stand for the memory in a step.
    """

    name = "a_gem"

    def __init__(self, fraction: float = 0.2, capacity: int | None = None, batch_size: int = 4):
        super().__init__(fraction, capacity, batch_size, strength=0.0)

    def _drawn(self) -> list[list[Any]]:
        return [self._draw([pair for pairs in self._memory.values() for pair in pairs], "all")]

    def _projected(self, gradient: torch.Tensor, memories: torch.Tensor) -> torch.Tensor:
        return averaged_projection(gradient, memories[0])
