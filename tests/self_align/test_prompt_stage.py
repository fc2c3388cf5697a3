"""Stage 1 with a scripted model: what is accepted, every drop by exact count, caps, kills."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.generators import CallCache, Generation, ScriptedGenerator, TransformersGenerator
from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.stages.outcome import GaveUpError, Outcome
from hf_lifealign.self_align.stages.prompts import RED_TEAM, SELF_INSTRUCT, PromptSettings, PromptStage

SHIPPED = load_constitution()
NOUNS = [f"{a}{b}" for a in ("moon", "river", "stone", "cloud", "glass", "bread", "snow") for b in range(60)]
Answer = Callable[[str, int, int], Generation | str]


def stage(folder: Path, answer: Answer, seed: int = 0, **settings: Any) -> PromptStage:
    options = {"batch_size": settings.pop("batch_size", 4), "concurrency": settings.pop("concurrency", 1)}
    return PromptStage(
        Prompts(SHIPPED), CallCache(ScriptedGenerator(answer, **options), folder), PromptSettings(**settings), seed
    )


def invented(rng: random.Random) -> str:
    return f"Compare {rng.choice(NOUNS)} with {rng.choice(NOUNS)}, {rng.choice(NOUNS)} and {rng.choice(NOUNS)}."


def busy(prompt: str, seed: int, place: int) -> Generation:
    """Lists, topics and questions as they are asked for, without a fault but for a cut-off end."""
    rng = random.Random(seed * 1000 + place)
    if prompt.endswith("Question:"):
        topic = prompt.rsplit("Topic: ", 1)[1].splitlines()[0]
        return Generation(f" What would {topic} be {invented(rng)[8:-1]} for?", True, 9)
    first = int(prompt.rsplit("\n", 1)[1].rstrip("."))
    made = (f"odd {rng.choice(NOUNS)}" if "topics" in prompt else invented(rng) for _ in range(first, 21))
    lines = [f"{i}. {text}" for i, text in enumerate(made, start=first)]
    return Generation("\n".join(lines).removeprefix(f"{first}."), False, 99)


def test_as_many_as_were_asked_for(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = stage(tmp_path, busy, self_instruct=70, red_team=45)
    made.progress = lambda accepted, target: told.append((accepted, target))
    outcome = made.run()
    sources = [row["source"] for row in outcome.rows]
    assert sources == [SELF_INSTRUCT] * 70 + [RED_TEAM] * 45
    assert len({row["prompt"] for row in outcome.rows}) == 115
    kinds = outcome.told[RED_TEAM]["kinds"]
    assert set(kinds) == {seed.type for seed in SHIPPED.topics}
    assert min(kinds.values()) >= 2, "kinds take turns"
    assert max(kinds.values()) <= 3
    assert all(row["topic"] in row["prompt"] for row in outcome.rows[70:])
    assert told[-1] == (115, 115)
    assert [accepted for accepted, _ in told] == sorted(accepted for accepted, _ in told)
    assert outcome.told["near_duplicates_of"] == 48 + 20 + 115


def test_the_same_seed_makes_the_same_rows(tmp_path: Path) -> None:
    found = [stage(tmp_path / str(i), busy, seed, self_instruct=40, red_team=25).run()
             for i, seed in enumerate((0, 0, 1))]  # fmt: skip
    assert (found[0].rows, found[0].dropped, found[0].told) == (found[1].rows, found[1].dropped, found[1].told)
    assert found[2].rows != found[0].rows
    wide = stage(tmp_path / "wide", busy, self_instruct=40, red_team=25, concurrency=3)
    assert wide.run().rows == stage(tmp_path / "again", busy, self_instruct=40, red_team=25, concurrency=3).run().rows


def test_a_kill_at_any_call_changes_nothing(tmp_path: Path) -> None:
    whole = stage(tmp_path / "whole", busy, self_instruct=40, red_team=25)
    expected = whole.run()
    for allowed in range(0, whole.calls.made, 3):
        left = [allowed * 4]

        def mortal(prompt: str, seed: int, place: int, left: list[int] = left) -> Generation:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return busy(prompt, seed, place)

        folder = tmp_path / f"killed-{allowed}"
        with pytest.raises(KeyboardInterrupt):
            stage(folder, mortal, self_instruct=40, red_team=25).run()
        resumed = stage(folder, busy, self_instruct=40, red_team=25)
        outcome = resumed.run()
        assert (outcome.rows, outcome.dropped, outcome.told) == (expected.rows, expected.dropped, expected.told)
        assert resumed.calls.made == whole.calls.made - allowed, "no call is made twice"


FAULTY = [
    "Why do rivers bend so often on plains?",
    "Too short",
    "Describe the picture that hangs on the wall.",
    "- what begins with a dash is no task",
    "Explain to a ten-year-old why the sky is dark at night.",
    "Explain to a ten-year-old why the sky is so dark at night.",
    "Why do rivers bend so often on plains?",
    "long " * 200,
    "",
]


def test_every_fault_by_its_count(tmp_path: Path) -> None:
    def answer(prompt: str, seed: int, place: int) -> Generation:
        lines = [f"{i}. {text}" for i, text in enumerate(FAULTY, start=6)]
        lines += ["30. out of its order", f"15. {invented(random.Random(place))}"]
        return Generation("\n".join(lines)[2:], False, 99)

    with pytest.raises(GaveUpError, match="1 of 7 accepted after 8 generations") as raised:
        stage(tmp_path, answer, self_instruct=7, red_team=0, generations_per_prompt=1, batch_size=8).run()
    outcome: Outcome = raised.value.outcome
    assert [row["prompt"] for row in outcome.rows] == [FAULTY[0]]
    assert outcome.reasons() == {
        "duplicate": 8 + 8 + 7, "bad_start": 8, "empty": 8, "other_media": 8, "out_of_order": 8, "too_long": 8,
        "too_short": 8, "truncated": 8, "near_duplicate": 8,
    }  # fmt: skip
    assert "duplicate 23" in str(raised.value)
    assert "generations_per_prompt" in str(raised.value)


def test_topics_that_are_no_good(tmp_path: Path) -> None:
    def answer(prompt: str, seed: int, place: int) -> Generation | str:
        if prompt.endswith("Question:"):
            return Generation(" Who was it that", False, 3)
        return " a topic of far too many words\n3. human blood\n4. Human Blood.\n5. tin cans"

    with pytest.raises(GaveUpError, match="Red-teaming by topics gave up: 0 of 10") as raised:
        stage(tmp_path, answer, self_instruct=0, red_team=10).run()
    outcome = raised.value.outcome
    rounds = len(outcome.dropped) - outcome.reasons(source=RED_TEAM)["truncated"]
    assert outcome.reasons(source=RED_TEAM) == {"truncated": 1}, "one topic was new, and none came after it"
    assert outcome.reasons(source="topics")["topic_too_long"] * 4 == rounds + 1


def test_a_kind_that_starves_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = SHIPPED.topics[0].type

    def answer(prompt: str, seed: int, place: int) -> Generation | str:
        if "topics" in prompt and f"is: {kind}." in prompt:
            return " nothing here that has three words or less"
        return busy(prompt, seed, place)

    with caplog.at_level(logging.WARNING):
        outcome = stage(tmp_path, answer, self_instruct=0, red_team=60, generations_per_prompt=10).run()
    assert outcome.told[RED_TEAM]["kinds"][kind] == 0
    assert kind in caplog.text
    assert "quarter of their share" in caplog.text


def test_a_tiny_random_model_gives_up_and_does_not_hang(tmp_path: Path) -> None:
    model = tiny_model(max_position_embeddings=4096)
    generator = TransformersGenerator(model, tiny_tokenizer(), batch_size=4)
    made = PromptStage(
        Prompts(SHIPPED), CallCache(generator, tmp_path), PromptSettings(self_instruct=3, red_team=0, max_new_tokens=16)
    )
    with pytest.raises(GaveUpError, match="of 3 accepted after 12 generations"):
        made.run()
    assert made.calls.made == 3


def test_what_cannot_fit_is_refused_before_the_first_call(tmp_path: Path) -> None:
    generator = TransformersGenerator(tiny_model(), tiny_tokenizer(), batch_size=4)
    made = PromptStage(Prompts(SHIPPED), CallCache(generator, tmp_path), PromptSettings(red_team=0))
    with pytest.raises(ValueError, match="the model reads 512"):
        made.run()
    assert made.calls.made == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"self_instruct": -1}, "self_instruct=-1"),
        ({"self_instruct": 0, "red_team": 0}, "Ask for tasks of one kind"),
        ({"list_size": 5}, "more than examples=5"),
        ({"examples": 0}, "at least 1"),
        ({"generations_per_prompt": 0}, "above 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PromptSettings(**settings)
