"""The seeded random subset of a split: the same row indices in every process, on every platform, with every numpy."""

from __future__ import annotations

import hashlib

import numpy as np


def subset_ids(count: int, most: int | None, seed: int, name: str, split: str) -> list[int]:
    """Indices of at most `most` of `count` rows, in shuffled order.

    A smaller subset is the beginning of a larger one, so raising `max_train` only adds rows. Where nothing is cut
    off, the rows keep the source's order.

    Args:
        count (`int`): rows there are.
        most (`int` or `None`): rows to keep; `None` keeps all.
        seed (`int`): the task's seed.
        name (`str`): the task's name.
        split (`str`): `"train"` or `"test"`.

    Returns:
        `list[int]`: indices in `[0, count)`, all different.
    """
    if most is None or most >= count:
        return list(range(count))
    digest = hashlib.sha256(f"{seed}\n{name}\n{split}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "little"))
    # numpy promises a stable stream for the bit generator's raw output only, not for Generator.permutation (NEP 19):
    # so the rows are sorted by one raw 64-bit draw each.
    draws = bits.random_raw(count)
    return [int(index) for index in np.argsort(draws, kind="stable")[:most]]
