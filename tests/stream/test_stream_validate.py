"""Validation of a whole stream: names, collected problems, overlaps within and between tasks, the report."""

import json
import re

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.stream import StreamError, StreamReport, Task, TaskStream
from hf_lifealign.stream.task import name_fault


@given(st.text(max_size=70) | st.from_regex(r"[A-Za-z0-9._-]{1,66}", fullmatch=True))
def test_names_that_pass_are_safe_folder_names(name):
    if name_fault(name) is None:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)
        assert ".." not in name
        assert not name.endswith((".", ".lock"))
        assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{4,63}", fullmatch=True))
def test_plain_names_pass(name):
    assert name_fault(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        "../up",
        "a/b",
        "a\\b",
        "-a",
        "_a",
        ".a",
        "a b",
        "ä",
        "a\n",
        "a" * 65,
        "con",
        "COM3.txt",
        "a.",
        "nul",
        "x.lock",
        2024,
        None,
    ],
)
def test_unsafe_names_are_refused(task, refusal, name):
    message = refusal(task(name=name))
    assert f"You set name with {name!r}." in message
    assert re.search(r"Call it '[A-Za-z0-9][A-Za-z0-9._-]*', say\.", message)


def test_names_that_meet_in_one_folder(task, refusal):
    message = refusal(task("safe"), task("SAFE"), task("b"), task("safe"))
    assert "You set the name of task 1 with 'SAFE'. Task 0 is called 'safe': the same folder on Windows" in message
    assert "You set the name of task 3 with 'safe'. Task 0 is called 'safe': the same name." in message
    assert "Call one of them 'SAFE-2', say." in message


def test_all_cheap_problems_come_together_and_before_any_loading(write, task, monkeypatch):
    monkeypatch.setattr(Task, "load", lambda self: pytest.fail("data was loaded before the cheap checks were done"))
    tasks = [
        task("a b", max_train=0, seed="x", drop_overlap="no"),
        task(
            "ok", train="missing.jsonl", test=write("empty.json", ""), columns={"x": "y"}, max_test=True, description=3
        ),
    ]
    with pytest.raises(StreamError) as caught:
        TaskStream(tasks).validate()
    assert [(problem.task, problem.split) for problem in caught.value.problems] == [
        *[("a b", None)] * 4,
        ("ok", "train"),
        ("ok", "test"),
        *[("ok", None)] * 3,
    ]
    text = str(caught.value)
    assert text.startswith("The task stream has 9 problems:\n  1. [a b] You set name with 'a b'.")
    assert "You set max_train with 0. No split has that many rows. Set a whole number of at least 1" in text
    assert "You set seed with 'x'. A seed is a whole number. Set e.g. seed: 0." in text


def test_problems_of_the_rows_of_all_tasks_come_together(task):
    with pytest.raises(StreamError) as caught:
        TaskStream([task("a", train=[{"x": 1}], test=[{"y": 1}]), task("b"), task("c", test=[{"z": 1}])]).validate()
    assert [(problem.task, problem.split) for problem in caught.value.problems] == [
        ("a", "train"),
        ("a", "test"),
        ("c", "test"),
    ]
    with pytest.raises(StreamError, match="There is nothing to learn"):
        TaskStream([]).validate()


@pytest.fixture
def leaky(task, texts):
    """Test row 0 stands in train as a whole (but for whitespace), test row 1 by its prompt alone, test row 2 not."""
    train, test = texts(5), texts(3, 100)
    test[0] = {key: f"  {text.replace(' ', '  ')}\n" for key, text in train[3].items()}
    test[1]["prompt"] = train[1]["prompt"]
    return lambda name="safe", **fields: task(name, **{"train": train, "test": test, **fields})


def test_overlap_is_counted_apart_and_warned_about(leaky):
    report = TaskStream([leaky()]).validate()
    overlap = report.tasks["safe"].overlap
    assert (overlap.exact, overlap.prompt_only) == ((0,), (1,))
    assert report.warnings == (
        "safe, test rows of safe stand in its own train split: 1 as whole rows (row 0), "
        "1 by their prompt alone (row 1). Set drop_overlap to take them out of train.",
    )
    assert report.tasks["safe"].dropped_overlap == 0


