"""What methods share that begin each task with the adapter as it was made."""

from pathlib import Path
from typing import Any

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

    def _margins(self, run: Run, rows: list[dict[str, Any]], key: str) -> list[float]:
        """Margins of preference rows under the adapter as it stands, over the untouched base, in nats.

        Args:
            rows (`list[dict]`), key (`str`): name of the rows in the run.
        """
        from hf_lifealign.lifelong.evaluation import pair_margins
        from hf_lifealign.lifelong.scoring import score_pairs

        pairs, reference = run.reference_pairs(rows, key)
        pad = int(run.processing_class.pad_token_id or 0)
        return pair_margins(score_pairs(run.model, pairs, pad, pair_packing=run.pair_packing), reference)
