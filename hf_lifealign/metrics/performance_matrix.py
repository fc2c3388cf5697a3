"""The continual-learning numbers as pure functions of a performance matrix: transfer, forgetting, averages.

`matrix[i][j]` is the performance on task `j` after training through task `i`, both counted from 0. This file imports
nothing but the standard library and numpy, so that it can be copied beside a metric script and run alone.
"""

import math
import numbers
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Matrix = Sequence[Sequence[float | None]] | NDArray[Any]
Row = Sequence[float | None] | NDArray[Any]

# Which entries of an N x N matrix a metric reads. Only these must be finite numbers: the last task has been met once,
# so whatever compares two stages does not read its own corner, matrix[N-1][N-1].
_NEEDS: dict[str, Callable[[int], NDArray[np.bool_]]] = {
    "triangle": lambda n: np.tri(n, dtype=bool),
    "stages": lambda n: np.tri(n, dtype=bool) & ~_corner(n),
    "own_and_last": lambda n: (np.eye(n, dtype=bool) | _last_row(n)) & ~_corner(n),
    "last_row": lambda n: _last_row(n),
    "next_task": lambda n: np.eye(n, k=1, dtype=bool),
}


def read_matrix(matrix: Matrix) -> NDArray[np.float64]:
    """Read a performance matrix of either layout into a new array, checking its shape and that it holds numbers.

    Args:
        matrix (nested sequences, or anything with `tolist()` such as a numpy array or a tensor):
            N rows for N tasks: a triangle (row i holds tasks 0..i) or a square (every row holds all N tasks).
            `None` and NaN both mean "not evaluated".

    Returns:
        `np.ndarray` of shape `(N, N)`, float64, NaN where there is no number. The input is left as it was.

    Raises:
        ValueError: if it is not a matrix, has no rows, has a row of the wrong length, or holds something that is not a
            real number (a bool and a numeric string included: they come from a mistake upstream).
    """
    rows = [_sequence(row, f"matrix[{i}]") for i, row in enumerate(_sequence(matrix, "matrix"))]
    if not rows:
        raise ValueError(
            "The matrix has no rows. Give one row per trained task: row i is the performance after task i."
        )
    n = len(rows)
    square = len(rows[0]) == n
    cells = np.full((n, n), np.nan)
    for i, row in enumerate(rows):
        if len(row) != (n if square else i + 1):
            raise ValueError(_wrong_length(i, len(row), n, square))
        cells[i, : len(row)] = [_number(cell, f"matrix[{i}][{j}]") for j, cell in enumerate(row)]
    return cells


def check_matrix(matrix: Matrix, needs: str = "triangle", metric: str = "check_matrix") -> NDArray[np.float64]:
    """Read a performance matrix and make sure that the entries a metric needs are there.

    Args:
        matrix: see [`read_matrix`].
        needs (`str`, default `"triangle"`):
            The entries that must be finite: `"triangle"` (every task met so far, at every stage), `"stages"` (the same
            without the last task), `"own_and_last"` (each earlier task after its own training and at the end),
            `"last_row"`, or `"next_task"` (each task one stage before its own, above the diagonal).
        metric (`str`): who asks, for the error text.

    Returns:
        `np.ndarray` of shape `(N, N)`, float64; entries that are not needed may be NaN or infinite.

    Raises:
        ValueError: as `read_matrix`; if a needed entry is missing, NaN or infinite; if there are fewer than 2 tasks and
            the metric compares stages; if `needs` is not one of the above.
    """
    if needs not in _NEEDS:
        raise ValueError(f"needs={needs!r} is not known. Use one of {', '.join(_NEEDS)}.")
    cells = read_matrix(matrix)
    n = len(cells)
    needed = _NEEDS[needs](n)
    if not needed.any():
        raise ValueError(
            f"{metric} was given a matrix of {n} task. It compares stages of a stream and is undefined below 2 tasks. "
            "Compute it after a second task, or leave it out until then."
        )
    bad = np.argwhere(needed & ~np.isfinite(cells))
    if len(bad):
        i, j = (int(index) for index in bad[0])
        if j > i:
            remedy = "Evaluate every task before it is trained as well, and give all N entries in every row."
        else:
            remedy = "Evaluate that task at that stage, and put in a finite number."
        raise ValueError(
            f"{metric} needs matrix[{i}][{j}], the performance on task {j} after training through task {i} (counted "
            f"from 0), but it is {_absent(cells[i, j])} (needed: {needed.sum()}, unusable: {len(bad)}). {remedy}"
        )
    return cells


