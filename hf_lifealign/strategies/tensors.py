"""Tensors that strategies keep: of the adapter's trainable parameters by name, on disk as safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from hf_lifealign._files import replacing

Tensors = dict[str, torch.Tensor]


def trainable_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Parameters of the adapter in training by name, in the model's order; a reference copy does not count."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Detached copies."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes values into the parameters of these names.

    Raises:
        ValueError: if the model has others.
    """
    parameters = dict(model.named_parameters())
    strange = sorted(set(tensors) - set(parameters))
    if strange:
        raise ValueError(
            f"The kept tensors name {strange[:3]}, which this model does not have. They are of another adapter; start "
            "in a new output_dir."
        )
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor.to(parameters[name].device))


def lora_layers(model: Any) -> dict[str, LoraLayer]:
    """The layers that hold the adapter in training, by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and "default" in module.lora_A
    }


def refuse_more_than_factors(model: Any, strategy: str) -> None:
    """Raises `ValueError` for an adapter that is more than the product of LoRA's two factors in linear layers."""
    config = model.peft_config["default"]
    plain = str(config.peft_type.value) == "LORA" and not config.use_dora
    ranks = {name: layer.r["default"] for name, layer in lora_layers(model).items()}
    factors = {f"{name}.lora_A.default.weight": (r, 0) for name, r in ranks.items()}
    factors |= {f"{name}.lora_B.default.weight": (r, 1) for name, r in ranks.items()}
    for name, parameter in trainable_parameters(model).items():
        rank, dimension = factors.get(name, (0, 0))
        plain = plain and parameter.dim() == 2 and parameter.shape[dimension] == rank
        if not plain:
            raise ValueError(
                f"You set the strategy {strategy!r} with an adapter that is more than the product of LoRA's two "
                f"factors in linear layers (it trains {name}). Use a LoraConfig (adapter type 'lora') without DoRA, "
                "bias, modules_to_save, embeddings and single parameters among its targets."
            )


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors wholly or not at all."""
    with replacing(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial)


def read_tensors(path: Path) -> Tensors:
    """What [`write_tensors`] wrote."""
    return load_file(path)
