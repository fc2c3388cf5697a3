"""Where questions with given answers come from: files on this machine, and datasets of the Hub."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from hf_lifealign.self_align.choices import Question, read_questions
from hf_lifealign.strategies.sampling import seeded_generator

_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (".json", *_LINES, ".csv", ".parquet")
# Under which a JSON document keeps its rows, as BIG-bench's tasks do.
_ROWS = ("examples", "data", "rows", "questions")


def load_questions(
    source: str | os.PathLike[str],
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """Reads questions.

    Args:
        source (`str`): a .json, .jsonl, .csv or .parquet file, or the Hub id of a dataset; its rows as of
            [`read_questions`]. A JSON document is a list of rows, or an object with such a list under `"examples"`. In
            a table of commas, lists are written as JSON.
        config (`str`, *optional*), split (`str`, *optional*), revision (`str`, *optional*): of the dataset; where it
            has only one split, that one is taken.
        limit (`int`, *optional*): at most so many, drawn at random and left in their order.
        seed (`int`): of that drawing.

    Raises:
        ValueError: if they cannot be read, naming the source and the row.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"You set limit={limit} of questions. Set at least 1.")
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.lower() in _SUFFIXES or isinstance(source, os.PathLike):
        named = {"config": config, "split": split, "revision": revision}
        strange = [key for key, value in named.items() if value is not None]
        if strange:
            raise ValueError(f"You set {' and '.join(strange)} for the file {name}, which has none. Leave it out.")
        rows = _read_file(path)
    else:
        rows = _read_hub(name, config, split, revision)
    try:
        found = read_questions(rows)
    except ValueError as error:
        raise ValueError(f"You set the questions {name!r}. {error}") from error
    if limit is None or limit >= len(found):
        return found
    places = seeded_generator(seed, "questions").permutation(len(found))[:limit]
    return [found[i] for i in sorted(int(place) for place in places)]


def _read_file(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in _SUFFIXES:
        wrong = "does not exist" if not path.exists() else "is a folder" if path.is_dir() else "is not read"
        raise ValueError(f"You set the questions {path}, which {wrong}. Name a file ending in {', '.join(_SUFFIXES)}.")
    try:
        rows = _parsed(path, suffix)
    except (OSError, ValueError) as error:
        raise ValueError(f"You set the questions {path}, which cannot be read: {error}. Repair the file.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"You set the questions {path}, which hold something other than rows. Give a list of objects, one object a "
            f"line, or an object with such a list under one of {list(_ROWS)}."
        )
    return rows


def _parsed(path: Path, suffix: str) -> Any:
    if suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    # by Python's own reader: others make one table of all rows, in which answers that are keys become columns
    text = path.read_text(encoding="utf-8-sig")
    if suffix == ".csv":
        return [{key: _cell(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines(True))]
    if suffix in _LINES:
        return [_line(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    content = json.loads(text)
    if isinstance(content, dict):
        return next((content[key] for key in _ROWS if isinstance(content.get(key), list)), content)
    return content


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from error


def _cell(value: Any) -> Any:
    """A list or an object where a cell holds one."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _read_hub(name: str, config: str | None, split: str | None, revision: str | None) -> list[dict[str, Any]]:
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(name, name=config, split=split, revision=revision)
    except Exception as error:  # `datasets` raises half a dozen unrelated classes here
        told = " ".join(str(error).split())[:400]
        raise ValueError(
            f"You set the questions {name!r} (config {config!r}, split {split!r}), which is no file and cannot be "
            f"loaded from the Hub: {told} Correct the name, or set config and split."
        ) from error
    if isinstance(found, DatasetDict):
        if len(found) != 1:
            raise ValueError(
                f"You set the questions {name!r}, which have the splits {sorted(map(str, found))}. Set split to one."
            )
        (found,) = found.values()
    rows: list[dict[str, Any]] = found.to_list()
    return rows
