"""The Vendi score: how many different rows a set is worth (Friedman & Dieng 2023, arXiv 2210.02410)."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# How far a diagonal or a squared length may be off 1: what is left of features in float32.
_TOLERANCE = 1e-3
# An order this close to 1 is taken for 1, since the general formula divides by the difference.
_NEAR_ONE = 1e-8


def vendi_score(kernel: NDArray[Any], q: float = 1.0) -> float:
    """The Vendi score of a similarity matrix: exp of the entropy of the eigenvalues of `kernel / n`, exactly.

    `q = 1` is Shannon's entropy (Friedman & Dieng 2023, definition 3.1). Other orders are Rényi's (Pasarkar & Dieng
    2023, arXiv 2310.12952): above 1 they look more at what is common, at `inf` at the largest eigenvalue alone, and at
    0 they count the eigenvalues that are not 0. The score falls with `q`, or stays.

    Args:
        kernel (`np.ndarray` of shape `(n, n)`): similarities: symmetric, positive semi-definite, 1 on the diagonal.
        q (`float`, *optional*, defaults to 1): the order, from 0 to `math.inf`.

    Returns:
        `float` from 1, where all rows are the same, to `n`, where no two have anything in common.

    Raises:
        ValueError: for a matrix that is no such kernel, or an order below 0.
    """
    matrix = np.asarray(kernel, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"You gave a kernel of shape {matrix.shape}. Give one similarity for each pair: shape (n, n).")
    off = np.abs(np.diagonal(matrix) - 1).max()
    if not np.isfinite(matrix).all() or off > _TOLERANCE or np.abs(matrix - matrix.T).max() > _TOLERANCE:
        raise ValueError(
            "You gave a kernel that is not symmetric and finite with 1 on its diagonal. Divide it by the roots of its "
            "diagonal, K_ij / sqrt(K_ii K_jj), so that each row is like itself to degree 1."
        )
    values = np.linalg.eigvalsh(matrix / len(matrix))
    if values[0] < -_TOLERANCE:
        raise ValueError(
            f"You gave a kernel with the eigenvalue {values[0] * len(matrix):.3g}, so that its entropy is not defined. "
            "Give one that is positive semi-definite, such as a product X X^T."
        )
    return _effective_number(values, q)


def vendi_score_of_features(features: "csr_array | NDArray[Any]", q: float = 1.0) -> float:
    """The Vendi score of rows by their cosines, over whichever is smaller: `X X^T` or `X^T X`.

    Both have the same eigenvalues but for zeros (Friedman & Dieng 2023, on computing the score), so that `d` features
    of `n` rows cost min(n, d)^3 and memory min(n, d)^2.

    Args:
        features (sparse array or `np.ndarray` of shape `(n, d)`): rows of length 1.
        q (`float`, *optional*, defaults to 1): the order; see [`vendi_score`].

    Returns:
        `float` from 1 to min(n, d).

    Raises:
        ValueError: for no rows, rows of another length, or an order below 0.
    """
    if len(features.shape) != 2 or not features.shape[0]:
        raise ValueError(f"You gave features of shape {features.shape}. Give one row of d numbers for each row.")
    rows, dimension = features.shape
    wide = features.astype(np.float64)
    lengths = np.asarray((wide * wide).sum(axis=1))
    if not (np.abs(lengths - 1) <= _TOLERANCE).all():
        row = int(np.argmax(~(np.abs(lengths - 1) <= _TOLERANCE)))
        raise ValueError(
            f"Row {row} of the features has the length {math.sqrt(lengths[row]):.3g}. Divide every row by its length."
        )
    gram = wide @ wide.T if rows <= dimension else wide.T @ wide
    dense = np.asarray(gram.todense() if hasattr(gram, "todense") else gram)
    return _effective_number(np.linalg.eigvalsh(dense / rows), q)


def _effective_number(eigenvalues: NDArray[np.floating[Any]], q: float) -> float:
    """exp of the entropy of order `q` of eigenvalues that sum to 1 but for rounding."""
    if not q >= 0:
        raise ValueError(f"You set q={q}. The order of an entropy is a number from 0 to infinity; 1 is Shannon's.")
    # Rounding leaves zeros as traces of either sign, which low orders would count as rows.
    kept = eigenvalues[eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max()]
    p = kept / kept.sum()
    if math.isinf(q):
        entropy = -math.log(p.max())
    elif abs(q - 1) < _NEAR_ONE:
        entropy = -float((p * np.log(p)).sum())
    else:
        powers = q * np.log(p)
        top = powers.max()
        entropy = (top + math.log(np.exp(powers - top).sum())) / (1 - q)
    return math.exp(entropy)
