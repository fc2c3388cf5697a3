"""One phase of one task: its arguments, its rows, its trainer, and the checkpoint it may go on from."""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from trl import DPOTrainer, SFTTrainer

from hf_lifealign._files import read_json, remove_folder, write_json
from hf_lifealign._modes import require_differentiable
from hf_lifealign.fpo.extra_loss import ExtraLoss, ExtraLossMixin
from hf_lifealign.prompt_pool import pools_of
from hf_lifealign.prompt_pool.training import PromptPoolMixin
from hf_lifealign.slmc import ConsolidationCallback
from hf_lifealign.strategies import WARM_START, Phase, PhaseTrainer

if TYPE_CHECKING:
    from hf_lifealign.lifelong.trainer import LifelongTrainer

_SEAL = "sealed.json"
REFERENCE_COLUMNS = ["ref_chosen_logps", "ref_rejected_logps"]


def phase_seed(seed: int, phase: Phase) -> int:
    """Seed of a phase: depends on the run's seed and the names alone, not on what ran before in this process."""
    digest = hashlib.sha256(f"{seed}/{phase.task}/{phase.name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % (2**31)


def phase_arguments(
    template: TrainingArguments, phase: Phase, output_dir: Path, seed: int, checkpoint_steps: int
) -> TrainingArguments:
    """The user's arguments with what a lifelong run decides itself: folder, seed, checkpoints, reporting."""
    args = copy.deepcopy(template)
    args.output_dir = str(output_dir)
    args.seed = phase_seed(seed, phase)
    args.data_seed = None
    args.save_strategy = SaveStrategy.STEPS
    # Right after a log: what a trainer has gathered since the last one is lost with the process.
    every = args.logging_steps if args.logging_strategy == "steps" and args.logging_steps >= 1 else 1
    args.save_steps = int(math.ceil(checkpoint_steps / every) * every)
    args.save_total_limit = 2
    args.load_best_model_at_end = False
    args.eval_strategy = type(args.eval_strategy)("no")
    args.push_to_hub = False
    args.report_to = []
    args.resume_from_checkpoint = None
    return args


def warm_start_rows(rows: Dataset) -> Dataset:
    """Prompt-completion rows from preference rows: the chosen answers."""
    dropped = [name for name in ("rejected", *REFERENCE_COLUMNS) if name in rows.column_names]
    return rows.remove_columns(dropped).rename_column("chosen", "completion")


class PhaseClock:
    """Seconds that a phase has taken, those before the checkpoint it goes on from included. What a process did after
    its last checkpoint is lost with it, and is not counted.

    Args:
        checkpoint (`str`, *optional*): sealed with the seconds until then.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self._before = float(read_json(Path(checkpoint) / _SEAL).get("seconds", 0.0)) if checkpoint else 0.0
        self._started = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started


class CheckpointSeal(TrainerCallback):
    """Marks a checkpoint as complete, once everything of it is on disk.

    Args:
        seconds (`Callable[[], float]`, *optional*): tells what the training has taken until now.
    """

    def __init__(self, seconds: Callable[[], float] | None = None) -> None:
        self._seconds = seconds

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # every process has written its part
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            taken = {} if self._seconds is None else {"seconds": round(self._seconds(), 3)}
            write_json(folder / _SEAL, {"global_step": state.global_step, **taken})


def latest_checkpoint(output_dir: Path, is_main_process: bool) -> str | None:
    """The newest complete checkpoint; incomplete ones, left by a kill while saving, are removed."""
    complete: dict[int, Path] = {}
    for folder in output_dir.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if (folder / _SEAL).is_file() and step.isdigit():
            complete[int(step)] = folder
        elif is_main_process:
            remove_folder(folder)
    return str(complete[max(complete)]) if complete else None


def resumable_checkpoint(output_dir: Path, is_main_process: bool) -> str | None:
    """The newest complete checkpoint but that of the last step, which is removed; the same on all processes.

    Trainer looks whether a training is done after a step alone: from its last step it would take one too many where it
    does not end with an epoch.
    """
    found = latest_checkpoint(output_dir, is_main_process) if is_main_process else None
    if found is not None:
        state = read_json(Path(found) / "trainer_state.json")
        if state["global_step"] >= state["max_steps"]:
            remove_folder(Path(found))
            found = latest_checkpoint(output_dir, is_main_process)
    told: str | None = broadcast_object_list([found])[0]
    return told


def phase_logs(trainer: Trainer) -> list[dict[str, Any]]:
    """What the trainer logged, without what counts from its last start instead of the phase's: its closing entry, whose
    loss is an average over those steps, and TRL's token counter."""
    entries = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return [{key: value for key, value in entry.items() if key != "num_tokens"} for entry in entries]


def with_extra_loss(trainer_class: type[Trainer]) -> type[Trainer]:
    """The trainer class with the seam for extra losses and what a prompt pool needs, where it lacks them (FPOTrainer
    has both)."""
    missing = tuple(mixin for mixin in (PromptPoolMixin, ExtraLossMixin) if not issubclass(trainer_class, mixin))
    if not missing:
        return trainer_class
    return type(trainer_class.__name__, (*missing, trainer_class), {"__module__": trainer_class.__module__})


def trainer_of(run: "LifelongTrainer", phase: Phase) -> PhaseTrainer:
    """The trainer of a phase: one that a strategy brings, or the run's own.

    Raises:
        ValueError: if several strategies bring one.
    """
    brought = {s.name: found for s in run.strategies if (found := s.phase_trainer(run, phase)) is not None}
    if len(brought) > 1:
        raise ValueError(
            f"The strategies {sorted(brought)} each bring a trainer for the task {phase.task!r}. Only one can train it."
        )
    if brought:
        return next(iter(brought.values()))
    if phase.name == WARM_START:
        assert run.warm_start_args is not None
        return PhaseTrainer(SFTTrainer, run.warm_start_args)
    return PhaseTrainer(run.trainer_class, run.training_args)


def build_trainer(
    phase: Phase,
    model: Any,
    args: TrainingArguments,
    rows: Dataset,
    processing_class: Any,
    brought: PhaseTrainer,
    callbacks: Sequence[TrainerCallback],
    extra_losses: Sequence[ExtraLoss],
    clock: PhaseClock,
) -> Trainer:
    """The trainer of a phase, on the chosen answers alone for the warm start."""
    require_differentiable(model)
    cls = brought.trainer_class
    rows = rows.remove_columns([name for name in brought.without_columns if name in rows.column_names])
    if phase.name == WARM_START:
        rows = warm_start_rows(rows)
    elif set(REFERENCE_COLUMNS) <= set(rows.column_names) and issubclass(cls, DPOTrainer):
        args.precompute_ref_log_probs = True  # type: ignore[attr-defined]
    if extra_losses or pools_of(model):
        cls = with_extra_loss(cls)
    kwargs: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "callbacks": list(callbacks)}
    trainer = cls(processing_class=processing_class, **kwargs, **brought.kwargs)
    if isinstance(trainer, ExtraLossMixin):
        trainer.extra_losses = tuple(extra_losses)
    if not any(isinstance(callback, ConsolidationCallback) for callback in callbacks):
        # FPOTrainer brings one by itself; in a life the strategies alone decide what is consolidated.
        for callback in list(trainer.callback_handler.callbacks):
            if isinstance(callback, ConsolidationCallback):
                callback.detach()
                trainer.remove_callback(callback)
    trainer.add_callback(CheckpointSeal(clock.seconds))
    # Without its bar a trainer prints every log; the run keeps them in files, and has a bar of its own.
    trainer.remove_callback(PrinterCallback)
    return trainer
