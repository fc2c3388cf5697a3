"""What `train` and `test` of a task may be set to, and every check of it that needs no data to be loaded."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.stream.errors import RefusedError, show

if TYPE_CHECKING:
    from datasets import Dataset

# suffix -> the loader of `datasets` that reads it
READABLE = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
SOURCE_KEYS = ("path", "name", "split", "revision", "data_files", "data_dir")
_HUB_ONLY_KEYS = ("name", "revision", "data_dir")
# A text with one of these endings means a file, though "data/safe.csv" would pass for a Hub id.
_FILE_SUFFIXES = {*READABLE, ".csv", ".tsv", ".txt", ".yaml", ".yml", ".arrow", ".feather", ".pkl", ".xlsx"} | {
    ".gz",
    ".bz2",
    ".xz",
    ".zip",
    ".zst",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SAY_FILE_OR_HUB = (
    'Set a .json, .jsonl or .parquet file, a Hub id such as "org/name", '
    'or a mapping such as {"path": "org/name", "split": "train[:200]"}.'
)


@dataclass(frozen=True)
class Source:
    """A checked source: exactly one of `dataset`, `files` and `hub` is filled.

    Attributes:
        dataset (`datasets.Dataset` or `None`): rows that are loaded already.
        files (`tuple[pathlib.Path, ...]`): absolute local files of one kind.
        loader (`str`): `"json"` or `"parquet"`, for `files`.
        hub (`dict`): keyword arguments of `datasets.load_dataset` without the split.
        split (`str`): split expression such as `"train[:200]"`.
    """

    dataset: Dataset | None = None
    files: tuple[Path, ...] = ()
    loader: str = ""
    hub: dict[str, Any] = field(default_factory=dict)
    split: str = "train"


def close_match(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`" Did you mean 'x'?"` or an empty string."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""


def parse_source(value: Any, role: str, base_dir: str | os.PathLike[str] | None = None) -> Source:
    """Checks what a user set as `train` or `test`, loading nothing.

    Args:
        value (`Any`): a `datasets.Dataset`, a path, a Hub id or a mapping with the keys of `SOURCE_KEYS`.
        role (`str`): `"train"` or `"test"`: the split that a bare Hub id stands for.
        base_dir (`str` or `os.PathLike`, *optional*): folder that relative paths are looked up in first.

    Raises:
        RefusedError: the value is of no readable kind, or a file is missing, empty, a folder or of an unreadable kind.
    """
    if isinstance(value, (str, os.PathLike)):
        local = _find_local(value, base_dir)
        if local is not None:
            return _file_source([local], "train")
        return Source(hub={"path": os.fspath(value)}, split=role)
    if _is_mapping(value):
        return _parse_mapping(value, role, base_dir)
    return _parse_object(value)


def resolve_source(value: Any, base_dir: str | os.PathLike[str]) -> Any:
    """The same source with every local path made absolute, for sources read from a file in `base_dir`.

    A value that is wrong comes back unchanged where it names no file; the checks name it later, with all the others.
    """
    if isinstance(value, (str, os.PathLike)):
        try:
            local = _find_local(value, base_dir)
        except RefusedError:
            return value
        return value if local is None else str(local)
    if _is_mapping(value):
        resolved = dict(value)
        path, files = resolved.get("path"), resolved.get("data_files")
        if isinstance(path, (str, os.PathLike)) and path not in READABLE.values():
            resolved["path"] = resolve_source(path, base_dir)
        elif isinstance(files, (list, tuple)):
            resolved["data_files"] = [_resolve_file(file, base_dir) for file in files]
        elif files is not None:
            resolved["data_files"] = _resolve_file(files, base_dir)
        return resolved
    return value


def _is_mapping(value: Any) -> bool:
    """Whether the user wrote a mapping; a DatasetDict is a dict too, but holds rows and not keys of ours."""
    return isinstance(value, Mapping) and not type(value).__module__.startswith("datasets.")


def _resolve_file(file: Any, base_dir: str | os.PathLike[str]) -> Any:
    if not isinstance(file, (str, os.PathLike)) or "://" in os.fspath(file):
        return file
    return str(_absolute(_expand(file), base_dir))


def _expand(text: str | os.PathLike[str]) -> str:
    return os.path.expandvars(os.path.expanduser(os.fspath(text)))


def _absolute(text: str, base_dir: str | os.PathLike[str] | None) -> Path:
    """`base_dir/text`; the working directory's `text` only where that is there and the first is not."""
    first = Path(os.path.abspath(os.path.join(_expand(base_dir or "."), text)))
    second = Path(os.path.abspath(text))
    return second if second.exists() and not first.exists() else first


def _find_local(value: str | os.PathLike[str], base_dir: str | os.PathLike[str] | None) -> Path | None:
    """The local path that is meant, whether it is there or not; `None` for a Hub id."""
    text = _expand(value)
    if not text.strip():
        raise RefusedError("An empty text names no source.", _SAY_FILE_OR_HUB)
    _refuse_url(text)
    path = _absolute(text, base_dir)
    is_path_object = not isinstance(value, str)
    if is_path_object or path.exists() or Path(text).suffix.lower() in _FILE_SUFFIXES:
        return path
    if _HUB_ID.fullmatch(text) and not text.startswith("."):
        return None
    if re.search(r"^[/\\.~]|[/\\]|^[A-Za-z]:|[$%]", text):
        return path
    raise RefusedError("That is neither a file that is there nor a Hub id of the form org/name.", _SAY_FILE_OR_HUB)


