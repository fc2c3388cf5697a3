"""The two ends between which lifelong learning lies: one adapter for each task, and all tasks together."""

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign.strategies.base import Phase, Run
from hf_lifealign.strategies.fresh import FreshStart
from hf_lifealign.strategies.sampling import mix
from hf_lifealign.strategies.tensors import (
    Tensors,
    copied,
    put_back,
    read_tensors,
    trainable_parameters,
    write_tensors,
)

if TYPE_CHECKING:
    from hf_lifealign.stream import TaskStream


class _ApartStrategy(FreshStart):
    """Base of the two: nothing goes from one task to the next."""

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        if run.lived != stream.names:
            raise ValueError(
                f"You set the strategy {self.name!r} for a life that goes on with tasks trained elsewhere. It begins "
                "each task anew, and there would be nothing to go on with. Leave continue_from out."
            )
        if str(run.model.peft_config["default"].peft_type.value) == "SLMC":
            raise ValueError(
                f"You set the strategy {self.name!r} with an SLMC adapter, whose memory it would leave behind. Use a "
                "LoraConfig (adapter type 'lora')."
            )
        self._keep_initial(run)
        return stream


class SingleTaskStrategy(_ApartStrategy):
    """STL: one adapter for each task, which alone answers for it. Nothing is forgotten, and nothing shared: who uses it
    has to know to which task a prompt belongs. The adapter published after a task is that task's."""

    name = "single_task"

    def __init__(self) -> None:
        self._current: Tensors = {}

    def before_evaluation(self, run: Run, task: str) -> None:
        self._current = copied(trainable_parameters(run.model))
        file = self._update(run, task)
        if run.agreed(file.is_file()):
            put_back(run.model, read_tensors(file))

    def after_evaluation(self, run: Run, task: str, results: dict[str, float]) -> None:
        put_back(run.model, self._current)
        self._current = {}

    def after_phase(self, run: Run, phase: Phase, trainer: Any) -> None:
        if run.phases(phase.index)[-1] == phase and run.is_main_process:
            write_tensors(self._update(run, phase.task), trainable_parameters(run.model))


class JointStrategy(_ApartStrategy):
    """MTL: after each task all tasks so far are trained together, from a fresh adapter. An upper bound, which keeps all
    data for ever and computes everything again."""

    name = "joint"

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        for earlier in run.lived[: run.lived.index(phase.task)]:
            rows = mix(rows, list(run.training_rows(earlier)), f"the task {earlier!r}")
        return rows

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        earlier = run.lived[: run.lived.index(phase.task)]
        return {"joint_rows": sum(len(run.training_rows(task)) for task in earlier)}
