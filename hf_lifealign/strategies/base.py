"""What a strategy is: named phases around training, and what it may bring into training."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from hf_lifealign.lifelong.scoring import EncodedPair
    from hf_lifealign.stream import TaskStream

WARM_START = "warm_start"
PREFERENCE = "preference"


@dataclass(frozen=True)
class Phase:
    """One training of one task.

    Args:
        task (`str`): name of the task.
        index (`int`): its position in the stream, from 0.
        name (`str`): `"warm_start"` (SFT on the chosen answers) or `"preference"`.
    """

    task: str
    index: int
    name: str


@dataclass(frozen=True)
class PhaseTrainer:
    """A trainer that a strategy brings for a phase.

    Args:
        trainer_class (`type`): takes TRL's arguments and the phase's rows.
        args (`TrainingArguments`): its settings; folder, seed, checkpoints and reporting are decided by the run.
        kwargs (`dict`): further arguments of its constructor.
        without_columns (`tuple[str, ...]`): columns of the rows that it is not to see.
    """

    trainer_class: "type[Trainer]"
    args: "TrainingArguments"
    kwargs: dict[str, Any] = field(default_factory=dict)
    without_columns: tuple[str, ...] = ()


class Run(Protocol):
    """What a strategy may use of the run it serves; [`LifelongTrainer`] is one."""

    model: Any
    stream: "TaskStream"
    training_args: Any  # of the preference phase

    @property
    def processing_class(self) -> "PreTrainedTokenizerBase": ...

    @property
    def seed(self) -> int: ...

    @property
    def pair_packing(self) -> str:
        """Whether pairs may be packed: `"auto"` or `"off"`, as in [`FPOConfig`]."""

    def phases(self, index: int) -> "list[Phase]":
        """Phases of the stream's task of an index, in order."""
        ...

    @property
    def lived(self) -> list[str]:
        """All tasks of the life in order: those that were trained before the run, and those of the stream."""
        ...

    def is_done(self, task: str) -> bool:
        """Whether a task of the stream was finished before."""
        ...

    def agreed(self, fact: bool) -> bool:
        """What the main process found, for decisions that all processes have to take alike; they wait for each
        other."""
        ...

    def label(self, task: str) -> str:
        """`NN-<task>`: position in the life and name of a task."""
        ...

    def note(self, text: str) -> None:
        """Tells, and keeps for report and card, in what a run that was continued differs from one that never moved."""
        ...

    @property
    def is_main_process(self) -> bool: ...

    def strategy_file(self, strategy: "Strategy", name: str) -> Path:
        """Path for a file of the strategy inside the run's folder."""
        ...

    def training_rows(self, task: str) -> "Dataset":
        """The task's own training rows, with reference log-probabilities where the run keeps them."""
        ...

    @property
    def eval_batch_size(self) -> int:
        """Rows per forward pass where nothing is trained."""

    def reference_pairs(
        self, rows: list[dict[str, Any]], key: str
    ) -> "tuple[list[EncodedPair], list[tuple[float, float]]]":
        """Preference rows as the preference phase cuts them, and the log-probabilities of chosen and rejected under the
        untouched base, in nats, kept under the name `key`. Every process has to call it. What rows carry of the
        trainer's own references is not looked at: those may be computed otherwise."""
        ...

    def rows_with_reference(self, rows: "Dataset", key: str) -> "Dataset":
        """Rows from elsewhere with reference log-probabilities where the run keeps them, under the name `key`."""
        ...


