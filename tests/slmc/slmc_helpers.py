"""Tiny models and histories shared by the tests of SLMC."""

import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lifealign.slmc import SLMCConfig
from hf_lifealign.slmc.model import SLMCModel, find_tuner


def tiny_base(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random two-layer Llama of width 32, the same for the same seed."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **overrides}))


def slmc_config(**overrides: Any) -> SLMCConfig:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return SLMCConfig(**{**settings, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> PeftModel:
    return get_peft_model(tiny_base(seed), slmc_config(**overrides))


def disturb(model: nn.Module, seed: int, scale: float = 0.1, adapter: str = "default") -> None:
    """Stands in for training: adds seeded noise to the adapter's factors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in find_tuner(model)._adapted_modules(adapter):
            for parameter in (module.A, module.B):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


def live(model: nn.Module, tasks: int, first: int = 0) -> None:
    """A life of `tasks` begun, disturbed and consolidated tasks."""
    for task in range(first, first + tasks):
        model.begin_task(f"task{task}")
        disturb(model, seed=100 + task)
        model.consolidate()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that consolidation may touch, copied."""
    tuner: SLMCModel = find_tuner(model)
    return copy.deepcopy(
        {
            "weights": {key: value.detach() for key, value in tuner.model.named_parameters()},
            "tensors": tuner.memory.tensors(),
            "entries": tuner.memory.entries,
            "running": tuner.is_task_running,
        }
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit-identical tensors under the same names."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).logits
