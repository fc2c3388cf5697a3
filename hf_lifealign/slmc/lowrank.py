"""Matrices kept as products of thin factors: inner products, exact and certified truncation, splitting into A and B.

An update of a LoRA module is s (B A) with B of shape (m, r) and A of shape (r, n). Nothing here forms an m x n matrix:
a QR of both sides and the SVD of the small core give the exact SVD of a product of factors.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .linalg import fix_signs, leading_rank

# Up to this stacked rank the exact SVD costs less than proving a block iteration right.
_SMALL = 128


class Factors(NamedTuple):
    """The matrix `left @ right`, with left `(m, k)` and right `(k, n)`."""

    left: Tensor
    right: Tensor


class ThinSVD(NamedTuple):
    """Leading singular triplets: U `(m, k)`, S `(k,)` descending, Vh `(k, n)`."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def stack(parts: Sequence[Factors]) -> Factors:
    """The sum of the parts as one product: left factors side by side, right factors on top of each other."""
    return Factors(torch.cat([p.left for p in parts], dim=1), torch.cat([p.right for p in parts], dim=0))


def update_factors(A_prev: Tensor, B_prev: Tensor, A_now: Tensor, B_now: Tensor, scaling: float) -> Factors:
    """SM = s (B1 A1 - B0 A0) as factors of rank 2r.

    Written as s (B1 - B0) A1 + s B0 (A1 - A0), so that a small change is not the difference of two large products.

    Args:
        A_prev, A_now (`torch.Tensor` of shape `(r, n)`): A before and after the task.
        B_prev, B_now (`torch.Tensor` of shape `(m, r)`): B before and after the task.
        scaling (`float`): s, LoRA's alpha / r (or alpha / sqrt(r)).
    """
    left = torch.cat([scaling * (B_now - B_prev), scaling * B_prev], dim=1)
    return Factors(left, torch.cat([A_now, A_now - A_prev], dim=0))


def exact_svd(factors: Factors) -> ThinSVD:
    """All singular triplets of `left @ right` by QR of both sides and the SVD of the core, O((m + n) k^2)."""
    Q_left, R_left = torch.linalg.qr(factors.left)
    Q_right, R_right = torch.linalg.qr(factors.right.T)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T, full_matrices=False)
    return ThinSVD(Q_left @ U, S, Vh @ Q_right.T)


def balanced(svd: ThinSVD, rank: int) -> Factors:
    """The leading `rank` triplets as factors that share the singular values evenly."""
    root = svd.S[:rank].sqrt()
    signs = fix_signs(svd.U[:, :rank])
    return Factors(svd.U[:, :rank] * (root * signs), (root * signs)[:, None] * svd.Vh[:rank])


def denoise_factors(update: Factors, threshold: float) -> tuple[Factors, int, float]:
    """SM' of an update in factors: `(balanced factors, rank, kept share of the energy)`."""
    svd = exact_svd(update)
    rank, energy = leading_rank(svd.S, threshold)
    return balanced(svd, rank), rank, energy


def block_products(left_products: Tensor, right_products: Tensor, widths: Sequence[int]) -> Tensor:
    """Inner products of one product of factors with several, from the products of their sides.

    <L R, L_i R_i> = sum((L^T L_i) * (R R_i^T)).

    Args:
        left_products (`torch.Tensor` of shape `(k, K)`): L^T [L_1, L_2, ...].
        right_products (`torch.Tensor` of shape `(k, K)`): R [R_1; R_2; ...]^T.
        widths (`Sequence[int]`): the number of columns of each L_i, with sum K.

    Returns:
        `torch.Tensor` of shape `(len(widths),)`.
    """
    columns = (left_products * right_products).sum(0)
    return torch.stack([part.sum() for part in columns.split(list(widths))]) if widths else columns.new_zeros(0)


def inner(one: Factors, other: Factors) -> Tensor:
    """<one, other> = sum((L1^T L2) * (R1 R2^T)), a scalar."""
    return ((one.left.T @ other.left) * (one.right @ other.right.T)).sum()


