"""Which judge a text means, and what is said when it means none."""

import sys
from pathlib import Path

import pytest

import hf_lifealign
from hf_lifealign.judges import bleu_4, compliance, refusal, resolve_judge, rouge_l
from hf_lifealign.strategies import JUDGES, available, load

MODULE = """
from hf_lifealign import KeywordJudge

def even(prompts, answers, references):
    return [float(len(answer) % 2 == 0) for answer in answers]

class Kind:
    judge = KeywordJudge(["please"])

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "some_judges.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_judges"
    sys.modules.pop("some_judges", None)


@pytest.mark.parametrize(
    ("name", "judge"),
    [("rouge_l", rouge_l), ("bleu_4", bleu_4), ("refusal", refusal), ("compliance", compliance)],
)
def test_names_of_installed_judges(name: str, judge) -> None:
    assert resolve_judge(name) is judge
    assert load(JUDGES, name) is judge, "as a lifelong run resolves it"


def test_callables_are_left_as_they_are() -> None:
    def mine(prompts, answers, references):
        return [1.0 for _ in answers]

    assert resolve_judge(mine) is mine
    keyword = hf_lifealign.KeywordJudge(["a"])
    assert hf_lifealign.resolve_judge(keyword) is keyword


def test_functions_and_objects_of_modules(module: str) -> None:
    assert resolve_judge(f" {module}:even ")(["?"] * 2, ["ab", "a"], [""] * 2) == [1.0, 0.0]
    assert resolve_judge(f"{module}:Kind.judge")(["?"], ["please!"], [""]) == [1.0]
    for spec, error, told in (
        (f"{module}:none", ImportError, r"You set the judge 'some_judges:none'\. The module some_judges has no none"),
        ("no_such_module:f", ImportError, "PYTHONPATH"),
        (f"{module}:number", ValueError, "of the type int and cannot be called"),
        (f"{module}:Kind", ValueError, r"the class Kind\..*pass Kind\(\.\.\.\), or write `judge = Kind\(\.\.\.\)`"),
    ):
        with pytest.raises(error, match=told):
            resolve_judge(spec)


def test_a_class_and_what_cannot_be_called_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pass KeywordJudge\(\.\.\.\)"):
        resolve_judge(hf_lifealign.KeywordJudge)
    for spec in (None, 3, ["refusal"]):
        with pytest.raises(ValueError, match="cannot be called"):
            resolve_judge(spec)


def test_a_class_of_an_installed_package_is_refused_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from hf_lifealign.strategies import registry

    point = EntryPoint("word", "hf_lifealign.judges:KeywordJudge", JUDGES)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(ValueError, match=r"It is hf_lifealign\.judges:KeywordJudge of an installed package"):
        resolve_judge("word")


@pytest.mark.parametrize("spec", ["refusel", "", "a/b", "a:b:c", "what is this?"])
def test_what_is_none_of_these_is_told_the_names(spec: str) -> None:
    with pytest.raises(ValueError, match=r"A function of your own is named 'package\.module:function'") as caught:
        resolve_judge(spec)
    assert str(sorted(available(JUDGES))) in str(caught.value)
    assert ("Did you mean 'refusal'?" in str(caught.value)) == (spec == "refusel")
