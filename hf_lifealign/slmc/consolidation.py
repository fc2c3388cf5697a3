"""Consolidation of one parameter ("factors") or module ("delta"): from tensors and history to what would be written.

Nothing is modified here: the caller collects the results of all modules and writes them only when all are there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .linalg import compute_dtype, denoise, history_basis, leading_mixture, refine, span_coefficients, storage_dtype
from .lowrank import (
    Cumulative,
    Factors,
    ThinSVD,
    block_products,
    certified_svd,
    compress_history,
    denoise_factors,
    exact_svd,
    gram_of,
    inner,
    split_into_lora,
    stable_seed,
    stack,
    update_factors,
)
from .report import ModuleReport

# A history vector as it is stored: (RSM,) in "factors" space, (left^T, right) of SM' in "delta" space.
Vector = tuple[Tensor, ...]


class ConsolidationError(RuntimeError):
    """A module cannot be consolidated; nothing was modified."""


@dataclass
class Settings:
    """SLMC's settings as the mathematics needs them; see `SLMCConfig`."""

    denoising_threshold: float = 0.9
    projection_weight: float = 0.5
    space: str = "factors"
    memory_rank: int | None = None


@dataclass
class Staged:
    """A computed and not yet written result.

    Args:
        weights (`list[torch.Tensor]`): new values of the unit's parameters, in their order, shape and dtype.
        added (`list[Vector]`): history vectors to append, or all of them where `replaces` is set.
        replaces (`bool`): whether `added` takes the place of the history.
        gram (`torch.Tensor` of shape `(m, m)`, *optional*): inner products of the history in "delta" space.
        report (`ModuleReport`): what happened.
    """

    weights: list[Tensor]
    added: list[Vector]
    replaces: bool
    gram: Tensor | None
    report: ModuleReport


def check_tensors(name: str, previous: list[Tensor], current: list[Tensor]) -> None:
    """Refuse what must not reach the mathematics.

    Raises:
        ConsolidationError: on a changed shape or a NaN/Inf, with the module's name and the cause.
    """
    for before, now in zip(previous, current, strict=True):
        if before.shape != now.shape:
            raise ConsolidationError(
                f"{name}: the parameter has shape {tuple(now.shape)} and had {tuple(before.shape)} at the start of the "
                "task. Nothing was modified. Gather sharded parameters before consolidating, and do not resize an "
                "adapter while a task runs."
            )
        for label, tensor in (("now", now), ("at the start of the task", before)):
            if not bool(torch.isfinite(tensor).all()):
                raise ConsolidationError(
                    f"{name}: the parameter holds NaN or Inf ({label}). Nothing was modified. Training diverged: go "
                    "back to an earlier checkpoint, or lower the learning rate."
                )


def consolidate_factor(
    name: str, previous: Tensor, current: Tensor, history: list[Vector], settings: Settings
) -> Staged:
    """One LoRA factor as in the published method: denoise, project against the history, add to the long-term memory.

    Args:
        name (`str`): the parameter.
        previous, current (`torch.Tensor` of shape `(m, n)` or `(m, ...)`): its value before and after the task.
        history (`list[Vector]`): the refined updates of earlier consolidations, each `(RSM,)` of the same shape.
        settings (`Settings`): theta, lambda, memory_rank.
    """
    check_tensors(name, [previous], [current])
    device, dtype, kept_as = current.device, compute_dtype(current.device), storage_dtype(current.dtype)
    before = previous.to(device, dtype)
    update = current.to(dtype) - before
    denoised = denoise(update, settings.denoising_threshold)
    # Rows are filled in place: one copy of the history in float64, for this parameter only.
    columns = torch.empty(len(history), update.numel(), dtype=dtype, device=device)
    for row, (vector,) in zip(columns, history, strict=True):
        row.copy_(vector.reshape(-1))
    refined = refine(denoised.update, history_basis(columns.T), settings.projection_weight)
    entry = refined.update.to("cpu", kept_as, copy=True)
    added: list[Vector] = [(entry,)]
    replaces, kept = False, 1.0
    if settings.memory_rank is not None and len(history) + 1 > settings.memory_rank:
        columns = torch.cat([columns, entry.to(device, dtype).reshape(1, -1)])
        mixture, kept = leading_mixture(columns @ columns.T, settings.memory_rank)
        vectors = (mixture.T @ columns).to("cpu", kept_as)
        added, replaces = [(vector.reshape(update.shape).clone(),) for vector in vectors], True
    report = ModuleReport(
        name=name,
        rank_kept=denoised.rank,
        energy_kept=denoised.energy,
        history_share=refined.history_share,
        update_norm=float(update.norm()),
        denoised_norm=float(denoised.update.norm()),
        refined_norm=float(refined.update.norm()),
        history_energy_kept=kept,
    )
    weights = [(before + refined.update).to(current.dtype)]
    return _checked(Staged(weights, added, replaces, None, report))