def gram_of(parts: Sequence[Factors]) -> Tensor:
    """Inner products of all pairs, `torch.Tensor` of shape `(m, m)`."""
    whole, widths = stack(parts), [p.left.shape[1] for p in parts]
    rows = []
    for part in parts:
        rows.append(block_products(part.left.T @ whole.left, part.right @ whole.right.T, widths))
    gram = torch.stack(rows)
    return (gram + gram.T) / 2


class Cumulative(NamedTuple):
    """T = dominant + sum_j weights_j left_j right_j: a thin leading part plus the weighted history, kept apart.

    Left sides are kept transposed, so that history is read row by row and big products run along contiguous memory.

    Args:
        dominant_left (`torch.Tensor` of shape `(d, m)`), dominant_right (`torch.Tensor` of shape `(d, n)`).
        history_left (`torch.Tensor` of shape `(K, m)`), history_right (`torch.Tensor` of shape `(K, n)`).
        weights (`torch.Tensor` of shape `(K,)`): one weight for each history direction.
    """

    dominant_left: Tensor
    dominant_right: Tensor
    history_left: Tensor
    history_right: Tensor
    weights: Tensor

    def times(self, X: Tensor) -> Tensor:
        """T X for X `(n, b)`."""
        return self.from_right(self.dominant_right @ X, self.history_right @ X)

    def from_right(self, dominant: Tensor, history: Tensor) -> Tensor:
        """T X from the products of the right sides with X, `(d, b)` and `(K, b)`."""
        return self.dominant_left.T @ dominant + self.history_left.T @ (self.weights[:, None] * history)

    def transposed_times(self, Q: Tensor) -> Tensor:
        """T^T Q for Q `(m, b)`."""
        history = self.weights[:, None] * (self.history_left @ Q)
        return self.dominant_right.T @ (self.dominant_left @ Q) + self.history_right.T @ history

    def factors(self) -> Factors:
        """T as one product of stacked factors."""
        left = torch.cat([self.dominant_left, self.weights[:, None] * self.history_left]).T
        return Factors(left, torch.cat([self.dominant_right, self.history_right]))


def certified_svd(
    matrix: Cumulative, right_products: Tensor, squared_norm: float, rank: int, sweeps: int = 3
) -> ThinSVD:
    """Leading `rank` singular triplets of T: block iteration where it is proved as good, else exactly.

    For an orthonormal Q let S be the singular values of Q^T T, V its right vectors, E = (I - Q Q^T) T, rest = |E|_F^2 =
    |T|_F^2 - sum S^2 and residual = E V_r. In the basis V the matrix T^T T has the blocks S_r^2 + |residual|^2 and at
    most S_{r+1}^2 + rest, coupled by at most sqrt(rest) |residual|, so the best rank-r matrix holds at most
    |residual|^2 (1 + rest / (S_r^2 - S_{r+1}^2 - rest)) more energy than the r triplets found. They are taken when that
    is 1e-8 of what any rank-r matrix must lose, or 1e-13 of |T|_F^2; where no gap proves it, `exact_svd` decides.

    Args:
        matrix (`Cumulative`): T.
        right_products (`torch.Tensor` of shape `(d, K)`): dominant_right history_right^T, which the caller has anyway.
        squared_norm (`float`): |T|_F^2, exact.
        rank (`int`): how many triplets are wanted.
        sweeps (`int`): block iterations before the exact way.
    """
    # The iteration starts from an orthonormal basis of the dominant part's row space.
    gram = matrix.dominant_right @ matrix.dominant_right.T
    values, vectors = torch.linalg.eigh(gram)
    keep = values > 1e-12 * values[-1]
    mixture = vectors[:, keep] * values[keep].rsqrt()
    width = min(int(keep.sum()), matrix.history_left.shape[1], matrix.history_right.shape[1])
    if width <= rank or matrix.weights.numel() + gram.shape[0] <= _SMALL:
        return exact_svd(matrix.factors())
    Y = matrix.from_right(gram @ mixture, right_products.T @ mixture)
    for sweep in range(sweeps):
        Q_left, _ = torch.linalg.qr(Y)
        Q_right, R = torch.linalg.qr(matrix.transposed_times(Q_left))
        U, S, Vh = torch.linalg.svd(R.T, full_matrices=False)
        right = Q_right @ Vh.T
        rest = max(squared_norm - float(S.square().sum()), 0.0)
        gap = float(S[rank - 1]) ** 2 - float(S[rank]) ** 2 - rest
        if gap > 0:
            left = Q_left @ U[:, :rank]
            residual = matrix.times(right[:, :rank]) - left * S[:rank]
            excess = float(residual.square().sum()) * (1 + rest / gap)
            lost = squared_norm - float(S[:rank].square().sum())
            if excess <= max(1e-8 * lost, 1e-13 * squared_norm):
                return ThinSVD(left, S[:rank], right[:, :rank].T)
        if sweep + 1 < sweeps:
            Y = matrix.times(right)
    return exact_svd(matrix.factors())


