"""N-grams of rows of tokens as numbers, and the share of them that is distinct."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_FILL = object()


@dataclass(frozen=True)
class Ngrams:
    """All n-grams of a set of rows, as they stand in it.

    Args:
        row (`np.ndarray` of shape `(grams,)`): the row that each stands in, from 0.
        code (`np.ndarray` of shape `(grams,)`): a number for its content, from 0 to `kinds - 1`.
        kinds (`int`): different n-grams.
    """

    row: NDArray[np.int64]
    code: NDArray[np.int64]
    kinds: int


def ngrams(sequences: Sequence[Sequence[Hashable]], n: int, whole_short_rows: bool = False) -> Ngrams:
    """The n-grams of rows.

    Args:
        sequences (`Sequence[Sequence]` of `rows` rows): token ids, words, or anything else that can be hashed.
        n (`int`): tokens of an n-gram, at least 1.
        whole_short_rows (`bool`, *optional*, defaults to `False`): count a row with fewer than `n` tokens, but not an
            empty one, as one n-gram of its own kind, instead of as none.

    Raises:
        ValueError: for an `n` below 1.
    """
    if n < 1:
        raise ValueError(f"You set n={n}. An n-gram has at least 1 token.")
    rows = [_filled(row, n) for row in sequences] if whole_short_rows else sequences
    known: dict[Hashable, int] = {}
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = chain.from_iterable(rows)
    # all rows one after another; of their windows those count that end in the row that they begin in
    ids = np.fromiter((known.setdefault(token, len(known)) for token in tokens), dtype=np.int64, count=lengths.sum())
    row = np.repeat(np.arange(len(rows)), lengths)
    start = np.flatnonzero(np.arange(len(ids)) + n <= np.cumsum(lengths)[row])
    code, kinds = ids[start], len(known)
    for step in range(1, n):
        # numbered anew after each token, so that no product leaves 64 bits
        distinct, code = np.unique(code * len(known) + ids[start + step], return_inverse=True)
        kinds = len(distinct)
    return Ngrams(row[start], code, kinds)


def _filled(row: Sequence[Hashable], n: int) -> Sequence[Hashable]:
    """A row filled up to `n` tokens with one that no other row has, so that it equals only rows as short."""
    return [*row, *[_FILL] * (n - len(row))] if 0 < len(row) < n else row


def distinct_ngrams(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct-n: different n-grams over all n-grams, of all rows together (Li et al. 2016, section 5.2).

    It falls as rows are added, since words recur, so that it compares only sets of like size.

    Args:
        sequences (`Sequence[Sequence]`): rows of tokens; a row with fewer than `n` of them has no n-gram.
        n (`int`): tokens of an n-gram, at least 1.

    Returns:
        `float` in [0, 1]; 0 where there is no n-gram.

    Raises:
        ValueError: for an `n` below 1.
    """
    found = ngrams(sequences, n)
    return found.kinds / len(found.code) if len(found.code) else 0.0
