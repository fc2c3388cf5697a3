"""Judges of a life's answers that are named as `package.module:function`: found, and measured under a legal name."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.life import tiny_life, tiny_stream
from support.vowel_judge import has_vowel

from hf_lifealign import LifelongConfig
from hf_lifealign._files import read_json
from hf_lifealign.judges import refusal
from hf_lifealign.lifelong.examiner import Examiner

MODULE = """
from hf_lifealign import KeywordJudge

def refusal(prompts, answers, references):
    return [1.0 for _ in answers]

def margin(prompts, answers, references):
    return [1.0 for _ in answers]

unnamed = lambda prompts, answers, references: [0.5 for _ in answers]

class Kinds:
    polite = KeywordJudge(["please"])
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "judges_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "judges_of_mine"
    sys.modules.pop("judges_of_mine", None)


def life(folder: Path, *specs: str, **settings: Any) -> Any:
    """A life of one task whose settings name these judges."""
    run = tiny_life(folder, stream=tiny_stream()[:1], warm_start=False, max_new_tokens=4, **settings)
    run.args.judges = LifelongConfig("unused", judges=list(specs)).judges
    run.examiner = Examiner(run, {})
    return run


def test_a_function_is_measured_under_its_name(tmp_path: Path) -> None:
    run = life(tmp_path, "support.vowel_judge:has_vowel", "refusal", training={"num_train_epochs": 1})
    assert run.examiner.judges == {"has_vowel": has_vowel, "refusal": refusal}
    matrix = run.train()
    assert {"has_vowel", "refusal"} < set(matrix["matrices"])
    assert 0 <= matrix["matrices"]["has_vowel"][0][0] <= 1
    assert run.state.content["settings"]["judges"] == ["has_vowel", "refusal"]
    assert "### has_vowel" in (tmp_path / "report.md").read_text()
    published = read_json(tmp_path / "adapters" / "01-one" / "slmc" / "run.json")
    assert published["settings"]["run"]["judges"] == ["support.vowel_judge:has_vowel", "refusal"]


def test_what_has_no_legal_name_of_its_own(tmp_path: Path, mine: str) -> None:
    judges = life(tmp_path, f"{mine}:unnamed", f" {mine}:Kinds.polite").examiner.judges
    assert list(judges) == ["unnamed", "polite"]
    assert judges["polite"](["?"], ["please"], [""]) == [1.0]
    run = life(tmp_path, f"{mine}:unnamed")
    run.args.metric = "unnamed"
    assert list(Examiner(run, {}).judges) == ["unnamed"], "it can be the metric"


def test_what_is_refused(tmp_path: Path, mine: str) -> None:
    for specs, error, why in (
        (
            ["refusal", f"{mine}:refusal"],
            ValueError,
            r"'refusal' and 'judges_of_mine:refusal', which are both measured",
        ),
        ([f"{mine}:margin"], ValueError, "may not be called"),
        ([f"{mine}:Kinds"], ValueError, "the class Kinds"),
        ([f"{mine}:none"], ImportError, "has no none"),
        (["no_such_judge"], ValueError, r"named 'package\.module:function'"),
    ):
        with pytest.raises(error, match=why):
            life(tmp_path, *specs)
    run = life(tmp_path, f"{mine}:unnamed")
    with pytest.raises(ValueError, match="named in the settings and passed as an object"):
        Examiner(run, {"unnamed": has_vowel})
