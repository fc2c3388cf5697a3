"""What a lifelong run cannot do, said before anything is loaded."""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from peft import PeftConfig

from hf_lifealign.strategies import Strategy


def refuse_sharded_training(*arguments: Any) -> None:
    """Refuses ZeRO-3 and FSDP, under which a process holds only shards of the adapter.

    Args:
        arguments: TrainingArguments of the phases (`None` is skipped).

    Raises:
        ValueError: if one of them, or the launcher, asks for sharded parameters.
    """
    kind = None
    if PartialState().distributed_type == DistributedType.FSDP or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        kind = "FSDP"
    for args in arguments:
        if args is None:
            continue
        plugin = getattr(args, "deepspeed_plugin", None)
        if plugin is not None and plugin.zero_stage == 3:
            kind = "DeepSpeed ZeRO-3"
        if getattr(args, "fsdp", None) or getattr(args, "fsdp_plugin_args", None):
            kind = "FSDP"
    if kind is not None:
        raise ValueError(
            f"You started a lifelong run under {kind}, where each process holds only shards of the adapter. "
            "Consolidation and saving need it whole, and would work on empty tensors. Use DDP (plain `accelerate "
            "launch`) or DeepSpeed ZeRO-1/2."
        )


def refuse_unfit_strategies(strategies: Sequence[Strategy], adapter: PeftConfig) -> None:
    """Ends a run that would never consolidate its SLMC adapter, that has no memory to consolidate into, or whose
    strategies take the adapter away from each other.

    Raises:
        ValueError: if exactly one of the two is there.
    """
    replacing = [strategy.name for strategy in strategies if strategy.replaces_adapter]
    reading = [strategy.name for strategy in strategies if strategy.reads_adapter]
    if len(replacing) > 1 or (replacing and reading):
        raise ValueError(
            f"You set the strategies {[s.name for s in strategies]}. {replacing[0]!r} begins each task with the "
            f"adapter as it was made, and puts another in its place afterwards; {(replacing[1:] + reading)[0]!r} needs "
            "what the task itself has left there. Use one of them."
        )
    kind = str(adapter.peft_type.value)  # type: ignore[union-attr]
    is_slmc = kind == "SLMC"
    if any(strategy.name == "consolidation" for strategy in strategies) == is_slmc:
        return
    what = (
        "An SLMC adapter is there to be consolidated. Add 'consolidation', or use a LoraConfig."
        if is_slmc
        else "Only an SLMC adapter has a memory to consolidate into. Leave 'consolidation' out, or use an SLMCConfig."
    )
    raise ValueError(f"You set the strategies {[s.name for s in strategies]} with an adapter of type {kind}. {what}")
