"""Routed memory: each task keeps an update of the base of its own, and a prompt is answered by the one it belongs to.

Ours. Parameters of tasks are kept apart, as in the single-task adapters that nothing can forget, and the task of a
prompt is inferred by a gate, as in prompt pools (L2P, arXiv 2112.08654); the gate is the exact ridge regression over
all prompts so far, and keeps none of them ([`~hf_lifealign.routing.Gate`]). Each view leans on the mean of all updates
(task arithmetic, arXiv 2212.04089), so that a prompt that is led astray is not answered by a stranger.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from hf_lifealign.routing.features import feature_count, prompt_features
from hf_lifealign.routing.gate import DTYPE, FOLDER, LEAN, Gate, view_weights
from hf_lifealign.strategies.base import Phase, Run
from hf_lifealign.strategies.fresh import FreshStart
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
    from transformers import Trainer

    from hf_lifealign.stream import TaskStream


class RoutedMemoryStrategy(FreshStart):
    """Learns each task from the base, keeps its update, and routes each prompt to the task it looks like.

    After a task a gate learns its prompts. A prompt is then answered by the view of the task to which the gate leads
    it: that task's update, leaning on the mean of all updates, cut to the adapter's rank. Evaluations, judges and
    samples are of the views. What is published at the adapter's root, and watched on general text, is the mean itself:
    one plain LoRA adapter for whoever does not route ([`~hf_lifealign.routing.load_routed`] does). Nothing is replayed,
    no row is kept, and earlier views change by the mean alone: what a later task can take from an earlier one is the
    prompts that the gate leads to it.

    Args:
        lean (`float`, *optional*, defaults to `1/3`): share of the mean of all updates in each view, in [0, 1]. 0 is a
            task's own update alone, 1 the same mean for every prompt.
        ridge (`float`, *optional*, defaults to `1.0`): of the gate's regression, above 0.
        task_known (`bool`, *optional*, defaults to `False`): evaluate for users who say to which task a prompt belongs,
            as `policy.generate(prompts, tasks=[...])` lets them: the prompts of a task that has been learnt are
            answered by its own view, and the gate is not asked. Such results are to be compared with those of methods
            that are told as much (`single_task`). Nothing else changes.
    """

    name = FOLDER

    def __init__(self, lean: float = 1 / 3, ridge: float = 1.0, task_known: bool = False):
        if not 0 <= lean <= 1:
            raise ValueError(f"You set lean={lean} of the strategy {self.name!r}. It has to lie in [0, 1].")
        if not ridge > 0:
            raise ValueError(f"You set ridge={ridge} of the strategy {self.name!r}. It has to be above 0.")
        if not isinstance(task_known, bool):
            raise ValueError(f"You set task_known={task_known!r} of the strategy {self.name!r}. Use true or false.")
        self.lean, self.ridge, self.task_known = float(lean), float(ridge), task_known
        self._evaluated: str | None = None  # the task whose prompts are being answered
        self._task: str | None = None  # the last one that was begun
        self._gate: Gate | None = None
        self._views: dict[str, Tensors] = {}
        self._told: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        # a life that was begun before there was this choice made none
        return {key: value for key, value in super().settings().items() if key != "task_known" or value}

    # Files: the adapter as it was made, each task's update, and the gate after the last task

    def _gate_file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"gate-{run.label(task)}.safetensors")

    def state_files(self, run: Run) -> list[Path]:
        updates = [file for task in run.lived if (file := self._update(run, task)).is_file()]
        gates = [file for task in run.lived if (file := self._gate_file(run, task)).is_file()]
        return [self._initial(run), *updates, *gates[-1:]]

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        refuse_more_than_factors(run.model, self.name)
        before = [task for task in run.lived if task not in stream.names or run.is_done(task)]
        missing = [task for task in before if not run.agreed(self._update(run, task).is_file())]
        if missing or (before and not run.agreed(self._gate_file(run, before[-1]).is_file())):
            raise ValueError(
                f"The life that goes on with {stream.names} was not lived with the strategy {self.name!r}: what "
                f"{missing or before} changed in the base is not known apart. Begin a new life, or leave the strategy "
                "out."
            )
        self._keep_initial(run)
        self._task, self._gate, self._views = (before[-1] if before else None), None, {}
        self._remove_gates(run, before[:-1])
        return stream

    # A task

    def before_task(self, run: Run, task: str) -> None:
        self._task = task

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if run.phases(phase.index)[-1] != phase:
            return
        known = run.lived[: run.lived.index(phase.task) + 1]
        learnt = self._learnt(run, known)
        if run.is_main_process:
            write_tensors(self._update(run, phase.task), trainable_parameters(run.model))
            told = {LEAN: repr(self.lean), DTYPE: str(run.model.dtype).removeprefix("torch.")}
            learnt.save(self._gate_file(run, phase.task), **told)
        run.agreed(True)  # everybody reads what has been written
        self._gate, self._views = self._read_gate(run, phase.task), {}
        mean, lost = self._summed(run, view_weights(known, phase.task, 1.0))
        put_back(run.model, mean)
        self._told = {"tasks": len(known), "left_out_by_rank": lost}

    def after_task(self, run: Run, task: str) -> None:
        self._remove_gates(run, run.lived[: run.lived.index(task)])

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"routed_memory": self._told} if run.phases(phase.index)[-1] == phase else {}

    def _learnt(self, run: Run, known: list[str]) -> Gate:
        """The gate with the last of the known tasks."""
        before = self._read_gate(run, known[-2]) if known[1:] else Gate.empty(feature_count(run.model))
        features = self._features(run, list(run.stream[known[-1]].load().train))
        return replace(before, ridge=self.ridge).added(known[-1], features)

    def _read_gate(self, run: Run, task: str) -> Gate:
        gate, _ = Gate.load(self._gate_file(run, task))
        known = tuple(run.lived[: run.lived.index(task) + 1])
        if gate.tasks != known:
            raise ValueError(
                f"The gate in {self._gate_file(run, task)} knows the tasks {list(gate.tasks)}, and the life is "
                f"{list(known)}. It is of another life; take another revision."
            )
        return gate

    def _remove_gates(self, run: Run, tasks: list[str]) -> None:
        """A gate knows all that those before it knew."""
        if run.is_main_process:
            for task in tasks:
                self._gate_file(run, task).unlink(missing_ok=True)

    def _features(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> Any:
        from hf_lifealign.lifelong.evaluation import prompt_ids

        pad = int(run.processing_class.pad_token_id or 0)
        return prompt_features(run.model, prompt_ids(run.processing_class, rows), pad, run.eval_batch_size)

    # Views

    def routes(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
        if self._task is None:
            return None
        if self._gate is None or self._gate.tasks[-1] != self._task:
            # the task was trained before a restart
            self._gate, self._views = self._read_gate(run, self._task), {}
        if self.task_known and self._evaluated in self._gate.tasks:
            return [str(self._evaluated)] * len(rows)
        # processes may round otherwise, and have to agree
        names: list[str] = broadcast_object_list([self._gate.route(self._features(run, rows))])[0]
        return names

    @contextmanager
    def view(self, run: Run, name: str) -> Iterator[None]:
        assert self._gate is not None
        if name not in self._views:
            self._views[name], _ = self._summed(run, view_weights(self._gate.tasks, name, self.lean))
        kept = copied(trainable_parameters(run.model))
        put_back(run.model, self._views[name])
        try:
            yield
        finally:
            put_back(run.model, kept)

    def before_evaluation(self, run: Run, task: str) -> None:
        self._evaluated = task

    def after_evaluation(self, run: Run, task: str, results: dict[str, float]) -> None:
        self._evaluated = None

    def _summed(self, run: Run, weights: Mapping[str, float]) -> tuple[Tensors, float]:
        updates = {task: read_tensors(self._update(run, task)) for task in weights}
        return summed_updates(run.model, updates, weights)
