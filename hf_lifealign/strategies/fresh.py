"""What methods share that begin each task with the adapter as it was made."""

from pathlib import Path

from hf_lifealign.strategies.base import Phase, Run, Strategy
from hf_lifealign.strategies.tensors import put_back, read_tensors, trainable_parameters, write_tensors


class FreshStart(Strategy):
    """Keeps the adapter as it was made in `initial.safetensors`, and puts it back in front of each task."""

    replaces_adapter = True

    def _initial(self, run: Run) -> Path:
        return run.strategy_file(self, "initial.safetensors")

    def _update(self, run: Run, task: str) -> Path:
        """What a task has taught, from there on."""
        return run.strategy_file(self, f"{run.label(task)}.safetensors")

    def _keep_initial(self, run: Run) -> None:
        """Before the first task; an adapter that is kept already stays. Every process has to call it."""
        file = self._initial(run)
        if not run.agreed(file.is_file()) and run.is_main_process:
            write_tensors(file, trainable_parameters(run.model))

    def prepare_phase(self, run: Run, phase: Phase) -> None:
        if run.phases(phase.index)[0] == phase:
            put_back(run.model, read_tensors(self._initial(run)))
