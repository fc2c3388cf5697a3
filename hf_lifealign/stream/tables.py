"""Rows for what is no task: those of one or several files, folders or Hub ids, with the columns they share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_lifealign.stream.errors import RefusedError
from hf_lifealign.stream.loading import read_source
from hf_lifealign.stream.sources import READABLE, parse_source

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_FILES_NAMED = 5


def load_rows(sources: str | Sequence[str], split: str) -> "Dataset":
    """Rows of one or several sources, one after another, with the columns that all of them have.

    Args:
        sources (`str` or `list[str]`): each a JSON, JSON Lines or Parquet file; a folder with a file for each split
            (`train.jsonl`, `test.jsonl`); or the Hub id of a dataset.
        split (`str`): which split of folders and Hub ids.

    Raises:
        ValueError: if one cannot be read, or they have no column in common.
    """
    from datasets import concatenate_datasets

    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise ValueError("You named no data. Give a file, a folder with a file for each split, or a Hub id.")
    parts = [_read(name, split) for name in names]
    columns = [c for c in parts[0].column_names if all(c in part.column_names for part in parts)]
    if not columns:
        raise ValueError(f"The data {names} have no column in common. Give rows of one form.")
    return concatenate_datasets([part.select_columns(columns) for part in parts])


def _read(name: str, split: str) -> "Dataset":
    found = file_of_split(name, split)
    try:
        return read_source(parse_source(str(found or name), split), ("prompt", "chosen", "rejected", "completion"))
    except RefusedError as error:
        raise ValueError(f"You set the data {name!r} (split {split!r}). {error}") from error


def file_of_split(name: str, split: str) -> Path | None:
    """The file of a split in a folder; `None` where `name` is no folder.

    Raises:
        ValueError: if the folder has none.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    for suffix in READABLE:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    held = sorted(f.name for f in folder.iterdir() if f.suffix in READABLE)[:_MOST_FILES_NAMED]
    raise ValueError(
        f"You set the folder {name!r} as data. It has no file for the split {split!r} "
        f"({', '.join(held) or 'nothing that can be read'}). Name the file itself, or another split."
    )
