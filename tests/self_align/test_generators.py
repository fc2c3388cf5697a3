"""Generators: a tiny model through transformers, and calls that are kept and never made twice."""

import itertools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.generators import (
    Call,
    CallCache,
    Generation,
    GeneratorError,
    Sampling,
    ScriptedGenerator,
    TransformersGenerator,
)
from hf_lifealign.self_align.generators.protocol import derived_seed, plan_calls

PROMPTS = ("Hi", "What is it, and why?", "Write.")


def local(**given: Any) -> TransformersGenerator:
    return TransformersGenerator(tiny_model(), tiny_tokenizer(), **given)


def test_the_same_call_means_the_same_texts() -> None:
    generator = local()
    call = Call(PROMPTS, Sampling(max_new_tokens=12), seed=5)
    state = torch.get_rng_state()
    generator.model.train()
    found = generator.generate(call)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's randomness is used"
    assert generator.model.training
    assert generator.generate(call) == found
    assert generator.generate(Call(PROMPTS, call.sampling, seed=6)) != found
    assert [each.tokens for each in found if not each.finished] == [12] * sum(not each.finished for each in found)


def test_a_batch_says_what_each_prompt_says_alone() -> None:
    """The likeliest tokens, where padding could shift positions."""
    generator, sampling = local(), Sampling(temperature=0, max_new_tokens=10)
    together = generator.generate(Call(PROMPTS, sampling, 0))
    assert together == [generator.generate(Call((prompt,), sampling, 0))[0] for prompt in PROMPTS]
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    bare = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
    assert together[1].text == tokenizer.decode(bare[0, ids.shape[1] :], skip_special_tokens=True)


def saying(generator: TransformersGenerator, text: str, end: bool) -> None:
    """A model that says one text whatever it reads."""
    tokenizer = generator.tokenizer
    ids = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    lengths = {len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS}
    width = max(lengths)
    forward = generator.model.forward

    def says(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        mask = kwargs["attention_mask"]
        place = mask.shape[1] - width
        output.logits[:, -1] = -100.0
        output.logits[:, -1, ids[place % len(ids)]] = 100.0
        return output

    generator.model.forward = says  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("text", "end", "stop", "told"),
    [
        ("abc", True, (), Generation("abc", True, 4)),
        ("abcdefgh", False, (), Generation("abcdefgh", False, 8)),
        ("ab### Reques", True, ("### R",), Generation("ab", True, 7)),
        ("ab\n\ncd", True, ("cd", "\n\n"), Generation("ab", True, 4)),
        ("日本", True, (), Generation("日本", True, 7)),
    ],
)
def test_how_texts_end(text: str, end: bool, stop: tuple[str, ...], told: Generation) -> None:
    generator = local()
    saying(generator, text, end)
    sampling = Sampling(max_new_tokens=8, stop=stop)
    assert generator.generate(Call(PROMPTS, sampling, 0)) == [told] * 3


def test_chat_and_plain_prompts_are_read_differently() -> None:
    sampling = Sampling(temperature=0, max_new_tokens=8)
    chat, plain = local(chat=True), local()
    assert chat.generate(Call(PROMPTS, sampling, 0)) != plain.generate(Call(PROMPTS, sampling, 0))
    assert chat._ids(["Hi"])[0] == chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        TransformersGenerator(tiny_model(), bare, chat=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        local(batch_size=0)


def test_its_identity_is_what_it_would_say() -> None:
    same = {local().identity() for _ in range(2)}
    others = {local(chat=True).identity(), TransformersGenerator(tiny_model(1), tiny_tokenizer()).identity(),
              TransformersGenerator(tiny_model().bfloat16(), tiny_tokenizer()).identity()}  # fmt: skip
    assert len(same) == 1
    assert len(same | others) == 4


def test_what_does_not_fit_is_refused_before() -> None:
    generator = local()
    generator.refuse_too_long([], Sampling())
    generator.refuse_too_long(["a" * 100], Sampling(max_new_tokens=412))
    with pytest.raises(ValueError, match=r"100 tokens, its answer up to 413, and the model reads 512.*compact"):
        generator.refuse_too_long(["a", "a" * 100], Sampling(max_new_tokens=413))


def test_no_run_of_tokens_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, rows = local(), []
    read = generator._read
    monkeypatch.setattr(generator, "_read", lambda row, *given: rows.append(row) or read(row, *given))
    for size in (0, 2):
        generator.generate(Call(("aaaa",), Sampling(temperature=0, max_new_tokens=120, no_repeat_ngram_size=size), 0))
    repeated = [len(row) - 1 - len(set(itertools.pairwise(row))) for row in rows]
    assert repeated[0] > 0
    assert repeated[1] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("max_new_tokens", 0), ("stop", ("",)),
     ("no_repeat_ngram_size", -2)],
)  # fmt: skip
def test_unsound_sampling(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"You set {name}="):
        Sampling(**{name: value})


# Kept calls


