"""Command-line flags for the SLMC adapter, beside TRL's ModelConfig which knows only LoRA."""

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from peft import PeftConfig
from trl import ModelConfig, get_peft_config

from hf_lifealign.slmc import SLMCConfig

_SLMC = {f.name: f for f in fields(SLMCConfig)}


def _flag(name: str) -> Any:
    """A dataclass field with the default and the help text of the SLMCConfig field `name`."""
    source: Field = _SLMC[name]
    default = None if source.default is MISSING else source.default
    return field(default=default, metadata=dict(source.metadata))


@dataclass
class SLMCArguments:
    """
    Flags of the SLMC adapter; rank, alpha, dropout and target modules are TRL's `--lora_*` flags.

    Args:
        use_slmc (`bool`, *optional*, defaults to `False`):
            Whether to train an SLMC adapter (consolidated at the end of training) instead of TRL's LoRA.
        denoising_threshold, projection_weight, space, memory_rank:
            See [`SLMCConfig`].
    """

    use_slmc: bool = field(
        default=False, metadata={"help": "Train an SLMC adapter, consolidated when training ends, instead of LoRA."}
    )
    denoising_threshold: float = _flag("denoising_threshold")
    projection_weight: float = _flag("projection_weight")
    space: str = _flag("space")
    memory_rank: int | None = _flag("memory_rank")


def get_adapter_config(model_args: ModelConfig, slmc_args: SLMCArguments) -> PeftConfig | None:
    """The adapter that the flags ask for: SLMC with `--use_slmc`, else what TRL's `get_peft_config` gives.

    Raises:
        ValueError: if SLMC's options were set without `--use_slmc`.
    """
    given = {name: getattr(slmc_args, name) for name in ("denoising_threshold", "projection_weight", "space")}
    given["memory_rank"] = slmc_args.memory_rank
    if not slmc_args.use_slmc:
        changed = sorted(name for name, value in given.items() if value != _SLMC[name].default)
        if changed:
            raise ValueError(
                f"You set {', '.join('--' + name for name in changed)} without --use_slmc. They have no effect on "
                "another adapter. Add --use_slmc, or leave them out."
            )
        return get_peft_config(model_args)
    was = model_args.use_peft
    model_args.use_peft = True
    try:
        lora: Any = get_peft_config(model_args)
    finally:
        model_args.use_peft = was
    options = {f.name: getattr(lora, f.name) for f in fields(lora) if f.init and f.name != "peft_type"}
    return SLMCConfig(**(options | given))
