"""What cannot work is refused with its reason, and answers without a rating are left out, not guessed."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from meal_helpers import config, everything, lora, prompts_only, short, text_of, trainer_of, vowels
from peft import LoraConfig
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from trl import RLOOConfig

from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer, SLMCConfig

TRAINER = "hf_lifealign.meta_aligner"


def returning(value: Any, when: Any = lambda text: True) -> Any:
    """A reward that is `value` for some answers and their length for others."""

    def rate(prompts: Any, completions: Any, **kwargs: Any) -> list[Any]:
        return [value if when(text_of(c)) else float(len(text_of(c))) for c in completions]

    rate.__name__ = "odd"
    return rate


def nothing_saved(folder: Path) -> bool:
    """No policy, adapter, card or checkpoint; the cache of finished batches may be there."""
    held = [p for p in folder.rglob("*") if p.is_file() and "_rounds" not in p.parts]
    return not held and not list(folder.glob("checkpoint-*"))


# Rewards


@pytest.mark.parametrize("value", [None, math.nan])
def test_answers_without_a_rating_are_left_out_and_counted(
    value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = returning(value, lambda text: len(text) % 2 == 1)
    trainer = trainer_of(tmp_path, rewards=(odd, vowels), names=["odd", "vowels"], rows=16)
    buffers = []
    choose = trainer._choose
    trainer._choose = lambda answers: buffers.append(choose(answers)) or buffers[-1]  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, TRAINER):
        trainer.train()
    offline = trainer.offline_buffer()
    rated = [i for i, a in enumerate(offline.answers) if not math.isnan(a.rewards[0])]
    assert offline.kept == rated
    assert 0 < len(rated) < 32
    statistics = trainer.policy.statistics
    assert statistics is not None
    assert statistics.mean[0].item() == pytest.approx(
        sum(offline.answers[i].rewards[0] for i in rated) / len(rated)
    )  # fmt: skip
    assert f"{32 - len(rated)} of 32 answers of the offline set are left out: not rated by ['odd']" in caplog.text
    (buffer,) = buffers
    assert all(not math.isnan(buffer.answers[i].rewards[0]) for i in buffer.kept)
    assert any(math.isnan(a.rewards[0]) for a in buffer.answers)
    assert len(buffer.kept) == math.ceil(0.7 * sum(not math.isnan(a.rewards[0]) for a in buffer.answers))
    assert all(torch.isfinite(t).all() for t in everything(trainer).values())
    assert all(math.isfinite(e["loss"]) for e in trainer.state.log_history if "loss" in e)


@pytest.mark.parametrize("offline", [True, False])
def test_rewards_that_rate_nothing_stop_the_training_and_can_be_mended(offline: bool, tmp_path: Path) -> None:
    rows = 4 if offline else prompts_only(4)
    trainer = trainer_of(tmp_path, rewards=(returning(None), vowels), rows=rows)
    with pytest.raises(ValueError, match="Not one of the 8 answers"):
        trainer.train()
    assert nothing_saved(tmp_path)
    assert not list(tmp_path.rglob("part-*")), "or the next start would read them again"
    trainer_of(tmp_path, rewards=(short, vowels), rows=rows).train()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_rewards_name_the_objective(value: float, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, rewards=(short, returning(value, lambda text: "no" in text)))
    with pytest.raises(ValueError, match=f"'odd' returned {value}"):
        trainer.train()
    assert nothing_saved(tmp_path)
    assert not list(tmp_path.rglob("part-*"))


def too_few(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


async def async_too_few(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return too_few(prompts, completions)


@pytest.mark.parametrize("reward", [too_few, async_too_few])
def test_a_wrong_number_of_rewards_is_an_error(reward: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too_few' returned 15 rewards, but 16"):
        trainer_of(tmp_path, rewards=(short, reward)).train()
    assert nothing_saved(tmp_path)


def test_a_constant_reward_is_told_and_decides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, rewards=(short, returning(0.1)))
    with caplog.at_level(logging.WARNING, TRAINER):
        trainer.train()
    assert "The rewards ['odd'] gave every answer the same value" in caplog.text
    buffer = trainer.offline_buffer()
    assert buffer.scores[:, 1].tolist() == [0.0] * 16
    assert buffer.scores[:, 0].abs().max() > 0.5
    assert all(torch.isfinite(t).all() for t in everything(trainer).values())


def test_an_error_of_a_reward_leaves_the_policy_usable(tmp_path: Path) -> None:
    def broken(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        raise KeyError("no such column")

    trainer = trainer_of(tmp_path, rewards=(short, broken))
    with pytest.raises(KeyError, match="no such column"):
        trainer.train()
    assert nothing_saved(tmp_path)
    assert trainer.policy.conditioning._given is None
    assert len(trainer.policy.generate(["a"], max_new_tokens=2)) == 1


# Constructions


@pytest.mark.parametrize("rewards", [(short,), ()])
def test_one_objective_is_not_enough(rewards: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"You passed {len(rewards)} reward function"):
        trainer_of(tmp_path, rewards=rewards)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"names": ["a", "a"]}, "names have to differ"),
        ({"names": ["a"]}, "1 objective_names for 2"),
        ({"names": ["a", "b", "c"]}, "3 objective_names for 2"),
        ({"rewards": (short, short)}, "names have to differ"),
        ({"rows": Dataset.from_list([{"text": "a"}])}, r"\['text'\]. It needs 'prompt'"),
        ({"rows": Dataset.from_list([])}, "no train_dataset"),
        ({"offline": Dataset.from_list([{"prompt": "a"}])}, "needs 'prompt' and 'completion'"),
        ({"max_prompt_length": 3}, "every prompt is longer"),
        ({"max_completion_length": 500}, "do not fit"),
        ({"conditioning": "lora"}, "no adapter"),
        ({"conditioning": "lora", "peft_config": lora(use_dora=True)}, "use_dora=True"),
        ({"conditioning": "lora", "peft_config": SLMCConfig(r=2, target_modules=["q_proj"])}, "SLMCConfig"),
        ({"conditioning": "lora", "peft_config": LoraConfig(r=2, target_modules=["embed_tokens"])}, "embed_tokens"),
    ],
)
def test_wrong_constructions_are_refused(kwargs: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        trainer_of(tmp_path / "out", **kwargs)
    assert nothing_saved(tmp_path)


def test_data_without_a_length_is_refused(tmp_path: Path) -> None:
    rows = IterableDataset.from_generator(lambda: iter(preference_rows(4)))
    with pytest.raises(TypeError, match="IterableDataset"):
        trainer_of(tmp_path, rows=rows)
    with pytest.raises(TypeError, match="offline_dataset of type list"):
        trainer_of(tmp_path, offline=preference_rows(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no train_dataset"):
        MetaAlignerTrainer(tiny_model(), [short, vowels], args=config(tmp_path), processing_class=tiny_tokenizer())


def test_images_are_refused(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": "a", "image": "b.png"}] * 2)
    with pytest.raises(ValueError, match="image"):
        trainer_of(tmp_path, rows=rows)


def test_settings_of_another_trainer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="MetaAlignerConfig"):
        MetaAlignerTrainer(
            tiny_model(), [short, vowels], args=RLOOConfig(str(tmp_path), use_cpu=True, bf16=False),  # type: ignore[arg-type]
            train_dataset=prompts_only(2), processing_class=tiny_tokenizer(),
        )  # fmt: skip


def test_long_prompts_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a" * n} for n in (3, 30, 5)]
    with caplog.at_level(logging.WARNING, TRAINER):
        trainer = trainer_of(tmp_path, rows=Dataset.from_list(rows), max_prompt_length=5)
    assert "1 of 3 prompts have more than max_prompt_length=5" in caplog.text
    assert [row["prompt"] for row in trainer.prompt_rows] == ["aaa", "aaaaa"]
    trainer.train()


def test_more_steps_than_there_are_is_an_error_and_fewer_stop_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_steps=11\. .* 1 rounds have 10 steps"):
        trainer_of(tmp_path, max_steps=11).train()
    assert nothing_saved(tmp_path)
    trainer = trainer_of(tmp_path, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5


def test_a_training_without_steps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        trainer_of(tmp_path, rows=prompts_only(4), num_rounds=0).train()
    with pytest.raises(ValueError, match="nothing to train"):
        trainer_of(tmp_path, num_rounds=0, pretrain_epochs=0).train()


def test_pretraining_alone_is_a_training(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, num_rounds=0)
    trainer.train()
    assert trainer.state.global_step == 4


def test_optimizers_and_schedules_that_cannot_take_turns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reduce_lr_on_plateau"):
        trainer_of(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=1,
                   eval_rows=prompts_only(2)).train()  # fmt: skip


def test_policies_that_do_not_fit_are_not_continued(tmp_path: Path) -> None:
    first = trainer_of(tmp_path / "one")
    first.policy.save_pretrained(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match=r"no meta_aligner/meta_aligner\.json"):
        first.continue_from(tmp_path)
    with pytest.raises(ValueError, match="have to come first"):
        trainer_of(tmp_path / "two", names=["vowels", "short"]).continue_from(tmp_path / "one")
    with pytest.raises(ValueError, match="conditioning='lora'"):
        trainer_of(tmp_path / "three", conditioning="lora", peft_config=lora()).continue_from(tmp_path / "one")


# Settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": 0.05}, "no KL term"),
        ({"num_iterations": 2}, "num_iterations=2"),
        ({"reward_weights": [0.5, 0.5]}, "the preference weighs"),
        ({"normalize_advantages": True}, "no advantages"),
        ({"reward_clip_range": (-1.0, 1.0)}, "z-scored"),
        ({"epsilon": 0.3}, "no ratio is clipped"),
        ({"epsilon_high": 0.3}, "no ratio is clipped"),
        ({"sync_ref_model": True}, "no reference model"),
        ({"use_vllm": True}, "vLLM"),
        ({"use_transformers_continuous_batching": True}, "mixes rows"),
        ({"use_liger_kernel": True}, "replaces the forward"),
        ({"steps_per_generation": 2, "generation_batch_size": None}, "set generation_batch_size"),
        ({"conditioning": "prompt"}, "logit_bias, lora"),
        ({"selection": "best"}, "weighted_top, any_quantile"),
        ({"scope": "round"}, "buffer, prompt"),
        ({"weight_source": "net"}, "learned, frozen"),
        ({"encoder_learning_rate": 1e-4}, "encoder='policy'"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": math.nan}, "tau=nan"),
        ({"rho": 0.0}, "rho=0.0"),
        ({"rho": 1.5}, "at most 1"),
        ({"supervision": -0.1}, "supervision=-0.1"),
        ({"weight_learning_rate": math.inf}, "weight_learning_rate=inf"),
        ({"pretrain_learning_rate": -1.0}, "pretrain_learning_rate"),
        ({"num_rounds": -1}, "num_rounds=-1"),
        ({"pretrain_epochs": -1}, "pretrain_epochs=-1"),
        ({"weight_net_hidden": 0}, "weight_net_hidden=0"),
        ({"prompts_per_round": 0}, "prompts_per_round=0"),
        ({"max_prompt_length": 0}, "max_prompt_length=0"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"num_train_epochs": 1.5}, "whole epochs"),
        ({"num_train_epochs": 0}, "set num_rounds=0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        config(tmp_path, **settings)


def test_the_defaults_are_the_papers_and_pass_their_own_checks(tmp_path: Path) -> None:
    args = MetaAlignerConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (args.rho, args.tau, args.supervision, args.num_rounds, args.num_train_epochs) == (0.7, 0.5, 0.5, 2, 3)
    assert (args.learning_rate, args.weight_learning_rate) == (1e-5, 1e-6)
    assert (args.pretrain_learning_rate, args.pretrain_weight_learning_rate) == (1.414e-4, 1e-5)
    assert (args.temperature, args.top_p, args.max_completion_length, args.per_device_train_batch_size) == (
        0.7, 0.9, 128, 4,
    )  # fmt: skip
