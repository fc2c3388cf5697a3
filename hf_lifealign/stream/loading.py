"""Turns a checked source into a `datasets.Dataset`: local files without network, Hub datasets through `datasets`."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.stream.errors import RefusedError
from hf_lifealign.stream.sources import Source

if TYPE_CHECKING:
    from datasets import Dataset

_NO_ROWS = "corresponds to no data"


def read_source(source: Source, wanted: Collection[str]) -> Dataset:
    """Loads the rows of a source.

    Args:
        source (`Source`): a checked source.
        wanted (`Collection[str]`): names of the source's columns that will be used.

    Raises:
        RefusedError: a line is malformed (file and line number are named), the Hub or `datasets` refuses the source, or
            it holds no rows.
    """
    if source.dataset is not None:
        # Rows must come out as plain Python objects whatever format (torch, numpy) the user works in.
        dataset = source.dataset.with_format(None)
    elif source.files:
        dataset = _read_files(source, wanted)
    else:
        dataset = _read_hub(source)
    if len(dataset) == 0:
        raise _empty(source)
    return dataset


def _empty(source: Source) -> RefusedError:
    where = f"The split {source.split!r} " if source.dataset is None else "It "
    return RefusedError(f"{where}holds no rows.", "Set a source with at least one row.")


def _read_files(source: Source, wanted: Collection[str]) -> Dataset:
    from datasets import load_dataset

    # `datasets` keys its cache on path and mtime, so a file rewritten with its old mtime (cp -p, tar, a build
    # system) would come back stale. The digest of the contents in the configuration's name rules that out. The
    # cache lies in the user's `HF_DATASETS_CACHE`, never beside the data.
    digest = hashlib.sha256()
    for path in source.files:
        digest.update(_file_digest(path))
    files = {_split_base(source.split): [glob.escape(str(path)) for path in source.files]}
    name = f"stream-{digest.hexdigest()[:16]}"
    try:
        dataset = load_dataset(source.loader, name=name, data_files=files, split=source.split)
        if source.loader == "json" and any(
            "Value('timestamp[" in str(feature) for column, feature in dataset.features.items() if column in wanted
        ):
            dataset = _reread_as_text(source)
        return dataset
    except Exception as error:  # `datasets` raises half a dozen unrelated classes here
        if source.loader == "json":
            for path in source.files:
                _refuse_bad_json(path)
        if _NO_ROWS in str(error):
            raise _empty(source) from error
        detail = _one_line(error.__cause__ or error)
        listed = ", ".join(str(path) for path in source.files)
        raise RefusedError(f"{listed} cannot be read ({detail}).", "Repair the file, or correct the split.") from error


def _reread_as_text(source: Source) -> Dataset:
    """JSON has no dates, but Arrow's reader makes timestamps of a column in which every text looks like one.

    The answers "2020-01-01" and "1999-12-31" are texts; so such a file is read again with Python's own reader.
    """
    from datasets import Dataset, ReadInstruction, concatenate_datasets

    whole = Dataset.from_list([row for path in source.files for _, row in _json_rows(path)])
    spans = ReadInstruction.from_spec(source.split).to_absolute({_split_base(source.split): len(whole)})
    return concatenate_datasets([whole.select(range(span.from_, span.to)) for span in spans])


def _split_base(split: str) -> str:
    """`"train"` of `"train[:200]"`: the name that local files are loaded under."""
    base = re.match(r"\w+(\.\w+)*", split)
    return base.group() if base else "train"


def _read_hub(source: Source) -> Dataset:
    from datasets import load_dataset

    try:
        return load_dataset(**source.hub, split=source.split)
    except Exception as error:
        if _NO_ROWS in str(error):
            raise _empty(source) from error
        raise RefusedError(
            f"Split {source.split!r} of the Hub dataset {source.hub['path']!r} cannot be loaded ({_one_line(error)}).",
            f'Correct the id, or name configuration and split: {{"path": "{source.hub["path"]}", "name": ..., '
            '"split": "train[:90%]"}.',
        ) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:300]}"


def _file_digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """`(line number, value)` of a JSON list (line 1 for all) or of JSON lines, read by Python's own parser.

    Raises:
        ValueError: with the attribute `line`, where a line does not parse or is no UTF-8.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        yield from ((1, row) for row in _parse(data, 1))
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line, number)


class _BadLineError(ValueError):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _parse(data: bytes, line: int) -> Any:
    try:
        value = json.loads(data)
        # A lone surrogate ("\\ud800") passes Python's parser but is no text that Arrow or a tokenizer can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _BadLineError(line + error.lineno - 1, f"{error.msg} at column {error.colno}") from error
    except UnicodeError as error:
        raise _BadLineError(line, f"not valid UTF-8 text ({error})") from error
    return value


def _refuse_bad_json(path: Path) -> None:
    """Names the first line that is no JSON object; returns where every line is fine, as the fault lies elsewhere."""
    try:
        for number, row in _json_rows(path):
            if not isinstance(row, dict):
                raise _BadLineError(number, f"a {type(row).__name__} stands there, not an object with named columns")
    except _BadLineError as error:
        if _is_one_document(path):
            return
        raise RefusedError(
            f"{path}, line {error.line} is malformed: {error}.",
            "Repair or delete that line: JSONL holds one JSON object a line.",
        ) from error


def _is_one_document(path: Path) -> bool:
    """Whether the whole file is one JSON object spread over several lines."""
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False
