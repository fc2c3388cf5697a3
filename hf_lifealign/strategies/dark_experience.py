"""Dark experience: kept pairs stay as probable as they were when their task was finished (after arXiv 2004.07211)."""

from typing import Any

import torch

from hf_lifealign._files import write_json
from hf_lifealign.strategies.base import Run
from hf_lifealign.strategies.memory import MemoryStrategy


def distillation_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, told_chosen: torch.Tensor, told_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    r"""Mean square of what the log-probabilities of pairs have moved, in units of the reward:
    ``mean(beta^2 ((c - c*)^2 + (r - r*)^2)) / 2``.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(pairs,)`): log-probabilities now, in nats.
        told_chosen, told_rejected (`torch.Tensor` of shape `(pairs,)`): when their task was finished.
        beta (`float`): of the preference loss.

    Returns:
        scalar `torch.Tensor`.
    """
    moved = (chosen - told_chosen) ** 2 + (rejected - told_rejected) ** 2
    return beta**2 * moved.mean() / 2


class DarkExperienceStrategy(MemoryStrategy):
    """Distils the log-probabilities of kept pairs toward those at the end of their task (DER, Buzzega et al. 2020, with
    sequence log-probabilities in the place of logits); may stand beside `"replay"`, which is DER++ then.

    Args:
        fraction, capacity: what is kept of each task, see [`ReplayStrategy`].
        batch_size (`int`, *optional*, defaults to `4`): kept pairs that are looked at with each batch.
        weight (`float`, *optional*, defaults to `1.0`): of the loss, above 0.
    """

    name = "dark_experience"
    reads_adapter = True

    def __init__(self, fraction: float = 0.2, capacity: int | None = None, batch_size: int = 4, weight: float = 1.0):
        super().__init__(fraction, capacity, batch_size)
        if not weight > 0:
            raise ValueError(f"You set weight={weight} of the strategy {self.name!r}. It has to be above 0.")
        self.weight = float(weight)

    def after_task(self, run: Run, task: str) -> None:
        from hf_lifealign.lifelong.scoring import score_pairs

        content = self._sample(run, task)
        pairs, _ = run.reference_pairs(content["rows"], f"{task}-{self.name}")
        pad = int(run.processing_class.pad_token_id or 0)
        scored = score_pairs(run.model, pairs, pad, pair_packing=run.pair_packing)
        content["log_probs"] = [list(each) for each in scored]
        if run.is_main_process:
            write_json(self._file(run, task), content)

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        told = [pair for pairs in self._memory.values() for pair in pairs if pair.told is not None]
        if self._trainer is None or not told:
            return None
        drawn = self._draw(told, "all")
        self._count += 1
        chosen, rejected = self._log_probs(self._run.model, drawn)
        then = chosen.new_tensor([each.told for each in drawn])
        return self.weight * distillation_loss(chosen, rejected, then[:, 0], then[:, 1], self._run.training_args.beta)
