"""How dynamic rehearsal watches a finished task: by a judge of its answers, or by preference pairs of its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.strategies.base import Run

if TYPE_CHECKING:
    from hf_lifealign.dynamics.control import ScoreMeter
    from hf_lifealign.judges import Judge

# In the place of a judge: the task is watched by its own pairs.
BY_PAIRS = "preference"

Rows = list[dict[str, Any]]


class UnwatchableError(Exception):
    """A task has no score; the message says why, and ends the sentence "... is not held: "."""


def floor_of(told: Mapping[str, Any], tolerance: float, keep: float) -> float:
    """The score below which a task shall not fall; 0 if there is nothing to hold.

    Args:
        told (`dict`): what is kept of the task's score.
        tolerance (`float`): by how much a judged score may fall.
        keep (`float`): share that shall stay of what the task gained by its pairs, over the 0.5 of the untouched base.
    """
    score = float(told["score"]["score"])
    if "scale" not in told:
        return max(score - tolerance, 0.0)
    return 0.5 + keep * (score - 0.5) if score > 0.5 else 0.0


class Watch(Protocol):
    """A way to watch a task."""

    def begun(self, run: Run, task: str, rows: Rows) -> tuple["ScoreMeter", dict[str, Any]]:
        """A meter for the model that has just learnt the task, by the rows that are watched of it, and what a later one
        has to know, as JSON.

        Raises:
            UnwatchableError: if there is nothing to measure it by.
        """
        ...

    def meter(self, run: Run, task: str, rows: Rows, told: Mapping[str, Any]) -> "ScoreMeter":
        """A meter for later models.

        Raises:
            UnwatchableError: if the rows are not those by which the score was told.
        """
        ...


class JudgedWatch:
    """Answers to prompts of the task, drawn anew at each measurement, and judged.

    Args:
        judge (`Callable`): of the answers.
        probes (`int`): prompts, from the watched rows.
        samples (`int`): answers to each.
        max_new_tokens (`int`): longest answer.
    """

    def __init__(self, judge: "Judge", probes: int, samples: int, max_new_tokens: int):
        self.judge, self.probes, self.samples, self.max_new_tokens = judge, probes, samples, max_new_tokens

    def begun(self, run: Run, task: str, rows: Rows) -> tuple["ScoreMeter", dict[str, Any]]:
        return self.meter(run, task, rows, {}), {}

    def meter(self, run: Run, task: str, rows: Rows, told: Mapping[str, Any]) -> "ScoreMeter":
        from hf_lifealign.dynamics.measuring import AlignmentMeter
        from hf_lifealign.dynamics.samples import read_probes

        probes = read_probes(list(rows), limit=self.probes)
        return AlignmentMeter(
            probes, self.judge, run.processing_class, self.samples, self.max_new_tokens, seed=run.seed
        )


class PairWatch:
    """How surely the model prefers what it should, on pairs that are kept, and neither trained on nor rehearsed."""

    def begun(self, run: Run, task: str, rows: Rows) -> tuple["ScoreMeter", dict[str, Any]]:
        from hf_lifealign.dynamics.preference import margin_scale

        watched = self._rows(rows)
        margins = self._meter(run, task, watched).draw(run.model, 0).margins
        told = {"scale": margin_scale(margins), "margins": margins, "watched_sha256": rows_digest(watched)}
        return self._meter(run, task, watched, told), told

    def meter(self, run: Run, task: str, rows: Rows, told: Mapping[str, Any]) -> "ScoreMeter":
        watched = self._rows(rows)
        if rows_digest(watched) != told.get("watched_sha256"):
            raise UnwatchableError("the rows at hand are not those by which its score was measured")
        return self._meter(run, task, watched, told)

    def _rows(self, rows: Rows) -> Rows:
        """The pairs, without what other strategies or the trainer know about them."""
        names = ("prompt", "chosen", "rejected")
        return [{name: row[name] for name in names if name in row} for row in rows]

    def _meter(self, run: Run, task: str, watched: Rows, told: Mapping[str, Any] | None = None) -> "ScoreMeter":
        from hf_lifealign.dynamics.preference import PreferenceMeter, whole_pairs

        if not watched:
            raise UnwatchableError("none of its rows is left to watch it by")
        pairs, reference = run.reference_pairs(watched, f"{task}-watched")
        whole = whole_pairs(pairs)
        if not whole:
            raise UnwatchableError("max_length leaves nothing of its answers")
        if told is not None and len(told["margins"]) != len(whole):
            raise UnwatchableError("max_length cuts its rows otherwise than when its score was measured")
        options = {} if told is None else {"scale": told["scale"], "before": told["margins"]}
        pad = int(run.processing_class.pad_token_id or 0)
        kept = ([pairs[i] for i in whole], [reference[i] for i in whole])
        return PreferenceMeter(*kept, pad, pair_packing=run.pair_packing, **options)
