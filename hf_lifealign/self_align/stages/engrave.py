"""Stage 3: the answers are engraved into the base, which gives them from now on without principles, examples and notes
(SELF-ALIGN, arXiv 2305.03047, section 3.3): supervised fine-tuning by TRL, with LoRA or any other adapter of PEFT."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign.self_align.generators.local import TransformersGenerator
from hf_lifealign.self_align.generators.protocol import Sampling, generated
from hf_lifealign.self_align.stages.outcome import Outcome
from hf_lifealign.self_align.stages.training import TrainingStage

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hf_lifealign.self_align.settings import EngraveSettings

# As published, but for the batch and the warm-up, which were made for 258,878 rows.
ADAPTER: dict[str, Any] = {
    "type": "lora", "r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "learning_rate": 4e-4, "num_train_epochs": 1, "per_device_train_batch_size": 16, "warmup_steps": 10,
    "logging_steps": 5,
}  # fmt: skip


class EngraveStage(TrainingStage):
    """Trains the base on answers, and measures how much likelier it finds held-out ones.

    Args:
        model (`str`): the base, as it is loaded by transformers.
        settings ([`EngraveSettings`]): how.
        work (`Path`): folder for checkpoints; what lies there is gone on from.
        seed (`int`): of the adapter and of the order of rows.
        tokenizer (*optional*): the base's own by default.
        callbacks (`list`, *optional*): of the trainer.
    """

    def __init__(
        self,
        model: str,
        settings: "EngraveSettings",
        work: Path,
        seed: int = 0,
        tokenizer: Any = None,
        callbacks: Sequence[Any] = (),
    ):
        super().__init__(model, work, seed, tokenizer, callbacks)
        self.settings = settings

    def run(self, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> Outcome:
        """Trains; `told` holds the loss on the held-out rows before and after, in nats a token, and how answers to
        their prompts end. The adapter is [`EngraveStage.save`]d afterwards.

        Args:
            train, test (`list[dict]`): `prompt` and `completion`, of [`training_rows`].
        """
        from hf_lifealign.lifelong.phases import phase_logs

        self.trainer = trainer = self._build(train, test)
        if not len(trainer.train_dataset) or not len(trainer.eval_dataset):
            raise ValueError(
                f"You set max_length={trainer.args.max_length}, which the prompts of all rows to train on, or of all "
                "that are held out, fill by themselves. Set a higher one."
            )
        before = self.train(lambda: self._measured(test))
        told: dict[str, Any] = {
            "train_rows": len(trainer.train_dataset),
            "held_out_rows": len(trainer.eval_dataset),
            "cut_away": len(train) + len(test) - len(trainer.train_dataset) - len(trainer.eval_dataset),
            "steps": trainer.state.global_step,
            "before": before,
            "after": self._measured(test),
            "logs": [entry for entry in phase_logs(trainer) if "loss" in entry],
        }
        if told["cut_away"]:
            logger.warning(
                f"Of {len(train) + len(test)} rows {told['cut_away']} have a prompt that fills max_length="
                f"{trainer.args.max_length} tokens, and nothing was learnt from them. Set a higher max_length."
            )
        return Outcome(told=told)

    def _build(self, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> Any:
        from transformers import set_seed
        from trl import SFTConfig, SFTTrainer

        from hf_lifealign.lifelong.phases import CheckpointSeal
        from hf_lifealign.lifelong.recipe import build_adapter
        from hf_lifealign.models import resolve_model

        args = self.arguments(
            SFTConfig, TRAINING, self.settings.training, "engrave.training", self.settings.checkpoint_steps
        )
        adapter = build_adapter({"type": "lora"} | self.settings.adapter if self.settings.adapter else ADAPTER)
        set_seed(self.seed)  # the adapter is drawn
        return SFTTrainer(
            resolve_model(self.model), args=args, train_dataset=Dataset.from_list(list(train)),
            eval_dataset=Dataset.from_list(list(test)), peft_config=adapter, processing_class=self.tokenizer,
            callbacks=[CheckpointSeal(), *self.callbacks],
        )  # fmt: skip

    def _measured(self, test: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The loss on held-out answers, and what the model itself answers to their prompts."""
        told: dict[str, Any] = {"loss": self.trainer.evaluate()["eval_loss"]}
        prompts = [row["prompt"] for row in test][: self.settings.answers]
        if not prompts:
            return told
        chat = not isinstance(prompts[0], str)
        texts = [prompt[0]["content"] if chat else prompt for prompt in prompts]
        generator = TransformersGenerator(self.trainer.model, self.trainer.processing_class, batch_size=8, chat=chat)
        sampling = Sampling(temperature=0.0, max_new_tokens=128)
        made = generated(generator, texts, sampling, 0)
        return told | {
            "ended": sum(each.finished for each in made) / len(made),
            "words": sum(len(each.text.split()) for each in made) / len(made),
            "answers": [{"prompt": text} | asdict(each) for text, each in zip(texts, made, strict=True)],
        }
