"""Which policy FPO measures mastery against, and how that is kept true inside DPOTrainer."""

import copy
import hashlib
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel
from trl.trainer.utils import create_model_from_path, get_config_model_id

from hf_lifealign.fpo.config import FPOConfig

# DPOTrainer's name for its frozen copy of the adapter "default".
REFERENCE_ADAPTER = "ref"

# LoRA initialisations after which the adapted model still equals the base, whose own weights are untouched.
_IDENTITY_INITS = (True, "gaussian", "eva")


def drop_reference_adapter(model: Any) -> bool:
    """Removes the frozen adapter that a DPOTrainer left in `model`; says whether there was one.

    The adapter that was active stays active. A model without adapters is left alone.
    """
    if isinstance(model, str) or not is_peft_model(model) or REFERENCE_ADAPTER not in model.peft_config:
        return False
    active = model.active_adapter
    model.delete_adapter(REFERENCE_ADAPTER)
    if active != REFERENCE_ADAPTER:
        model.set_adapter(active)
    return True


def base_fingerprint(model: Any) -> str:
    """SHA-256 over the weights and buffers of a PEFT model that none of its adapters owns.

    DPOTrainer keys its cache of precomputed log-probabilities with a hash of the whole model, adapters included,
    under which the references "base" and "previous" cannot be told apart.
    """
    adapters = set(model.peft_config)
    digest = hashlib.sha256(b"base")
    for key, tensor in sorted(model.state_dict().items()):
        if adapters.isdisjoint(key.split(".")):
            digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_adapter(peft_config: PeftConfig, reference: str, is_new: bool) -> None:
    """Refuses adapters for which the wanted reference cannot be had.

    Args:
        peft_config ([`~peft.PeftConfig`]): configuration of the adapter to be trained.
        reference (`str`): "base" or "previous".
        is_new (`bool`): whether the trainer is to create the adapter (`peft_config=...`), rather than continue one.

    Raises:
        ValueError: if switching the adapter off does not give the base, or a new one does not start at the base.
    """
    bias = getattr(peft_config, "bias", "none")
    if bias not in ("none", None):
        raise ValueError(
            f"You set bias={bias!r} in the {type(peft_config).__name__}. It trains the biases of the base "
            "in place, so that switching adapters off no longer gives the reference. Use bias='none'."
        )
    if isinstance(peft_config, LoraConfig):
        init = peft_config.init_lora_weights
        if init not in _IDENTITY_INITS:
            raise ValueError(
                f"You set init_lora_weights={init!r}. It changes the base weights, or lets the adapter start away from "
                "them, so that the model with adapters off is not the base any more and the reference would be "
                "wrong. Use init_lora_weights=True, 'gaussian' or 'eva', or pass an explicit ref_model with "
                "reference='base'."
            )
    elif is_new and reference == "previous":
        raise ValueError(
            f"You set reference='previous' and a new {type(peft_config).__name__} adapter. Such an adapter need not "
            "start at the base, and the policy at the start has to be kept. Wrap the model first: "
            "model = get_peft_model(model, peft_config), pass that model, and leave out peft_config."
        )


def resolve_reference_model(
    model: Any, ref_model: PreTrainedModel | None, args: FPOConfig, peft_config: PeftConfig | None
) -> PreTrainedModel | None:
    """The `ref_model` to hand to DPOTrainer, so that `args.reference` is what is really used.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): as passed to the trainer.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): as passed to the trainer.
        args ([`FPOConfig`]): settings of the trainer.
        peft_config ([`~peft.PeftConfig`], *optional*): as passed to the trainer.

    Returns:
        [`~transformers.PreTrainedModel`] or `None`: `None` where DPOTrainer finds the reference by itself.

    Raises:
        ValueError: if the reference that was asked for cannot be had.
    """
    if ref_model is not None:
        if args.reference == "previous":
            raise ValueError(
                "You passed ref_model with reference='previous'. The reference 'previous' is the policy at the start "
                "of this training, which the trainer keeps by itself. Leave out ref_model, or set reference='base' "
                "to have your ref_model used."
            )
        return ref_model

    if peft_config is not None:
        check_adapter(peft_config, args.reference, is_new=True)
        return None
    if not isinstance(model, str) and is_peft_model(model):
        if "default" not in model.peft_config:
            raise ValueError(
                f"You passed a PeftModel with the adapters {sorted(model.peft_config)}. DPOTrainer, and so FPOTrainer, "
                "trains the adapter named 'default'. Load or create yours under that name."
            )
        check_adapter(model.peft_config["default"], args.reference, is_new=False)
        return None
    if isinstance(model, str):
        # the weights at that path are the base and the policy at the start alike
        return None

    # Full fine-tuning of a model that is already in memory
    if args.reference == "previous":
        # With precomputed log-probabilities the policy itself serves, before its first step.
        return None if args.precompute_ref_log_probs else copy.deepcopy(model).eval().requires_grad_(False)
    path = get_config_model_id(model.config)
    if path and not args.precompute_ref_log_probs:
        return None  # DPOTrainer loads it from there
    if not path:
        raise ValueError(
            "You passed a model that was built in memory, without adapters and with reference='base'. The base "
            "cannot be loaded again, since the model has no name. Pass it as ref_model, or set reference='previous'."
        )
    # a string from the command line was parsed by TrainingArguments
    init_kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    init_kwargs.setdefault("dtype", model.dtype)
    init_kwargs.setdefault("attn_implementation", model.config._attn_implementation)
    init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    return create_model_from_path(path, **init_kwargs)
