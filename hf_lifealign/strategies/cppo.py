"""CPPO on given preferences: which pairs are learnt, and which hold the policy (Zhang et al., ICLR 2024)."""

from typing import TYPE_CHECKING, Any

import torch

from hf_lifealign.strategies.base import PREFERENCE, Phase, Run, Strategy

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_lifealign.packing import EncodedPair


def sample_weights(values: torch.Tensor, low: float = 0.5, high: float = 1.5) -> torch.Tensor:
    """Weights around 1 that grow with a value's distance from the mean, in standard deviations, within bounds.

    CPPO's heuristic weights do the same by classes: a sample is high or low where it lies a standard deviation or more
    from the mean.

    Args:
        values (`torch.Tensor` of shape `(pairs,)`), low, high (`float`): bounds, around 1.
    """
    spread = values.std(correction=0)
    if spread == 0:
        return torch.ones_like(values)
    return (1 + (high - low) / 2 * (values - values.mean()) / spread).clamp(low, high)


class CPPOStrategy(Strategy):
    r"""Continual PPO in its form for given preferences, without a rollout: the loss of a task after the first is
    ``mean(alpha_i loss_i) + weight * mean(beta_i (r_i - r_i')^2)``, with ``r_i`` the reward margin of a pair and
    ``r_i'`` that under the policy before the task, both over the trainer's reference (over `reference="previous"` the
    latter is 0).

    As in the paper's objective (eq. 3), what the policy would say counts more for learning, and what is rewarded more
    for retention: alpha grows with the mean log-probability of the chosen answer's tokens, beta with the reward margin,
    both under the policy before the task. The policy's margin stands for the log-probability of a rollout, since both
    answers of a pair are given; the reward that beta looks at is always that over the untouched base. Needs
    [`FPOTrainer`] (`focal_gamma=0` is DPO).

    Args:
        weight (`float`, *optional*, defaults to `0.1`): of the retention, above 0.
    """

    name = "cppo"

    def __init__(self, weight: float = 0.1):
        if not weight > 0:
            raise ValueError(f"You set weight={weight} of the strategy 'cppo'. It has to be above 0.")
        self.weight = float(weight)
        self._trainer: Any = None
        self._told: dict[str, tuple[float, float, float]] = {}

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        self._trainer, self._told = None, {}
        if phase.name != PREFERENCE:
            return
        if not hasattr(trainer, "reward_margins"):
            raise ValueError(
                f"You set the strategy 'cppo' with {type(trainer).__name__}, which does not tell the margins of its "
                "batches. Use FPOTrainer (trainer: fpo); with focal_gamma=0 it is DPO."
            )
        self._trainer = trainer
        if run.lived.index(phase.task):
            self._told = self._measured(run, phase.task, trainer)

    def _measured(self, run: Run, task: str, trainer: Any) -> dict[str, tuple[float, float, float]]:
        """Of each of the task's pairs: alpha, beta, and the reward margin under the policy as it stands over the
        reference of the trainer."""
        from hf_lifealign.lifelong.scoring import score_pairs

        pairs, reference = run.reference_pairs(list(run.training_rows(task)), f"{task}-cppo")
        pad = int(run.processing_class.pad_token_id or 0)
        scored = score_pairs(run.model, pairs, pad, pair_packing=run.pair_packing)
        whole = [i for i, pair in enumerate(pairs) if not pair.is_empty]
        lengths = torch.tensor([len(pairs[i].chosen) - max(pairs[i].chosen_start, 1) for i in whole])
        chosen, rejected = torch.tensor([scored[i] for i in whole], dtype=torch.float64).T
        base_chosen, base_rejected = torch.tensor([reference[i] for i in whole], dtype=torch.float64).T
        margins = run.training_args.beta * (chosen - rejected - base_chosen + base_rejected)
        # over itself the policy has none
        before = margins if trainer.reference == "base" else torch.zeros_like(margins)
        told = zip(sample_weights(chosen / lengths), sample_weights(margins), before, strict=True)
        return {
            key_of(pairs[i]): (float(alpha), float(beta), float(margin))
            for i, (alpha, beta, margin) in zip(whole, told, strict=True)
        }

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        if not self._told:
            return None
        from hf_lifealign.fpo.loss import focal_preference_loss
        from hf_lifealign.packing.forward import read_pairs

        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        pairs = read_pairs(inputs["input_ids"], inputs["attention_mask"], labels)
        margins = self._trainer.reward_margins
        # what other strategies mix in is learnt as it is, and holds nothing
        told = [self._told.get(key_of(pair), (1.0, 0.0, 0.0)) for pair in pairs or ()]
        if len(told) != len(margins):
            raise ValueError(
                "The strategy 'cppo' cannot tell which pairs a batch holds: it is not padded as DPOTrainer pads pairs."
            )
        alpha, beta, before = margins.new_tensor(told).T
        losses = self._trainer.focal_loss_weight * focal_preference_loss(margins, self._trainer.focal_gamma)
        return ((alpha - 1) * losses + self.weight * beta * (margins - before) ** 2).mean()

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        self._trainer, self._told = None, {}


def key_of(pair: "EncodedPair") -> str:
    """What tells a pair from others."""
    return f"{pair.chosen}|{pair.rejected}|{pair.chosen_start}"