def _parse_object(value: Any) -> Source:
    """Dataset objects; `datasets` is imported here so that importing the room stays quick."""
    if value is None:
        raise RefusedError("Every task needs rows to train on and rows to be tested on.", _SAY_FILE_OR_HUB)
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(value, Dataset):
        return Source(dataset=value)
    if isinstance(value, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(repr(str(key)) for key in value)
        raise RefusedError(
            f"That holds several splits ({splits}).", f"Set one of them, e.g. ds[{next(iter(value), '')!r}]."
        )
    if isinstance(value, IterableDataset):
        raise RefusedError(
            "A streamed dataset can neither be counted nor checked before training.",
            "Set Dataset.from_list(list(ds.take(n))), or load it without streaming=True.",
        )
    if isinstance(value, (list, tuple)):
        raise RefusedError(f"A {type(value).__name__} is no source.", "Set datasets.Dataset.from_list(rows).")
    raise RefusedError(f"A {type(value).__name__} is no source.", f"Set a datasets.Dataset. {_SAY_FILE_OR_HUB}")


def _parse_mapping(value: Mapping[str, Any], role: str, base_dir: str | os.PathLike[str] | None) -> Source:
    for key in value:
        if key not in SOURCE_KEYS:
            raise RefusedError(
                f"The key {key!r} is unknown.{close_match(str(key), SOURCE_KEYS)}",
                f"Known keys are {', '.join(SOURCE_KEYS)}.",
            )
    for key in (*_HUB_ONLY_KEYS, "split"):
        if value.get(key) is not None and not (isinstance(value[key], str) and value[key].strip()):
            raise RefusedError(
                f"The key {key!r} holds {show(value[key])}, not a text.", f"Set {key} to a text, or drop it."
            )
    path, split = value.get("path"), value.get("split")
    files = _data_files(value.get("data_files"))
    if path is None or path in READABLE.values():
        if not files:
            raise RefusedError(
                "It names no data.", f'Add "data_files", or "path" with a file or a Hub id. {_SAY_FILE_OR_HUB}'
            )
        for file in files:
            _refuse_url(file)
        found = [_absolute(_expand(file), base_dir) for file in files]
        return _file_source(found, split or "train", loader=path)
    if not isinstance(path, (str, os.PathLike)):
        raise RefusedError(f"The key 'path' holds {show(path)}, not a text.", _SAY_FILE_OR_HUB)
    # A dataset of the Hub's early days may have a bare name ("imdb"); as a mapping that is said clearly enough.
    bare_name = isinstance(path, str) and re.fullmatch(r"[A-Za-z0-9][\w-]*", path) is not None
    local = None if bare_name else _find_local(path, base_dir)
    if local is None:
        hub = {key: value[key] for key in _HUB_ONLY_KEYS if value.get(key) is not None}
        return Source(
            hub={"path": os.fspath(path), **hub, **({"data_files": files} if files else {})}, split=split or role
        )
    unused = [key for key in (*_HUB_ONLY_KEYS, "data_files") if value.get(key) is not None]
    if unused:
        raise RefusedError(
            f"The path is a local one ({local}), where {', '.join(unused)} has no meaning.",
            f"Drop {', '.join(unused)}, or set a Hub id as the path.",
        )
    return _file_source([local], split or "train")


def _data_files(files: Any) -> list[str]:
    if files is None:
        return []
    listed = list(files) if isinstance(files, (list, tuple)) else [files]
    if not all(isinstance(file, (str, os.PathLike)) for file in listed):
        raise RefusedError(
            f"The key 'data_files' holds {show(files)}.",
            "Set one path or a list of paths: train and test are set apart.",
        )
    return [os.fspath(file) for file in listed]


def _refuse_url(text: str) -> None:
    if "://" in text:
        raise RefusedError(
            f"{text} is an address on the net.",
            'Download it and set the file, or set {"path": "org/name", "data_files": "file/in/the/repo.jsonl"}.',
        )


def _file_source(paths: list[Path], split: str, loader: str | None = None) -> Source:
    for path in paths:
        _check_file(path, any_suffix=loader is not None)
    loaders = {loader} if loader else {READABLE[path.suffix.lower()] for path in paths}
    if len(loaders) > 1:
        raise RefusedError("JSON and Parquet files stand in one list.", "Set files of one kind, or convert the others.")
    return Source(files=tuple(paths), loader=str(loaders.pop()), split=split)


def _check_file(path: Path, any_suffix: bool) -> None:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in READABLE)
        hint = f"Set one of its files: {', '.join(inside[:5])}." if inside else "Set a file."
        raise RefusedError(
            f"{path} is a folder, not a file.",
            f"{hint} If a dataset of the Hub is meant, rename the folder or start elsewhere: it hides the Hub id.",
        )
    if not path.exists():
        unset = re.findall(r"\$\{?(\w+)\}?", str(path))
        if unset:
            raise RefusedError(
                f"The environment variable {unset[0]} is not set.", f"Set {unset[0]}, or write the path out."
            )
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        missing = "The file" if path.parent.is_dir() else f"The folder {path.parent} does not exist, so the file"
        raise RefusedError(
            f"{missing} {path} does not exist.{close_match(path.name, siblings)}",
            "Correct the path, or create the file.",
        )
    if not any_suffix and path.suffix.lower() not in READABLE:
        raise RefusedError(
            f"Files ending in {path.suffix or 'no suffix'} are not read.",
            f"Convert it to one of {', '.join(READABLE)}, or load it yourself and set the datasets.Dataset.",
        )
    if path.stat().st_size == 0:
        raise RefusedError(f"The file {path} is empty.", "Write the rows to it, or set another file.")
    if not os.access(path, os.R_OK):
        raise RefusedError(f"The file {path} may not be read.", "Give yourself the right to read it.")
