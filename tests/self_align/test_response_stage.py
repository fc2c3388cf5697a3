"""Stage 2 with a scripted model: what is kept, every drop by exact count, pairs, kills; and with a tiny random one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.self_align import Mortal
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.answers import ANSWER_REASONS
from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.generators import CallCache, Generation, ScriptedGenerator, TransformersGenerator
from hf_lifealign.self_align.rendering import NOTE, REPLY, REQUEST, Prompts
from hf_lifealign.self_align.stages.responses import (
    WITH,
    WITHOUT,
    ResponseSettings,
    ResponseStage,
    preference_rows,
    training_rows,
)
from hf_lifealign.stream import Task, TaskStream

SHIPPED = load_constitution()
Answer = Callable[[str, int, int], Generation | str]


def stage(folder: Path, answer: Answer, **given: Any) -> ResponseStage:
    cache = CallCache(ScriptedGenerator(answer, batch_size=4), folder)
    return ResponseStage(Prompts(SHIPPED, "compact"), cache, ResponseSettings(**given))


def task_of(prompt: str) -> str:
    return prompt.rsplit(REQUEST, 1)[1].rsplit("\n", 1)[0].strip()


# Each number of a task stands for a way of answering.
WAYS: list[tuple[Generation | str, str | None]] = [
    (f" 2 (informative), 3 (helpful). Fine.\n{REPLY} Rain falls.", None),
    (f" 2 (informative).\n{REPLY} Rain falls. It is wet.\n\n{REQUEST} Another one?", None),
    (" I only think.", "no_reply"),
    (f"\n{REPLY} Rain.", "no_note"),
    (Generation(f" Hm.\n{REPLY} Rain falls and", False, 9), "unfinished"),
    (f" Hm.\n{REPLY} By 2 (informative) it rains.", "leaked_principle"),
    (f" Hm.\n{REPLY} {SHIPPED.exemplars[2].reply}", "leaked_exemplar"),
    (f" All the clouds are made of very small drops of water.\n{REPLY} All the clouds are made of very small drops.",
     "leaked_note"),
    (f" Hm.\n{REPLY} Yes. {NOTE} No.", "leaked_mark"),
    (f" 3 (helpful).\n{REPLY} I'm sorry, but I can't help with that.", "undue_refusal"),
    (f" 1 (ethical).\n{REPLY} I'm sorry, but I can't help with that.", None),
    (f" Hm.\n{REPLY} No end and no point and no sense here\nand now it comes again and again\n"
     "and now it comes again and again", "repetition"),
    (f" Hm.\n{REPLY} !?", "too_short"),
]  # fmt: skip
TASKS = [{"prompt": f"What about number {i}?", "source": "self_instruct"} for i in range(len(WAYS) * 3)]


def ways(prompt: str, seed: int, place: int) -> Generation | str:
    number = int(task_of(prompt).rstrip("?").split()[-1])
    if prompt.endswith(REPLY):
        return {0: " Rain falls!", 1: " Cut off", 2: ""}.get(number % 4, f" Plain answer {number}.")
    return WAYS[number % len(WAYS)][0]


def test_every_fault_by_its_count(tmp_path: Path) -> None:
    outcome = stage(tmp_path, ways, least_words=1).run(TASKS)
    wanted = [reason for _, reason in WAYS if reason]
    assert outcome.reasons(answer=WITH) == dict.fromkeys(wanted, 3)
    assert set(wanted) == set(ANSWER_REASONS)
    assert outcome.told["kept"] == 9
    assert outcome.told["keep_rate"] == 9 / 39
    usage = outcome.told["principles"]
    assert (usage["informative"], usage["helpful"], usage["ethical"], usage["creative"]) == (6, 3, 3, 0)
    assert list(usage) == [principle.name for principle in SHIPPED.principles]
    assert len(outcome.asides) == 9
    assert all("note" not in row for row in outcome.rows)
    assert [row["completion"] for row in outcome.rows[:2]] == ["Rain falls.", "Rain falls. It is wet."]
    assert all(row["source"] == "self_instruct" for row in outcome.rows)


def test_pairs(tmp_path: Path) -> None:
    made = stage(tmp_path, ways)
    outcome = made.run(TASKS)
    numbers = [int(row["prompt"].rstrip("?").split()[-1]) for row in outcome.rows]
    assert numbers == [0, 1, 10, 13, 14, 23, 26, 27, 36]
    paired = {n: row.get("rejected") for n, row in zip(numbers, outcome.rows, strict=True)}
    assert paired[0] is None, "both say the same"
    assert paired[1] == "Cut off", "an answer without a point may be whole"
    assert paired[10] is None
    assert paired[23] == "Plain answer 23."
    assert outcome.reasons(answer=WITHOUT) == {"no_reply": 3, "same_answer": 1}
    pairs = preference_rows(outcome.rows)
    assert len(pairs) == outcome.told["pairs"] == 5
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "Cut off"}]
    plain = preference_rows(outcome.rows, Prompts(SHIPPED, "compact"))[0]
    assert plain["prompt"] == f"{REQUEST} What about number 1?\n{REPLY}"
    assert plain["chosen"] == " Rain falls. It is wet."
    rows = training_rows(outcome.rows)
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    assert rows[0]["prompt"] == [{"role": "user", "content": "What about number 0?"}]
    alone = stage(tmp_path / "alone", ways, pairs=False).run(TASKS)
    assert [{k: v for k, v in row.items() if k != "rejected"} for row in outcome.rows] == alone.rows
    assert "pairs" not in alone.told


def test_a_kill_at_any_call_changes_nothing(tmp_path: Path) -> None:
    whole = stage(tmp_path / "whole", ways)
    expected = whole.run(TASKS)
    for allowed in range(whole.calls.made):
        folder = tmp_path / f"killed-{allowed}"
        killed = stage(folder, ways)
        killed.calls.generator = Mortal(ways, allowed)
        with pytest.raises(KeyboardInterrupt):
            killed.run(TASKS)
        resumed = stage(folder, ways)
        assert json.dumps(vars(resumed.run(TASKS))) == json.dumps(vars(expected))
        assert resumed.calls.made == whole.calls.made - allowed


PIECES = st.sampled_from(
    [REQUEST, NOTE, REPLY, "\n", " ", "2 (informative).", "It rains.", "Why, of course!", "嵐だ。",
     *(p.short for p in SHIPPED.principles), *(p.text for p in SHIPPED.principles[:5]),
     *(t for e in SHIPPED.exemplars for t in (e.request, e.note, e.reply))]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=1, max_size=4), st.integers(0, 2**40))
def test_no_hidden_text_reaches_a_training_row(tmp_path: Path, texts: list[str], run: int) -> None:
    tasks = [{"prompt": f"Tell me of matter {i}."} for i in range(len(texts))]

    def answer(prompt: str, seed: int, place: int) -> str:
        return texts[int(task_of(prompt).rstrip(".").split()[-1])]

    outcome = stage(tmp_path / f"{run}-{abs(hash(tuple(texts)))}", answer).run(tasks)
    written = json.dumps([*training_rows(outcome.rows), *preference_rows(outcome.rows)], ensure_ascii=False)
    for hidden in (REQUEST, NOTE, REPLY, "(informative)", *(p.text for p in SHIPPED.principles),
                   *(e.note for e in SHIPPED.exemplars), *(e.reply for e in SHIPPED.exemplars)):  # fmt: skip
        assert json.dumps(hidden, ensure_ascii=False)[1:-1] not in written


def test_what_cannot_fit_is_refused_before_the_first_call(tmp_path: Path) -> None:
    made = stage(tmp_path, ways, max_new_tokens=256)
    made.calls.generator.context = 700  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="and 700 fit"):
        made.run([*TASKS, {"prompt": "word " * 300}])
    assert made.calls.made == 0


def test_no_tasks_no_rows(tmp_path: Path) -> None:
    outcome = stage(tmp_path, ways).run([])
    assert (outcome.rows, outcome.dropped, outcome.told["keep_rate"]) == ([], [], None)


def test_a_tiny_random_model_through_the_stage(tmp_path: Path) -> None:
    """It says nothing of sense: all of it is dropped, with a reason each."""
    generator = TransformersGenerator(tiny_model(max_position_embeddings=8192), tiny_tokenizer(), batch_size=3)
    made = ResponseStage(
        Prompts(SHIPPED, "compact"), CallCache(generator, tmp_path), ResponseSettings(max_new_tokens=12)
    )
    outcome = made.run(TASKS[:5])
    assert len(outcome.rows) + len(outcome.dropped) == 5
    assert outcome.reasons() == {"no_reply": 5}


def test_rows_are_those_that_a_task_takes(tmp_path: Path) -> None:
    rows = preference_rows(stage(tmp_path, ways).run(TASKS).rows)
    task = Task("self", Dataset.from_list(rows), Dataset.from_list(rows[:2]))
    assert TaskStream([task])["self"].load().train.to_list() == rows
