"""What validating a stream found: counts, formats and overlaps per task and between tasks, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_lifealign.stream.errors import Problem, show_rows
from hf_lifealign.stream.inspection import SplitFacts
from hf_lifealign.stream.rows import row_keys
from hf_lifealign.stream.task import SPLITS, LoadedTask, Split, Task


@dataclass(frozen=True)
class Overlap:
    """Test rows of one task that stand in the train split of the same or of another task, up to whitespace.

    Attributes:
        test_task, train_task (`str`): the two tasks; the same name twice for a task's own overlap.
        exact (`tuple[int, ...]`): source indices of the test rows whose prompt, chosen and rejected all stand in train.
        prompt_only (`tuple[int, ...]`): source indices of the test rows of which only the prompt does.
    """

    test_task: str
    train_task: str
    exact: tuple[int, ...]
    prompt_only: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.exact or self.prompt_only)

    def __str__(self) -> str:
        kinds = ((self.exact, "as whole rows"), (self.prompt_only, "by their prompt alone"))
        parts = [f"{len(rows)} {word} ({show_rows(rows)})" for rows, word in kinds if rows]
        where = "its own train split" if self.test_task == self.train_task else f"the train split of {self.train_task}"
        return f"test rows of {self.test_task} stand in {where}: {', '.join(parts)}"

    def problem(self) -> Problem:
        """The overlap as a problem, for `on_overlap="error"`."""
        if self.test_task == self.train_task:
            do = "Set drop_overlap: true, which takes them out of train, or on_overlap='warn'."
        else:
            do = f"Remove those rows from the train source of {self.train_task}, or set on_overlap='warn'."
        return Problem(self.test_task, "test", "on_overlap with 'error'", f"T{str(self)[1:]}.", do)


@dataclass(frozen=True)
class TaskReport:
    """What one task holds.

    Attributes:
        name (`str`): the task.
        splits (`dict`): `"train"` and `"test"` to the facts about their rows.
        source_rows (`dict`): `"train"` and `"test"` to the rows their sources have.
        overlap (`Overlap`): the task's test rows in its own train split.
        dropped_overlap (`int`): train rows left out because of `drop_overlap`.
        dropped_columns (`dict`): `"train"` and `"test"` to the columns left out.
        warnings (`tuple[str, ...]`): what a person should look at, the overlap included.
    """

    name: str
    splits: dict[Split, SplitFacts]
    source_rows: dict[Split, int]
    overlap: Overlap
    dropped_overlap: int
    dropped_columns: dict[Split, tuple[str, ...]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StreamReport:
    """What validation found in a whole stream. `str(report)` is made to be read, `report.to_dict()` to be stored.

    Attributes:
        tasks (`dict[str, TaskReport]`): the tasks in the order of the stream.
        cross_overlaps (`tuple[Overlap, ...]`): overlaps between different tasks; pairs without any are left out.
    """

    tasks: dict[str, TaskReport]
    cross_overlaps: tuple[Overlap, ...] = ()

    @property
    def overlaps(self) -> tuple[Overlap, ...]:
        """All overlaps there are, within tasks first."""
        return (*(task.overlap for task in self.tasks.values() if task.overlap), *self.cross_overlaps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, each with the name of its task; those between tasks last."""
        own = [f"{task.name}, {text}" for task in self.tasks.values() for text in task.warnings]
        return (*own, *(f"{overlap}." for overlap in self.cross_overlaps))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        found = {
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "cross_overlaps": [asdict(overlap) for overlap in self.cross_overlaps],
            "warnings": self.warnings,
        }
        # Tuples become lists here and now, so that a report read back from a file equals the one that was written.
        return json.loads(json.dumps(found))

    def __str__(self) -> str:
        head = ("task", "split", "rows", "of", "format", "prompt", "chosen", "rejected", "equal", "overlap")
        lines: list[tuple[str, ...]] = [head]
        for task in self.tasks.values():
            for split in SPLITS:
                facts = task.splits[split]
                overlap = f"{len(task.overlap.exact)}+{len(task.overlap.prompt_only)}" if split == "test" else ""
                lengths = (facts.mean_prompt_chars, facts.mean_chosen_chars, facts.mean_rejected_chars)
                counts = (str(facts.rows), str(task.source_rows[split]), facts.format)
                means = tuple(f"{length:.0f}" for length in lengths)
                lines.append((task.name, split, *counts, *means, str(len(facts.equal_pairs)), overlap))
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        table = ["  ".join(cells).rstrip() for cells in padded]
        note = "(mean lengths in characters; overlap: whole test rows + prompts alone that stand in train)"
        warned = [f"  - {warning}" for warning in self.warnings]
        return "\n".join([*table, note, *(["Warnings:", *warned] if warned else [])])


def build_report(loaded: Sequence[tuple[Task, LoadedTask]]) -> StreamReport:
    """The report on tasks that are loaded already, each test split compared with every train split."""
    test_keys = {task.name: row_keys(rows.test) for task, rows in loaded}
    test_ids = {task.name: rows.test_ids for task, rows in loaded}
    found: dict[tuple[str, str], Overlap] = {}
    # One train split's keys at a time: with many large tasks they would be the biggest thing in memory.
    for task, rows in loaded:
        prompts, pairs = (set(keys) for keys in row_keys(rows.train))
        for tested, (test_prompts, test_pairs) in test_keys.items():
            ids = test_ids[tested]
            exact = tuple(index for index, key in zip(ids, test_pairs, strict=True) if key in pairs)
            by_prompt = {index for index, key in zip(ids, test_prompts, strict=True) if key in prompts} - set(exact)
            found[tested, task.name] = Overlap(tested, task.name, exact, tuple(i for i in ids if i in by_prompt))
    tasks = {}
    for task, rows in loaded:
        own = found[task.name, task.name]
        tasks[task.name] = TaskReport(
            name=task.name,
            splits=rows.facts,
            source_rows=rows.source_rows,
            overlap=own,
            dropped_overlap=rows.dropped_overlap,
            dropped_columns=rows.dropped_columns,
            warnings=(*rows.warnings(), *([f"{own}. Set drop_overlap to take them out of train."] if own else [])),
        )
    names = [task.name for task, _ in loaded]
    cross = tuple(found[a, b] for a in names for b in names if a != b and found[a, b])
    return StreamReport(tasks=tasks, cross_overlaps=cross)