def test_overlap_can_be_an_error(leaky, refusal):
    message = refusal(leaky("Safe"), on_overlap="error")
    assert "[Safe, test] You set on_overlap with 'error'. Test rows of Safe stand in its own train split" in message
    assert "Set drop_overlap: true" in message
    with pytest.raises(ValueError, match="Set 'warn' to report overlaps or 'error' to refuse them"):
        TaskStream([leaky()]).validate(on_overlap="raise")  # type: ignore[arg-type]


def test_dropped_rows_leave_train_before_the_subset_is_drawn(leaky, texts):
    report = TaskStream([leaky(drop_overlap=True)]).validate(on_overlap="error")
    assert not report.warnings
    assert report.tasks["safe"].dropped_overlap == 2
    loaded = leaky(drop_overlap=True).load()
    assert loaded.train_ids == [0, 2, 4]
    assert loaded.train.to_list() == [texts(5)[index] for index in (0, 2, 4)]
    # The whole test split counts, whatever max_test keeps of it.
    cut = leaky(drop_overlap=True, max_train=2, max_test=1).load()
    assert len(cut.train_ids) == 2
    assert set(cut.train_ids) <= {0, 2, 4}
    assert cut.train.to_list() == [texts(5)[index] for index in cut.train_ids]


def test_dropping_everything_is_refused(task, texts, refusal):
    message = refusal(task(train=texts(3), test=texts(3), drop_overlap=True))
    assert "Every one of the 3 train rows has a prompt that stands in test, so none is left." in message


def test_overlap_between_tasks(task, texts, refusal):
    tasks = [task("a", test=texts(1, 7)), task("b", train=texts(3, 6)), task("c", train=texts(2, 20))]
    report = TaskStream(tasks).validate()
    cross = [(o.test_task, o.train_task, o.exact, o.prompt_only) for o in report.cross_overlaps]
    assert cross == [("a", "b", (0,), ())]
    assert report.warnings == ("test rows of a stand in the train split of b: 1 as whole rows (row 0).",)
    message = refusal(*tasks, on_overlap="error")
    assert "Remove those rows from the train source of b, or set on_overlap='warn'." in message


def test_overlap_of_implicit_and_explicit_rows(task, dialogues):
    whole = [{k: row["prompt"] + row[k] for k in ("chosen", "rejected")} for row in dialogues(3)]
    assert TaskStream([task(train=whole, test=dialogues(1, 2))]).validate().tasks["safe"].overlap.exact == (0,)
    assert task(train=whole, test=dialogues(1, 2), drop_overlap=True).load().train_ids == [0, 1]


PAIRS = st.tuples(st.integers(0, 6), st.integers(0, 2), st.sampled_from([" ", "  ", "\n"]))


@settings(max_examples=25, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=12), st.lists(PAIRS, min_size=1, max_size=6))
def test_train_and_test_are_disjoint_after_dropping(train, test):
    splits = [
        Dataset.from_list([{"prompt": f"q{gap}{n}", "chosen": f"c{k}", "rejected": f"r{gap}{k}"} for n, k, gap in rows])
        for rows in (train, test)
    ]
    task = Task("a", *splits, drop_overlap=True)
    tested = {n for n, _, _ in test}
    expected = [index for index, (n, _, _) in enumerate(train) if n not in tested]
    if not expected:
        with pytest.raises(StreamError, match="none is left"):
            task.load()
        return
    assert task.load().train_ids == expected
    assert not TaskStream([task]).validate().overlaps


def test_the_report_is_readable_and_storable(leaky, task, dialogues):
    rows = dialogues(3, 30)
    rows[2]["chosen"] = rows[2]["rejected"]
    report = TaskStream([leaky(), task("talk", train=rows, test=dialogues(1, 99), max_train=2)]).validate()
    assert isinstance(report, StreamReport)
    text = str(report)
    assert re.search(r"^safe +test +3 +3 +standard .* 1\+1$", text, re.MULTILINE)
    assert re.search(r"^talk +train +2 +3 +conversational", text, re.MULTILINE)
    assert "Warnings:\n  - safe, test rows" in text
    stored = report.to_dict()
    assert json.loads(json.dumps(stored)) == stored
    assert stored["tasks"]["safe"]["splits"]["train"]["mean_prompt_chars"] == len("Question 0?")
    assert stored["tasks"]["safe"]["overlap"]["exact"] == [0]
    assert stored["tasks"]["talk"]["source_rows"] == {"train": 3, "test": 1}