def consolidate_delta(
    name: str,
    previous: tuple[Tensor, Tensor],
    current: tuple[Tensor, Tensor],
    scaling: float,
    history: list[Vector],
    gram: Tensor | None,
    settings: Settings,
    index: int,
) -> Staged:
    """One LoRA module by its product dW = s B A, without ever forming it.

    The history is kept as the denoised updates SM'_i: RSM_i is SM'_i minus a combination of earlier ones, so both span
    the same space. RSM = SM' - (1 - lambda) sum_i w_i SM'_i with w from the Gram matrix. The cumulative change
    s B0 A0 + RSM is cut to LoRA's rank r (the best rank-r matrix, Eckart and Young) and split evenly into A and B.

    Args:
        name (`str`): the module.
        previous, current (`tuple`): `(A (r, n), B (m, r))` before and after the task.
        scaling (`float`): s > 0.
        history (`list[Vector]`): `(left^T (k_i, m), right (k_i, n))` of each earlier SM'.
        gram (`torch.Tensor` of shape `(len(history), len(history))`, *optional*): their inner products.
        settings (`Settings`): theta, lambda, memory_rank.
        index (`int`): number of this history entry; seeds refilled directions.
    """
    check_tensors(name, list(previous), list(current))
    A_now, B_now = current
    device, rank = A_now.device, A_now.shape[0]
    dtype, kept_as = compute_dtype(device), storage_dtype(torch.promote_types(A_now.dtype, B_now.dtype))
    A_prev, B_prev = (tensor.to(device, dtype) for tensor in previous)
    update = update_factors(A_prev, B_prev, A_now.to(dtype), B_now.to(dtype), scaling)
    denoised, rank_kept, energy = denoise_factors(update, settings.denoising_threshold)
    # From here on SM' is what will be stored: the Gram matrix must be that of the stored tensors to the last digit.
    entry: Vector = (
        denoised.left.T.to("cpu", kept_as, memory_format=torch.contiguous_format, copy=True),
        denoised.right.to("cpu", kept_as, copy=True),
    )
    short = Factors(entry[0].T.to(device, dtype), entry[1].to(device, dtype))
    long = Factors(scaling * B_prev, A_prev)
    solved = _solve_history(short, long, history, gram, settings.projection_weight, rank)
    svd = solved.svd
    A_new, B_new, refilled = split_into_lora(svd, rank, scaling, stable_seed(name, index))
    kept_energy = float(svd.S[:rank].square().sum())
    lost = max(solved.squared_norm - kept_energy, 0.0)
    added, replaces, new_gram, kept = [entry], False, solved.gram, 1.0
    if settings.memory_rank is not None and len(history) + 1 > settings.memory_rank:
        parts = [*(Factors(left.T.to(device, dtype), right.to(device, dtype)) for left, right in history), short]
        added, new_gram, kept = _compress(parts, solved.gram, settings.memory_rank, 2 * rank, kept_as)
        replaces = True
    report = ModuleReport(
        name=name,
        rank_kept=rank_kept,
        energy_kept=energy,
        history_share=solved.history_share,
        update_norm=float(inner(update, update).clamp_min(0).sqrt()),
        denoised_norm=solved.short_norm,
        refined_norm=solved.refined_norm,
        recompression_error=(lost / solved.squared_norm) ** 0.5 if solved.squared_norm > 0 else 0.0,
        refilled=refilled,
        history_energy_kept=kept,
    )
    weights = [A_new.to(A_now.dtype), B_new.to(B_now.dtype)]
    return _checked(Staged(weights, added, replaces, new_gram.to("cpu"), report))


@dataclass
class _Solved:
    """Leading triplets of the cumulative change dW_prev + RSM, with the scalars that describe it."""

    svd: ThinSVD
    squared_norm: float
    history_share: float
    short_norm: float
    refined_norm: float
    gram: Tensor


