"""L2PModel: PEFT's tuner of prompt pools."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_lifealign.prompt_pool.layer import PromptPools

# PEFT passes by what its prefix stands in the name of
_CHILD = "prompt_pools"


class L2PModel(BaseTuner):
    """Adds prompt pools to a causal language model (L2P, arXiv 2112.08654); see [`L2PConfig`].

    Raises:
        ValueError: if the model is no causal language model of transformers that takes embeddings and positions.
    """

    prefix = "l2p_"
    tuner_layer_cls = PromptPools

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("L2P replaces no module of the base.")

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True, low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Adds a pool; nothing of the base is replaced."""
        config: Any = self.peft_config[adapter_name]
        self._check_new_adapter_config(config)
        refuse_other_models(model)
        backbone: Any = model.base_model
        pools = getattr(backbone, _CHILD, None)
        if pools is None:
            pools = PromptPools()
            backbone.add_module(_CHILD, pools)
            backbone.register_forward_pre_hook(pools.before, with_kwargs=True)
            backbone.register_forward_hook(pools.after, with_kwargs=True)
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            pools.add(adapter_name, config, backbone.get_input_embeddings())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)

    def _check_merge_allowed(self) -> None:
        raise ValueError("Prompts are chosen for each row, and cannot be merged into the base. Use unload().")

    def unload(self) -> nn.Module:
        """The base without pools and hooks."""
        backbone: Any = self.model.base_model
        pools = getattr(backbone, _CHILD)
        for hooks in (backbone._forward_pre_hooks, backbone._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is pools]:
                del hooks[key]
        delattr(backbone, _CHILD)
        base: nn.Module = super().unload()
        return base


def refuse_other_models(model: Any) -> None:
    """Raises `ValueError` for a model in front of whose rows no embeddings can be put."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "base_model_prefix") or model.base_model is model:
        raise ValueError(
            f"You gave L2P a {type(model).__name__}. It needs a causal language model of transformers with a backbone."
        )
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "get_output_embeddings"):
        raise ValueError(f"You gave L2P a {type(model).__name__}. It puts prompts before causal language models only.")
    if config.get_text_config() is not config or getattr(config, "vision_config", None) is not None:
        raise ValueError(f"You gave L2P a {type(model).__name__}, which takes more than text. It reads text only.")
    if hasattr(config, "output_router_logits"):
        raise ValueError(
            f"You gave L2P a {type(model).__name__}, a mixture of experts, whose load-balancing loss would count the "
            "prompts among its tokens. Use a dense model."
        )


def pools_of(model: nn.Module) -> list[PromptPools]:
    """The prompt pools of a model, which has none or one."""
    return [module for module in model.modules() if isinstance(module, PromptPools)]


@contextmanager
def told_prompts(model: nn.Module, lengths: torch.Tensor) -> Iterator[None]:
    """In this context the model's prompt pools, if it has any, know where the prompts of rows end.

    Args:
        lengths (`torch.Tensor` of shape `(rows,)`): tokens of each prompt; one without any counts by its first token.
    """
    before = [(each, each.prompt_lengths) for each in pools_of(model)]
    for each, _ in before:
        each.prompt_lengths = lengths.clamp(min=1)
    try:
        yield
    finally:
        for each, told in before:
            each.prompt_lengths = told
