"""Sums of what tasks have learnt from the base, each for itself, within the rank of one adapter."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_lifealign.slmc.lowrank import Factors, balanced, exact_svd, stack
from hf_lifealign.strategies.tensors import Tensors, lora_layers


def weighed_sum(parts: Sequence[Factors], weights: Sequence[float], rank: int) -> tuple[Factors, float]:
    """The nearest product of a rank to a weighed sum of products, without forming the matrices.

    Args:
        parts (`Sequence[Factors]`): left `(m, r_i)` and right `(r_i, n)` each.
        weights (`Sequence[float]`): one for each.
        rank (`int`): of the result, at least 1.

    Returns:
        `(factors, share)`: left `(m, rank)` and right `(rank, n)` with the singular values shared evenly, and the share
        of the sum's squared Frobenius norm that the rank leaves out. Directions that are not needed are zero on both
        sides.
    """
    whole = stack(
        [Factors(weight * part.left.double(), part.right.double()) for part, weight in zip(parts, weights, strict=True)]
    )
    svd = exact_svd(whole)
    energy = float((svd.S**2).sum())
    kept = balanced(svd, rank)
    lost = float((svd.S[rank:] ** 2).sum()) / energy if energy > 0 else 0.0
    missing = rank - kept.left.shape[1]
    if missing > 0:
        kept = Factors(torch.nn.functional.pad(kept.left, (0, missing)),
                       torch.nn.functional.pad(kept.right, (0, 0, 0, missing)))  # fmt: skip
    return kept, lost


def summed_updates(
    model: Any, updates: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float]
) -> tuple[Tensors, float]:
    """The weighed sum of tasks' updates as parameters of the adapter.

    Args:
        model (`torch.nn.Module`): PEFT model with a LoRA adapter that starts from nothing.
        updates (`Mapping`): by task, the adapter's parameters by name.
        weights (`Mapping[str, float]`): by task.

    Returns:
        `(parameters, lost)`: by name, in the updates' precision, and the largest share of a module's squared norm that
        the rank leaves out.
    """
    most = 0.0
    content: Tensors = {}
    for prefix, layer in lora_layers(model).items():
        a, b = f"{prefix}.lora_A.default.weight", f"{prefix}.lora_B.default.weight"
        parts = [Factors(updates[task][b].cpu(), updates[task][a].cpu()) for task in weights]
        summed, lost = weighed_sum(parts, list(weights.values()), layer.r["default"])
        first = updates[next(iter(weights))]
        content |= {a: summed.right.to(first[a].dtype), b: summed.left.to(first[b].dtype)}
        most = max(most, lost)
    return content, most
