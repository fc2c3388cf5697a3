"""A seam for what strategies add to a trainer's loss while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer

ExtraLoss = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor | None]


class ExtraLossMixin:
    """Adds the terms in `extra_losses` to the training loss of any transformers or TRL trainer.

    A term is called with the model and the batch and returns a scalar on the scale of the batch's mean loss, or
    `None` where it has nothing to add. Evaluation losses stay what the trainer computes. The sum of the terms is
    logged as `extra_loss` where the trainer keeps TRL's `_metrics`.

    Put it before the trainer: ``class MyTrainer(ExtraLossMixin, DPOTrainer): ...``.
    """

    extra_losses: tuple[ExtraLoss, ...] = ()

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Sum of the terms in `extra_losses` for this batch (scalar tensor), or `None` if there is none."""
        terms = [term for fn in self.extra_losses if (term := fn(model, inputs)) is not None]
        return torch.stack([term.reshape(()) for term in terms]).sum() if terms else None

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not model.training:
            return result
        extra = self.compute_extra_loss(model, inputs)
        if extra is None:
            return result
        metrics = getattr(self, "_metrics", None)
        if metrics is not None:
            metrics["train"]["extra_loss"].append(extra.detach().item())
        # A trainer that scales its loss for gradient accumulation itself is not divided by the number of
        # micro-batches afterwards, so the term has to be.
        if getattr(self, "loss_is_scaled_for_ga", None) and isinstance(self, Trainer):
            extra = extra / self.current_gradient_accumulation_steps
        if isinstance(result, tuple):
            return (result[0] + extra, *result[1:])
        return result + extra
