"""A life goes on elsewhere, from the Hub alone, and ends as if it had never moved; or says in what it differs."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from lifelong.test_kill_and_resume import timeless
from support.hub_server import HubServer
from support.life import slmc, tiny_life, tiny_stream
from support.tiny import preference_dataset

from hf_lifealign import Task, TaskStream
from hf_lifealign.hub.publish import PushOptions, push_run
from hf_lifealign.slmc import Memory

SAME = ["adapter_model.safetensors", "slmc/memory.safetensors"]


@pytest.fixture
def push(hub: HubServer, remote, life: Path, waits) -> Any:
    """Publishes the finished life: `push("rows")`."""

    def publish(push_replay: Any = "none") -> None:
        push_run(life, remote(), PushOptions(push_replay=push_replay, sleep=waits.append))

    return publish


def assert_same_end(moved: Path, never_moved: Path) -> None:
    for name in SAME:
        ours, theirs = (root / "adapters" / "03-three" / name for root in (moved, never_moved))
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = (Memory.load(root / "adapters" / "03-three" / "slmc") for root in (moved, never_moved))
    assert timeless(ours.entries) == timeless(theirs.entries)
    ours, theirs = (json.loads((root / "matrix.json").read_text()) for root in (moved, never_moved))
    assert ours == theirs


@pytest.mark.parametrize("push_replay", ["rows", "ids", "none"])
def test_it_ends_as_if_it_had_never_moved(push, life: Path, tmp_path: Path, push_replay: str, caplog) -> None:
    """With the whole stream at hand the buffer is drawn again from the same seed, even if nothing of it was pushed."""
    push(push_replay)
    with caplog.at_level(logging.WARNING):
        moved = tiny_life(tmp_path / "moved", warm_start=False, continue_from="me/life@task-02-two")
        moved.train()
    assert_same_end(moved.directory.root, life)
    assert moved.state.content["notes"] == []
    assert sorted(path.name for path in (tmp_path / "moved" / "adapters").iterdir()) == ["03-three"]
    # and once more: a finished run asks nobody
    shutil.rmtree(tmp_path / "hub-cache")
    again = tiny_life(tmp_path / "moved", warm_start=False, continue_from="me/life@task-02-two")
    assert again.train() == json.loads((life / "matrix.json").read_text())


def test_the_resolved_commit_stands_in_the_lineage(push, hub: HubServer, remote, tmp_path: Path, options) -> None:
    push("rows")
    commit = hub.repo("me/life").tags["task-02-two"]
    for revision in ("task-02-two", commit):
        folder = tmp_path / f"moved-{revision}"
        moved = tiny_life(folder, warm_start=False, continue_from=f"me/life@{revision}", seed=5)
        moved.train()
        push_run(folder, remote("me/other"), options)
    files = hub.repo("me/other").files("main")
    log = json.loads(files["slmc/lineage.json"])["log"]
    parent = {"repo": "me/life", "tag": "task-02-two", "commit": commit}
    assert {key: log[-1]["parent"][key] for key in parent} == parent
    assert len(log) == 1, "both ways lead to the same content, which is published once"
    assert "was 42, is 5" in files["README.md"].decode()


def test_new_tasks_alone(push, life: Path, tmp_path: Path, hub: HubServer, remote, options) -> None:
    """The data of the earlier tasks is not at hand: with their rows from the Hub the weights are the same."""
    push("rows")
    new = tiny_life(
        tmp_path / "new", stream=tiny_stream()[2:], warm_start=False, continue_from="me/life@task-02-two"
    )  # fmt: skip
    matrix = new.train()
    assert matrix["tasks"] == ["three"]
    assert new.state.content["notes"] == []
    for name in SAME:
        ours, theirs = (root / "adapters" / "03-three" / name for root in (tmp_path / "new", life))
        assert ours.read_bytes() == theirs.read_bytes()
    sent = push_run(tmp_path / "new", remote(), options)
    # measured on less than the published one, so it is another revision, after the same parent
    assert [item.tag for item in sent] == ["task-03-three.2"]
    log = json.loads(hub.repo("me/life").files("main")["slmc/lineage.json"])["log"]
    assert log[-1]["parent"]["tag"] == "task-02-two"
    assert log[-1]["parent"]["repo"] is None
    # and on from there, once more with new tasks only
    four = TaskStream([Task("four", preference_dataset(8, start=200), preference_dataset(4, start=300))])
    last = tiny_life(tmp_path / "last", stream=four, warm_start=False, continue_from="me/life@task-03-three.2")
    last.train()
    assert [path.name for path in (tmp_path / "last" / "adapters").iterdir()] == ["04-four"]
    with pytest.raises(ValueError, match="not all of them were measured"):
        tiny_life(tmp_path / "whole", warm_start=False, continue_from="me/life@task-03-three.2")


def test_what_will_differ_is_said(push, tmp_path: Path, caplog) -> None:
    push("none")
    with caplog.at_level(logging.WARNING):
        new = tiny_life(
            tmp_path / "new", stream=tiny_stream()[2:], warm_start=False, continue_from="me/life@task-02-two", seed=3,
            training={"learning_rate": 3e-3},
        )  # fmt: skip
        new.train()
    notes = new.state.content["notes"]
    for words in ("run.seed: was 42, is 3", "learning_rate", "'one' is not replayed", "'two' is not replayed"):
        assert any(words in note for note in notes), words
        assert words in caplog.text
    record = json.loads((tmp_path / "new" / "adapters" / "03-three" / "slmc" / "run.json").read_text())
    assert record["notes"] == notes


def test_other_rows_under_the_same_ids_are_noticed(push, tmp_path: Path) -> None:
    push("ids")
    stream = tiny_stream()
    other = [Task("one", preference_dataset(12, start=500), preference_dataset(6, start=20)), *list(stream)[1:]]
    moved = tiny_life(
        tmp_path / "moved", stream=TaskStream(other), warm_start=False, continue_from="me/life@task-02-two"
    )  # fmt: skip
    moved.train()
    notes = " ".join(moved.state.content["notes"])
    assert "The rows at hand for the task 'one' are not those of its training" in notes
    assert "'one' has other rows than when it was trained" in notes


def test_from_a_folder_of_another_run(life: Path, tmp_path: Path) -> None:
    folder = str(life / "adapters" / "02-two")
    moved = tiny_life(tmp_path / "moved", warm_start=False, continue_from=folder)
    moved.train()
    assert_same_end(moved.directory.root, life)
    assert str(life) not in (tmp_path / "moved" / "adapters" / "03-three" / "slmc" / "run.json").read_text()


def test_what_cannot_go_on_is_refused(push, tmp_path: Path) -> None:
    push("none")
    go_on = {"warm_start": False, "continue_from": "me/life@task-02-two"}
    with pytest.raises(ValueError, match=r"lora_dropout|r: was 4, is 2"):
        tiny_life(tmp_path / "a", peft_config=slmc(r=2), **go_on).train()
    with pytest.raises(ValueError, match="Give all of them first and in that order"):
        tiny_life(tmp_path / "b", stream=tiny_stream()[1:], **go_on)
    with pytest.raises(ValueError, match="measured by the judges"):
        tiny_life(tmp_path / "c", judges={"length": lambda p, a, r: [float(len(x)) for x in a]}, **go_on).train()
    with pytest.raises(RuntimeError, match="no such revision"):
        tiny_life(tmp_path / "d", warm_start=False, continue_from="me/life@task-09-none")
    with pytest.raises(RuntimeError, match="no such repository"):
        tiny_life(tmp_path / "e", warm_start=False, continue_from="me/nothing")
    assert not any((tmp_path / name).exists() for name in "de")
    run = tiny_life(tmp_path / "f", **go_on)
    run.train()
    with pytest.raises(ValueError, match="goes on from 'me/life@task-02-two'"):
        tiny_life(tmp_path / "f", warm_start=False, continue_from="me/life@task-01-one")
    with pytest.raises(ValueError, match="goes on from another life"):
        tiny_life(tmp_path / "f", warm_start=False)
