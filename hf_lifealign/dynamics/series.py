"""The series of measurements of a training: one JSON object a line, which a resumed training goes on with."""

import json
import math
from pathlib import Path
from typing import Any

from hf_lifealign._files import replacing

FILE = "dynamics.jsonl"


def read_series(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file, in the order of their steps; a line that was cut by a kill is left out.

    Args:
        path (`Path`): the file, or the folder that holds `dynamics.jsonl`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if another line than the last is no JSON object with a step.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}. Train with an AlignmentDynamicsCallback, or name the folder of a training that had "
            "one."
        )
    lines = file.read_text(encoding="utf-8").split("\n")
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("it is no object with a whole number as step")
        except ValueError as error:
            if number == len(lines):
                break  # what was being written when the process was killed
            raise ValueError(f"Line {number} of {file} is damaged: {error}. Remove the line.") from error
        found.append(entry)
    return found


class Series:
    """Writes the measurements of one training.

    Args:
        file (`Path`): the JSON Lines file.
        writes (`bool`): whether this process is the one that writes.
    """

    def __init__(self, file: Path, writes: bool = True):
        self.file, self.writes = file, writes
        self.entries: list[dict[str, Any]] = []

    def begin(self, step: int) -> None:
        """Keeps what an earlier process measured up to a step, and drops the rest, which is measured again."""
        self.entries = []
        if step and self.file.is_file():
            self.entries = [entry for entry in read_series(self.file) if entry["step"] <= step]
        if self.writes:
            self._rewrite()

    def add(self, entry: dict[str, Any]) -> None:
        """Appends a measurement. Numbers that are not finite become `None`, which JSON can hold."""
        entry = _plain(entry)
        self.entries.append(entry)
        if self.writes:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(_line(entry))

    def _rewrite(self) -> None:
        with replacing(self.file) as partial:
            partial.write_text("".join(map(_line, self.entries)), encoding="utf-8")


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
