"""Replay: a sample of every finished task is mixed into later ones (LifeAlign, arXiv 2509.17183, Buffer_t)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign._files import read_json, write_json
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.strategies.base import PREFERENCE, WARM_START, Phase, Run, Strategy
from hf_lifealign.strategies.sampling import mix, reservoir, seeded_generator, share

if TYPE_CHECKING:
    from hf_lifealign.stream import TaskStream


class ReplayStrategy(Strategy):
    """Keeps a seeded reservoir of each finished task and mixes it into the phases of later tasks.

    Args:
        fraction (`float`, *optional*, defaults to `0.2`):
            Quota of a task: the share of its training rows that enters the buffer. In (0, 1].
        capacity (`int`, *optional*):
            Most rows that are replayed in all; finished tasks share it evenly. All that was kept by default.
        phases (`list[str]`, *optional*, defaults to `["preference"]`):
            Phases into which rows are mixed: `"warm_start"`, `"preference"`.
    """

    name = "replay"

    def __init__(
        self, fraction: float = 0.2, capacity: int | None = None, phases: tuple[str, ...] | list[str] = (PREFERENCE,)
    ):
        if not 0 < fraction <= 1:
            raise ValueError(f"You set fraction={fraction} of the strategy 'replay'. It has to lie in (0, 1].")
        if capacity is not None and capacity < 1:
            raise ValueError(f"You set capacity={capacity} of the strategy 'replay'. It has to be at least 1, or null.")
        unknown = sorted(set(phases) - {WARM_START, PREFERENCE})
        if unknown:
            raise ValueError(
                f"You set the phases {unknown} of the strategy 'replay'. There are {WARM_START!r} and {PREFERENCE!r}."
            )
        self.fraction = fraction
        self.capacity = capacity
        self.phases = tuple(phases)

    def _file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"{run.label(task)}.json")

    def _rows_before(self, run: Run, task: str) -> list[dict[str, Any]]:
        """Rows of the tasks before a task, within the capacity."""
        return [row for rows in self._kept_before(run, task).values() for row in rows]

    def _kept_before(self, run: Run, task: str) -> dict[str, list[dict[str, Any]]]:
        """Rows of each task before a task, within the capacity."""
        finished = run.lived[: run.lived.index(task)]
        return {
            earlier: self._within(self._replayable(run, earlier), position, len(finished))
            for position, earlier in enumerate(finished)
        }

    def _within(self, rows: list[dict[str, Any]], position: int, tasks: int) -> list[dict[str, Any]]:
        """What of a task's rows lies within the capacity, which so many tasks share; what is left over goes to the
        first ones."""
        if self.capacity is None:
            return rows
        even, rest = divmod(self.capacity, tasks)
        return rows[: even + (1 if position < rest else 0)]

    def _replayable(self, run: Run, task: str) -> list[dict[str, Any]]:
        """What may be replayed of a finished task."""
        file = self._file(run, task)
        # only what was trained elsewhere may lack its rows, and then the run has said so
        return list(read_json(file)["rows"]) if file.is_file() else []

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        for task in run.lived:
            if task not in stream.names or run.is_done(task):
                self._bring_back(run, stream, task)
        return stream

    def _bring_back(self, run: Run, stream: "TaskStream", task: str) -> None:
        """The sample of a task that was trained elsewhere: as it was published, or drawn from the data at hand."""
        file = self._file(run, task)
        published = read_json(file) if run.agreed(file.is_file()) else {}
        if not isinstance(published, dict):
            raise ValueError(f"{file} holds no sample of a task. It was damaged or edited; take another revision.")
        run.agreed(True)  # everybody has read it before anybody writes
        if "rows" in published:
            return
        if task not in stream.names:
            run.note(
                f"The task {task!r} is not replayed: its rows were not published (push_replay) and the stream does not "
                "hold it."
            )
            if run.is_main_process:
                file.unlink(missing_ok=True)
            return
        content = self._sample(run, task, published.get("row_indices"))
        expected = published.get("rows_sha256")
        if expected is not None and rows_digest(content["rows"]) != expected:
            run.note(f"The rows at hand for the task {task!r} are not those of its training; others are replayed.")
        if run.is_main_process:
            write_json(file, content)

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        if phase.name not in self.phases:
            return rows
        return mix(rows, self._rows_before(run, phase.task), "the replay buffer")

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"replay_rows": len(self._rows_before(run, phase.task)) if phase.name in self.phases else 0}

    def _quota(self, task: str, rows: int) -> int:
        """How many of its rows are kept of a task."""
        return share(rows, self.fraction)

    def _indices(self, run: Run, task: str, rows: int) -> list[int]:
        """Which of a task's rows are kept of it."""
        return reservoir(rows, self._quota(task, rows), seeded_generator(run.seed, "replay", task))

    def _sample(self, run: Run, task: str, indices: list[int] | None = None) -> dict[str, Any]:
        """What is kept of a task, as JSON."""
        rows = run.training_rows(task)  # on every process: it may have to compute
        if indices is None or not all(isinstance(i, int) and 0 <= i < len(rows) for i in indices):
            indices = self._indices(run, task, len(rows))
        return {"task": task, "fraction": self.fraction, "row_indices": indices, "rows": [rows[i] for i in indices]}

    def after_task(self, run: Run, task: str) -> None:
        content = self._sample(run, task)
        if run.is_main_process:
            write_json(self._file(run, task), content)

    def state_files(self, run: Run) -> list[Path]:
        return [file for task in run.lived if (file := self._file(run, task)).is_file()]
