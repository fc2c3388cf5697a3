"""The mathematics of consolidation on single tensors: denoising, the subspace of history, projection, truncation.

All functions are pure and work in the dtype they are given; callers pass `float64` wherever the device has it.
Source: LifeAlign, arXiv 2509.17183, section on Short-to-Long Memory Consolidation.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Denoised(NamedTuple):
    """Leading part of an update: the tensor, its rank, and its share of the squared norm in [0, 1]."""

    update: Tensor
    rank: int
    energy: float


class Refined(NamedTuple):
    """A projected update and the share in [0, 1] of the unprojected one's squared norm that lay in the history."""

    update: Tensor
    history_share: float


def compute_dtype(device: torch.device) -> torch.dtype:
    """`float64`, or `float32` where the device has no float64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """`float32` or the wider `dtype`: what snapshots and history are kept in."""
    return torch.promote_types(dtype, torch.float32)


def leading_rank(singular_values: Tensor, threshold: float) -> tuple[int, float]:
    """Smallest k whose leading squared singular values hold at least `threshold` of their sum.

    Args:
        singular_values (`torch.Tensor` of shape `(p,)`): in descending order.
        threshold (`float`): theta in (0, 1].

    Returns:
        `(k, share)`: `(0, 1.0)` when all values are zero.
    """
    # Scaled first: squares of values below 1e-154 are zero in float64.
    peak = float(singular_values[0]) if singular_values.numel() else 0.0
    if peak == 0.0:
        return 0, 1.0
    energy = (singular_values / peak).square()
    share = energy.cumsum(0) / energy.sum()
    rank = int(torch.searchsorted(share, torch.as_tensor(threshold, dtype=share.dtype, device=share.device))) + 1
    rank = min(rank, singular_values.numel())
    return rank, min(float(share[rank - 1]), 1.0)


def denoise(update: Tensor, threshold: float) -> Denoised:
    """SM' = U_k S_k V_k^T, the leading singular directions that hold `threshold` of the energy.

    Args:
        update (`torch.Tensor` of shape `(m, n)`, or `(m, ...)` for convolutions): the short-term memory SM.
        threshold (`float`): theta in (0, 1].
    """
    matrix = update.flatten(1)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rank, energy = leading_rank(S, threshold)
    denoised = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    return Denoised(denoised.view_as(update), rank, energy)


def gram_rank_tolerance(dtype: torch.dtype) -> float:
    """Relative eigenvalue of a normalised Gram matrix below which a direction is rounding, not data.

    In float64 this is a singular value of 1.5e-7, just above the rounding of history kept in float32.
    """
    return 100 * torch.finfo(dtype).eps


def normalized_eigh(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenpairs of a Gram matrix above numerical rank, after scaling every vector to length one.

    Scaling does not change the span and keeps a short vector from being mistaken for rounding of a long one.

    Args:
        gram (`torch.Tensor` of shape `(m, m)`): inner products of m vectors.

    Returns:
        `(eigenvalues (k,), eigenvectors (m, k), scale (m,))`, where `scale` is 1 / length, and 0 for zero vectors.
    """
    length = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(length > 0, length.reciprocal(), torch.zeros_like(length))
    values, vectors = torch.linalg.eigh(scale[:, None] * gram * scale)
    peak = values[-1].clamp_min(0) if values.numel() else gram.new_zeros(())
    keep = values > peak * gram_rank_tolerance(gram.dtype)
    return values[keep], vectors[:, keep], scale


def span_coefficients(gram: Tensor, products: Tensor) -> Tensor:
    """Weights w so that sum_i w_i h_i is the orthogonal projection of x onto span{h_i}.

    Args:
        gram (`torch.Tensor` of shape `(m, m)`): <h_i, h_j>.
        products (`torch.Tensor` of shape `(m,)`): <h_i, x>.

    Returns:
        `torch.Tensor` of shape `(m,)`: the truncated pseudo-inverse of `gram` times `products`.
    """
    values, vectors, scale = normalized_eigh(gram)
    return scale * (vectors @ ((vectors.T @ (scale * products)) / values))


def history_basis(history: Tensor) -> Tensor:
    """Orthonormal basis V of the span of the history, without directions of zero singular value.

    Args:
        history (`torch.Tensor` of shape `(d, m)`): one flattened vector for each column.

    Returns:
        `torch.Tensor` of shape `(d, k)`, k <= m the numerical rank.
    """
    values, vectors, scale = normalized_eigh(history.T @ history)
    basis = history @ (scale[:, None] * vectors * values.rsqrt())
    if values.numel() and float(values[0]) < 1e-6 * float(values[-1]):
        # Nearly dependent columns: one pass leaves an orthogonality error of eps / smallest eigenvalue.
        again, turn = torch.linalg.eigh(basis.T @ basis)
        basis = basis @ (turn * again.rsqrt())
    return basis


def refine(update: Tensor, basis: Tensor, projection_weight: float) -> Refined:
    """RSM = SM' - (1 - lambda) V V^T SM'.

    Args:
        update (`torch.Tensor` of any shape with d elements): the denoised update SM'.
        basis (`torch.Tensor` of shape `(d, k)`): orthonormal basis V of the history.
        projection_weight (`float`): lambda in [0, 1].
    """
    flat = update.reshape(-1)
    coefficients = basis.T @ flat
    energy = float(flat.square().sum())
    share = min(float(coefficients.square().sum()) / energy, 1.0) if energy > 0 else 0.0
    refined = flat - (1 - projection_weight) * (basis @ coefficients)
    return Refined(refined.view_as(update), share)


def fix_signs(vectors: Tensor) -> Tensor:
    """Signs (`(k,)`, +1 or -1) that make the largest entry of every column positive, so that results repeat."""
    if vectors.numel() == 0:
        return vectors.new_ones(vectors.shape[1])
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(peaks < 0, -torch.ones_like(peaks), torch.ones_like(peaks))


def leading_mixture(gram: Tensor, rank: int) -> tuple[Tensor, float]:
    """Mixing weights that turn m vectors into their `rank` leading singular directions U_k S_k.

    Args:
        gram (`torch.Tensor` of shape `(m, m)`): inner products of the vectors.
        rank (`int`): k, at most m.

    Returns:
        `(Q (m, k), kept)`: H Q = U_k S_k in descending order, and the kept share of the squared norm.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = float(values.sum())
    vectors = vectors[:, :rank]
    kept = float(values[:rank].sum()) / total if total > 0 else 1.0
    return vectors * fix_signs(vectors), min(kept, 1.0)
