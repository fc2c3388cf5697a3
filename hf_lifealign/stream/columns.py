"""Renames a source's columns to the names TRL's trainers read, and proposes a mapping where one is missing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_lifealign.stream.errors import RefusedError, show
from hf_lifealign.stream.rows import COMPLETIONS, KNOWN_COLUMNS, TEXTS
from hf_lifealign.stream.sources import close_match

if TYPE_CHECKING:
    from datasets import Dataset

# Names seen for these columns in preference datasets on the Hub.
_ALIASES = {
    "prompt": ("question", "instruction", "query", "input", "context", "prompts", "problem", "user"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "better", "good", "accepted", "winner", "positive"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "worse", "bad", "loser", "negative"),
}


def check_columns(columns: Any) -> list[RefusedError]:
    """Every fault of a `columns` mapping that can be seen without data."""
    if columns is None:
        return []
    form = "Set a mapping from the source's column to TRL's name, e.g. {question: prompt, good: chosen, bad: rejected}."
    if not isinstance(columns, Mapping):
        return [RefusedError(f"A {type(columns).__name__} is no mapping.", form)]
    if not all(isinstance(text, str) for pair in columns.items() for text in pair):
        return [RefusedError("Column names are texts.", form)]
    refused = []
    unknown = [target for target in columns.values() if target not in KNOWN_COLUMNS]
    if unknown and all(source in KNOWN_COLUMNS for source in columns):
        flipped = {target: source for source, target in columns.items()}
        refused.append(RefusedError("The mapping stands the wrong way round.", f"Set columns: {_yaml(flipped)}."))
    else:
        for target in unknown:
            refused.append(
                RefusedError(
                    f"{target!r} is no column of a preference task.{close_match(target, KNOWN_COLUMNS)}",
                    f"Map to one of {', '.join(KNOWN_COLUMNS)}.",
                )
            )
    targets = list(columns.values())
    for target in sorted({target for target in targets if targets.count(target) > 1}):
        both = [source for source in columns if columns[source] == target]
        refused.append(RefusedError(f"{' and '.join(both)} are both mapped to {target}.", "Keep one of them."))
    return refused


def apply_columns(dataset: Dataset, columns: Mapping[str, str] | None) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset with TRL's column names in TRL's order, and the names of the columns that were dropped.

    A mapped column takes the place of one that already has its new name.

    Raises:
        RefusedError: a mapped column is not there, or chosen or rejected is missing.
    """
    found = list(dataset.column_names)
    mapping = dict(columns or {})
    absent = [source for source in mapping if source not in found]
    if absent:
        matches = "".join(close_match(name, found) for name in absent)
        raise RefusedError(
            f"The data has no column {', '.join(map(repr, absent))}; its columns are {', '.join(found)}.{matches}",
            "Correct the column name.",
            given=f"columns with {show(dict(mapping))}",
        )
    sources = {name: name for name in found if name in KNOWN_COLUMNS and name not in mapping}
    sources.update({target: source for source, target in mapping.items()})
    missing = [name for name in COMPLETIONS if name not in sources]
    if missing:
        raise RefusedError(
            f"The column {' and the column '.join(map(repr, missing))} is missing; "
            f"the data has {', '.join(found) or 'none'}.",
            f"Set columns: {_yaml(propose_columns(found, mapping))}.",
        )
    kept = {sources[name]: name for name in KNOWN_COLUMNS if name in sources}
    dropped = tuple(name for name in found if name not in kept)
    renamed = {source: target for source, target in kept.items() if source != target}
    return dataset.select_columns(list(kept)).rename_columns(renamed), dropped


def propose_columns(found: Sequence[str], mapping: Mapping[str, str] | None = None) -> dict[str, str]:
    """A likely `columns` mapping for the columns found; a slot to be filled in stands as `<your ... column>`."""
    proposal = dict(mapping or {})
    for target in TEXTS:
        if target in found or target in proposal.values():
            continue
        free = [name for name in found if name not in KNOWN_COLUMNS and name not in proposal]
        guess = _guess(target, free)
        if guess is not None:
            proposal[guess] = target
        elif target in COMPLETIONS:
            proposal[f"<your {target} column>"] = target
    return proposal


def _guess(target: str, free: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in free}
    for alias in _ALIASES[target]:
        if alias in by_lower:
            return by_lower[alias]
    close = difflib.get_close_matches(target, list(by_lower), n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def looks_like_prompt(dropped: Sequence[str]) -> str | None:
    """The dropped column that probably holds the prompt, if one does."""
    return next((name for name in dropped if name.lower() in _ALIASES["prompt"]), None)


def _yaml(mapping: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{source}: {target}" for source, target in mapping.items()) + "}"
