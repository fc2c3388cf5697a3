"""General data: rows of a general preference set are mixed into every task, to keep general ability."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign.strategies.base import PREFERENCE, WARM_START, Phase, Run, Strategy
from hf_lifealign.strategies.sampling import mix, reservoir, seeded_generator, share

if TYPE_CHECKING:
    from hf_lifealign.stream import TaskStream


class GeneralDataStrategy(Strategy):
    """Mixes a seeded sample of general preference rows into every task, another one each time.

    Args:
        path (`str`): JSON, JSONL or Parquet file of preference rows, in the format of the tasks.
        fraction (`float`, *optional*, defaults to `0.1`):
            How many rows are added, as a share of the task's own. Above 0.
        phases (`list[str]`, *optional*, defaults to both):
            Phases into which they are mixed: `"warm_start"` (their chosen answers), `"preference"`.
    """

    name = "general_data"

    def __init__(
        self, path: str, fraction: float = 0.1, phases: tuple[str, ...] | list[str] = (WARM_START, PREFERENCE)
    ):
        if fraction <= 0:
            raise ValueError(f"You set fraction={fraction} of the strategy 'general_data'. It has to be above 0.")
        unknown = sorted(set(phases) - {WARM_START, PREFERENCE})
        if unknown:
            raise ValueError(
                f"You set the phases {unknown} of the strategy 'general_data'. There are {WARM_START!r} and "
                f"{PREFERENCE!r}."
            )
        if not Path(path).expanduser().is_file():
            raise ValueError(f"You set path={str(path)!r} of the strategy 'general_data'. There is no such file.")
        self.path = str(path)
        self.fraction = fraction
        self.phases = tuple(phases)
        self._added = 0
        self._rows: Dataset | None = None

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(Path(self.path).expanduser().read_bytes()).hexdigest()
        return super().settings() | {"path": Path(self.path).name, "sha256": digest}

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        from hf_lifealign.stream import Task, TaskStream

        source = Path(self.path).expanduser()
        # the stream room's own checks apply to this file as to any task
        loaded = TaskStream([Task(name="general", train=str(source), test=str(source))])
        loaded.validate()
        self._rows = run.rows_with_reference(loaded[0].load().train, "general_data")
        return stream

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        self._added = 0
        if phase.name not in self.phases or self._rows is None:
            return rows
        generator = seeded_generator(run.seed, "general_data", phase.task)
        picked = reservoir(len(self._rows), share(len(run.training_rows(phase.task)), self.fraction), generator)
        self._added = len(picked)
        return mix(rows, [self._rows[i] for i in picked], f"the general data {Path(self.path).name}")

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"general_rows": self._added}
