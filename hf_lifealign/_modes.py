"""A model in another mode for a while: evaluation, other generation settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, dropout off. Each module's own mode is put back: some of a model in training may be
    meant to stay in evaluation."""
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
