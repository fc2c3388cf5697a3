"""What strategies may use of a run (see `hf_lifealign.strategies.Run`)."""

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer

from hf_lifealign.fpo import FPOTrainer
from hf_lifealign.lifelong.config import LifelongConfig
from hf_lifealign.lifelong.examiner import Examiner
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.lifelong.phases import REFERENCE_COLUMNS
from hf_lifealign.lifelong.scoring import EncodedPair
from hf_lifealign.lifelong.state import RunState
from hf_lifealign.strategies import PREFERENCE, WARM_START, Phase, Strategy
from hf_lifealign.stream import TaskStream

logger = logging.getLogger(__name__)


class RunServices:
    """The half of [`LifelongTrainer`] that its strategies see."""

    args: LifelongConfig
    stream: TaskStream
    trainer_class: type[Trainer]
    training_args: Any
    warm_start_args: Any
    distributed: PartialState
    directory: RunDirectory
    state: RunState
    examiner: Examiner
    _processing_class: PreTrainedTokenizerBase

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        return self._processing_class

    @property
    def seed(self) -> int:
        return self.args.seed

    @property
    def is_main_process(self) -> bool:
        return self.distributed.is_main_process

    def label(self, task: str) -> str:
        """`NN-<task>`: position in the life and name of a task."""
        return self.directory.label(task)

    def is_done(self, task: str) -> bool:
        """Whether a task of the stream was finished before."""
        return bool(self.state.task(self.stream.names.index(task))["status"] == "done")

    def note(self, text: str) -> None:
        """Tells, and keeps for report and card, in what this run differs from one that never moved."""
        if self.state.note(text) and self.is_main_process:
            logger.warning(text)

    def strategy_file(self, strategy: Strategy, name: str) -> Path:
        """Path for a file of the strategy inside the run's folder."""
        return self.directory.root / strategy.name / name

    def training_rows(self, task: str) -> Dataset:
        """The task's own training rows, with reference log-probabilities where the run keeps them."""
        return self.rows_with_reference(self.stream[task].load().train, f"{task}-train")

    def rows_with_reference(self, rows: Dataset, key: str) -> Dataset:
        """Rows with columns of reference log-probabilities, if the preference phase measures against the base."""
        return self.examiner.with_reference(rows, key) if self.keeps_reference else rows

    @property
    def eval_batch_size(self) -> int:
        """Rows per forward pass where nothing is trained."""
        return self.args.eval_batch_size

    def reference_pairs(
        self, rows: list[dict[str, Any]], key: str
    ) -> tuple[list[EncodedPair], list[tuple[float, float]]]:
        """Preference rows as the preference phase cuts them, and their log-probabilities under the untouched base."""
        bare = [{name: value for name, value in row.items() if name not in REFERENCE_COLUMNS} for row in rows]
        return self.examiner.reference_pairs(Dataset.from_list(bare), key)

    @property
    def pair_packing(self) -> str:
        """Whether pairs may be packed, in training and in evaluation: `"auto"` or `"off"`."""
        return str(getattr(self.training_args, "pair_packing", "auto"))

    @property
    def keeps_reference(self) -> bool:
        """Whether the training reference is the untouched base, the same for all tasks."""
        return issubclass(self.trainer_class, FPOTrainer) and getattr(self.training_args, "reference", "") == "base"

    def phases(self, index: int) -> list[Phase]:
        """Phases of a task, in order."""
        names = [WARM_START, PREFERENCE] if self.warm_start_args is not None else [PREFERENCE]
        return [Phase(self.stream.names[index], index, name) for name in names]

    def agreed(self, fact: bool) -> bool:
        """What the main process found. Processes that look at the disk by themselves may see different states."""
        return bool(broadcast_object_list([fact])[0])