def stable_seed(name: str, index: int) -> int:
    """A seed that depends only on the module's name and the number of history entries, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{name}#{index}".encode()).digest()[:7], "big")


def split_into_lora(svd: ThinSVD, rank: int, scaling: float, seed: int) -> tuple[Tensor, Tensor, int]:
    """New LoRA factors with scaling * B A = the leading `rank` triplets, no direction of them dead.

    The singular values are shared evenly. Where fewer than `rank` are left, the unused rows of A are random, orthogonal
    to the used ones and as long as LoRA's own initialisation makes them, and the columns of B are zero: the product is
    unchanged and every direction still gets a gradient (with both sides zero it never would again).

    Args:
        svd (`ThinSVD`): of the cumulative change of the module.
        rank (`int`): LoRA's r.
        scaling (`float`): s > 0.
        seed (`int`): of the refilled rows.

    Returns:
        `(A (rank, n), B (m, rank), refilled)`.
    """
    m, n = svd.U.shape[0], svd.Vh.shape[1]
    # Below this a direction drowns in the rounding of float32 weights.
    floor = torch.finfo(torch.float32).eps * float(svd.S[0]) if svd.S.numel() else 0.0
    used = min(int((floor < svd.S).sum()), rank)
    half = balanced(svd, used)
    A, B = svd.Vh.new_zeros(rank, n), svd.U.new_zeros(m, rank)
    A[:used], B[:, :used] = half.right / scaling**0.5, half.left / scaling**0.5
    if used < rank:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(rank - used, n, generator=generator, dtype=torch.float64).to(A)
        room = max(0, min(rank, n) - used)
        if room:
            # QR keeps the used directions first, so that what follows is orthogonal to them.
            Q, _ = torch.linalg.qr(torch.cat([svd.Vh[:used], rows[:room]]).T)
            rows[:room] = Q[:, used:].T
        # kaiming_uniform_(a=sqrt(5)), LoRA's initialisation, gives rows of expected length 1 / sqrt(3).
        A[used:] = rows / (rows.norm(dim=1, keepdim=True) * 3**0.5)
    return A, B, rank - used


def compress_history(parts: Sequence[Factors], mixture: Tensor, max_rank: int) -> list[Factors]:
    """Mixtures of the history's factors, each cut to `max_rank`.

    Args:
        parts (`Sequence[Factors]`): m matrices in factors.
        mixture (`torch.Tensor` of shape `(m, k)`): column j holds the weights of the j-th new matrix.
        max_rank (`int`): 2r, the most a task's change can have.
    """
    whole = stack(parts)
    Q_left, R_left = torch.linalg.qr(whole.left)
    Q_right, R_right = torch.linalg.qr(whole.right.T)
    widths = torch.tensor([p.left.shape[1] for p in parts], device=mixture.device)
    result = []
    for weights in mixture.T:
        core = (R_left * weights.repeat_interleave(widths)) @ R_right.T
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        keep = min(max_rank, int((torch.finfo(S.dtype).eps * 100 * S[0] < S).sum()) if S.numel() else 0)
        half = balanced(ThinSVD(U, S, Vh), keep)
        result.append(Factors(Q_left @ half.left, half.right @ Q_right.T))
    return result
