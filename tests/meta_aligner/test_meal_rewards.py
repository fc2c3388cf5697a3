"""What reward functions are given, of whatever kind they are, and what becomes of what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from meal_helpers import prompts_only, short, text_of, trainer_of, vowels
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_lifealign import MetaAlignerTrainer


class Counted:
    """A reward with `__call__`, which remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        self.given.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **kwargs})
        return vowels(prompts, completions)


async def slow_short(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return short(prompts, completions)


def classifier() -> Any:
    torch.manual_seed(4)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, num_labels=1, initializer_range=0.5,
        )
    )  # fmt: skip
    model.config._name_or_path = "me/judge"
    return model.eval()


def test_rewards_of_every_kind_get_answers_and_columns(tmp_path: Path) -> None:
    counted, judge = Counted(), classifier()
    rows = [row | {"level": i, "note": {"x": i}} for i, row in enumerate(preference_rows(4))]
    trainer = MetaAlignerTrainer(
        tiny_model(),
        [slow_short, counted, judge],
        args=trainer_of(tmp_path).args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        reward_processing_classes=[None, None, tiny_tokenizer()],  # type: ignore[list-item]
    )
    assert trainer.policy.objective_names == ["slow_short", "Counted", "judge"]
    choose, answers = trainer._choose, []  # type: ignore[var-annotated]
    trainer._choose = lambda found: answers.extend(found) or choose(found)  # type: ignore[method-assign]
    trainer.train()
    level = {row["prompt"][0]["content"]: i for i, row in enumerate(rows)}
    assert len(counted.given) == 2, "one batch offline, one of the round"
    for given in counted.given:
        assert given["level"] == [level[p[0]["content"]] for p in given["prompts"]]
        assert given["note"] == [{"x": x} for x in given["level"]]
        assert given["trainer_state"] is trainer.state
    assert [c[0]["content"] for c in counted.given[0]["completions"][:2]] == ["yes 0.", "no it is"]
    tokenizer = tiny_tokenizer()
    assert len(answers) == 8
    for answer in answers:
        text = tokenizer.decode(answer.completion_ids, skip_special_tokens=True)
        assert answer.rewards[0] == -len(text)
        whole = tokenizer.apply_chat_template(
            [*rows[answer.prompt]["prompt"], {"role": "assistant", "content": text}], tokenize=False
        )
        with torch.no_grad():
            score = judge(**tokenizer(whole, return_tensors="pt", add_special_tokens=False)).logits[0, 0]
        assert answer.rewards[2] == pytest.approx(score.item(), rel=1e-3, abs=1e-4)


def telling(prompts: Any, completions: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    log_metric("told/longest", max(len(text_of(c)) for c in completions))
    return short(prompts, completions)


def test_what_rewards_tell_is_logged(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, rewards=(telling, vowels), eval_rows=prompts_only(4), rows=4)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "told/longest" in entry]
    assert [entry["step"] for entry in logs] == [1, 3], "the offline set, then the round"
    assert logs[0]["told/longest"] == len("no it is")
    metrics = trainer.evaluate()
    assert trainer.state.log_history[-1]["eval_told/longest"] > 0
    assert metrics["eval_loss"] is not None
