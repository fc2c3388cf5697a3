"""One performance matrix of a `matrix.json`, checked and ready to be shown: cells, baseline, and the numbers on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign._files import read_json
from hf_lifealign.metrics import performance_matrix as pm

Array = NDArray[np.float64]

_TITLES = {
    "preference_accuracy": "Preference accuracy",
    "margin": "Reward margin",
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "value": "Performance",
}
# What the untouched base has by definition: a margin of 0 for every pair, and a pair with margin 0 counts half.
_CENTRES = {"preference_accuracy": 0.5, "margin": 0.0}


@dataclass(frozen=True)
class MatrixView:
    """
    A performance matrix with what belongs to it.

    Args:
        metric (`str`): its measure.
        tasks (`tuple[str, ...]`): all N tasks of the stream, also those not trained yet.
        cells (`np.ndarray` of shape `(n, N)`): performance after each of the n trained tasks; NaN where not evaluated.
        baseline (`np.ndarray` of shape `(N,)`, *optional*): performance of the untouched base.
        counts (`tuple[int, ...]`): test pairs of each task; empty if unknown.
    """

    metric: str
    tasks: tuple[str, ...]
    cells: Array
    baseline: Array | None
    counts: tuple[int, ...]

    @property
    def trained(self) -> int:
        """Number of stages, which is the number of tasks trained so far."""
        return len(self.cells)

    @property
    def title(self) -> str:
        """The measure as a heading."""
        return _TITLES.get(self.metric, self.metric)

    @property
    def centre(self) -> float | None:
        """What the untouched base has by definition, where the measure is relative to it."""
        return _CENTRES.get(self.metric)

    @property
    def square(self) -> Array:
        """The part of the matrix that belongs to trained tasks, of shape `(n, n)`."""
        return self.cells[:, : self.trained]

    def up_to(self, stages: int) -> "MatrixView":
        """The matrix as it was after so many tasks, without the tasks that came later."""
        return replace(
            self,
            tasks=self.tasks[:stages],
            cells=self.cells[:stages, :stages],
            baseline=None if self.baseline is None else self.baseline[:stages],
            counts=self.counts[:stages],
        )

    @property
    def values(self) -> Array:
        """All finite numbers, the baseline's included."""
        every = self.cells.ravel() if self.baseline is None else np.concatenate([self.cells.ravel(), self.baseline])
        return every[np.isfinite(every)]

    @property
    def stage_means(self) -> list[float]:
        """Mean over the tasks trained so far, at each stage; NaN where one of them is missing."""
        return [float(np.mean(row[: k + 1])) for k, row in enumerate(self.cells)]

    @property
    def decimals(self) -> int:
        """Digits after the point that suit the largest number."""
        largest = float(np.abs(self.values).max(initial=0.0))
        return 3 if largest < 10 else 2 if largest < 1000 else 0

    def number(self, value: float | None, sign: bool = False) -> str:
        """A value in the matrix's unit, or an empty string where there is none."""
        if value is None or not math.isfinite(value):
            return ""
        # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
        rounded = round(value, self.decimals) + 0.0
        return f"{rounded:+.{self.decimals}f}" if sign else f"{rounded:.{self.decimals}f}"

    def summary(self) -> dict[str, float | None]:
        """BWT, forgetting, Last, AP and forward transfer; `None` where one is undefined so far."""
        baseline = None if self.baseline is None else self.baseline[: self.trained]
        formulas: dict[str, Callable[[], float]] = {
            "bwt": lambda: pm.backward_transfer(self.square),
            "forgetting": lambda: pm.forgetting(self.square),
            "last_performance": lambda: pm.last_performance(self.square),
            "average_performance": lambda: pm.average_performance(self.square),
            "forward_transfer": lambda: pm.forward_transfer(self.square, baseline),
        }
        values: dict[str, float | None] = dict.fromkeys(formulas)
        for name, formula in formulas.items():
            # They raise where they are undefined: too few stages, or an entry that was never evaluated.
            with suppress(ValueError):
                values[name] = formula()
        return values


