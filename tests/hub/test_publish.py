"""Publishing a run: what lies in the repository afterwards, and what a second push, another run, or a re-run does."""

import json
from pathlib import Path

import pytest
from support.hub_server import HubServer
from support.life import tiny_life, tiny_stream

from hf_lifealign.hub.publish import PushOptions, push_run

TAGS = ["task-01-one", "task-02-two", "task-03-three"]
FILES = {
    ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "matrix.json", "matrix.png",
    "slmc/lineage.json", "slmc/memory.json", "slmc/memory.safetensors", "slmc/run.json",
}  # fmt: skip


def test_one_commit_and_one_tag_for_each_task(hub: HubServer, remote, life: Path, options) -> None:
    sent = push_run(life, remote(), options)
    repo = hub.repo("me/life")
    assert [item.tag for item in sent] == TAGS
    assert [repo.tags[tag] for tag in TAGS] == [item.commit for item in sent]
    assert repo.head == sent[-1].commit
    history = repo.history("main")
    assert [commit.title for commit in history[1:]] == ["Task 01-one", "Task 02-two", "Task 03-three"]
    for tag in TAGS:
        assert set(repo.files(tag)) == FILES


def test_every_revision_is_complete_in_itself(hub: HubServer, remote, life: Path, options) -> None:
    push_run(life, remote(), options)
    repo = hub.repo("me/life")
    for number, tag in enumerate(TAGS, start=1):
        files = repo.files(tag)
        label = tag.removeprefix("task-")
        weights = (life / "adapters" / label / "adapter_model.safetensors").read_bytes()
        assert files["adapter_model.safetensors"] == weights
        assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"
        matrix = json.loads(files["matrix.json"])
        assert matrix["tasks"] == ["one", "two", "three"][:number]
        assert len(matrix["matrices"]["preference_accuracy"]) == number
        lineage = json.loads(files["slmc/lineage.json"])
        assert [entry["tag"] for entry in lineage["log"]] == TAGS[:number]
        parent = lineage["log"][-1]["parent"]
        if number == 1:
            assert parent is None
        else:
            assert (parent["tag"], parent["commit"]) == (TAGS[number - 2], repo.tags[TAGS[number - 2]])
        # later tasks are not named in an earlier revision
        assert "three" not in json.dumps(json.loads(files["slmc/run.json"])) or number == 3


def test_pushing_again_sends_nothing(hub: HubServer, remote, life: Path, options) -> None:
    first = push_run(life, remote(), options)
    before = hub.repo("me/life").snapshot()
    hub.requests.clear()
    again = push_run(life, remote(), options)
    assert [(item.tag, item.commit, item.fresh) for item in again] == [(i.tag, i.commit, False) for i in first]
    assert hub.repo("me/life").snapshot() == before
    assert {request.step for request in hub.requests} <= {"refs", "paths_info", "resolve_head", "resolve_get", "tree"}
    # and from another copy of the folder, which knows nothing of the first push
    (life / "outbox" / "sent.json").unlink()
    assert [item.fresh for item in push_run(life, remote(), options)] == [False] * 3


def test_what_is_private_stays(hub: HubServer, remote, life: Path, options) -> None:
    """Checkpoints, optimizers, reference adapters and the rows of the replay buffer."""
    folder = life / "adapters" / "02-two"
    for name in ("ref/adapter_model.safetensors", "checkpoint-3/optimizer.pt", "optimizer.pt", "training_args.bin",
                 "slmc/notes.txt"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"private")
    push_run(life, remote(), options)
    for tag in TAGS:
        assert set(hub.repo("me/life").files(tag)) == FILES


@pytest.mark.parametrize("push_replay", ["none", "ids", "rows"])
def test_replay_rows_are_published_as_asked(hub: HubServer, remote, life: Path, waits, push_replay) -> None:
    push_run(life, remote(), PushOptions(push_replay=push_replay, sleep=waits.append))
    files = hub.repo("me/life").files("task-02-two")
    names = sorted(name for name in files if name.startswith("slmc/strategies"))
    if push_replay == "none":
        assert names == []
        assert "not published" in files["README.md"].decode()
        return
    assert names == ["slmc/strategies/replay/01-one.json", "slmc/strategies/replay/02-two.json"]
    content = json.loads(files[names[0]])
    assert ("rows" in content) == (push_replay == "rows")
    assert content["row_indices"]
    every = b"".join(files.values())
    assert (b"item 3?" in every or b"item 5?" in every or b"item 1" in every) == (push_replay == "rows")


def test_a_second_run_is_appended_under_its_own_tags(hub: HubServer, remote, life: Path, tmp_path, options) -> None:
    push_run(life, remote(), options)
    before = hub.repo("me/life").tags.copy()
    tiny_life(tmp_path / "other", stream=tiny_stream()[:2], warm_start=False, seed=1).train()
    sent = push_run(tmp_path / "other", remote(), options)
    assert [item.tag for item in sent] == ["task-01-one.2", "task-02-two.2"]
    repo = hub.repo("me/life")
    assert {tag: repo.tags[tag] for tag in before} == before
    log = json.loads(repo.files("main")["slmc/lineage.json"])["log"]
    assert [entry["tag"] for entry in log] == [*TAGS, "task-01-one.2", "task-02-two.2"]
    assert [entry["parent"] and entry["parent"]["tag"] for entry in log] == [
        None, "task-01-one", "task-02-two", None, "task-01-one.2",
    ]  # fmt: skip


def test_the_same_life_lived_elsewhere_is_the_same(hub: HubServer, remote, life: Path, tmp_path, options) -> None:
    """Content decides: dates, durations and the folder do not."""
    push_run(life, remote(), options)
    tiny_life(tmp_path / "twin", warm_start=False).train()
    assert [item.fresh for item in push_run(tmp_path / "twin", remote(), options)] == [False] * 3
    assert len(hub.repo("me/life").history("main")) == 4


def test_a_model_of_another_making_is_not_overwritten(hub: HubServer, remote, life: Path, options) -> None:
    remote().create(private=False)
    hub.elsewhere("me/life", {"adapter_model.safetensors": b"someone's"})
    before = hub.repo("me/life").snapshot()
    with pytest.raises(RuntimeError, match="Choose another repository"):
        push_run(life, remote(), options)
    assert hub.repo("me/life").snapshot() == before


def test_files_of_others_stay(hub: HubServer, remote, life: Path, options) -> None:
    push_run(life, remote(), options)
    hub.elsewhere("me/life", {"demo/notes.md": b"by hand"})
    (life / "adapters" / "03-three" / "matrix.json").write_text(
        (life / "adapters" / "03-three" / "matrix.json").read_text().replace('"metric"', '"metric" ')
    )
    config = life / "adapters" / "03-three" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_dropout": 0.5}))
    sent = push_run(life, remote(), options)
    assert [item.tag for item in sent] == [*TAGS[:2], "task-03-three.2"]
    assert hub.repo("me/life").files("main")["demo/notes.md"] == b"by hand"


@pytest.mark.parametrize("repo_id", ["a/b/c", "", "me/", "/x", "me/..", "me/x.git", "me/a--b", "me/x y"])
def test_impossible_names_are_refused(repo_id: str) -> None:
    from hf_lifealign.hub.remote import check_repo_id

    with pytest.raises(ValueError, match="owner/name"):
        check_repo_id(repo_id)


def test_a_bare_name_lies_in_the_users_namespace(hub: HubServer, remote, life: Path, options) -> None:
    push_run(life, remote("only-a-name"), options)
    assert set(hub.repo("me/only-a-name").tags) == set(TAGS)
