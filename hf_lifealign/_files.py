"""Writes that happen wholly or not at all, for everything a run keeps on disk."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"
_REMOVED = ".removed"


def write_json(path: Path, content: Any) -> None:
    """Writes sorted, indented JSON through a temporary file, so that a reader sees the old or the new content."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block succeeds, and goes when it does not.

    The content is synced to disk before the name is taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files for the owner alone; this one is as any file the user makes
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk, so that a power cut after a rename does not leave an empty file."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # which it cannot open
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text wholly or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if the file is not JSON, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"The file {path} is not valid JSON ({error}). A run writes its files whole, so it was edited or damaged. "
            "Restore it, or start the run again in a new output_dir."
        ) from error


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fills a temporary folder beside `path` and gives it that name once it is complete.

    Args:
        path (`Path`): final folder; one of that name is replaced.
        fill (`Callable`): called with the temporary folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}{_PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    fill(partial)
    for file in partial.rglob("*"):
        _sync(file)
    remove_folder(path)
    os.replace(partial, path)
    _sync(path.parent)


def sweep(root: Path) -> None:
    """Removes what a killed process left half-written under `root`; other hidden files are not ours to touch."""
    for suffix in (_PARTIAL, _REMOVED):
        for path in list(root.rglob(f".*{suffix}")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that it is gone by name at once, even if the process dies half-way."""
    if not path.exists():
        return
    doomed = path.parent / f".{path.name}{_REMOVED}"
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