def calls(count: int, size: int = 2) -> list[Call]:
    return plan_calls([f"prompt {i}" for i in range(count)], Sampling(), 7, size)


def test_plans_are_the_same_however_often_they_are_made() -> None:
    plan = calls(5)
    assert plan == calls(5)
    assert [call.prompts for call in plan] == [("prompt 0", "prompt 1"), ("prompt 2", "prompt 3"), ("prompt 4",)]
    assert len({call.seed for call in plan}) == 3
    assert len({call.digest("a") for call in plan} | {call.digest("b") for call in plan}) == 6


@given(st.text(), st.text(), st.integers(0, 2**60))
def test_digests_tell_calls_apart(one: str, other: str, seed: int) -> None:
    first, second = (Call((text,), Sampling(), seed) for text in (one, other))
    assert (first.digest("x") == second.digest("x")) == (one == other)
    assert derived_seed(one, seed) == derived_seed(one, seed)
    assert 0 <= derived_seed(one, seed) < 2**63


def test_a_kept_call_is_not_made_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str, seed: int, place: int) -> str:
        asked.append(prompt)
        return f"{prompt} {seed} {place} ünï\ud800"

    first = list(CallCache(ScriptedGenerator(answer), tmp_path).run(calls(5)))
    assert [len(texts) for texts in first] == [2, 2, 1]
    assert first[0][0].text == f"prompt 0 {calls(5)[0].seed} 0 ünï?", "what cannot be written is replaced"
    cache = CallCache(ScriptedGenerator(answer), tmp_path)
    assert list(cache.run(calls(5))) == first
    assert (len(asked), cache.made) == (5, 0)
    other = CallCache(ScriptedGenerator(answer, name="another"), tmp_path)
    list(other.run(calls(5)))
    assert other.made == 3


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str, seed: int, place: int) -> str:
        if prompt == "prompt 3" and len(asked) < 4:
            raise KeyboardInterrupt
        asked.append(prompt)
        return f"{prompt} {seed}"

    whole = list(CallCache(ScriptedGenerator(lambda p, s, i: f"{p} {s}"), tmp_path / "whole").run(calls(6)))
    cache = CallCache(ScriptedGenerator(answer), tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        list(cache.run(calls(6)))
    assert asked == ["prompt 0", "prompt 1", "prompt 2"], "the second call was cut short"
    asked.append("begun anew")
    assert list(cache.run(calls(6))) == whole
    assert asked[4:] == ["prompt 2", "prompt 3", "prompt 4", "prompt 5"], "the first one was kept"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"generations": [{"text": 1}]}', '{"generations": []}'])
def test_a_damaged_file_is_no_call(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = CallCache(ScriptedGenerator(lambda p, s, i: p), tmp_path)
    (call,) = calls(1)
    found = list(cache.run([call]))
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text())["call"]["prompts"] == ["prompt 0"]
    assert not caplog.text
    file.write_text(damage)
    assert cache.find(call) is None
    assert f"{file} is damaged" in caplog.text
    assert list(cache.run([call])) == found
    assert cache.find(call) == found[0]


def test_calls_run_side_by_side_and_come_in_order(tmp_path: Path) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def answer(prompt: str, seed: int, place: int) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05 if prompt.endswith("0") else 0.01)
        with lock:
            running -= 1
        return prompt

    cache = CallCache(ScriptedGenerator(answer, concurrency=3), tmp_path)
    found = [texts[0].text for texts in cache.run(calls(12, 1))]
    assert found == [f"prompt {i}" for i in range(12)]
    assert 1 < most <= 3


def test_a_failure_ends_the_run_and_begins_no_more(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str, seed: int, place: int) -> str:
        asked.append(prompt)
        if prompt == "prompt 1":
            raise GeneratorError("the server is gone")
        time.sleep(0.02)
        return prompt

    cache = CallCache(ScriptedGenerator(answer, concurrency=2), tmp_path)
    with pytest.raises(GeneratorError, match="gone"):
        list(cache.run(calls(40, 1)))
    assert len(asked) < 12

    class Short(ScriptedGenerator):
        def generate(self, call: Call) -> list[Generation]:
            return super().generate(call)[:-1]

    with pytest.raises(ValueError, match="1 texts for 2 prompts"):
        list(CallCache(Short(lambda p, s, i: p), tmp_path / "short").run(calls(2)))


def test_a_script() -> None:
    script = ScriptedGenerator(lambda p, s, i: Generation(f"{p} END more", False, 3), context=6)
    assert script.generate(Call(("a",), Sampling(stop=("END",)), 0)) == [Generation("a ", True, 3)]
    assert script.generate(Call(("a",), Sampling(), 0)) == [Generation("a END more", False, 3)]
    prompts: Sequence[str] = ["one two", "one two three four"]
    with pytest.raises(ValueError, match="4 words, its answer up to 3, and 6 fit"):
        script.refuse_too_long(prompts, Sampling(max_new_tokens=3))