def backward_transfer(matrix: Matrix) -> float:
    """BWT: how much the tasks before the last one gained (> 0) or lost (< 0) since their own training.

    `1/(N-1) * sum_{i<N} (m[N][i] - m[i][i])` (Lopez-Paz & Ranzato 2017), in the unit of the matrix.

    Raises:
        ValueError: for fewer than 2 tasks, or a matrix that lacks the diagonal or the last row.
    """
    return _mean(backward_transfer_per_task(matrix))


def backward_transfer_per_task(matrix: Matrix) -> list[float]:
    """The N - 1 terms `m[N][i] - m[i][i]` of [`backward_transfer`], in task order."""
    cells = check_matrix(matrix, needs="own_and_last", metric="backward_transfer")
    return (cells[-1, :-1] - cells.diagonal()[:-1]).tolist()


def forgetting(matrix: Matrix, definition: Literal["max", "first"] = "max") -> float:
    """Forgetting: how much the tasks before the last one have lost at the end; negative if they gained.

    Args:
        matrix: see [`read_matrix`].
        definition (`str`, default `"max"`): what the end is compared with.
            `"max"`: a task's best stage, from its own training to the last but one (Chaudhry et al. 2018).
            `"first"`: the stage of its own training, which makes it the negative of BWT.

    Raises:
        ValueError: for another definition, fewer than 2 tasks, or a matrix that lacks a needed entry (`"max"`: every
            stage of every task but the last; `"first"`: the diagonal and the last row).
    """
    return _mean(forgetting_per_task(matrix, definition))


def forgetting_per_task(matrix: Matrix, definition: Literal["max", "first"] = "max") -> list[float]:
    """The N - 1 terms of [`forgetting`], in task order."""
    if definition == "first":
        cells = check_matrix(matrix, needs="own_and_last", metric="forgetting")
        reached = cells.diagonal()[:-1]
    elif definition == "max":
        cells = check_matrix(matrix, needs="stages", metric="forgetting")
        # From the task's own stage on: a score from before it was trained was never learned, so it cannot be forgotten.
        reached = np.array([cells[i:-1, i].max() for i in range(len(cells) - 1)])
    else:
        raise ValueError(
            f"forgetting was given definition={definition!r}, which is not known. Use 'max' (the best earlier stage, "
            "Chaudhry et al. 2018) or 'first' (the stage of the task's own training)."
        )
    return (reached - cells[-1, :-1]).tolist()


def average_performance(matrix: Matrix) -> float:
    """AP: the mean over the stages of the mean performance on all tasks met so far.

    `1/N * sum_k (1/k * sum_{i<=k} m[k][i])` (LifeAlign, arXiv 2509.17183), in the unit of the matrix.

    Raises:
        ValueError: if an entry on or below the diagonal is missing.
    """
    return _mean(average_performance_per_stage(matrix))


def average_performance_per_stage(matrix: Matrix) -> list[float]:
    """The N means over the tasks met so far, one after each task."""
    cells = check_matrix(matrix, needs="triangle", metric="average_performance")
    return [float(np.mean(row[: k + 1])) for k, row in enumerate(cells)]


def last_performance(matrix: Matrix) -> float:
    """Last: the mean performance on all N tasks after the last one, `1/N * sum_i m[N][i]`, in the unit of the matrix.

    Raises:
        ValueError: if an entry of the last row is missing.
    """
    return _mean(last_performance_per_task(matrix))


def last_performance_per_task(matrix: Matrix) -> list[float]:
    """The last row: the performance on each of the N tasks at the end."""
    return check_matrix(matrix, needs="last_row", metric="last_performance")[-1].tolist()


def forward_transfer(matrix: Matrix, baseline: Row | None) -> float:
    """FWT: how much earlier tasks helped (> 0) or hurt (< 0) a task before its own training.

    `1/(N-1) * sum_{i>=2} (m[i-1][i] - baseline[i])` (Lopez-Paz & Ranzato 2017), in the unit of the matrix.

    Args:
        matrix: square, since `m[i-1][i]` lies above the diagonal; see [`read_matrix`].
        baseline (sequence of N numbers): the untrained model's performance on each task. The first is not read.

    Raises:
        ValueError: for fewer than 2 tasks, a matrix that lacks an entry just above the diagonal, or a baseline that is
            missing, has not N entries or holds something that is not a finite number.
    """
    return _mean(forward_transfer_per_task(matrix, baseline))


