"""Where packed rows are known to mean the same as padded ones, and why not elsewhere."""

import inspect
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from hf_lifealign.packing.mask import DENSE, FLEX
from hf_lifealign.prompt_pool.config import L2P_NAME

# Signs in a config of layers that mix tokens by other means than attention with a mask.
_OTHER_MIXERS = ("layers_block_type", "attn_layer_indices", "mamba_d_state", "ssm_cfg", "conv_L_cache", "lru_width")


def why_not_packed(model: Any) -> str | None:
    """Why pairs cannot be packed for a model; `None` if they can.

    Args:
        model (`torch.nn.Module`): a transformers model, or a PEFT model around one.
    """
    adapters = model.peft_config if is_peft_model(model) else {}
    prompted = sorted(name for name, config in adapters.items() if config.is_prompt_learning)
    if prompted:
        return f"the adapter {prompted[0]!r} puts virtual tokens in front of a row"
    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in adapters.values()}
    if L2P_NAME in kinds:
        return "an adapter of type L2P puts prompts of its own in front of each row"
    if "XLORA" in kinds:
        return "X-LoRA mixes its adapters by what stands in a whole row"
    invoked = sorted(n for n, config in adapters.items() if getattr(config, "alora_invocation_tokens", None))
    if invoked:
        return f"the adapter {invoked[0]!r} begins at a place in each row (aLoRA)"
    base = model.get_base_model() if is_peft_model(model) else model
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "get_output_embeddings") or not hasattr(base, "base_model_prefix"):
        return f"{type(base).__name__} is not a transformers model"
    if config.is_encoder_decoder:
        return "an encoder-decoder reads prompt and completion in different places"
    if config.get_text_config() is not config or getattr(config, "vision_config", None) is not None:
        return f"{type(base).__name__} takes more than text"
    if base.base_model is base or base.get_output_embeddings() is None:
        return f"{type(base).__name__} has no backbone and head that can be told apart"
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        return "an adapter on the head is passed by where it runs on some places only"
    return _why_not_attention(base, config)


def _why_not_attention(base: Any, config: Any) -> str | None:
    """Why the attention of a causal language model cannot be given a mask and positions of our own."""
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (*DENSE, FLEX):
        return (
            f"attn_implementation={implementation!r} takes no mask of our own ('sdpa', 'eager' and 'flex_attention' do)"
        )
    if implementation == FLEX and next(base.parameters()).device.type != "cuda":
        return "attn_implementation='flex_attention' is fast on CUDA only ('sdpa' takes a mask anywhere)"
    if not getattr(config, "is_causal", True):
        return "its attention is not causal"
    backbone = inspect.signature(base.base_model.forward).parameters
    if "position_ids" not in backbone or "attention_mask" not in backbone:
        return f"{type(base.base_model).__name__} takes no positions of our own"
    if getattr(config, "alibi", False):
        return "its attention (ALiBi) goes by the distance of tokens in a row, whatever their positions"
    kinds = {kind for kind in getattr(config, "attention_layers", None) or () if kind != "global"}
    if kinds:
        return f"some of its layers attend by {sorted(kinds)[0]!r} windows"
    ropes = [getattr(config, name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    stretched = [str(rope.get("rope_type")) for rope in ropes if rope.get("rope_type") in ("dynamic", "longrope")]
    if stretched:
        return f"its positions ({stretched[0]}) are stretched by the longest of a batch"
    others = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if others:
        return f"some of its layers are of type {others[0]!r}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"its attention slides over a window of {config.sliding_window} tokens"
    mixers = [name for name in _OTHER_MIXERS if getattr(config, name, None)]
    if mixers:
        return f"some of its layers mix tokens without attention ({mixers[0]})"
    return None


def even_width(model: Any) -> float:
    """Width of a row at which attention over it costs as much as all else in the layers of a model, in tokens.

    A token costs two operations a weight in the layers, and four a hidden unit and token of its row in their attention.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    config = base.config
    # what is quantised counts the same: it is computed in full
    embedded = {id(module.weight) for module in base.modules() if isinstance(module, torch.nn.Embedding)}
    weights = sum(p.numel() for p in base.base_model.parameters() if id(p) not in embedded)
    heads = getattr(config, "num_attention_heads", 1)
    hidden = getattr(config, "head_dim", None) or config.hidden_size // heads
    return max(1.0, weights / max(1, config.num_hidden_layers) / (2 * heads * hidden))
