"""A memory of earlier tasks' pairs that a method looks at, instead of training on them as replay does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from hf_lifealign._files import read_json
from hf_lifealign.strategies.base import PREFERENCE, Phase, Run
from hf_lifealign.strategies.replay import ReplayStrategy
from hf_lifealign.strategies.sampling import seeded_generator

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_lifealign.lifelong.scoring import EncodedPair


@dataclass(frozen=True)
class MemoryPair:
    """A kept pair of an earlier task.

    Args:
        pair ([`EncodedPair`]): as the preference phase cuts it.
        reference (`float`): log-probability of chosen less that of rejected under the untouched base, in nats.
        told (`tuple[float, float]`, *optional*): log-probabilities of chosen and rejected when its task was finished.
    """

    pair: "EncodedPair"
    reference: float
    told: tuple[float, float] | None = None


class MemoryStrategy(ReplayStrategy):
    """Base of methods that keep a sample of each finished task, as [`ReplayStrategy`] does, and look at it while later
    tasks are trained; nothing is mixed into their rows.

    Args:
        fraction (`float`, *optional*, defaults to `0.2`): see [`ReplayStrategy`].
        capacity (`int`, *optional*): see [`ReplayStrategy`].
        batch_size (`int`, *optional*, defaults to `4`): pairs of the memory that are looked at together.
    """

    name = "memory"

    def __init__(self, fraction: float = 0.2, capacity: int | None = None, batch_size: int = 4):
        super().__init__(fraction, capacity, phases=())
        self.refuse_below(1, batch_size=batch_size)
        self.batch_size = batch_size
        self._run: Any = None
        self._trainer: Any = None
        self._memory: dict[str, list[MemoryPair]] = {}
        self._step = self._count = 0

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        self._run, self._memory = run, self._read(run, phase)
        return rows

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        self._trainer, self._step, self._count = trainer, 0, 0

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"memory_pairs": sum(map(len, self._memory.values()))} if phase.name == PREFERENCE else {}

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        self._trainer = None

    def _read(self, run: Run, phase: Phase) -> dict[str, list[MemoryPair]]:
        """What is kept of each task before a phase; nothing in front of a warm start."""
        if phase.name != PREFERENCE:
            return {}
        kept = self._kept_before(run, phase.task)
        memory = {task: self._pairs(run, task, rows) for task, rows in kept.items() if rows}
        return {task: pairs for task, pairs in memory.items() if pairs}

    def _pairs(self, run: Run, task: str, rows: list[dict[str, Any]]) -> list[MemoryPair]:
        pairs, reference = run.reference_pairs(rows, f"{task}-{self.name}")
        told = read_json(self._file(run, task)).get("log_probs") or [None] * len(rows)
        kept = [
            MemoryPair(pair, chosen - rejected, None if then is None else (float(then[0]), float(then[1])))
            for pair, (chosen, rejected), then in zip(pairs, reference, told, strict=False)
        ]
        return [each for each in kept if not each.pair.is_empty]

    def _draw(self, pairs: list[MemoryPair], *words: str) -> list[MemoryPair]:
        """`batch_size` of some pairs, by the step of the training and the batch in it: the same after a restart from a
        checkpoint."""
        step = 0 if self._trainer is None else self._trainer.state.global_step
        self._step, self._count = step, self._count if step == self._step else 0
        generator = seeded_generator(self._run.seed, self.name, *words, str(step), str(self._count))
        count = min(self.batch_size, len(pairs))
        return [pairs[i] for i in sorted(generator.choice(len(pairs), count, replace=False))]

    def _log_probs(self, model: Any, drawn: list[MemoryPair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of chosen and rejected with their graph, each of shape `(pairs,)`."""
        from hf_lifealign.lifelong.scoring import pair_log_probs

        pad = int(self._run.processing_class.pad_token_id or 0)
        return pair_log_probs(model, [each.pair for each in drawn], pad, self._run.pair_packing)

    def _losses(self, model: Any, drawn: list[MemoryPair]) -> torch.Tensor:
        """The run's preference loss of each pair over the base, of shape `(pairs,)`."""
        from hf_lifealign.fpo.loss import focal_preference_loss

        chosen, rejected = self._log_probs(model, drawn)
        margins = chosen - rejected - chosen.new_tensor([each.reference for each in drawn])
        args = self._run.training_args
        return focal_preference_loss(args.beta * margins, float(getattr(args, "focal_gamma", 0.0)))
