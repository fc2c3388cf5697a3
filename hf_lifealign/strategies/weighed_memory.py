"""Weighed memory: each task's update is learnt from the base, and the memory is their sum, weighed by what it keeps.

Ours, in LifeAlign's terms (arXiv 2509.17183): the short-term memory of a task is its update of the base, the long-term
memory a sum of all of them, as in task arithmetic (arXiv 2212.04089). What a later task destroys is not looked for in
the span of earlier updates: the weights are those under which a few kept pairs of every task are preferred.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign._files import read_json, write_json
from hf_lifealign.strategies.base import PREFERENCE, Phase, Run
from hf_lifealign.strategies.fresh import FreshStart
from hf_lifealign.strategies.memory import MemoryStrategy
from hf_lifealign.strategies.merging import summed_updates
from hf_lifealign.strategies.tensors import (
    Tensors,
    copied,
    put_back,
    read_tensors,
    refuse_more_than_factors,
    trainable_parameters,
    write_tensors,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from hf_lifealign.stream import TaskStream

Array = NDArray[np.float64]


def memory_weights(margins: Sequence[Array], sharpness: float = 1.0) -> Array:
    r"""Weights of updates under which kept pairs are preferred, if margins add up as the updates do.

    Minimises ``mean_j mean_{p in j} log(1 + exp(-sharpness (M_j c)_p / s))`` over ``c >= 0``, with ``s`` the standard
    deviation of the margins in the mean over tasks: a logistic regression without bias, convex, with one variable for
    each update. Only the direction is used: the weights are scaled to a sum of 1.

    Args:
        margins (`Sequence[numpy.ndarray]` of shape `(pairs, updates)`): for each task, the margins of its kept pairs
            under each update alone, in nats.
        sharpness (`float`): how much a pair that is nearly preferred counts, above 0.

    Returns:
        `numpy.ndarray` of shape `(updates,)`, not negative, with sum 1; all the same where no pair tells anything.
    """
    from scipy.optimize import minimize

    updates = margins[0].shape[1]
    even = np.full(updates, 1 / updates)
    scale = float(np.mean([each.std() for each in margins]))
    if updates == 1 or not scale > 0:
        return even
    scaled = [sharpness * each / scale for each in margins]

    def loss(c: Array) -> tuple[float, Array]:
        value, slope = 0.0, np.zeros(updates)
        for each in scaled:
            z = each @ c
            value += float(np.logaddexp(0, -z).mean()) / len(scaled)
            slope -= each.T @ (1 / (1 + np.exp(np.clip(z, -500, 500)))) / len(z) / len(scaled)
        # far out the loss is flat: what only grows the weights is not followed for ever
        return value + 1e-4 * float(c @ c), slope + 2e-4 * c

    found = minimize(loss, even, jac=True, bounds=[(0, None)] * updates, method="L-BFGS-B")
    total = float(found.x.sum())
    return np.asarray(found.x / total) if total > 0 else even


class WeighedMemoryStrategy(FreshStart, MemoryStrategy):
    """Learns each task from the base, and keeps a weighed sum of the tasks' updates.

    After a task its update is added to those of earlier tasks. The margins of a few kept pairs of every task under each
    update alone say which weights keep all of them preferred ([`memory_weights`]); the sum under these weights, cut to
    the adapter's rank, is what is evaluated and published. All weights are found anew after each task, so that the
    order of the tasks makes no difference but for what was known by then. Nothing is replayed: beside its own steps a
    task costs forward passes on kept pairs.

    Args:
        fraction (`float`, *optional*, defaults to `0.2`): share of a task's rows that is kept.
        capacity (`int`, *optional*): most pairs that are looked at in all; tasks share it evenly.
        sharpness (`float`, *optional*, defaults to `1.0`): see [`memory_weights`].
        scale (`float`, *optional*, defaults to `1.0`): sum of the weights, above 0. At 1 the memory is a mean of the
            updates; larger values make margins larger, and bend what adds up only for small updates.
    """

    name = "weighed_memory"

    def __init__(self, fraction: float = 0.2, capacity: int | None = None, sharpness: float = 1.0, scale: float = 1.0):
        super().__init__(fraction, capacity, batch_size=1)
        for option, value in (("sharpness", sharpness), ("scale", scale)):
            if not value > 0:
                raise ValueError(f"You set {option}={value} of the strategy {self.name!r}. It has to be above 0.")
        self.sharpness, self.scale = float(sharpness), float(scale)
        self._told: dict[str, Any] = {}

    # Files: the adapter as it was made, each task's update, and its kept pairs with their margins under each update

    def state_files(self, run: Run) -> list[Path]:
        updates = [file for task in run.lived if (file := self._update(run, task)).is_file()]
        return [self._initial(run), *updates, *super().state_files(run)]

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        refuse_more_than_factors(run.model, self.name)
        if self.capacity is not None and self.capacity < len(run.lived):
            raise ValueError(
                f"You set capacity={self.capacity} of the strategy {self.name!r} in a life of {len(run.lived)} tasks. "
                "It needs a pair of each; set at least as many, or null."
            )
        if not run.agreed(self._initial(run).is_file()):
            lost = [task for task in run.lived if task not in stream.names or run.is_done(task)]
            if lost:
                raise ValueError(
                    f"The life that goes on with {stream.names} was not lived with the strategy 'weighed_memory': what "
                    f"{lost} changed in the base is not known apart. Begin a new life, or leave the strategy out."
                )
            self._keep_initial(run)
        return super().prepare_stream(run, stream)

    # A task

    def training_rows(self, run: Run, phase: Phase, rows: "Dataset") -> "Dataset":
        self._run, self._memory = run, {}
        return rows

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        super().after_phase(run, phase, trainer)
        self._told = {}
        if phase.name != PREFERENCE:
            return
        finished = run.lived[: run.lived.index(phase.task) + 1]
        own = copied(trainable_parameters(run.model))
        kept = self._measured(run, finished, own)
        known = [task for task in finished if task in kept]
        margins = [np.array([kept[task][by] for by in known], dtype=np.float64).T for task in known]
        weights = self.scale * memory_weights(margins, self.sharpness)
        updates = {t: own if t == phase.task else read_tensors(self._update(run, t)) for t in known}
        summed, lost = summed_updates(run.model, updates, dict(zip(known, weights, strict=True)))
        put_back(run.model, summed)
        if run.is_main_process:
            write_tensors(self._update(run, phase.task), own)
        self._told = {
            "weights": {task: round(float(weight), 6) for task, weight in zip(known, weights, strict=True)},
            "left_out_by_rank": lost,
        }

    def after_task(self, run: Run, task: str) -> None:
        """The sample was kept with its margins, when the task's phase ended."""

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"weighed_memory": self._told} if phase.name == PREFERENCE else {}

    def _measured(self, run: Run, finished: list[str], own: Tensors) -> dict[str, dict[str, list[float]]]:
        """Margins of each task's kept pairs by task and by update, the new ones among them; writes them down."""
        new = finished[-1]
        found = {}
        for position, task in enumerate(finished):
            content = self._sample(run, task) if task == new else read_json(self._file(run, task))
            if "rows" not in content:
                continue  # published without its rows, and not at hand: the run has said so
            rows = self._within(content["rows"], position, len(finished))
            # a life that goes on elsewhere may have its rows from the stream, and no margins of them
            margins = {} if task == new else dict(content.get("margins") or {})
            for by in finished:
                if by == new or by not in margins:
                    put_back(run.model, own if by == new else read_tensors(self._update(run, by)))
                    margins[by] = self._margins(run, task, rows)
            put_back(run.model, own)
            if run.is_main_process:
                write_json(self._file(run, task), content | {"margins": margins})
            found[task] = {by: values[: len(rows)] for by, values in margins.items()}
        return found

    def _margins(self, run: Run, task: str, rows: list[dict[str, Any]]) -> list[float]:
        from hf_lifealign.lifelong.evaluation import pair_margins
        from hf_lifealign.lifelong.scoring import score_pairs

        pairs, reference = run.reference_pairs(rows, f"{task}-{self.name}")
        pad = int(run.processing_class.pad_token_id or 0)
        return pair_margins(score_pairs(run.model, pairs, pad, pair_packing=run.pair_packing), reference)
