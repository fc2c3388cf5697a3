"""What tells one reward function from another, by which ratings on disk are known again."""

import hashlib
import inspect
from typing import Any

import torch

from hf_lifealign.meta_aligner.storage import canonical

# Of each tensor of a reward model; a training that moves a model moves the beginnings of its tensors as well.
_SAMPLED = 256


def digest_of(*parts: Any) -> str:
    """SHA-256 of texts and tensors, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def identity_of(reward: Any) -> str:
    """Digest of a reward function: its name and source, and the numbers, texts and tensors it was made with.

    Private attributes do not count: caches and the like, which change while it works. Neither do functions it calls.
    """
    routine = inspect.isroutine(reward)
    try:
        source = inspect.getsource(reward if routine else type(reward))
    except (OSError, TypeError):
        source = ""
    if routine:
        values = [(str(i), cell.cell_contents) for i, cell in enumerate(getattr(reward, "__closure__", None) or ())]
    else:
        values = sorted(item for item in getattr(reward, "__dict__", {}).items() if not item[0].startswith("_"))
    plain = [[key, value] for key, value in values if isinstance(value, (str, int, float))]
    tensors = [part for key, value in values if isinstance(value, torch.Tensor) for part in (key, value)]
    if isinstance(reward, torch.nn.Module):
        for name, parameter in reward.named_parameters():
            tensors += [name, parameter.detach().flatten()[:_SAMPLED]]
    metadata = getattr(reward, "metadata", None)
    told = metadata if isinstance(metadata, dict) else None
    name = getattr(reward, "__qualname__", getattr(reward, "__name__", type(reward).__qualname__))
    return digest_of(getattr(reward, "__module__", ""), name, source, canonical(plain), canonical(told), *tensors)
