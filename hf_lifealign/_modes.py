"""A model in another mode for a while: evaluation, other generation settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def keep_differentiable(model: Any) -> None:
    """Keeps 4-bit weights in the layout in which a model can be trained.

    On a CPU with AVX512-BF16, bitsandbytes lays the weights of a `Linear4bit` out anew, for inference, when it first
    runs in evaluation mode, and never back: from then on no gradient goes through it, and nothing says so
    (bitsandbytes 0.50). One evaluation before or during training is enough.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def require_differentiable(model: Any) -> None:
    """[`keep_differentiable`] for a model that is about to be trained.

    Raises:
        ValueError: if weights have been laid out for inference already.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                f"You gave a quantised model that has run in evaluation mode. bitsandbytes has laid the 4-bit weights "
                f"of {name} out for inference on this CPU, and no gradient goes through them any more. Load the model "
                "anew, and give it to the trainer before it is run."
            )
    keep_differentiable(model)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, dropout off. Each module's own mode is put back: some of a model in training may be
    meant to stay in evaluation."""
    keep_differentiable(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def generating_with(model: Any, settings: Any) -> Iterator[None]:
    """A `GenerationConfig` in place of the model's own, which fills what another one leaves open."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = settings
    try:
        yield
    finally:
        inner.generation_config = own
