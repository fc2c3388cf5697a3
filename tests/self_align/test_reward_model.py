"""Rows of a reward model by their statistics, and the proof that it can follow principles: labels that flip with them
are learnt by the one that is shown them, and by no other."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.tiny import tiny_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from hf_lifealign.self_align.constitution import Principle, load_constitution
from hf_lifealign.self_align.rendering import REPLY, REQUEST, Prompts
from hf_lifealign.self_align.reward_model import RewardScorer
from hf_lifealign.self_align.reward_rows import labelled_rows, policy_rows, reward_rows
from hf_lifealign.self_align.settings import RLSettings
from hf_lifealign.self_align.stages.reward import RewardStage, refuse_inconsistent

SHIPPED = load_constitution()
CATS = Principle("cats", "Speak of cats.", "Speak of cats.", "Avoid cats.")
DOGS = Principle("dogs", "Speak of dogs.", "Speak of dogs.", "Avoid dogs.")
PETS = Prompts(replace(SHIPPED, principles=(CATS, DOGS)), "compact")


def judged(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of answers that speak of cats, dogs, both or none, with what a sound judge says of them."""
    draws = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        speaks = draws.integers(0, 2, size=(2, 2))
        said = [
            " ".join(draws.permutation([*(["cats"] * one[0]), *(["dogs"] * one[1]), *draws.choice(list("xyz"), 2)]))
            for one in speaks
        ]
        rows.append({"prompt": f"Say {i}", "first": said[0], "second": said[1],
                     "scores": [float(speaks[0][k] - speaks[1][k]) for k in range(2)]})  # fmt: skip
    return rows


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, so that a tiny model learns in seconds; numbers are all the same."""
    split = pre_tokenizers.Whitespace()
    found = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text) if not word.isdigit()})
    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *found])}
    raw = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = split
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    return made


class Stage(RewardStage):
    """The stage, on a model made from nothing."""

    made: Any = None

    def _build(self, train: Any, test: Any) -> Any:
        return RewardTrainer(
            self.made, self.training_arguments(), train_dataset=self._rows(train), eval_dataset=self._rows(test),
            processing_class=self.tokenizer,
        )  # fmt: skip


def accuracies(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    texts = [row[name] for row in reward_rows(rows, PETS, False) for name in ("prompt", "chosen", "rejected")]
    tokenizer = tokenizer_of(texts)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        num_labels=1, initializer_range=0.2,
    ))  # fmt: skip
    training = {
        "learning_rate": 5e-3, "num_train_epochs": 3, "per_device_train_batch_size": 64, "warmup_steps": 5,
        "logging_steps": 50, "disable_tqdm": True, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    stage = Stage(
        "none", RLSettings(reward_training=training, checkpoint_steps=1000), folder, PETS, False, 0, tokenizer
    )
    stage.made = model
    told: dict[str, Any] = stage.run(rows[:-300], rows[-300:]).told
    return told


def test_labels_that_flip_with_the_principle_are_learnt_by_who_is_shown_it(tmp_path: Path) -> None:
    outcome = labelled_rows(judged(3200), (CATS, DOGS), seed=0, most=1)
    assert len(outcome.rows) == pytest.approx(1600, rel=0.1), "half of the pairs are alike in what is asked for"
    assert outcome.reasons() == {"no_principle_tells": 3200 - len(outcome.rows)}
    shown = accuracies(tmp_path / "shown", outcome.rows)
    assert shown["held_out_rows"] == 300
    assert shown["before"]["accuracy"] == pytest.approx(0.5, abs=0.15)
    for name in ("accuracy", "negated", "not_negated"):
        assert shown["after"][name] >= 0.95, name
    assert shown["after"]["negated_rows"] == pytest.approx(150, abs=40)
    blind = accuracies(tmp_path / "blind", [row | {"principles": []} for row in outcome.rows])
    assert abs(blind["after"]["accuracy"] - 0.5) < 0.15


def test_principles_are_drawn_negated_and_reach_the_text() -> None:
    prompts = Prompts(SHIPPED, "paper")
    rows = [
        {"prompt": f"Ask {i}", "first": "One.", "second": "Two.", "scores": [0.5 + k for k in range(16)]}
        for i in range(3000)
    ]
    outcome = labelled_rows(rows, SHIPPED.principles, seed=0)
    assert len(outcome.rows) == 3000
    counts = Counter(len(row["principles"]) for row in outcome.rows)
    assert counts[1] / 3000 == pytest.approx(0.2, abs=0.03)
    assert max(counts) == 8
    drawn = [(each["name"], each["negated"]) for row in outcome.rows for each in row["principles"]]
    assert sum(negated for _, negated in drawn) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert outcome.told["negated"] / 3000 == pytest.approx(0.5, abs=0.05)
    assert sum(outcome.told["decided_by"].values()) == 3000
    known = {principle.name: principle for principle in SHIPPED.principles}
    for row, made in zip(outcome.rows[:200], reward_rows(outcome.rows[:200], prompts, True), strict=True):
        assert (row["chosen"] == "Two.") == row["negated"], "the first is better by all of them"
        text = made["prompt"][0]["content"]
        assert text.startswith(row["prompt"])
        for each in row["principles"]:
            own = known[each["name"]]
            assert (f"- {own.negated if each['negated'] else own.text}" in text) is True
            assert (f"- {own.text if each['negated'] else own.negated}" in text) is False
        assert text.count("\n- ") == len(row["principles"])
        assert made["chosen"] == [{"role": "assistant", "content": row["chosen"]}]
    fewer = labelled_rows(rows[::2], SHIPPED.principles, seed=0).rows
    assert fewer == outcome.rows[::2], "what is drawn for a pair does not depend on the others"
    assert labelled_rows(rows, SHIPPED.principles, seed=1).rows != outcome.rows


def test_why_a_pair_has_no_label() -> None:
    rows = [
        {"prompt": "Ask", "first": "One.", "second": "Two.", "scores": scores} for scores in ([0.0, 0.0], [2.0, -2.0])
    ]
    outcome = labelled_rows(rows, (CATS, DOGS), seed=1, rate=1e-9, negation=0.0)
    assert [row["reason"] for row in outcome.dropped] == ["no_principle_tells", "principles_contradict"]
    assert outcome.dropped[0]["second"] == "Two."
    assert not outcome.rows


def test_the_policy_is_never_shown_a_principle_nor_rewarded_for_an_opposite() -> None:
    rows = policy_rows([f"Ask {i}" for i in range(50)], PETS, False, 0, "reinforcement 0")
    assert rows[0]["prompt"] == f"{REQUEST} Ask 0\n{REPLY}"
    assert {text for row in rows for text in row["principles"]} == {CATS.short, DOGS.short}
    assert policy_rows(["Ask 7"], PETS, False, 0, "reinforcement 0") == [rows[7]]
    message = policy_rows(["Ask 0"], PETS, True, 0, "held out")[0]
    assert message["prompt"] == [{"role": "user", "content": "Ask 0"}]


@pytest.mark.parametrize("messages", [True, False])
def test_the_scorer_reads_what_reward_trainer_reads(tmp_path: Path, messages: bool) -> None:
    rows = reward_rows(labelled_rows(judged(12), (CATS, DOGS), seed=0).rows, PETS, messages)
    assert rows[0]["prompt"] if messages else rows[0]["prompt"].startswith(REQUEST)
    tokenizer = tiny_tokenizer()
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, num_labels=1,
    ))  # fmt: skip
    args = RewardConfig(str(tmp_path), report_to=[], bf16=False, per_device_eval_batch_size=64, use_cpu=True)
    trainer = RewardTrainer(
        model, args, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    scorer = RewardScorer(trainer.model, tokenizer, batch_size=3)
    for name in ("chosen", "rejected"):
        assert [scorer.encode(row["prompt"], row[name]) for row in rows] == trainer.train_dataset[f"{name}_ids"]
    told = trainer.evaluate()
    scores = [scorer.of_ids(trainer.train_dataset[f"{name}_ids"]) for name in ("chosen", "rejected")]
    margins = np.array(scores[0]) - np.array(scores[1])
    assert told["eval_accuracy"] == pytest.approx(float((margins > 0).mean()))
    assert told["eval_margin"] == pytest.approx(float(margins.mean()), abs=1e-5)


def test_the_gate_tells_what_is_wrong() -> None:
    told = {"order_consistency": 0.55, "first_preferred": 0.8, "pairs": 40,
            "of_each_principle": {"a": 0.9, "b": 0.1, "c": 0.6, "d": 0.2}}  # fmt: skip
    refuse_inconsistent(told, 0.55)
    with pytest.raises(ValueError, match=r"of 40 pairs only 0.550 agree.*0.800.*b \(0.100\), d \(0.200\), c"):
        refuse_inconsistent(told, 0.6)
