"""Pairs of answers compared by every principle: by judges of known behaviour, and by a tiny random model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.generators import CallCache, Generation, ScriptedGenerator
from hf_lifealign.self_align.rendering import REPLY, REQUEST, Prompts
from hf_lifealign.self_align.stages.judgements import JudgementStage, LetterComparer

SHIPPED = load_constitution()
PROMPTS = Prompts(SHIPPED, "compact")
TASKS = [{"prompt": f"What is matter {i}?", "source": "self_instruct"} for i in range(6)]


def answers(prompt: str, seed: int, place: int) -> str | Generation:
    number = int(prompt.split("matter ")[1].split("?")[0])
    if number == 4:
        return " Always the same."
    if number == 5:
        return Generation(" Cut off", False, 2)
    return f" Matter {number} is as {'long and long ' * (seed % 5)}as {seed % 97}."


def stage(folder: Path, compare: Any, messages: bool = True) -> JudgementStage:
    calls = CallCache(ScriptedGenerator(answers, batch_size=4), folder)
    return JudgementStage(PROMPTS, calls, compare, messages)


def replies(prompt: str) -> tuple[str, str]:
    first, second = prompt.split("Reply (A): ")[1].split("Reply (B): ")
    return first.strip(), second.split("\n")[0].strip()


def by_length(prompts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Longer is better by the first principle, shorter by the second, and by all others the first that is shown."""
    found = []
    for k, prompt in enumerate(prompts):
        first, second = replies(prompt)
        assert SHIPPED.principles[k].short in prompt
        longer = float(np.sign(len(first) - len(second)) or (1 if first > second else -1))
        found.append(longer if k == 0 else -2 * longer if k == 1 else 3.0)
    return np.array(found)


def test_what_both_orders_agree_on_counts(tmp_path: Path) -> None:
    outcome = stage(tmp_path, by_length).run(TASKS)
    assert [row["prompt"] for row in outcome.rows] == [task["prompt"] for task in TASKS[:4]]
    assert outcome.reasons() == {"unfinished": 2, "same_answer": 1}
    for row in outcome.rows:
        longer = 1.0 if len(row["first"]) > len(row["second"]) else -1.0
        if len(row["first"]) != len(row["second"]):
            assert row["scores"][:2] == [longer, -2 * longer]
        assert row["scores"][2:] == [0.0] * 14, "goes by the place"
    told = outcome.told
    assert (told["asked"], told["pairs"]) == (6, 4)
    assert told["order_consistency"] == pytest.approx(2 / 16)
    assert list(told["of_each_principle"].values()) == [1.0, 1.0] + [0.0] * 14
    assert told["first_preferred"] == pytest.approx((14 + 2 * 0.5) / 16)


def test_the_form_of_the_question_and_no_call_twice(tmp_path: Path) -> None:
    made = stage(tmp_path, by_length, messages=False)
    first = made.run(TASKS)
    assert made.calls.made == 4
    again = stage(tmp_path, by_length, messages=False)
    assert again.run(TASKS).rows == first.rows
    assert again.calls.made == 0
    asked = [call for file in tmp_path.rglob("*.json") for call in [file.read_text()]]
    assert all(f"{REQUEST} What is matter" in text and REPLY in text for text in asked)
    text = PROMPTS.compared(SHIPPED.principles[0], "Why {{x}}?", "Because.", "So.")
    assert text.endswith("(")
    assert "Why {{x}}?" in text
    assert replies(text) == ("Because.", "So.")


def test_a_tiny_random_model_compares(tmp_path: Path) -> None:
    compare = LetterComparer(tiny_model(max_position_embeddings=4096), tiny_tokenizer(), batch_size=5)
    outcome = stage(tmp_path, compare).run(TASKS[:2])
    assert len(outcome.rows) == 2
    assert all(len(row["scores"]) == 16 and np.isfinite(row["scores"]).all() for row in outcome.rows)
    assert 0 <= outcome.told["order_consistency"] <= 1
    empty = stage(tmp_path, compare).run([])
    assert (empty.rows, empty.told) == ([], {"asked": 0, "pairs": 0})
