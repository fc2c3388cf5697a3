"""A run's folder as the report reads it: matrix, state, trainer logs and samples; some may still be missing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json
from hf_lifealign.report.view import matrix_names, read_matrix_file

_PHASE_ORDER = ("warm_start", "preference")


@dataclass(frozen=True)
class PhaseLog:
    """
    What a trainer logged in one phase, placed on the step axis of the whole run.

    Args:
        task (`str`), index (`int`): the task and its position in the stream, from 0.
        phase (`str`): `"warm_start"`, `"preference"`, ...
        start (`int`): optimizer steps of the run before this phase.
        steps (`int`): optimizer steps of this phase.
        entries (`list[dict]`): the trainer's log, in its order.
    """

    task: str
    index: int
    phase: str
    start: int
    steps: int
    entries: list[dict[str, Any]]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps of the run and finite values at which `name` was logged."""
        points = [
            (float(self.start + entry["step"]), float(entry[name]))
            for entry in self.entries
            if _is_number(entry.get(name)) and _is_number(entry.get("step"))
        ]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class RunData:
    """
    Everything the report knows about a run.

    Args:
        root (`Path`): the run's folder.
        tasks (`list[str]`): all tasks of the stream.
        matrix (`dict`, *optional*): content of `matrix.json`, if a task is finished.
        state (`dict`): content of `state.json`; empty if it is missing.
        logs (`list[PhaseLog]`): phases in the order in which they were trained.
        samples (`dict`, *optional*): content of `samples.json`.
    """

    root: Path
    tasks: list[str]
    matrix: dict[str, Any] | None
    state: dict[str, Any]
    logs: list[PhaseLog]
    samples: dict[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.state.get("status") == "done"

    @property
    def finished(self) -> int:
        """Number of tasks that were trained and measured."""
        if self.matrix is None:
            return 0
        return max((len(rows) for rows in self.matrix["matrices"].values()), default=0)

    @property
    def metrics(self) -> list[str]:
        """Measures of the matrix, the run's own first."""
        return matrix_names(self.matrix or {})

    def phases(self, index: int) -> list[dict[str, Any]]:
        """Records of the finished phases of a task."""
        entries = self.state.get("tasks") or []
        record = entries[index].get("record") if index < len(entries) else None
        return list((record or {}).get("phases") or [])

    def task_ends(self) -> list[float]:
        """The run's step at which each finished task was measured; tasks without any steps are one step wide."""
        ends: list[float] = []
        for index in range(self.finished):
            last = [log.start + log.steps for log in self.logs if log.index == index]
            ends.append(float(max([*last, (ends[-1] if ends else 0.0) + 1])))
        return ends


def read_run(run_dir: str | Path) -> RunData:
    """Reads what a run has written so far.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if one of the files is not what a run writes.
    """
    root = Path(run_dir)
    if not (root / "state.json").is_file() and not (root / "matrix.json").is_file():
        raise FileNotFoundError(
            f"{root} is not the folder of a run: it has neither state.json nor matrix.json. "
            "Give the output_dir of a lifelong run."
        )
    state = _mapping(root / "state.json") or {}
    matrix = read_matrix_file(root) if (root / "matrix.json").is_file() else None
    tasks = [str(task) for task in matrix["tasks"]] if matrix else [str(t["name"]) for t in state.get("tasks", ())]
    return RunData(root, tasks, matrix, state, _read_logs(root, tasks, state), _mapping(root / "samples.json"))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as `(dotted name, text)`; items of a list that carry a name are told apart by it."""
    flat: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for position, item in enumerate(value, start=1):
                rest = {k: v for k, v in item.items() if k != "name"}
                label = f"{name}.{item.get('name', position)}"
                flat += flatten(rest, label) if rest else [(label, "on")]
        elif isinstance(value, Mapping):
            flat += flatten(value, name)
        elif isinstance(value, list):
            flat.append((name, ", ".join(str(item) for item in value) or "none"))
        else:
            flat.append((name, "none" if value is None else str(value)))
    return flat


def _read_logs(root: Path, tasks: list[str], state: Mapping[str, Any]) -> list[PhaseLog]:
    logs: list[PhaseLog] = []
    start = 0
    entries = state.get("tasks") or []
    for index, task in enumerate(tasks):
        record = (entries[index].get("record") if index < len(entries) else None) or {}
        steps = {p["phase"]: int(p.get("steps") or 0) for p in record.get("phases") or ()}
        # in a run that was continued with new tasks only, numbers begin after those that were lived before
        number = entries[index].get("label") if index < len(entries) else None
        label = f"{number or f'{index + 1:02d}-{task}'}-"
        files = {path.stem.removeprefix(label): path for path in (root / "logs").glob("*.json")}
        files = {phase: path for phase, path in files.items() if path.name.startswith(label)}
        for phase in sorted({*steps, *files}, key=_phase_key):
            content = read_json(files[phase]) if phase in files else []
            rows = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
            last = max((int(row["step"]) for row in rows if _is_number(row.get("step"))), default=0)
            logs.append(PhaseLog(task, index, phase, start, max(steps.get(phase, 0), last), rows))
            start += logs[-1].steps
    return logs


def _phase_key(phase: str) -> tuple[int, str]:
    return (_PHASE_ORDER.index(phase) if phase in _PHASE_ORDER else len(_PHASE_ORDER), phase)


def _mapping(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object. It was edited: restore it.")
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
