"""Finished stages on disk: rows, drops, notes and a manifest, whole or not at all.

RUN/prompts/rows.jsonl       accepted rows
RUN/prompts/dropped.jsonl    what was dropped, raw, with its reason
RUN/prompts/notes.jsonl      what is never trained on
RUN/prompts/manifest.json    what they were made of and with, and the counts
RUN/responses/sft/           rows that TRL trains on: train.jsonl, test.jsonl
RUN/responses/preference/    the same as pairs
RUN/engrave/                 the adapter
RUN/reward/                  the reward model, and the rows it was trained on in preference/
RUN/calls/                   kept calls
RUN/work/                    checkpoints of a stage that is under way
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, remove_folder, write_folder, write_json
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.self_align.stages.outcome import Outcome

ROWS, DROPPED, NOTES, MANIFEST = "rows.jsonl", "dropped.jsonl", "notes.jsonl", "manifest.json"
MADE_OF = "made_of.json"
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

    def write(
        self,
        stage: str,
        outcome: Outcome,
        made_of: Mapping[str, Any],
        also: Callable[[Path], None] | None = None,
    ) -> None:
        """Leaves a finished stage. The same outcome leaves the same bytes: nothing of when or how long is in them.

        Args:
            stage (`str`): its name.
            outcome ([`Outcome`]): what it came to.
            made_of (`dict`): see [`StageStore.finished`].
            also (`Callable`, *optional*): fills the same folder with further files.
        """
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
                write_lines(folder / name, rows)
            if also is not None:
                also(folder)
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
        return read_lines(file)

    def forget(self, stages: Sequence[str]) -> None:
        """Removes stages, the last one first, so that none is left without what it was made of."""
        for stage in reversed(stages):
            remove_folder(self.folder(stage))
            remove_folder(self.work(stage))

    def work(self, stage: str) -> Path:
        """Where a stage that is under way keeps its checkpoints."""
        return self.root / "work" / stage

    def begin(self, stage: str, made_of: Mapping[str, Any]) -> Path:
        """The same folder, for a stage that begins or goes on; what other settings left there is removed.

        Args:
            stage (`str`): its name.
            made_of (`dict`): see [`StageStore.finished`].
        """
        folder, wanted = self.work(stage), json.loads(json.dumps(made_of))
        mark = folder / MADE_OF
        if folder.exists() and (not mark.is_file() or read_json(mark) != wanted):
            remove_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(mark, wanted)
        return folder

    def weights_digest(self, stage: str) -> str:
        """SHA-256 of the weights that a finished stage has left.

        Raises:
            ValueError: if it has left none.
        """
        digest = hashlib.sha256()
        files = sorted(self.folder(stage).glob("*.safetensors"))
        if not files:
            raise ValueError(f"The stage {stage!r} has left no weights in {self.root}. Run it first.")
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def manifest(self, stage: str) -> dict[str, Any]:
        """What a finished stage was made of, and its counts."""
        content: dict[str, Any] = read_json(self.folder(stage) / MANIFEST)
        return content


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as JSON Lines."""
    # line separators of Unicode are escaped, which some readers of lines would break at
    lines = (
        json.dumps(row, ensure_ascii=False)
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .replace("\x85", "\\u0085")
        for row in rows
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON Lines.

    Raises:
        ValueError: if a line is no JSON object.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not valid JSON: {error}. Run the stage again.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {path} is no object. Run the stage again.")
        found.append(row)
    return found