def forward_transfer_per_task(matrix: Matrix, baseline: Row | None) -> list[float]:
    """The N - 1 terms `m[i-1][i] - baseline[i]` of [`forward_transfer`], from the second task on."""
    cells = check_matrix(matrix, needs="next_task", metric="forward_transfer")
    n = len(cells)
    if baseline is None:
        raise ValueError(
            "forward_transfer was given no baseline. It compares with the untrained model: give baseline=, its "
            f"performance on each of the {n} tasks."
        )
    row = _sequence(baseline, "baseline")
    if len(row) != n:
        raise ValueError(
            f"baseline has length {len(row)} for a matrix of {n} tasks. Give one number per task, in the same order."
        )
    untrained = np.array([_number(cell, f"baseline[{j}]") for j, cell in enumerate(row)])
    for j in range(1, n):
        if not math.isfinite(untrained[j]):
            raise ValueError(
                f"forward_transfer needs baseline[{j}], the untrained model's performance on task {j} (counted from "
                f"0), but it is {_absent(untrained[j])}. Evaluate that model there, and put in a finite number."
            )
    return (cells.diagonal(offset=1) - untrained[1:]).tolist()


def _last_row(n: int) -> NDArray[np.bool_]:
    mask = np.zeros((n, n), dtype=bool)
    mask[-1] = True
    return mask


def _corner(n: int) -> NDArray[np.bool_]:
    mask = np.zeros((n, n), dtype=bool)
    mask[-1, -1] = True
    return mask


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _plain(value: Any) -> Any:
    # Arrays and tensors, scalars too, become plain Python values without losing a digit; a masked entry becomes None.
    return value.tolist() if hasattr(value, "tolist") else value


def _sequence(value: Any, place: str) -> Sequence[Any]:
    plain = _plain(value)
    if isinstance(plain, (str, bytes)) or not isinstance(plain, Sequence):
        raise ValueError(
            f"{place} is {reprlib.repr(value)} ({type(value).__name__}), not a sequence. A performance matrix is a "
            "list of rows of numbers, and a baseline is one row. Give lists, tuples or arrays."
        )
    return plain


def _number(value: Any, place: str) -> float:
    plain = _plain(value)
    if plain is None:
        return math.nan
    # bool is a Real to Python, but a performance of True is a comparison that slipped in.
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise ValueError(
            f"{place} is {reprlib.repr(value)} ({type(value).__name__}), not a number. Give int or float, or None "
            "for an entry that was not evaluated."
        )
    try:
        return float(plain)
    except OverflowError:
        return math.inf


def _wrong_length(i: int, length: int, n: int, square: bool) -> str:
    if n == 1:
        expected = "1, since one row means one task"
    elif i == 0:
        expected = f"1 (a triangle) or {n} (a square), since {n} rows mean {n} tasks"
    elif square:
        expected = f"{n}, since row 0 holds all {n} tasks and so the matrix is read as a square"
    else:
        expected = f"{i + 1}, since row 0 holds one task and so the matrix is read as a triangle"
    return (
        f"matrix[{i}] has length {length}, but should have {expected}. Give either tasks 0..i in each row i, or all "
        f"{n} trained tasks in every row, with None for those not evaluated, and no task that was not trained."
    )


def _absent(value: float) -> str:
    return "missing (None or NaN)" if math.isnan(value) else "infinite"


class MatrixInput:
    """Put before `evaluate.Metric` among the bases of a metric on a performance matrix: checks it before Arrow sees it.

    Arrow would read True as 1.0 and report bad input in its own terms, and evaluate leaves its cache file behind on an
    error. So a whole matrix is checked first; one that comes by `add` or in several processes, at the end.
    """

    def compute(self: Any, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Compute the metric from a whole matrix, or from the rows given to `add` before."""
        if self.num_process == 1 and len(self) == 0:
            self._compute(predictions, **kwargs)
            predictions = read_matrix(predictions)
        return super().compute(  # type: ignore[misc]
            predictions=predictions, references=references, **kwargs
        )
