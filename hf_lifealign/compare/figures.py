"""BWT, forgetting, Last and AP of methods with their intervals. Pure functions of margins; nothing here needs torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Of one run: after task i, the margins of task j's test pairs, in nats; the lower triangle, j <= i. A stage before the
# last one that nobody measured is empty: what depends on it is not known.
Margins = Sequence[Sequence[Array]]

METRICS = ("bwt", "forgetting", "last_performance", "average_performance")
TITLES = dict(zip(METRICS, ("BWT", "Forgetting", "Last", "AP"), strict=True))
REPLICATES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Args:
        value (`float`): mean over seeds.
        low, high (`float`): ends of the percentile interval.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)


def wins(margins: Array) -> Array:
    """1 where a pair's margin is above 0, one half where it is 0; of the shape of `margins`."""
    return np.asarray((margins > 0) + 0.5 * (margins == 0), dtype=np.float64)


def summarise(cells: Array) -> Array:
    """BWT, forgetting, Last and AP (in the order of [`METRICS`]) of performance matrices.

    Args:
        cells (`numpy.ndarray` of shape `(..., tasks, tasks)`): `cells[..., i, j]` after task i on task j; what lies
            above the diagonal is not looked at.

    Returns:
        `numpy.ndarray` of shape `(..., 4)`; BWT and forgetting are NaN for a single task, and whatever depends on a
        cell that is NaN is NaN too.
    """
    tasks = cells.shape[-1]
    last, diagonal = cells[..., -1, :], np.diagonal(cells, axis1=-2, axis2=-1)
    lower = np.tril(np.ones((tasks, tasks), dtype=bool))
    held = np.where(lower, cells, -np.inf)
    if tasks > 1:
        backward = (last - diagonal)[..., :-1].mean(axis=-1)
        forgotten = (held[..., :-1, :-1].max(axis=-2) - last[..., :-1]).mean(axis=-1)
    else:
        backward = forgotten = np.full(cells.shape[:-2], np.nan)
    stages = np.where(lower, cells, 0).sum(axis=-1) / np.arange(1, tasks + 1)
    return np.stack([backward, forgotten, last.mean(axis=-1), stages.mean(axis=-1)], axis=-1)


def resampled(runs: Sequence[Margins], draws: Sequence[Array], accuracy: bool = True) -> Array:
    """Matrices of runs under replicates of the test pairs.

    Args:
        runs (`Sequence`): the margins of each seed.
        draws (`Sequence[numpy.ndarray]` of shape `(replicates, pairs)`): how often each pair of a task is drawn.
        accuracy (`bool`): the share of pairs that are won, or else the mean margin.

    Returns:
        `numpy.ndarray` of shape `(replicates, runs, tasks, tasks)`, zero above the diagonal, NaN where a stage was not
        measured.
    """
    tasks = len(draws)
    found = np.zeros((len(draws[0]), len(runs), tasks, tasks))
    for r, run in enumerate(runs):
        for i, row in enumerate(run):
            if not row:
                found[:, r, i, : i + 1] = np.nan
            for j, margins in enumerate(row[: i + 1]):
                values = wins(np.asarray(margins)) if accuracy else np.asarray(margins, dtype=np.float64)
                found[:, r, i, j] = draws[j] @ values / draws[j].sum(axis=1)
    return found


def matrix_of(margins: Margins) -> Array:
    """Preference accuracies of one run, of shape `(tasks, tasks)`, zero above the diagonal, NaN where a stage was not
    measured."""
    return np.asarray(resampled([margins], [np.ones((1, len(cell))) for cell in margins[-1]])[0, 0])


def drawn(counts: Sequence[int], replicates: int, seed: int) -> list[Array]:
    """How often each pair is drawn, by task, each of shape `(replicates + 1, pairs)`; the first one is the sample."""
    generator = np.random.default_rng(seed)
    return [
        np.vstack([np.ones(n), generator.multinomial(n, np.full(n, 1 / n), size=replicates)]).astype(np.float64)
        for n in counts
    ]


def compared(
    arms: Mapping[str, Mapping[int, Margins]],
    against: str,
    accuracy: bool = True,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Figure | None]]]:
    r"""
    Figures of methods and their differences to one of them, with percentile intervals (Efron and Tibshirani 1993).

    A replicate draws the test pairs of each task with replacement, the same ones for all methods, stages and seeds; and
    it draws seeds, the same ones for both sides of a difference. With one seed the interval leaves out what another
    seed would have changed.

    Args:
        arms (`dict[str, dict[int, Margins]]`): by method and seed; all on the same test pairs.
        against (`str`): the method that is subtracted; it may be missing, and then there are no differences.
        accuracy (`bool`): of the share of pairs that are won, or else of mean margins.
        replicates (`int`), level (`float`), seed (`int`): of the bootstrap.

    Returns:
        by method: `"figures"` and `"differences"`, each by the names of [`METRICS`]; `None` where there is none.

    Raises:
        ValueError: if runs do not have the same test pairs.
    """
    counts = _counts(arms)
    draws = drawn(counts, replicates, seed)
    summaries = {
        method: summarise(resampled([runs[s] for s in sorted(runs)], draws, accuracy)) for method, runs in arms.items()
    }
    found: dict[str, dict[str, dict[str, Figure | None]]] = {}
    for method, runs in arms.items():
        figures = _figures(_over_seeds(summaries[method], seed), level)
        differences: dict[str, Figure | None] = dict.fromkeys(METRICS)
        shared = sorted(set(runs) & set(arms.get(against, {})))
        if shared and method != against:
            own = summaries[method][:, [sorted(runs).index(s) for s in shared]]
            other = summaries[against][:, [sorted(arms[against]).index(s) for s in shared]]
            differences = _figures(_over_seeds(own - other, seed), level)
        found[method] = {"figures": figures, "differences": differences}
    return found


def _counts(arms: Mapping[str, Mapping[int, Margins]]) -> list[int]:
    counts: list[int] | None = None
    for method, runs in arms.items():
        for seed, run in runs.items():
            here = [len(margins) for margins in run[-1]]
            measured = [(i, row) for i, row in enumerate(run) if row]
            whole = bool(here) and all(len(row[j]) == here[j] for i, row in measured for j in range(i + 1))
            if counts is None:
                counts = here
            if here != counts or not whole:
                raise ValueError(
                    f"The run of {method!r} with seed {seed} has other test pairs ({here}) than those before it "
                    f"({counts})."
                )
    if counts is None:
        raise ValueError("There is no run to compare.")
    return counts


def _over_seeds(summaries: Array, seed: int) -> Array:
    """Means over drawn seeds: `(replicates, seeds, metrics)` to `(replicates, metrics)`; the first takes each once."""
    replicates, seeds, _ = summaries.shape
    picked = np.random.default_rng(seed + 1).integers(0, seeds, size=(replicates, seeds))
    picked[0] = np.arange(seeds)
    means: Array = summaries[np.arange(replicates)[:, None], picked].mean(axis=1)
    return means


def _figures(means: Array, level: float) -> dict[str, Figure | None]:
    found: dict[str, Figure | None] = {}
    for k, name in enumerate(METRICS):
        value = float(means[0, k])
        if np.isnan(value):
            found[name] = None
            continue
        low, high = np.quantile(means[1:, k], [(1 - level) / 2, (1 + level) / 2])
        found[name] = Figure(value, float(low), float(high))
    return found
