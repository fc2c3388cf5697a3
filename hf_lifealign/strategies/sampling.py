"""Seeded samples of rows that are the same in every process and on every platform."""

import hashlib
import math
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets


def seeded_generator(seed: int, *words: str) -> np.random.Generator:
    """Generator for a purpose that is named by words; the same words give the same numbers anywhere."""
    digest = hashlib.sha256("\x1f".join((str(seed), *words)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def reservoir(n_rows: int, quota: int, generator: np.random.Generator) -> list[int]:
    """Uniform sample of `quota` of `n_rows` row indices in one pass (Vitter 1985, algorithm R), in random order.

    Args:
        n_rows (`int`): rows that pass by.
        quota (`int`): rows to keep; all if there are not more.
        generator (`numpy.random.Generator`): source of randomness.
    """
    kept: list[int] = []
    for i in range(n_rows):
        if i < quota:
            kept.append(i)
        else:
            j = int(generator.integers(0, i + 1))
            if j < quota:
                kept[j] = i
    # The first rows stand at their own places in a reservoir; a prefix of it is a fair sample only once shuffled.
    return [kept[i] for i in generator.permutation(len(kept))]


def share(n_rows: int, fraction: float) -> int:
    """`fraction` of `n_rows`, rounded up."""
    return math.ceil(round(n_rows * fraction, 9))


def row_format(rows: Dataset) -> str:
    """`"conversational"` or `"standard"`."""
    return "standard" if isinstance(rows[0]["chosen"], str) else "conversational"


def mix(rows: Dataset, extra: list[dict[str, Any]], origin: str) -> Dataset:
    """Appends rows to a data set. What only one side has (columns, keys of messages) is `None` on the other.

    Raises:
        ValueError: if one side is conversational and the other standard, or only one has reference log-probabilities.
    """
    if not extra:
        return rows
    kind = "standard" if isinstance(extra[0]["chosen"], str) else "conversational"
    if row_format(rows) != kind:
        raise ValueError(
            f"The rows of {origin} are {kind} and those of the task {row_format(rows)}. TRL trains on one format at a "
            "time. Bring all tasks into one of them."
        )
    if ("ref_chosen_logps" in rows.column_names) != ("ref_chosen_logps" in extra[0]):
        raise ValueError(f"Only one of the task's rows and those of {origin} have reference log-probabilities.")
    addition = Dataset.from_list(extra)
    if addition.features == rows.features:
        return concatenate_datasets([rows, addition])
    # arrow takes the columns from the first row alone
    columns = dict.fromkeys([*rows.column_names, *addition.column_names])
    mixed = [{name: row.get(name) for name in columns} for row in [*rows, *extra]]
    if "chat_template_kwargs" in columns:
        # TRL unpacks it, and None cannot be unpacked
        mixed = [row | {"chat_template_kwargs": row["chat_template_kwargs"] or {}} for row in mixed]
    return Dataset.from_list(mixed)
