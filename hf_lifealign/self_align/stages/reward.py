"""A reward model learns to follow whatever principles it is shown, by TRL's RewardTrainer (SALMON, arXiv 2310.05910,
section 3.2)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.reward_model import RewardScorer
from hf_lifealign.self_align.reward_rows import reward_rows
from hf_lifealign.self_align.stages.outcome import Outcome
from hf_lifealign.self_align.stages.training import TrainingStage

if TYPE_CHECKING:
    from hf_lifealign.self_align.settings import RLSettings

logger = logging.getLogger(__name__)

ADAPTER: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4, "num_train_epochs": 1, "per_device_train_batch_size": 16, "warmup_steps": 10,
    "logging_steps": 5, "max_length": 1024,
}  # fmt: skip


def refuse_inconsistent(told: Mapping[str, Any], least: float) -> None:
    """Refuses judgements that go by the order in which the answers are shown.

    Args:
        told (`dict`): of the stage `judgements`.
        least (`float`): share of the judgements that both orders have to agree on.

    Raises:
        ValueError: if fewer do.
    """
    share = told["order_consistency"]
    if share >= least:
        return
    worst = sorted(told["of_each_principle"].items(), key=lambda item: item[1])[:3]
    raise ValueError(
        f"You set least_order_consistency={least}, and of the judgements of {told['pairs']} pairs only {share:.3f} "
        f"agree in both orders of the answers; by chance it is 0.5. The answer that is shown first was preferred in "
        f"{told['first_preferred']:.3f} of them; the least consistent principles are "
        f"{', '.join(f'{name} ({value:.3f})' for name, value in worst)}. A reward model would learn noise: none "
        "was trained. Set a larger model or a clearer template 'judge', leave those principles out, or set a lower "
        "refine.least_order_consistency if you know why."
    )


class RewardStage(TrainingStage):
    """Trains a reward model on labelled pairs.

    Args:
        model (`str`): the base, on which the reward model is trained.
        settings ([`RLSettings`]): how.
        work (`Path`): folder for checkpoints; what lies there is gone on from.
        prompts ([`Prompts`]): render the principles.
        messages (`bool`): whether rows are messages, or plain texts.
        seed (`int`): of head, adapter and order of rows.
        tokenizer (*optional*): the base's own by default.
        callbacks (`list`, *optional*): of the trainer.
    """

    def __init__(
        self,
        model: str,
        settings: "RLSettings",
        work: Path,
        prompts: Prompts,
        messages: bool,
        seed: int = 0,
        tokenizer: Any = None,
        callbacks: Sequence[Any] = (),
    ):
        super().__init__(model, work, seed, tokenizer, callbacks)
        self.settings, self.prompts, self.messages = settings, prompts, messages

    def training_arguments(self) -> Any:
        """RewardConfig; also made before anything runs, so that wrong settings are told then.

        Raises:
            ValueError: for settings that there are not.
        """
        from trl import RewardConfig

        settings = self.settings
        return self.arguments(
            RewardConfig, TRAINING, settings.reward_training, "refine.reward_training", settings.checkpoint_steps
        )

    def run(self, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> Outcome:
        """Trains; `told` holds the accuracy on held-out pairs before and after, of all, and of those whose label comes
        from a negated principle and from one that is not. The model is saved by [`TrainingStage.save`] afterwards.

        Args:
            train, test (`list[dict]`): of [`labelled_rows`].

        Raises:
            ValueError: if all pairs to train on, or all that are held out, are longer than `max_length`.
        """
        from hf_lifealign.lifelong.phases import phase_logs

        self.trainer = trainer = self._build(train, test)
        kept, held_out = len(trainer.train_dataset), len(trainer.eval_dataset)
        if not kept or not held_out:
            raise ValueError(
                f"You set max_length={trainer.args.max_length} of refine.reward_training, and all pairs to train on, "
                "or all that are held out, are longer. Set a higher one."
            )
        before = self.train(self.accuracies)
        told: dict[str, Any] = {
            "train_rows": kept,
            "held_out_rows": held_out,
            "cut_away": len(train) + len(test) - kept - held_out,
            "steps": trainer.state.global_step,
            "before": before,
            "after": self.accuracies(),
            "logs": [entry for entry in phase_logs(trainer) if "loss" in entry],
        }
        if told["cut_away"]:
            logger.warning(
                f"Of {len(train) + len(test)} pairs {told['cut_away']} are longer than max_length="
                f"{trainer.args.max_length} tokens, and nothing was learnt from them. Set a higher max_length of "
                "refine.reward_training."
            )
        return Outcome(told=told)

    def accuracies(self) -> dict[str, Any]:
        """On held-out pairs: the share in which the chosen answer has the higher score, of all and by whether the
        principle that decides is negated (`None` where there is no such pair), and the mean margin."""
        rows = self.trainer.eval_dataset
        scorer = RewardScorer(self.trainer.model, self.trainer.processing_class)
        scores = scorer.of_ids([*rows["chosen_ids"], *rows["rejected_ids"]])
        margins = [one - other for one, other in zip(scores[: len(rows)], scores[len(rows) :], strict=True)]
        told: dict[str, Any] = {"margin": sum(margins) / len(margins)}
        for name, kinds in (("accuracy", (True, False)), ("negated", (True,)), ("not_negated", (False,))):
            right = [margin > 0 for margin, negated in zip(margins, rows["negated"], strict=True) if negated in kinds]
            told[name] = sum(right) / len(right) if right else None
            told[f"{name}_rows"] = len(right)
        return told

    def _build(self, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> Any:
        from transformers import set_seed
        from trl import RewardTrainer

        from hf_lifealign.lifelong.phases import CheckpointSeal
        from hf_lifealign.lifelong.recipe import build_adapter
        from hf_lifealign.models import resolve_model

        given = self.settings.reward_adapter
        adapter = (
            None if given is None else build_adapter({"type": "lora", "task_type": "SEQ_CLS"} | (given or ADAPTER))
        )
        set_seed(self.seed)  # head and adapter are drawn
        return RewardTrainer(
            resolve_model(self.model), args=self.training_arguments(), train_dataset=self._rows(train),
            eval_dataset=self._rows(test), peft_config=adapter, processing_class=self.tokenizer,
            callbacks=[CheckpointSeal(), *self.callbacks],
        )  # fmt: skip

    def _rows(self, rows: Sequence[dict[str, Any]]) -> Dataset:
        """Rows for the trainer, which leaves alone what it does not know."""
        made = reward_rows(rows, self.prompts, self.messages)
        return Dataset.from_list([new | {"negated": row["negated"]} for new, row in zip(made, rows, strict=True)])