def _solve_history(
    short: Factors, long: Factors, history: list[Vector], gram: Tensor | None, weight: float, rank: int
) -> _Solved:
    """Project SM' (`short`) on the history and decompose `long` + RSM; see `consolidate_delta`."""
    short_sq, long_sq, cross = inner(short, short), inner(long, long), inner(long, short)
    norm = float(short_sq) ** 0.5
    widths = [left.shape[0] for left, _ in history]
    if not sum(widths):
        grown = short_sq.new_zeros(len(history) + 1, len(history) + 1)
        grown[-1, -1] = short_sq
        squared = max(float(long_sq + short_sq + 2 * cross), 0.0)
        return _Solved(_leading(exact_svd(stack([long, short])), rank), squared, 0.0, norm, norm, grown)
    if gram is None:
        raise ConsolidationError("The memory holds a history without its Gram matrix. Load the memory again.")
    gram = gram.to(short_sq)
    past_left, past_right = (_rows([vector[side] for vector in history], short_sq) for side in (0, 1))
    dominant_left, dominant_right = torch.cat([long.left.T, short.left.T]), torch.cat([long.right, short.right])
    left_products, right_products = dominant_left @ past_left.T, dominant_right @ past_right.T
    split = long.right.shape[0]
    long_products = block_products(left_products[:split], right_products[:split], widths)
    short_products = block_products(left_products[split:], right_products[split:], widths)
    w = span_coefficients(gram, short_products)
    pull = -(1 - weight) * w
    share = min(max(float(w @ gram @ w) / norm**2, 0.0), 1.0) if norm > 0 else 0.0
    pulled = pull @ gram @ pull
    refined_sq = max(float(short_sq + pulled + 2 * (pull @ short_products)), 0.0)
    squared = float(long_sq + short_sq + pulled + 2 * (cross + pull @ short_products + pull @ long_products))
    columns = pull.repeat_interleave(torch.tensor(widths, device=pull.device))
    border = torch.cat([short_products, short_sq[None]])
    grown = torch.cat([torch.cat([gram, short_products[:, None]], dim=1), border[None]])
    if not bool((columns != 0).any()):
        svd = exact_svd(stack([long, short]))
    else:
        change = Cumulative(dominant_left, dominant_right, past_left, past_right, columns)
        svd = certified_svd(change, right_products, max(squared, 0.0), rank)
    return _Solved(_leading(svd, rank), max(squared, 0.0), share, norm, refined_sq**0.5, grown)


def _leading(svd: ThinSVD, rank: int) -> ThinSVD:
    return ThinSVD(svd.U[:, :rank], svd.S[:rank], svd.Vh[:rank])


def _rows(parts: list[Tensor], like: Tensor) -> Tensor:
    """Parts `(k_i, n)` below each other in the dtype and on the device of `like`: the only wide copy that is made."""
    rows = torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=like.dtype, device=like.device)
    start = 0
    for part in parts:
        rows[start : start + part.shape[0]].copy_(part)
        start += part.shape[0]
    return rows


def _compress(
    parts: list[Factors], gram: Tensor, memory_rank: int, max_rank: int, kept_as: torch.dtype
) -> tuple[list[Vector], Tensor, float]:
    """Leading `memory_rank` directions of the history: `(stored vectors, their Gram matrix, kept share of energy)`."""
    mixture, _ = leading_mixture(gram, memory_rank)
    vectors: list[Vector] = [
        (part.left.T.to("cpu", kept_as).contiguous(), part.right.to("cpu", kept_as).contiguous())
        for part in compress_history(parts, mixture, max_rank)
    ]
    stored = gram_of([Factors(left.T.to(gram), right.to(gram)) for left, right in vectors])
    total = float(gram.diagonal().sum())
    # Cutting each direction to rank 2r loses energy beyond what the Gram matrix alone tells.
    kept = float(stored.diagonal().sum()) / total if total > 0 else 1.0
    return vectors, stored, min(kept, 1.0)


def _checked(staged: Staged) -> Staged:
    """Refuse results that overflowed their dtype."""
    tensors: list[Any] = [*staged.weights, *(part for vector in staged.added for part in vector)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ConsolidationError(
            f"{staged.report.name}: the consolidated values do not fit the parameter's dtype (NaN or Inf appeared). "
            "Nothing was modified. Keep the adapter in float32 or bfloat16."
        )
    return staged
