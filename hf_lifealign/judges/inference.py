"""Models that judge: loaded from safetensors, run without gradient or dropout, and left as they were found."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_lifealign import _modes

if TYPE_CHECKING:
    import torch

# `from_pretrained` changes functions of torch while it runs, which two threads must not do at a time. One lock for all
# judges, and none of its own for each, so that a judge can be copied.
LOADING = threading.RLock()


def load_pretrained(
    auto_class: Any, model: str, revision: str | None, dtype: Any, device: "torch.device", what: str
) -> tuple[Any, Any]:
    """A model for inference and its tokenizer, from safetensors; no code of the repository is run.

    Args:
        auto_class (`type`): `AutoModelForSequenceClassification`, say.
        model (`str`): Hub id or folder.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        dtype (`torch.dtype` or `str`): of the weights.
        device (`torch.device`): where it is to run.
        what (`str`): what the model is, for errors.

    Returns:
        `tuple`: the model in evaluation mode, without gradients; its tokenizer, which pads and cuts on the right.

    Raises:
        ValueError: if it cannot be loaded, or weights are missing, which would be drawn at random.
    """
    from transformers import AutoTokenizer

    try:
        loaded, told = auto_class.from_pretrained(
            model,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=revision, padding_side="right", truncation_side="right", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        at = f" at the revision {revision!r}" if revision is not None else ""
        raise ValueError(
            f"You set the {what} {model!r}{at}, which cannot be loaded: {' '.join(str(error).split())} Give a Hub id "
            "or a folder with config, tokenizer and model.safetensors; other weights are not read."
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise ValueError(
            f"You set the {what} {model!r}, which has no weights for {', '.join(missing[:5])}. They would be drawn at "
            f"random, and so would every judgement. Set a model that was trained as a {what}."
        )
    loaded.requires_grad_(False)
    return loaded.to(device).eval(), tokenizer


def default_device(device: "str | torch.device | None") -> "torch.device":
    """The device asked for, or else a GPU if there is one."""
    import torch

    return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")


def longest_input(model: Any, asked: int, tokenizer: Any = None) -> int:
    """Most tokens that a model can be given, at most as many as were asked for."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or asked
    return min(asked, int(positions), int(tokenizer.model_max_length) if tokenizer is not None else asked)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Context in which a model runs without gradient, dropout and mixed precision; afterwards it is as it was."""
    import torch

    device = next(model.parameters()).device.type
    # not inference_mode, whose tensors a model that is trained on may have kept
    with _modes.evaluating(model), torch.no_grad(), torch.autocast(device, enabled=False):
        yield


def batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, which waste the least padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def check_finite(values: list[float], what: str) -> None:
    """Refuses what a broken model gives; compared with a threshold it would pass for a judgement.

    Raises:
        ValueError: if a value is not finite, naming the answer.
    """
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"The {what} gave {value} for answer {i}. Look for NaN or infinity in its weights.")
