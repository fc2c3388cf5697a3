"""The shipped constitution, those of users, and the prompts that are made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.self_align.constitution import TEMPLATES, Constitution, load_constitution
from hf_lifealign.self_align.near_duplicates import NearDuplicateFilter
from hf_lifealign.self_align.rendering import NOTE, PRESETS, REPLY, REQUEST, Prompts

SHIPPED = load_constitution()


def written(folder: Path, content: Any) -> Path:
    file = folder / "file.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True))
    return file


def test_what_is_shipped() -> None:
    assert len(SHIPPED.principles) == 16
    assert len(SHIPPED.exemplars) == 5
    assert len(SHIPPED.seeds) >= 40
    assert len({seed.type for seed in SHIPPED.topics}) == 20
    assert all(p.negated and p.short and len(p.short) < len(p.text) for p in SHIPPED.principles)
    assert {p.name for p in SHIPPED.principles if p.may_decline} > {"ethical", "no live data"}
    assert all(len(seed.topic.split()) <= 3 for seed in SHIPPED.topics)
    assert set(SHIPPED.templates) == set(TEMPLATES)
    accepted = NearDuplicateFilter()
    for seed in [*SHIPPED.seeds, *(topic.question for topic in SHIPPED.topics)]:
        assert accepted.find(seed) is None, seed
        accepted.add(seed)


def test_its_digest_follows_all_of_it(tmp_path: Path) -> None:
    assert SHIPPED.digest() == load_constitution().digest()
    changed = [replace(SHIPPED, seeds=SHIPPED.seeds[1:]), replace(SHIPPED, topics=SHIPPED.topics[1:]),
               replace(SHIPPED, templates=SHIPPED.templates | {"tasks": "x"})]  # fmt: skip
    changed.append(replace(SHIPPED, principles=(replace(SHIPPED.principles[0], negated=""), *SHIPPED.principles[1:])))
    assert len({each.digest() for each in [SHIPPED, *changed]}) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_the_prompt_of_an_answer(preset: str) -> None:
    prompts = Prompts(SHIPPED, preset)
    text = prompts.respond("Why is it so {{loud}}?")
    assert text.endswith(f"{REQUEST} Why is it so {{{{loud}}}}?\n{NOTE}")
    kept = prompts.exemplars
    assert len(kept) == (5 if preset == "paper" else 2)
    for number, principle in enumerate(SHIPPED.principles, start=1):
        told = principle.text if preset == "paper" else principle.short
        assert f"{number} ({principle.name}): {told}\n" in text
    for exemplar in kept:
        assert f"{REQUEST} {exemplar.request}\n{NOTE} {exemplar.note}\n{REPLY} {exemplar.reply}\n" in text
    plain = prompts.respond("Why?", principles=False)
    assert plain.endswith(f"{REQUEST} Why?\n{REPLY}")
    assert NOTE not in plain
    assert not any(principle.short in plain or principle.text in plain for principle in SHIPPED.principles)


def test_numbers_in_notes_are_those_of_the_prompt() -> None:
    names = [principle.name for principle in SHIPPED.principles]
    for exemplar in SHIPPED.exemplars:
        for name in exemplar.principles:
            assert f"{names.index(name) + 1} ({name})" in exemplar.note


def test_the_other_prompts_end_where_the_model_goes_on() -> None:
    prompts = Prompts(SHIPPED)
    assert prompts.tasks(["One?", "Two!"], 7).endswith("1. One?\n2. Two!\n3.")
    assert "a list of 7 tasks" in prompts.tasks(["One?"], 7)
    assert prompts.topics("odd things", ["left shoe"]).endswith("1. left shoe\n2.")
    assert prompts.question("odd things", "left shoe", SHIPPED.topics[:1]).endswith(
        "Kind: odd things\nTopic: left shoe\nQuestion:"
    )


@given(st.text(min_size=1))
def test_a_request_is_data(text: str) -> None:
    assert Prompts(SHIPPED, "compact").respond(text).endswith(f"{REQUEST} {text}\n{NOTE}")


def test_a_constitution_of_ones_own(tmp_path: Path) -> None:
    own = [{"name": "short", "text": "I say little. Ünïcode!"}, {"name": "kind", "text": "I am kind.", "negated": "N"}]
    found = load_constitution({"principles": written(tmp_path, own), "exemplars": _exemplars(tmp_path)})
    assert [p.short for p in found.principles] == ["I say little. Ünïcode!", "I am kind."]
    assert found.exemplars[0].note == "2 (kind). Be kind."
    assert found.seeds == SHIPPED.seeds
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "respond.jinja").write_text("{{ request }} {{ principles | length }}{{ note_mark }}")
    changed = load_constitution({}, templates)
    assert Prompts(changed).respond("Hi") == f"Hi 16{NOTE}"
    assert changed.templates["tasks"] == SHIPPED.templates["tasks"]


def _exemplars(folder: Path) -> Path:
    file = folder / "exemplars.yaml"
    file.write_text("- {request: Hm, thoughts: Be kind., reply: Yes., principles: [kind]}")
    return file


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("principles", "a: b", "YAML list"),
        ("principles", [], "at least one entry"),
        ("principles", "- {", "cannot be read"),
        ("principles", [{"name": "a"}], "Entry 1 .* 'text' has to be a text"),
        ("principles", ["a"], "Entry 1 .* not an object"),
        ("principles", [{"name": "a", "text": "b", "shrt": "c"}], "'shrt'.* mean nothing"),
        ("principles", [{"name": "a", "text": "b"}] * 2, "several principles called"),
        ("principles", [{"name": "a", "text": "b", "may_decline": "yes"}], "may_decline.*true or false"),
        ("exemplars", [{"request": "a", "thoughts": "b", "reply": "c"}], "names of the principles"),
        ("exemplars", [{"request": "a", "thoughts": "b", "reply": "c", "principles": ["kind"]}], "'kind'"),
        ("seeds", ["Fine task", {"What": "now"}], "Entry 2 .* quotes if it has a colon"),
        ("topics", [{"type": "a", "topic": "b"}], "'question' has to be a text"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, name: str, content: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        load_constitution({name: written(tmp_path, content)})
    assert "file.yaml" in str(raised.value)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['rules'\].*'principles'"):
        load_constitution({"rules": tmp_path})
    with pytest.raises(ValueError, match="cannot be read"):
        load_constitution({"seeds": tmp_path / "none.yaml"})
    with pytest.raises(ValueError, match="which is none"):
        load_constitution({}, tmp_path / "nowhere")
    (tmp_path / "answer.jinja").write_text("")
    with pytest.raises(ValueError, match=r"answer\.jinja.*respond\.jinja"):
        load_constitution({}, tmp_path)
    with pytest.raises(ValueError, match="preset='short'"):
        Prompts(SHIPPED, "short")
    unmarked: Constitution = replace(SHIPPED, exemplars=(replace(SHIPPED.exemplars[0], compact=False),))
    with pytest.raises(ValueError, match="compact: true"):
        Prompts(unmarked, "compact")
    for source, told in (("{% for %}", "no sound Jinja"), ("{{ nothing }}", "cannot be rendered"),
                         ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered")):  # fmt: skip
        broken = replace(SHIPPED, templates=SHIPPED.templates | {"tasks": source})
        with pytest.raises(ValueError, match=told):
            Prompts(broken).tasks([])
