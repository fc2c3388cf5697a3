"""Base and adapter of a run: made once, restored from a saved state, saved without what must not be published."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainingArguments, set_seed
from trl.trainer.utils import create_model_from_path

from hf_lifealign._osf import keep_projections
from hf_lifealign.prompt_pool import L2PConfig

ADAPTER = "default"


def default_adapter_type(strategies: Sequence[Any] | None) -> str:
    """`"slmc"` where the strategies consolidate, as they do by default, `"l2p"` where they are about a prompt pool, and
    `"lora"` elsewhere.

    Args:
        strategies (`list`, *optional*): names, mappings or objects, as in [`LifelongConfig`].
    """
    if strategies is None:
        return "slmc"
    options = [{"name": spec} if isinstance(spec, str) else spec for spec in strategies]
    names = [each.get("name") if isinstance(each, dict) else getattr(each, "name", None) for each in options]
    return "slmc" if "consolidation" in names else "l2p" if "l2p" in names else "lora"


def default_adapter(strategies: Sequence[Any] | None) -> PeftConfig:
    """The adapter of a run that was given none."""
    kind = default_adapter_type(strategies)
    if kind == "l2p":
        return L2PConfig(task_type="CAUSAL_LM")
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    if kind == "lora":
        return LoraConfig(**settings)
    from hf_lifealign.slmc import SLMCConfig

    return SLMCConfig(**settings)


def load_base(source: str | PreTrainedModel, init_kwargs: dict[str, Any], args: TrainingArguments) -> PreTrainedModel:
    """The base model on its device.

    Args:
        source (`str` or `PreTrainedModel`): name of the base, or the base itself.
        init_kwargs (`dict`): keyword arguments for `from_pretrained`.
        args (`TrainingArguments`): whose device is used.

    Raises:
        ValueError: if it carries an adapter.
    """
    base = source
    if isinstance(base, str):
        kwargs: dict[str, Any] = {"dtype": "float32", **init_kwargs}
        if PartialState().num_processes > 1:
            kwargs["device_map"] = None  # each process holds the whole model
        base = create_model_from_path(base, **kwargs)
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError(
            "The base model carries an adapter already, of an earlier life perhaps. Its weights would be taken for "
            "the base's. Pass a freshly loaded model, or the name of one."
        )
    if not hasattr(base, "hf_device_map") and not getattr(base, "is_quantized", False):
        base.to(args.device)  # type: ignore[arg-type]
    return base


def create_adapter(base: PreTrainedModel, config: PeftConfig, seed: int) -> Any:
    """Wraps the base with a new, seeded adapter."""
    set_seed(seed)
    # PEFT writes into the configuration it is given
    model = get_peft_model(base, copy.deepcopy(config))
    keep_projections(model)
    return model


def restore_adapter(base: PreTrainedModel, folder: Path, config: PeftConfig) -> Any:
    """Wraps the base with the adapter saved in `folder`, its memory included where it is SLMC.

    Raises:
        FileNotFoundError: if the folder has no `adapter_model.safetensors`.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"The saved state {folder} has no adapter_model.safetensors. It was removed or damaged since the run wrote "
            "it. Restore it, or start again in a new output_dir."
        )
    if config.peft_type == "SLMC":
        from hf_lifealign.slmc import load_folder

        return load_folder(base, folder, is_trainable=True)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    keep_projections(model)
    return model


def save_adapter(model: Any, folder: Path) -> None:
    """Saves the adapter "default" alone, and checks that it is there, whole and finite.

    Raises:
        ValueError: if a tensor is missing, empty, or not finite; nothing should be published then.
    """
    model.save_pretrained(str(folder), selected_adapters=[ADAPTER])
    # PEFT writes a blank model card
    (folder / "README.md").unlink(missing_ok=True)
    # and sets in the order of the process's hash seed
    config = json.loads((folder / "adapter_config.json").read_text())
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = load_file(folder / "adapter_model.safetensors")
    if not tensors:
        raise ValueError(f"The adapter that was saved to {folder} holds no tensor. The run stops before publishing it.")
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not torch.isfinite(tensor).all():
            raise ValueError(
                f"The tensor {name} of the adapter is {'empty' if tensor.numel() == 0 else 'not finite'}. Training has "
                "diverged or the parameters are sharded; the run stops before publishing it. Lower the learning rate."
            )


@contextmanager
def trainer_traces_removed(model: Any) -> Iterator[None]:
    """Takes back what trainers do to a model for good, so that a phase finds it as a fresh process would.

    That is: what they put in front of `forward` (fused LM head, autocast), dropout switched off, gradient
    checkpointing, and the hooks that make embeddings require gradients.
    """
    base = model.get_base_model()
    owners = [model, base]
    before = [owner.__dict__.get("forward") for owner in owners]
    # several owners register such hooks, and each remembers only its last
    embedding_hooks = base.get_input_embeddings()._forward_hooks
    known_hooks = set(embedding_hooks)
    dropout = {module: module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    try:
        yield
    finally:
        for module, p in dropout.items():
            module.p = p
        for key in set(embedding_hooks) - known_hooks:
            del embedding_hooks[key]
        if getattr(base, "is_gradient_checkpointing", False):
            base.gradient_checkpointing_disable()
        for owner, forward in zip(owners, before, strict=True):
            if forward is None:
                owner.__dict__.pop("forward", None)
            else:
                owner.__dict__["forward"] = forward
