"""What a preference row is: its columns, its explicit prompt, its identity up to whitespace, its faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

COMPLETIONS = ("chosen", "rejected")
TEXTS = ("prompt", *COMPLETIONS)
_IMAGES = ("images", "image")
# TRL's DPOTrainer reads no other column; the rest is dropped so that tasks of different origin look alike.
KNOWN_COLUMNS = (*TEXTS, "tools", "chat_template_kwargs", *_IMAGES)


def kind_of(value: Any) -> str:
    """`"standard"` for a text, `"conversational"` for a list of messages, else a word for what is there instead."""
    if isinstance(value, str):
        return "standard"
    if value is None:
        return "None"
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return "conversational"
    return type(value).__name__


def _without_none(value: Any) -> Any:
    """Arrow gives every message of a column the keys of all of them, filled with None: those keys are taken out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value


def explicit_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's prompt, chosen and rejected with the prompt told apart from the completions.

    A prompt is implicit where there is none, or where it is a plain text beside completions that are whole dialogues
    (UltraFeedback's form). Rows that cannot be split come back with an empty prompt; the checks name them.
    """
    texts = {name: row.get(name) for name in TEXTS}
    chosen, rejected = (_without_none(texts[name]) for name in COMPLETIONS)
    kind = kind_of(chosen)
    if kind not in ("standard", "conversational") or kind_of(rejected) != kind or not chosen or not rejected:
        return texts
    if "prompt" in row and not (isinstance(texts["prompt"], str) and kind == "conversational"):
        return texts
    # Without a shared beginning extract_prompt would look at chosen[-1] and cut the end of the answer off.
    if chosen[0] != rejected[0]:
        return {**texts, "prompt": chosen[:0]}
    from trl.data_utils import extract_prompt  # here, as it brings torch along and most datasets never get here

    return dict(extract_prompt({"chosen": chosen, "rejected": rejected}))


def make_explicit(dataset: Dataset) -> Dataset:
    """The dataset with an explicit prompt in every row; itself where that is so already."""
    from datasets import Features

    texts = dataset.select_columns([name for name in TEXTS if name in dataset.column_names])
    if "prompt" in dataset.column_names and not any(
        isinstance(row["prompt"], str) and kind_of(row["chosen"]) == "conversational" for row in texts
    ):
        return dataset
    # The prompt is cut out of chosen, so it has chosen's type. In memory: `map` would leave cache files in the
    # folder of a dataset that was loaded from disk.
    features = Features({**dataset.features, "prompt": dataset.features["chosen"]})
    order = [name for name in KNOWN_COLUMNS if name in features]
    mapped = dataset.map(explicit_row, features=features, keep_in_memory=True, load_from_cache_file=False)
    return mapped.select_columns(order)


def text_of(value: Any) -> str:
    """All text of a prompt or completion: the text itself, or the contents of its messages joined by a line break."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    contents = (message.get("content") if isinstance(message, dict) else message for message in value)
    return "\n".join(_content_text(content) for content in contents)


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def message_fault(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with a list of messages, or `None`. A message that only calls a tool needs no content."""
    for message in messages:
        if not isinstance(message.get("role"), str):
            return "a message without a role"
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            return "a message without content"
        if content is not None and not isinstance(content, (str, list)):
            return f"a message whose content is a {type(content).__name__}"
    return None


def is_blank(value: Any) -> bool:
    """Whether a text or a list of messages says nothing: no text, no tool call, no image."""
    if isinstance(value, list):
        return not any(
            message.get("tool_calls") or _content_text(message.get("content")).strip() or _has_image(message)
            for message in value
        )
    return not value.strip()


def _has_image(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == "image" for part in content)


def repeats_prompt(row: Mapping[str, Any]) -> bool:
    """Whether both completions begin with the explicit prompt, which the model would then see twice."""
    prompt = _without_none(row["prompt"])
    if not prompt:
        return False
    completions = [_without_none(row[name]) for name in COMPLETIONS]
    return all(len(completion) > len(prompt) and completion[: len(prompt)] == prompt for completion in completions)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: None keys out, bytes and image files as digests, other objects by their text."""
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"} and (value["bytes"] is not None or value["path"]):
            # An image: its path differs from machine to machine, its bytes do not.
            data = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
            return {"sha256": hashlib.sha256(data).hexdigest()}
        return {str(key): plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value."""
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def plain_rows(dataset: Dataset, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the given columns (all by default) with images as stored bytes instead of decoded pictures."""
    names = [name for name in columns or dataset.column_names if name in dataset.column_names]
    images = [name for name in names if name in _IMAGES]
    others = dataset.select_columns([name for name in names if name not in images])
    if not images:
        yield from others
        return
    stored = dataset.select_columns(images).with_format("arrow")
    for index, row in enumerate(others):
        yield {**row, **stored[index : index + 1].to_pylist()[0]}


def _squeezed(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {key: _squeezed(inner) for key, inner in value.items()}
    return [_squeezed(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _digest(value: Any) -> bytes:
    return hashlib.sha256(canonical(value).encode()).digest()[:16]


def row_keys(dataset: Dataset) -> tuple[list[bytes], list[bytes]]:
    """Two identities of each row up to whitespace: of its prompt (with its images), and of the whole pair."""
    prompts, pairs = [], []
    for row in plain_rows(dataset, [*TEXTS, *_IMAGES]):
        texts = explicit_row(row)
        asked = _squeezed([texts["prompt"], *(plain(row[name]) for name in _IMAGES if row.get(name) is not None)])
        prompts.append(_digest(asked))
        pairs.append(_digest([asked, _squeezed(texts["chosen"]), _squeezed(texts["rejected"])]))
    return prompts, pairs


def rows_digest(dataset: Dataset) -> str:
    """sha256 of the rows' canonical JSON, one row a line, in order."""
    digest = hashlib.sha256()
    for row in plain_rows(dataset):
        digest.update(canonical(row).encode() + b"\n")
    return digest.hexdigest()
