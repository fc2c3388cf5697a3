"""One consolidation for all ranks: rank 0 computes, everyone receives the same tensors or the same error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from .consolidation import Staged

StagedUnits = dict[str, Staged]


def world_size() -> int:
    """Number of processes, 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def compute_once(compute: Callable[[], StagedUnits], device: torch.device) -> StagedUnits:
    """Run `compute` on rank 0 and give every rank its result, or raise its error on every rank.

    Args:
        compute: computes the staged results; it must not use collectives.
        device (`torch.device`): where NCCL can reach tensors; gloo takes them from the CPU.
    """
    if world_size() == 1:
        return compute()
    staged: StagedUnits = {}
    message: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            staged = compute()
            message = [("staged", {unit: _skeleton(result) for unit, result in staged.items()})]
        except Exception as error:
            message = [("error", error)]
    distributed.broadcast_object_list(message, src=0)
    kind, content = message[0]
    if kind == "error":
        raise content
    carrier = device if distributed.get_backend() == "nccl" else torch.device("cpu")
    return {
        unit: _fill(skeleton, _tensors(staged[unit]) if unit in staged else None, carrier)
        for unit, skeleton in content.items()
    }


def first_reason(local: str | None) -> str | None:
    """The veto of the lowest rank that has one: hooks run on every rank, and one veto counts for all."""
    if world_size() == 1:
        return local
    reasons: list[str | None] = [None] * world_size()
    distributed.all_gather_object(reasons, local)
    return next((reason for reason in reasons if reason), None)


def _tensors(staged: Staged) -> list[Tensor]:
    rest = [staged.gram] if staged.gram is not None else []
    return [*staged.weights, *(part for vector in staged.added for part in vector), *rest]


def _skeleton(staged: Staged) -> dict[str, Any]:
    """Everything about a result but its numbers."""
    return {
        "weights": len(staged.weights),
        "vectors": [len(vector) for vector in staged.added],
        "replaces": staged.replaces,
        "gram": staged.gram is not None,
        "report": staged.report,
        "shapes": [(tuple(tensor.shape), tensor.dtype) for tensor in _tensors(staged)],
    }


def _fill(skeleton: dict[str, Any], own: list[Tensor] | None, carrier: torch.device) -> Staged:
    received = []
    for position, (shape, dtype) in enumerate(skeleton["shapes"]):
        tensor = torch.empty(shape, dtype=dtype, device=carrier)
        if own is not None:
            tensor.copy_(own[position])
        if tensor.numel():
            distributed.broadcast(tensor, src=0)
        received.append(tensor.cpu())
    count = skeleton["weights"]
    weights, rest = received[:count], received[count:]
    added = []
    for width in skeleton["vectors"]:
        added.append(tuple(rest[:width]))
        rest = rest[width:]
    return Staged(weights, added, skeleton["replaces"], rest[0] if skeleton["gram"] else None, skeleton["report"])
