"""Models whose parameters are spread over processes: how that is seen, and how such a model is measured."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env


def why_sharded(args: Any, model: torch.nn.Module) -> str | None:
    """What spreads parameters, gradients or optimizer states over processes; `None` if nothing does.

    Args:
        args (`TrainingArguments`): of the trainer; a launcher's own configuration is seen as well.
        model (`torch.nn.Module`): that is trained.
    """
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None) is not None:
        return "DeepSpeed"
    if getattr(args, "fsdp", None) or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "FSDP"
    # whoever did it: DeepSpeed marks what it has taken apart, FSDP2's parameters are of a kind of their own
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules()):
        return "FSDP"
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "DeepSpeed"
        if hasattr(parameter, "device_mesh"):
            return "FSDP"
    return None


@contextmanager
def gathered(model: Any) -> Iterator[Any]:
    """The model as it can generate and be read, forward by forward.

    FSDP2 and DeepSpeed gather a module whenever its forward is called. FSDP1 does so for what it wraps, and the
    parameters of its root are gathered here; they are not written back.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, fsdp.FullyShardedDataParallel):
        yield model
        return
    with fsdp.FullyShardedDataParallel.summon_full_params(model, recurse=False, writeback=False):
        yield model.module
