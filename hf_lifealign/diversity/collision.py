"""How often two rows are the same, wholly or in their first tokens: the collision statistics of texts and samples.

Of the answers of a data set they tell how narrow the data is; of a model's aligned samples they are its narrowness at
the level of tokens, c_1, c_2, c_4 and c_8. Nothing here needs more than the standard library.
"""

import numbers
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

# a list or tuple of token ids or words, a text (its characters), or a one-dimensional array or tensor
Tokens = Sequence[Hashable] | Any


def exact_collision(sequences: Iterable[Tokens]) -> float:
    """Probability that two different rows are the same: sum_c n_c (n_c - 1) / (n (n - 1)).

    `n_c` rows hold the content `c`. The U-statistic of the collision probability sum_c p_c^2: over rows drawn
    independently from one distribution its expectation is that sum, whatever the number of rows.

    Args:
        sequences (iterable of `n` sequences): rows of token ids or of anything else that can be hashed. Padding counts
            as a token, so take it off first. Empty rows equal each other.

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: for fewer than two rows, or a row that is no sequence of things that can be hashed.
    """
    return _collision(sequences, None)


def prefix_collision(sequences: Iterable[Tokens], k: int) -> float:
    """Probability that two different rows begin with the same `k` tokens, as a U-statistic; see [`exact_collision`].

    A row shorter than `k` counts with what it has: it collides with rows that are as short and the same, never with a
    longer one. The result never grows with `k` and is never below the exact collision.

    Args:
        sequences (iterable of `n` sequences): rows; see [`exact_collision`].
        k (`int`): tokens from the beginning, at least 1.

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: as [`exact_collision`], and for a `k` below 1.
    """
    if isinstance(k, bool) or not isinstance(k, numbers.Integral) or k < 1:
        raise ValueError(f"You set k={k!r}. Two rows are compared by their first k tokens: set a whole number from 1.")
    return _collision(sequences, int(k))


def _collision(sequences: Iterable[Tokens], length: int | None) -> float:
    counts = Counter(_key(row, index, length) for index, row in enumerate(sequences))
    rows = sum(counts.values())
    if rows < 2:
        raise ValueError(
            f"You gave {rows} row{'s' * (rows != 1)}. A collision is a matter of two: give at least 2 rows."
        )
    # whole numbers until the last division, so that nothing is rounded before it
    return sum(count * (count - 1) for count in counts.values()) / (rows * (rows - 1))


def _key(row: Tokens, index: int, length: int | None) -> tuple[Hashable, ...]:
    """The first tokens of a row as something to count by."""
    try:
        row = row[:length]
        # tensors hash by identity: two of the same value would never collide
        key = tuple(row.tolist() if hasattr(row, "tolist") else row)
        hash(key)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f"Row {index} is a {type(row).__name__} that cannot be compared as a sequence of tokens ({error}). Give "
            "each row as a list of token ids or words."
        ) from error
    return key
