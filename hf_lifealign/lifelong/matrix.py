"""The performance matrices of a run, put together from its evaluation files."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json
from hf_lifealign.lifelong.evaluation import BESIDE, SCORED_PAIRS
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.metrics import performance_matrix as pm

PERPLEXITY = "_perplexity"


def _row(
    directory: RunDirectory, after: str | None, tasks: list[str], needed: int | None = None
) -> list[dict[str, Any]] | None:
    """Results on `tasks` at one stage, or `None` if one of the first `needed` (by default of all) is missing; what
    else is missing is an empty result."""
    paths = [directory.evaluation(after, task) for task in tasks]
    if not all(path.is_file() for path in paths[:needed]):
        return None
    return [read_json(path) if path.is_file() else {} for path in paths]


def summarise(matrix: list[list[Any]], baseline: list[float] | None) -> dict[str, float | None]:
    """BWT, forgetting, Last, AP and forward transfer of a matrix; `None` where they are undefined so far."""
    trained = len(matrix)
    # Row i may hold tasks that come after the last trained one; only trained tasks count so far.
    square = [row[:trained] for row in matrix] if all(len(row) >= trained for row in matrix) else matrix
    several = trained > 1
    return {
        "bwt": pm.backward_transfer(square) if several else None,
        "forgetting": pm.forgetting(square) if several else None,
        "last_performance": pm.last_performance(square),
        "average_performance": pm.average_performance(square),
        "forward_transfer": (
            pm.forward_transfer(square, baseline[:trained])
            if several and baseline is not None and len(square[0]) == trained and all(None not in row for row in square)
            else None
        ),
    }


def build_matrix(
    directory: RunDirectory,
    tasks: list[str],
    metric: str,
    counts: list[int],
    all_tasks: bool,
    trained: int | None = None,
    elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """Content of `matrix.json`.

    Args:
        directory ([`RunDirectory`]): the run.
        tasks (`list[str]`): its tasks.
        metric (`str`): the measure that goes first.
        counts (`list[int]`): test pairs of each task.
        all_tasks (`bool`): whether each stage was evaluated on all tasks.
        trained (`int`, *optional*): take only the first stages; all that are complete by default.
        elsewhere (`Collection[str]`): tasks trained before the run, whose stages may lack results on later ones.
    """
    stages = []
    for index, task in enumerate(tasks[:trained]):
        needed = index + 1 if task in elsewhere else None
        row = _row(directory, task, tasks if all_tasks else tasks[: index + 1], needed)
        if row is None:
            break
        stages.append(row)
    base = _row(directory, None, tasks) if all_tasks else None
    names = sorted(set(stages[0][0]) - BESIDE) if stages else []
    if stages:
        # pairs whose completion the cut has taken away were not scored
        scored = [int(cell.get(SCORED_PAIRS, count)) for cell, count in zip(stages[-1], counts, strict=False)]
        counts = scored + counts[len(scored) :]
    # a result that was not published is no number
    matrices = {name: [[cell.get(name) for cell in row] for row in stages] for name in names}
    baseline = {name: [cell[name] for cell in base] for name in names} if base is not None else None
    return {
        "format": 1,
        "metric": metric,
        "tasks": tasks,
        "counts": counts,
        "matrices": matrices,
        "baseline": baseline,
        "perplexity": _perplexity(directory, tasks[: len(stages)]),
        "summary": {n: summarise(m, baseline[n] if baseline else None) for n, m in matrices.items()},
    }


def published_matrix(matrix: dict[str, Any], trained: int) -> dict[str, Any]:
    """A `matrix.json` as it would be if the stream ended after `trained` tasks: later ones are not named."""
    every = {"tasks": matrix["tasks"][:trained], "counts": matrix["counts"][:trained]}
    cut = {name: [row[:trained] for row in rows] for name, rows in matrix["matrices"].items()}
    base = matrix["baseline"]
    baseline = {name: values[:trained] for name, values in base.items()} if base is not None else None
    return matrix | every | {"matrices": cut, "baseline": baseline}


def _perplexity(directory: RunDirectory, tasks: list[str]) -> dict[str, Any] | None:
    def value(path: Path) -> float | None:
        return read_json(path)["perplexity"] if path.is_file() else None

    base = value(directory.evaluation(None, PERPLEXITY))
    return (
        None if base is None else {"base": base, "after": [value(directory.evaluation(t, PERPLEXITY)) for t in tasks]}
    )
