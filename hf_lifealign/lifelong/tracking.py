"""The whole life as one run of TensorBoard, trackio or wandb, instead of one run per phase."""

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

from accelerate.utils import patch_environment
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks


class RunTracker:
    """Feeds integration callbacks of transformers with the logs of all phases on one step axis.

    Args:
        report_to (`list[str]`): integrations by name.
        folder (`Path`): folder of the run; TensorBoard writes to `tracking/` in it.
        args ([`~transformers.TrainingArguments`], *optional*): settings that the integrations show.
        is_main_process (`bool`): whether this process reports.
    """

    def __init__(self, report_to: list[str], folder: Path, args: TrainingArguments, is_main_process: bool) -> None:
        self.args = copy.copy(args)
        self.args.run_name = folder.name
        self.args.output_dir = str(folder)
        self.args.report_to = list(report_to)
        self.state = TrainerState(is_world_process_zero=is_main_process, is_local_process_zero=is_main_process)
        self.control = TrainerControl()
        self.offset = 0
        self.callbacks: list[TrainerCallback] = []
        if not report_to or not is_main_process:
            return
        # Every start of the run goes on with what the first one began.
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        own = {
            "TENSORBOARD_LOGGING_DIR": str(folder / "tracking"),
            "WANDB_RUN_ID": name,
            "WANDB_RESUME": "allow",
        }
        with patch_environment(**{key: value for key, value in own.items() if key not in os.environ}):
            self.callbacks = [factory() for factory in get_reporting_integration_callbacks(list(report_to))]
            for callback in self.callbacks:
                callback.on_train_begin(self.args, self.state, self.control)

    def log(self, values: dict[str, float], step: int = 0) -> None:
        """Reports values at a step of the present phase."""
        self.state.global_step = self.offset + step
        for callback in self.callbacks:
            callback.on_log(self.args, self.state, self.control, logs=dict(values))

    def close(self) -> None:
        """Ends the run."""
        for callback in self.callbacks:
            callback.on_train_end(self.args, self.state, self.control)


class PhaseLogs(TrainerCallback):
    """Passes the logs of one phase on to the run's tracker, under `<phase>/`."""

    def __init__(self, tracker: RunTracker, phase: str) -> None:
        self.tracker = tracker
        self.phase = phase

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and state.is_world_process_zero:
            numbers = {f"{self.phase}/{k}": v for k, v in logs.items() if isinstance(v, (int, float))}
            self.tracker.log(numbers, state.global_step)
