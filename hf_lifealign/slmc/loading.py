"""An SLMC adapter with its verified memory, from a folder."""

import os
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from .config import SLMC_FIELDS, SLMCConfig
from .memory import JSON_FILE, MEMORY_DIR, Memory, SLMCMemoryError
from .model import find_tuner

_WEIGHTS = "adapter_model.safetensors"


def load_folder(
    base: nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    is_trainable: bool = True,
    adapter_name: str = "default",
    **kwargs: Any,
) -> PeftModel:
    """Load an adapter that has a memory from a folder; `hf_lifealign.load_adapter` takes repositories too.

    Args:
        base (`torch.nn.Module` or `str`): the base model, or its Hub id or path (loaded as a causal language model).
        folder (`str`): made by `save_pretrained`, or a Trainer's checkpoint.
        is_trainable (`bool`): whether the adapter can be trained further.
        adapter_name (`str`): its name in the model.
        kwargs: passed to `PeftModel.from_pretrained`, for instance `autocast_adapter_dtype`.

    Returns:
        `PeftModel`: with the memory attached, and the running task if the folder is a checkpoint of one.

    Raises:
        SLMCMemoryError: if the folder has no memory, no safetensors weights, or they do not belong together.
    """
    folder = Path(folder)
    memory, config = read_adapter(folder)
    model = base if isinstance(base, nn.Module) else AutoModelForCausalLM.from_pretrained(base)
    peft_model = PeftModel.from_pretrained(
        model, str(folder), adapter_name=adapter_name, is_trainable=is_trainable, config=config, **kwargs
    )
    find_tuner(peft_model).attach_memory(memory, str(folder / MEMORY_DIR))
    return peft_model


def read_adapter(folder: Path) -> tuple[Memory, SLMCConfig]:
    """The verified memory of a folder and the configuration that made it.

    Raises:
        SLMCMemoryError: see `load_folder`.
    """
    if not (folder / _WEIGHTS).is_file():
        raise SLMCMemoryError(
            f"{folder} has no {_WEIGHTS}. Pickled weights (adapter_model.bin) are never read, since loading them can "
            "run code. Save the adapter again with safe_serialization=True."
        )
    if not (folder / MEMORY_DIR / JSON_FILE).is_file():
        raise SLMCMemoryError(
            f"{folder} is an adapter without a memory: it has no {MEMORY_DIR}/{JSON_FILE}. To use it as it is, call "
            "PeftModel.from_pretrained(base, path). To start a new life with its weights, call "
            "PeftModel.from_pretrained(base, path, is_trainable=True, config=SLMCConfig(...)) with its rank and "
            "targets."
        )
    memory = Memory.load(folder / MEMORY_DIR)
    memory.check_adapter(folder / _WEIGHTS)
    lora = LoraConfig.from_pretrained(str(folder))
    settings = {name: memory.settings[name] for name in SLMC_FIELDS}
    inherited = {key: value for key, value in lora.to_dict().items() if key != "peft_type"}
    return memory, SLMCConfig(**inherited, **settings)
