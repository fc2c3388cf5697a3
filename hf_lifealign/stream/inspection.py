"""One pass over the rows of a loaded split: its format, its mean lengths, its faulty and its doubtful rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lifealign.stream.errors import RefusedError, show_rows
from hf_lifealign.stream.rows import COMPLETIONS, TEXTS, is_blank, kind_of, message_fault, repeats_prompt, text_of

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = ("standard", "conversational")


@dataclass(frozen=True)
class SplitFacts:
    """What a loaded split holds.

    Attributes:
        rows (`int`): rows loaded.
        format (`str`): `"standard"` (texts) or `"conversational"` (lists of messages).
        equal_pairs (`tuple[int, ...]`): source indices of the rows whose chosen and rejected are the same.
        repeated_prompts (`tuple[int, ...]`): source indices of the rows whose completions begin with the prompt again.
        mean_prompt_chars, mean_chosen_chars, mean_rejected_chars (`float`): mean lengths in characters.
    """

    rows: int
    format: str
    equal_pairs: tuple[int, ...]
    repeated_prompts: tuple[int, ...]
    mean_prompt_chars: float
    mean_chosen_chars: float
    mean_rejected_chars: float


def inspect_split(dataset: Dataset, ids: Sequence[int]) -> tuple[SplitFacts, list[RefusedError]]:
    """Looks at every row once.

    Args:
        dataset (`datasets.Dataset`): a split with the columns prompt, chosen and rejected.
        ids (`Sequence[int]`): source index of each row, for the messages.

    Returns:
        `tuple[SplitFacts, list[RefusedError]]`: the facts and the faults. Where there are faults, the facts cover the
        sound rows.
    """
    faults: dict[str, list[int]] = {}
    by_format: dict[str, list[int]] = {name: [] for name in _FORMATS}
    equal, repeated = [], []
    lengths = dict.fromkeys(TEXTS, 0)
    with_kwargs = "chat_template_kwargs" in dataset.column_names
    columns = [*TEXTS, "chat_template_kwargs"] if with_kwargs else list(TEXTS)
    for index, row in zip(ids, dataset.select_columns(columns), strict=True):
        if with_kwargs and row["chat_template_kwargs"] is None:
            faults.setdefault("chat_template_kwargs is None", []).append(index)
        fault = row_fault(row)
        if fault is not None:
            faults.setdefault(fault, []).append(index)
            continue
        by_format[kind_of(row["prompt"])].append(index)
        if row["chosen"] == row["rejected"]:
            equal.append(index)
        if repeats_prompt(row):
            repeated.append(index)
        for name in TEXTS:
            lengths[name] += len(text_of(row[name]))
    sound = sum(len(rows) for rows in by_format.values())
    means = {name: round(total / sound, 1) if sound else 0.0 for name, total in lengths.items()}
    facts = SplitFacts(
        rows=len(dataset),
        format=max(_FORMATS, key=lambda name: len(by_format[name])),
        equal_pairs=tuple(equal),
        repeated_prompts=tuple(repeated),
        mean_prompt_chars=means["prompt"],
        mean_chosen_chars=means["chosen"],
        mean_rejected_chars=means["rejected"],
    )
    return facts, [*_refuse(faults, len(dataset)), *_refuse_mixture(by_format)]


def row_fault(row: Mapping[str, Any]) -> str | None:
    """What makes a row unusable, in words that can be counted over rows; `None` for a sound row."""
    for name in TEXTS:
        value = row[name]
        if value is None:
            return f"{name} is None"
        kind = kind_of(value)
        if kind not in _FORMATS:
            return f"{name} is a {kind}, neither a text nor a list of messages"
        fault = message_fault(value) if kind == "conversational" else None
        if fault is not None:
            return f"{name} has {fault}"
    for name in COMPLETIONS:
        if is_blank(row[name]):
            return f"{name} is empty"
    if is_blank(row["prompt"]):
        return "the prompt is empty"
    kinds = {name: kind_of(row[name]) for name in TEXTS}
    if len(set(kinds.values())) > 1:
        return "texts and messages are mixed in one row (" + ", ".join(f"{n}: {k}" for n, k in kinds.items()) + ")"
    return None


def _advice(fault: str) -> str:
    if fault.startswith("the prompt is empty"):
        return (
            "Set a prompt. Where it is implicit, chosen and rejected must begin with the same text or messages; "
            "where another column holds it, name that column in `columns`."
        )
    if fault.startswith("chat_template_kwargs"):
        return "Write {} into those rows, or drop the column: TRL unpacks it for every row."
    if "role" in fault or "content" in fault:
        return 'Write every message as {"role": "user", "content": "..."}.'
    if fault.startswith("texts and messages"):
        return "Write all three columns as texts, or all three as lists of messages."
    return "Fill in those rows, or remove them."


def _refuse(faults: dict[str, list[int]], rows: int) -> list[RefusedError]:
    return [
        RefusedError(f"In {len(ids)} of {rows} rows {fault} ({show_rows(ids)}).", _advice(fault))
        for fault, ids in faults.items()
    ]


def _refuse_mixture(by_format: dict[str, list[int]]) -> list[RefusedError]:
    if not all(by_format.values()):
        return []
    few, many = sorted(_FORMATS, key=lambda name: len(by_format[name]))
    return [
        RefusedError(
            f"Two formats are mixed: {len(by_format[many])} rows are {many}, {len(by_format[few])} are {few} "
            f"({show_rows(by_format[few])}).",
            "Write all rows as texts (standard) or all as lists of messages (conversational).",
        )
    ]
