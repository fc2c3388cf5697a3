"""Finished stages on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_lifealign.self_align.stages.outcome import GaveUpError, Outcome
from hf_lifealign.self_align.store import StageStore

MADE_OF = {"settings": {"self_instruct": 3, "stop": ("a",)}, "constitution": "abc"}


def outcome(**told: Any) -> Outcome:
    made = Outcome(rows=[{"prompt": "Où?"}, {"prompt": "今日"}], asides=[{"note": "n"}], told={"kept": 2, **told})
    made.drop("x\ny", "too_short", source="a")
    made.drop("z", "too_short", source="b")
    made.drop("", "empty", source="a")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stage_is_found_again(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    assert not store.finished("prompts", MADE_OF)
    with pytest.raises(ValueError, match="has left no rows"):
        store.rows("prompts")
    store.write("prompts", outcome(), MADE_OF)
    assert store.finished("prompts", MADE_OF)
    assert store.rows("prompts") == outcome().rows
    manifest = store.manifest("prompts")
    assert (manifest["rows"], manifest["dropped"]) == (2, 3)
    assert manifest["reasons"] == {"too_short": 2, "empty": 1}
    dropped = [json.loads(line) for line in (tmp_path / "prompts" / "dropped.jsonl").read_text().splitlines()]
    assert dropped[0] == {"text": "x\ny", "reason": "too_short", "source": "a"}
    first = contents(tmp_path / "prompts")
    assert set(first) == {"rows.jsonl", "dropped.jsonl", "notes.jsonl", "manifest.json"}
    store.write("prompts", outcome(), MADE_OF)
    assert contents(tmp_path / "prompts") == first, "to the last byte"


def test_what_was_made_otherwise_is_not_taken(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    store.write("prompts", outcome(), MADE_OF)
    with pytest.raises(ValueError, match=r"other constitution, seed\..*--from-stage prompts"):
        store.finished("prompts", MADE_OF | {"constitution": "d", "seed": 1})
    rows = tmp_path / "prompts" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Où", "Ou"))
    with pytest.raises(ValueError, match="were changed since"):
        store.finished("prompts", MADE_OF)
    rows.write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match=r"Line 2 .* is no object"):
        store.rows("prompts")
    rows.write_text("{\n")
    with pytest.raises(ValueError, match=r"Line 1 .* not valid JSON"):
        store.rows("prompts")


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    store.write("prompts", outcome(), MADE_OF)
    before = contents(tmp_path / "prompts")
    with pytest.raises(TypeError):
        store.write("prompts", outcome(bad=object()), MADE_OF)
    assert contents(tmp_path / "prompts") == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))))
def test_any_text_comes_back(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    store = StageStore(tmp_path)
    store.write("any", Outcome(rows=rows), {})
    assert store.rows("any") == rows
    assert store.finished("any", {})


def test_reasons_are_told_when_a_stage_gives_up() -> None:
    error = GaveUpError("Self-instruct", 1, 9, 40, outcome(), source="a")
    assert "1 of 9 accepted after 40 generations. Dropped: empty 1, too_short 1." in str(error)
    assert "Dropped: none" in str(GaveUpError("x", 0, 1, 1, Outcome()))
