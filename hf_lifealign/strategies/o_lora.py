"""O-LoRA: each task learns in directions of its own, orthogonal to those of earlier tasks (arXiv 2310.14152)."""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from hf_lifealign.strategies.base import Phase, Run, Strategy
from hf_lifealign.strategies.tensors import lora_layers, refuse_more_than_factors

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_lifealign.stream import TaskStream


def overlap_penalty(earlier: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """How far the directions of a task lie in those of earlier ones: ``sum |A_earlier A_own^T|`` (O-LoRA, eq. 8, in the
    form of the published code).

    Args:
        earlier (`torch.Tensor` of shape `(earlier ranks, inputs)`), own (`torch.Tensor` of shape `(ranks, inputs)`).

    Returns:
        scalar `torch.Tensor`.
    """
    return (earlier.detach() @ own.T).abs().sum()


class _Slices(TrainerCallback):
    """Keeps what is not a task's own as it is, whatever the optimizer does to it."""

    def __init__(self, strategy: "OLoRAStrategy"):
        self.strategy = strategy

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.strategy.put_back()


class OLoRAStrategy(Strategy):
    """Gives each task its own ranks of one LoRA adapter; those of earlier tasks are frozen, and kept apart from.

    The sum of the tasks' products B_t A_t is the product of the adapter, so that what is published is a plain LoRA
    adapter that loads anywhere.

    Args:
        weight (`float`, *optional*, defaults to `0.5`): of the overlap with earlier directions, at least 0.
        rank (`int`, *optional*): ranks of a task; by default the adapter's, divided by the tasks of the life.
    """

    name = "o_lora"
    reads_adapter = True

    def __init__(self, weight: float = 0.5, rank: int | None = None):
        if not weight >= 0:
            raise ValueError(f"You set weight={weight} of the strategy 'o_lora'. It has to be at least 0.")
        if rank is not None:
            self.refuse_below(1, rank=rank)
        self.weight = float(weight)
        self.rank = rank
        self._own = slice(0, 0)
        self._layers: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        self._frozen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._hooks: list[Any] = []

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        refuse_more_than_factors(run.model, self.name)
        ranks = {layer.r["default"] for layer in lora_layers(run.model).values()}
        needed = (self.rank or 1) * len(run.lived)
        if min(ranks) < needed:
            raise ValueError(
                f"You set r={min(ranks)} of the adapter, and the strategy 'o_lora' needs {needed}: {self.rank or 1} "
                f"for each of the {len(run.lived)} tasks. Set a larger r, or a smaller rank."
            )
        return stream

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        position = run.lived.index(phase.task)
        layers: list[Any] = list(lora_layers(run.model).values())
        self._layers = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
        rank = self.rank or min(a.shape[0] for a, _ in self._layers) // len(run.lived)
        self._own = slice(position * rank, (position + 1) * rank)
        self._frozen = [(part, part.clone()) for part in self._others()]
        for pair in self._layers:
            for parameter, rows in zip(pair, (True, False), strict=True):
                self._hooks.append(parameter.register_hook(functools.partial(_own_alone, self._own, rows)))

    def callbacks(self, run: Run, phase: Phase) -> Sequence[TrainerCallback]:
        return (_Slices(self),)

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        if not self._own.start or not self.weight:
            return None
        terms = [overlap_penalty(a[: self._own.start], a[self._own]) for a, _ in self._layers]
        return self.weight * torch.stack([term.float() for term in terms]).sum()

    def _others(self) -> Iterator[torch.Tensor]:
        """What is not the task's own, as parts of the parameters."""
        for a, b in self._layers:
            for ranks in (slice(0, self._own.start), slice(self._own.stop, None)):
                yield a.detach()[ranks]
                yield b.detach()[:, ranks]

    @torch.no_grad()
    def put_back(self) -> None:
        """After a step: what weight decay did to other tasks' ranks is undone."""
        for part, value in self._frozen:
            part.copy_(value)

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        for hook in self._hooks:
            hook.remove()
        self._layers, self._frozen, self._hooks = [], [], []

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"ranks": [self._own.start, self._own.stop]}


def _own_alone(own: slice, rows: bool, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that is zero but in a range of ranks, which are its rows or its columns."""
    kept = torch.zeros_like(gradient)
    if rows:
        kept[own] = gradient[own]
    else:
        kept[:, own] = gradient[:, own]
    return kept
