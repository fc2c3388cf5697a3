"""Prompt pools in any transformers or TRL trainer: where prompts end, and the loss of the keys."""

from typing import Any

import torch

from hf_lifealign.prompt_pool.model import pools_of, told_prompts


def prompt_lengths(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Tokens before the completion in each row of a trainer's batch, padding left out.

    Args:
        inputs (`dict`): `input_ids`, and `completion_mask` or `labels` (-100 where nothing is to be predicted), of
            shape `(rows, tokens)`; maybe `attention_mask`.

    Returns:
        `torch.Tensor` of shape `(rows,)`, or `None` if the batch does not say.
    """
    completion = inputs.get("completion_mask")
    if completion is None and inputs.get("labels") is not None:
        completion = inputs["labels"] != -100
    if completion is None or "input_ids" not in inputs:
        return None
    real = inputs.get("attention_mask")
    before = completion.cumsum(dim=1) == 0
    return (before if real is None else before & real.bool()).sum(dim=1)


class PromptPoolMixin:
    """Tells a prompt pool where the prompts of a batch end, and adds the loss of its keys while it trains.

    Put it before [`ExtraLossMixin`] and the trainer. Without a prompt pool it does nothing.
    """

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        lengths = prompt_lengths(inputs)
        if lengths is None or not pools_of(model):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        trainer_args = getattr(self, "args", None)
        for name in ("packing", "padding_free"):
            if getattr(trainer_args, name, False):
                raise ValueError(
                    f"You set {name}=True with an L2P adapter, which puts prompts in front of a row, where many "
                    f"examples would stand. Set {name}=False."
                )
        with told_prompts(model, lengths):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
        """TRL's, with the prompts told: the reference may be an earlier state of the pool."""
        lengths = prompt_lengths(inputs)
        if lengths is None:
            return super().compute_ref_log_probs(model, inputs)  # type: ignore[misc]
        with told_prompts(model, lengths):
            return super().compute_ref_log_probs(model, inputs)  # type: ignore[misc]

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        # before the others, some of which read other rows
        pulls = [pull for pools in pools_of(model) if (pull := pools.take_pull()) is not None]
        extra: torch.Tensor | None = super().compute_extra_loss(model, inputs)  # type: ignore[misc]
        for pools in pools_of(model):
            pools.take_pull()
        terms = pulls if extra is None else [*pulls, extra.to(pulls[0].device) if pulls else extra]
        return torch.stack([term.reshape(()) for term in terms]).sum() if terms else None
