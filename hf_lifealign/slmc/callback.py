"""ConsolidationCallback: begins a task when a Trainer starts and consolidates when it ends, across resumptions."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .loading import read_adapter
from .memory import SLMCMemoryError
from .model import SLMCModel, find_tuner
from .report import ConsolidationReport

logger = logging.getLogger(__name__)


class ConsolidationCallback(TrainerCallback):
    """Consolidates an SLMC adapter at the end of a training run of any transformers or TRL trainer.

    On a fresh start the task begins with the present weights. On a resumed run the weights are those of the middle of
    the task, so memory and the task's start are read from the checkpoint, verified, and never taken from the model.

    Args:
        task_name (`str`): the task.
        phase (`str`, *optional*): a part of it that is consolidated on its own, for instance "sft" or "fpo".

    Attributes:
        report (`ConsolidationReport`, *optional*): of the last consolidation.

    Example:

        ```python
        callback = ConsolidationCallback("helpful", phase="fpo")
        trainer = DPOTrainer(model, args=args, train_dataset=rows, peft_config=SLMCConfig(), callbacks=[callback])
        trainer.train()
        print(callback.report.summary())
        ```
    """

    def __init__(self, task_name: str, phase: str | None = None) -> None:
        self.task_name = task_name
        self.phase = phase
        self.report: ConsolidationReport | None = None
        self._loaded_from: Path | None = None
        self._unwrap: Callable[[], None] | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        find_tuner(model)  # a model without SLMC should fail here, not after hours of training
        self._watch_load(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = find_tuner(kwargs["model"])
        if state.global_step > 0:
            self._resume(tuner)
        else:
            tuner.begin_task(self.task_name, self.phase)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()
        self._loaded_from = None
        self.report = find_tuner(kwargs["model"]).consolidate()
        totals = {f"slmc/{name}": value for name, value in self.report.totals.items()}
        state.log_history.append({**totals, "epoch": state.epoch, "step": state.global_step})
        if state.is_world_process_zero:
            logger.info(self.report.summary())

    def detach(self) -> None:
        """Take back what the callback has put into the model; for whoever removes it from a trainer unused."""
        if self._unwrap is not None:
            self._unwrap()

    def _watch_load(self, model: nn.Module) -> None:
        """Remember from where the Trainer loads the owning adapter.

        `on_train_begin` fires after a checkpoint's weights are in and is not told its path; `Trainer` loads adapters by
        calling `model.load_adapter(path, adapter_name)`, so an instance attribute in front of that method hears it.
        """
        original = getattr(model, "load_adapter", None)
        if original is None or "load_adapter" in model.__dict__:
            return

        def load_adapter(model_id: str | os.PathLike[str], adapter_name: str, *args: Any, **kwargs: Any) -> Any:
            result = original(model_id, adapter_name, *args, **kwargs)
            if adapter_name == find_tuner(model).memory_adapter:
                self._loaded_from = Path(model_id)
            return result

        def unwrap() -> None:
            model.__dict__.pop("load_adapter", None)
            self._unwrap = None

        model.__dict__["load_adapter"] = load_adapter
        self._unwrap = unwrap

    def _resume(self, tuner: SLMCModel) -> None:
        folder = self._loaded_from
        if folder is None:
            raise SLMCMemoryError(
                f"Training of {self.task_name!r} resumes from a checkpoint, but the Trainer did not load the SLMC "
                "adapter with load_adapter (DeepSpeed and FSDP load weights on their own), so the task's start is "
                "unknown. The same happens when one Trainer trains twice. Make a new Trainer with the callback and "
                "resume with it, on a single device or with DDP."
            )
        memory, _ = read_adapter(folder)
        if memory.running is None or (memory.running.task, memory.running.phase) != (self.task_name, self.phase):
            found = "no running task" if memory.running is None else f"task {memory.running.task!r}"
            raise SLMCMemoryError(
                f"The checkpoint {folder} holds {found} in its slmc/ memory, and you resume {self.task_name!r} (phase "
                f"{self.phase!r}). Resume with the task name and phase the checkpoint was written under."
            )
        tuner.attach_memory(memory, str(folder))
