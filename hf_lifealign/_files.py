"""Writes that happen wholly or not at all, for everything a run keeps on disk."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes sorted, indented JSON through a temporary file, so that a reader sees the old or the new content."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text through a temporary file and syncs it to disk before it takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files for the owner alone
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
    partial = path.parent / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    fill(partial)
    remove_folder(path)
    os.replace(partial, path)


def sweep(root: Path) -> None:
    """Removes what a killed process left half-written under `root`."""
    leftovers = [path for path in root.rglob(".*") if path.name.endswith((".partial", ".removed")) or path.is_file()]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder so that it is gone by name at once, even if the process dies half-way."""
    if not path.exists():
        return
    doomed = path.parent / f".{path.name}.removed"
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
