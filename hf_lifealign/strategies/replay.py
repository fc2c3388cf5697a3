"""Replay: a sample of every finished task is mixed into later ones (LifeAlign, arXiv 2509.17183, Buffer_t)."""

import json
from typing import Any

from datasets import Dataset

from hf_lifealign._files import write_json
from hf_lifealign.strategies.base import PREFERENCE, WARM_START, Phase, Run, Strategy
from hf_lifealign.strategies.sampling import mix, reservoir, seeded_generator, share


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

    def _rows_before(self, run: Run, index: int) -> list[dict[str, Any]]:
        """Rows of the tasks before position `index`, within the capacity."""
        finished = run.stream.names[:index]
        rows: list[dict[str, Any]] = []
        for position, task in enumerate(finished):
            kept = json.loads(run.strategy_file(self, f"{position + 1:02d}-{task}.json").read_text("utf-8"))["rows"]
            if self.capacity is not None:
                even, rest = divmod(self.capacity, len(finished))
                kept = kept[: even + (1 if position < rest else 0)]
            rows += kept
        return rows

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        if phase.name not in self.phases:
            return rows
        return mix(rows, self._rows_before(run, phase.index), "the replay buffer")

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"replay_rows": len(self._rows_before(run, phase.index)) if phase.name in self.phases else 0}

    def after_task(self, run: Run, task: str) -> None:
        rows = run.training_rows(task)  # on every process: it may have to compute
        if not run.is_main_process:
            return
        quota = share(len(rows), self.fraction)
        kept = reservoir(len(rows), quota, seeded_generator(run.seed, "replay", task))
        index = run.stream.names.index(task)
        content = {"task": task, "fraction": self.fraction, "row_indices": kept, "rows": [rows[i] for i in kept]}
        write_json(run.strategy_file(self, f"{index + 1:02d}-{task}.json"), content)
