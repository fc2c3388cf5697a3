"""How alike two rows are by their n-grams, as features whose dot product is the similarity.

The kernel is that of Friedman & Dieng 2023 (arXiv 2210.02410) for texts: the cosine of two rows' n-gram counts,
averaged over the orders. Their package takes the orders 1 to 4 by default; 1 and 2 are taken here, since answers to
different prompts share hardly a 3-gram beyond set phrases, and those are what the collision statistics are for. Two
things differ: tokens may be those of a model, and a row shorter than an order counts as one n-gram, so that every row
is like itself to degree 1.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign.diversity.ngrams import ngrams

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ORDERS = (1, 2)


def ngram_features(sequences: Sequence[Sequence[Hashable]], orders: Sequence[int] = ORDERS) -> "csr_array":
    """A row of features for each row of tokens; the dot product of two is the mean of their cosines over the orders.

    The counts of each order are scaled to length 1, set side by side and divided by the root of the number of orders.

    Args:
        sequences (`Sequence[Sequence]` of `rows` rows): token ids, words, or anything else that can be hashed; none
            empty.
        orders (`Sequence[int]`, *optional*, defaults to `(1, 2)`): the orders n, each at least 1.

    Returns:
        `scipy.sparse.csr_array` of shape `(rows, n-grams of all orders)`: float64, not negative, rows of length 1.

    Raises:
        ValueError: for no row, an empty row, no order, or one below 1.
    """
    from scipy.sparse import coo_array, hstack

    if not orders:
        raise ValueError("You gave no orders. Give at least one, e.g. orders=(1, 2).")
    empty = [index for index, row in enumerate(sequences) if len(row) == 0]
    if empty or not len(sequences):
        what = f"row {empty[0]} is empty" if empty else "there is no row"
        raise ValueError(f"Of these rows {what}: without tokens nothing can be alike. Leave empty rows out.")
    parts = []
    for n in orders:
        found = ngrams(sequences, n, whole_short_rows=True)
        shape = (len(sequences), found.kinds)
        counts = coo_array((np.ones(len(found.code)), (found.row, found.code)), shape=shape).tocsr()
        counts.sum_duplicates()
        lengths = np.sqrt(np.add.reduceat(counts.data**2, counts.indptr[:-1]))
        counts.data /= np.repeat(lengths * np.sqrt(len(orders)), np.diff(counts.indptr))
        parts.append(counts)
    return hstack(parts, format="csr")


def mean_similarity(features: "csr_array | NDArray[Any]") -> float:
    """Mean dot product of two different rows, as a U-statistic: the diagonal is left out.

    The sum over all pairs is the squared length of the sum of all rows, so that no similarity is ever written down:
    time and memory are those of the features, for ten thousand rows as for ten.

    Args:
        features (sparse array or `np.ndarray` of shape `(rows, d)`): rows of length 1, e.g. [`ngram_features`].

    Returns:
        `float`: the mean cosine of two rows, in [-1, 1]; in [0, 1] for features that are not negative.

    Raises:
        ValueError: for fewer than two rows.
    """
    rows = features.shape[0]
    if rows < 2:
        raise ValueError(
            f"You gave {rows} row{'s' * (rows != 1)}. A similarity is a matter of two: give at least 2 rows."
        )
    total = np.asarray(features.sum(axis=0), dtype=np.float64)
    own = float((features * features).sum(dtype=np.float64))
    value = (float(total @ total) - own) / (rows * (rows - 1))
    # of rows that share nothing, rounding may leave a trace below 0
    return max(value, 0.0) if features.min() >= 0 else value
