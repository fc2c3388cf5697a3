"""Finished stages on disk: rows, drops, notes and a manifest, whole or not at all.

RUN/prompts/rows.jsonl       accepted rows
RUN/prompts/dropped.jsonl    what was dropped, raw, with its reason
RUN/prompts/notes.jsonl      what is never trained on
RUN/prompts/manifest.json    what they were made of and with, and the counts
RUN/calls/                   kept calls
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, write_folder, write_json
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.self_align.stages.outcome import Outcome

ROWS, DROPPED, NOTES, MANIFEST = "rows.jsonl", "dropped.jsonl", "notes.jsonl", "manifest.json"
CALLS = "calls"


class StageStore:
    """What the stages of a run leave.

    Args:
        root (`Path`): folder of the run.
    """

    def __init__(self, root: Path):
        self.root = root

    @property
    def calls(self) -> Path:
        """Folder of kept calls."""
        return self.root / CALLS

    def folder(self, stage: str) -> Path:
        """Where a stage's files lie."""
        return self.root / stage

    def finished(self, stage: str, made_of: Mapping[str, Any]) -> bool:
        """Whether a stage is there.

        Args:
            stage (`str`): its name.
            made_of (`dict`): settings and digests that decide what it comes to.

        Raises:
            ValueError: if it is there, and was made of something else, or its rows were changed since.
        """
        file = self.folder(stage) / MANIFEST
        if not file.is_file():
            return False
        manifest = read_json(file)
        told, wanted = manifest.get("made_of"), json.loads(json.dumps(made_of))
        if told != wanted:
            changed = sorted(key for key in {*told, *wanted} if told.get(key) != wanted.get(key))
            raise ValueError(
                f"The stage {stage!r} in {self.root} was made with other {', '.join(changed)}. Set another output_dir, "
                f"or make it and all after it anew with `--from-stage {stage}`."
            )
        if manifest.get("rows_sha256") != rows_digest(self.rows(stage)):
            raise ValueError(
                f"The rows of the stage {stage!r} in {self.root} were changed since they were made. Put them back, or "
                f"make it and all after it anew with `--from-stage {stage}`."
            )
        return True

    def write(self, stage: str, outcome: Outcome, made_of: Mapping[str, Any]) -> None:
        """Leaves a finished stage. The same outcome leaves the same bytes: nothing of when or how long is in them."""
        manifest = {
            "stage": stage,
            "made_of": dict(made_of),
            "rows": len(outcome.rows),
            "dropped": len(outcome.dropped),
            "reasons": outcome.reasons(),
            "told": outcome.told,
            "rows_sha256": rows_digest(outcome.rows),
            "versions": {name: version(name) for name in ("hf-lifealign", "transformers", "torch")},
        }

        def fill(folder: Path) -> None:
            for name, rows in ((ROWS, outcome.rows), (DROPPED, outcome.dropped), (NOTES, outcome.asides)):
                _write_lines(folder / name, rows)
            write_json(folder / MANIFEST, manifest)

        write_folder(self.folder(stage), fill)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The accepted rows of a finished stage.

        Raises:
            ValueError: if there are none, or a line is no JSON object.
        """
        file = self.folder(stage) / ROWS
        if not file.is_file():
            raise ValueError(f"The stage {stage!r} has left no rows in {self.root}. Run it first.")
        found = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"Line {number} of {file} is not valid JSON: {error}. Run the stage again.") from error
            if not isinstance(row, dict):
                raise ValueError(f"Line {number} of {file} is no object. Run the stage again.")
            found.append(row)
        return found

    def manifest(self, stage: str) -> dict[str, Any]:
        """What a finished stage was made of, and its counts."""
        content: dict[str, Any] = read_json(self.folder(stage) / MANIFEST)
        return content


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # line separators of Unicode are escaped, which some readers of lines would break at
    lines = (
        json.dumps(row, ensure_ascii=False)
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .replace("\x85", "\\u0085")
        for row in rows
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