class Strategy:
    """Base class: does nothing at every point of a run. Override what the strategy needs.

    Every method is called on every process. The order within a task is `before_task`, then for each phase
    `prepare_phase`, `training_rows`, `phase_trainer`, `callbacks`, `before_phase`, the training itself (with
    `compute_extra_loss` added to its loss), `after_phase`; then for every task seen so far `before_evaluation` and
    `after_evaluation`; then `after_task`.

    A run may be killed at any instant and started again. It then goes on from its last finished phase, or from a
    checkpoint inside one, and calls `before_task` and the methods of the phase once more: what a strategy has to
    remember longer, it writes to `run.strategy_file(...)`.

    A run can also be continued elsewhere, from what was published of it: `state_files` names what the strategy needs
    there, and `prepare_stream` finds these files at their places.

    Third parties add a strategy through the entry-point group `hf_lifealign.strategies`.
    """

    name: str = "strategy"

    # Whether it begins each task anew and puts something else in the adapter's place after it; and whether it goes by
    # the values that the adapter has after a task. Both cannot stand in one run.
    replaces_adapter: bool = False
    reads_adapter: bool = False

    def refuse_below(self, least: int, **options: int) -> None:
        """Raises `ValueError` for an option that is below `least`."""
        for option, value in options.items():
            if value < least:
                raise ValueError(f"You set {option}={value} of the strategy {self.name!r}. Set at least {least}.")

    def settings(self) -> dict[str, Any]:
        """What decides the strategy's effect, as JSON; a run that is started again has to have the same."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        """Once, before the first task. May check the set-up (raise `ValueError`) or return another stream."""
        return stream

    def before_task(self, run: Run, task: str) -> None:
        """Before a task's first phase."""

    def prepare_phase(self, run: Run, phase: Phase) -> None:
        """Before the rows and the trainer of a phase are made. Not called for a phase that was over before a restart;
        a checkpoint inside the phase is loaded later."""

    def training_rows(self, run: Run, phase: Phase, rows: "Dataset") -> "Dataset":
        """Returns the rows to train on in `phase`: `rows` are the task's own and what other strategies added."""
        return rows

    def phase_trainer(self, run: Run, phase: Phase) -> PhaseTrainer | None:
        """Who trains a phase, if not the run's own trainer; at most one strategy may say so."""
        return None

    def callbacks(self, run: Run, phase: Phase) -> "Sequence[TrainerCallback]":
        """TrainerCallbacks for the trainer of a phase."""
        return ()

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        """When the trainer of a phase was built, before it trains."""

    def compute_extra_loss(self, model: "torch.nn.Module", inputs: dict[str, Any]) -> "torch.Tensor | None":
        """A term for the training loss (scalar tensor on the scale of the batch mean), or `None`."""
        return None

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        """When a phase has been trained, before its result is saved."""

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        """JSON figures of the phase for the run's record (durations under keys that end in `seconds`)."""
        return {}

    def before_evaluation(self, run: Run, task: str) -> None:
        """Before the model is evaluated on `task`."""

    def routes(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
        """Which view of what was learnt answers each row's prompt, by name, judged by the prompt alone; `None` where
        one model answers all. At most one strategy may say so. Every process has to call it and get the same.

        Args:
            rows (`Sequence[Mapping]`): each with `prompt`, as in the data.
        """
        return None

    def view(self, run: Run, name: str) -> AbstractContextManager[None]:
        """Context in which the model is the view of a name that `routes` gave."""
        raise NotImplementedError(f"The strategy {self.name!r} routes prompts, and has to bring view() too.")

    def after_evaluation(self, run: Run, task: str, results: dict[str, float]) -> None:
        """After the model was evaluated on `task`; `results` maps measure to value."""

    def after_task(self, run: Run, task: str) -> None:
        """When a task was trained and evaluated, before its adapter is published."""

    def state_files(self, run: Run) -> list[Path]:
        """After a task: the .json and .safetensors files, each directly in the strategy's own folder, from which it
        goes on. The key `"rows"` of a JSON object holds training rows, published only if the user says so."""
        return []


def brings_extra_loss(strategy: Strategy) -> bool:
    """Whether a strategy overrides `compute_extra_loss`."""
    return type(strategy).compute_extra_loss is not Strategy.compute_extra_loss
