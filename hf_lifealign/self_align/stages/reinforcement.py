"""The engraved model is reinforced by the reward model, under principles that are drawn for each prompt, by TRL's
RLOOTrainer (SALMON, arXiv 2310.05910, section 3.3; RLOO, arXiv 2402.14740)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign.self_align.generators.local import TransformersGenerator
from hf_lifealign.self_align.generators.protocol import Sampling, generated
from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.reward_model import PrincipleReward
from hf_lifealign.self_align.reward_rows import policy_rows
from hf_lifealign.self_align.stages.outcome import Outcome
from hf_lifealign.self_align.stages.training import TrainingStage
from hf_lifealign.strategies.sampling import seeded_generator

if TYPE_CHECKING:
    from hf_lifealign.self_align.settings import RLSettings

TRAINING: dict[str, Any] = {
    "learning_rate": 2e-5, "num_train_epochs": 1, "per_device_train_batch_size": 8, "num_generations": 4,
    "max_completion_length": 256, "temperature": 1.0, "beta": 0.05, "logging_steps": 5, "disable_dropout": True,
}  # fmt: skip
# What is kept of RLOOTrainer's logs, and under which name. The others tell times, or nothing further.
_LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "clipped",
    "entropy": "entropy",
}
# TRL's name for its frozen copy of the adapter.
REFERENCE = "ref"


class ReinforcementStage(TrainingStage):
    """Trains the engraved model by its own answers.

    The adapter of the engraved model goes on being trained, on the base it was made for. RLOOTrainer keeps a frozen
    copy of it beside, which is the reference of the KL: the policy is held to the engraved model, not to the base.

    Args:
        model (`str`): the base.
        settings ([`RLSettings`]): how.
        work (`Path`): folder for checkpoints; what lies there is gone on from.
        engraved (`Path`): folder of the engraved adapter.
        reward ([`PrincipleReward`], *optional*): the reward function; only [`ReinforcementStage.training_arguments`]
            can do without.
        prompts ([`Prompts`]): of the constitution.
        messages (`bool`): whether the model is asked by messages, or by plain texts.
        seed (`int`): of principles, order and answers.
        tokenizer (*optional*): the base's own by default.
        callbacks (`list`, *optional*): of the trainer.
    """

    def __init__(
        self,
        model: str,
        settings: "RLSettings",
        work: Path,
        engraved: Path,
        reward: PrincipleReward | None,
        prompts: Prompts,
        messages: bool,
        seed: int = 0,
        tokenizer: Any = None,
        callbacks: Sequence[Any] = (),
    ):
        super().__init__(model, work, seed, tokenizer, callbacks)
        self.settings, self.engraved, self.reward = settings, engraved, reward
        self.prompts, self.messages = prompts, messages

    def training_arguments(self) -> Any:
        """RLOOConfig; also made before anything runs, so that wrong settings are told then.

        Raises:
            ValueError: for settings that there are not, or that TRL refuses.
        """
        from trl import RLOOConfig

        settings = self.settings
        args = self.arguments(RLOOConfig, TRAINING, settings.training, "refine.training", settings.checkpoint_steps)
        # the reward needs the principles, and passes are laid out by `run`
        args.remove_unused_columns, args.shuffle_dataset = False, False
        # A checkpoint holds neither answers that are still to be learnt from, nor measures that wait for the next log.
        together = math.lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
        logged = int(args.logging_steps) if args.logging_strategy == "steps" and args.logging_steps >= 1 else 1
        every = math.lcm(together // args.gradient_accumulation_steps, logged)
        args.save_steps = math.ceil(settings.checkpoint_steps / every) * every
        return args

    def run(self, requests: Sequence[str], held_out: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Outcome:
        """Trains; `told` holds the logs of the training, and before and after it what the model answers to held-out
        requests: mean length in tokens, share that comes to an end, mean reward, and the loss on held-out engraved
        answers in nats a token. The adapter is saved by [`TrainingStage.save`] afterwards.

        Args:
            requests (`list[str]`): that are trained on.
            held_out (`list[str]`): that are not.
            answers (`list[dict]`): `prompt` and `completion`, of [`training_rows`], that were never trained on.

        Raises:
            ValueError: if there are too few requests for a step, or a text does not fit into the context.
        """
        from hf_lifealign.lifelong.phases import phase_logs

        args = self.training_arguments()
        at_once = args.generation_batch_size // args.num_generations
        if len(requests) < at_once:
            raise ValueError(
                f"You set a batch of {args.generation_batch_size} answers of refine.training, {args.num_generations} "
                f"to a prompt. That takes {at_once} prompts at a time, and there are {len(requests)}. Set a smaller "
                "per_device_train_batch_size, more num_generations, or more prompts."
            )
        rows = self._passes(requests, args)
        shown = self._drawn(held_out[: self.settings.answers], "held out")
        self._refuse_too_long([*rows, *shown], args)
        self.trainer = trainer = self._build(rows, args)
        before = self.train(lambda: self._measured(shown, answers))
        logs = [entry for entry in phase_logs(trainer) if "kl" in entry]
        return Outcome(told={
            "train_rows": len(requests),
            "held_out_rows": len(held_out),
            "steps": trainer.state.global_step,
            "beta": args.beta,
            "most_tokens": args.max_completion_length,
            "before": before,
            "after": self._measured(shown, answers),
            "logs": [{"step": e["step"]} | {new: e.get(old) for old, new in _LOGGED.items()} for e in logs],
        })  # fmt: skip

    def _drawn(self, requests: Sequence[str], purpose: str) -> list[dict[str, Any]]:
        settings = self.settings
        return policy_rows(
            requests, self.prompts, self.messages, self.seed, purpose, settings.principle_rate,
            settings.most_principles,
        )  # fmt: skip

    def _passes(self, requests: Sequence[str], args: Any) -> list[dict[str, Any]]:
        """All passes over the requests as one, each in an order of its own and under other principles. TRL's sampler
        would begin with its first order again when a training goes on in a later pass."""
        passes = max(1, math.ceil(args.num_train_epochs))
        args.num_train_epochs = args.num_train_epochs / passes
        rows = []
        for number in range(passes):
            order = seeded_generator(self.seed, "order", str(number)).permutation(len(requests))
            rows += self._drawn([requests[i] for i in order], f"reinforcement {number}")
        return rows

    def _build(self, rows: Sequence[dict[str, Any]], args: Any) -> Any:
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
        from trl import RLOOTrainer
        from trl.trainer.utils import create_model_from_path

        from hf_lifealign.lifelong.phases import CheckpointSeal
        from hf_lifealign.models import resolve_model

        reward: Any = self.reward
        options, args.model_init_kwargs = dict(args.model_init_kwargs or {}), None
        base = create_model_from_path(resolve_model(self.model), **options)
        policy: Any = PeftModel.from_pretrained(base, str(self.engraved), is_trainable=True)
        trainer: Any = RLOOTrainer(
            policy, reward, args, Dataset.from_list(list(rows)), processing_class=self.tokenizer,
            callbacks=[CheckpointSeal(), *self.callbacks],
        )  # fmt: skip
        # TRL copies by names that hold ".default.", which those of some parameters (of embeddings, say) do not
        engraved = get_peft_model_state_dict(policy, adapter_name="default", save_embedding_layers=False)
        set_peft_model_state_dict(policy, engraved, adapter_name=REFERENCE)
        reward.scorer.model.to(trainer.accelerator.device)
        return trainer

    def _refuse_too_long(self, rows: Sequence[dict[str, Any]], args: Any) -> None:
        """What is asked, and what is judged, with an answer of the greatest length."""
        from transformers import AutoConfig

        from hf_lifealign.models import resolve_model

        assert self.reward is not None
        config: Any = AutoConfig.from_pretrained(resolve_model(self.model), trust_remote_code=False)
        room = getattr(config.get_text_config(), "max_position_embeddings", None)
        empty: Any = [{"role": "assistant", "content": ""}] if self.messages else ""
        # the request is part of what is judged, so that this is the longer one
        longest = max(len(self.reward.ids(empty, row["request"], row["principles"])) for row in rows)
        if room is not None and longest + args.max_completion_length > room:
            raise ValueError(
                f"A request with its principles has {longest} tokens, its answer up to {args.max_completion_length}, "
                f"and the model reads {room}. Set fewer most_principles, preset: compact, or fewer "
                "max_completion_length of refine.training."
            )

    def _measured(self, rows: Sequence[dict[str, Any]], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model answers, drawn as in the training and by the same seed before and after."""
        assert self.reward is not None
        trainer, args = self.trainer, self.trainer.args
        told: dict[str, Any] = {"loss": held_out_loss(trainer.model, trainer.processing_class, answers)}
        if not rows:
            return told
        generator = TransformersGenerator(trainer.model, trainer.processing_class, batch_size=8, chat=self.messages)
        asked = [row["request"] if self.messages else row["prompt"] for row in rows]
        sampling = Sampling(args.temperature, args.top_p, args.max_completion_length)
        made = generated(generator, asked, sampling, self.seed)
        completions: list[Any] = [
            [{"role": "assistant", "content": each.text}] if self.messages else each.text for each in made
        ]
        rewards = self.reward(completions, [row["request"] for row in rows], [row["principles"] for row in rows])
        return told | {
            "ended": sum(each.finished for each in made) / len(made),
            "tokens": sum(each.tokens for each in made) / len(made),
            "reward": sum(rewards) / len(rewards),
            "answers": [
                {"prompt": row["request"], "principles": row["principles"], "text": each.text, "reward": reward}
                for row, each, reward in zip(rows, made, rewards, strict=True)
            ],
        }


def held_out_loss(model: Any, tokenizer: Any, answers: Sequence[Mapping[str, Any]]) -> float:
    """Mean negative log-likelihood of answers, in nats a token, the prompts not counted.

    Args:
        model, tokenizer: of transformers.
        answers (`list[dict]`): `prompt` and `completion`, in TRL's form; at least one.
    """
    import torch

    from hf_lifealign._modes import evaluating
    from hf_lifealign.dynamics.likelihood import answer_logps
    from hf_lifealign.lifelong.scoring import encode_pairs

    # tokenised by TRL; of a pair of twins one is read
    twins = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"]} for r in answers]
    pairs = encode_pairs(Dataset.from_list(twins), tokenizer, None)
    asked = [pair.chosen[: pair.chosen_start] for pair in pairs]
    said = [[pair.chosen[pair.chosen_start :]] for pair in pairs]
    with torch.no_grad(), evaluating(model):
        total = sum(float(logps.sum()) for _, logps in answer_logps(model, asked, said))
    return -total / sum(len(ids) for row in said for ids in row)