def matrix_names(content: Mapping[str, Any]) -> list[str]:
    """The measures of a `matrix.json`, the one the run puts first in front."""
    names = list(content.get("matrices") or {})
    first = content.get("metric")
    return sorted(names, key=lambda name: (name != first, name != "preference_accuracy", name))


def view_matrix(content: Mapping[str, Any], metric: str | None = None) -> MatrixView:
    """One matrix out of the content of a `matrix.json`.

    Args:
        content (`dict`): see [`read_matrix_file`].
        metric (`str`, *optional*): the measure; by default the one that the run puts first.

    Raises:
        ValueError: if there is no such matrix, or its rows do not fit its tasks or hold something that is no number.
    """
    names = matrix_names(content)
    if metric is None and names:
        metric = names[0]
    if metric not in names:
        raise ValueError(
            f"You asked for the metric {metric!r}, which this matrix file does not have. "
            f"It has {', '.join(names) if names else 'none so far, since no task is finished'}."
        )
    tasks = tuple(str(task) for task in content.get("tasks") or ())
    rows = content["matrices"][metric]
    if not isinstance(rows, list) or len(rows) > len(tasks):
        raise ValueError(
            f"The matrix {metric!r} is not a list of at most {len(tasks)} rows, one for each task. "
            "A run writes the file whole, so it was edited. Restore it."
        )
    baselines = content.get("baseline")
    baseline = baselines.get(metric) if isinstance(baselines, Mapping) else None
    counts = content.get("counts") or ()
    return MatrixView(
        metric=metric,
        tasks=tasks,
        cells=np.array([_row(row, i, len(tasks), metric) for i, row in enumerate(rows)]).reshape(-1, len(tasks)),
        baseline=None if baseline is None else np.array(_row(baseline, len(tasks) - 1, len(tasks), "baseline")),
        # Judges read answers to some of the prompts only, so the number of pairs is not theirs.
        counts=tuple(counts) if len(counts) == len(tasks) and metric in _CENTRES else (),
    )


def read_matrix_file(path: str | Path) -> dict[str, Any]:
    """The content of a run's `matrix.json`, of that file itself, or of a file with a bare JSON matrix `[[...], ...]`.

    Raises:
        FileNotFoundError: if there is no such file, or the folder has no `matrix.json`.
        ValueError: if the file is neither, or not JSON.
    """
    path = Path(path)
    file = path / "matrix.json" if path.is_dir() else path
    if not file.is_file():
        hint = "It is written when the first task is finished." if path.is_dir() else "Give a run's folder or a file."
        raise FileNotFoundError(f"There is no file {file}. {hint}")
    content = read_json(file)
    if isinstance(content, list):
        cells = pm.read_matrix(content)
        rows = [[None if math.isnan(cell) else cell for cell in row] for row in cells.tolist()]
        tasks = [f"T{i + 1}" for i in range(len(rows))]
        return {"format": 1, "metric": "value", "tasks": tasks, "matrices": {"value": rows}, "baseline": None}
    if not isinstance(content, dict) or not isinstance(content.get("matrices"), dict):
        raise ValueError(
            f"{file} holds no performance matrix: neither the matrix.json of a run (with 'tasks' and 'matrices') nor a "
            "list of rows such as [[0.75], [0.5, 1.0]]. Give one of those."
        )
    if content.get("format") != 1:
        raise ValueError(
            f"{file} has format {content.get('format')!r}, and this hf_lifealign reads format 1. "
            "Install the hf_lifealign that wrote it."
        )
    return content


def _row(row: Any, index: int, width: int, name: str) -> list[float]:
    """A row of the file as `width` floats, NaN for what was not evaluated."""
    if not isinstance(row, Sequence) or isinstance(row, str) or not index < len(row) <= width:
        raise ValueError(
            f"Row {index} of {name!r} has to hold {index + 1} to {width} numbers, one for each task, and is "
            f"{str(row)[:80]}. The file was edited or damaged: restore it."
        )
    for cell in row:
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, int | float)):
            raise ValueError(f"Row {index} of {name!r} holds {cell!r}, which is not a number. Restore the file.")
    return [math.nan if cell is None else float(cell) for cell in row] + [math.nan] * (width - len(row))
