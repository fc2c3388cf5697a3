"""What a life that moves must not do: leak, mix, block a folder, lose a parent; and what it does with odd set-ups."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer
from support.life import swapped, tiny_life, tiny_stream
from support.tiny import preference_dataset, tiny_model

from hf_lifealign import Strategy, Task, TaskStream
from hf_lifealign._files import read_json, write_json
from hf_lifealign.hub.outbox import Outbox
from hf_lifealign.hub.publish import PushOptions, push_run

TWO = "me/life@task-02-two"


class Counter(Strategy):
    """Keeps one file that it writes anew after each task, as EWC would."""

    name = "counter"

    def __init__(self, api_key: str = "none") -> None:
        self.api_key = api_key

    def after_task(self, run: Any, task: str) -> None:
        path = run.strategy_file(self, "state.json")
        before = read_json(path)["tasks"] if path.is_file() else []
        write_json(path, {"tasks": [*before, task]})

    def state_files(self, run: Any) -> list[Path]:
        return [run.strategy_file(self, "state.json")]


def strategies(api_key: str = "none") -> list[Any]:
    return ["replay", "consolidation", Counter(api_key)]


def log(hub: HubServer, repo_id: str = "me/life") -> list[dict[str, Any]]:
    return json.loads(hub.repo(repo_id).files("main")["slmc/lineage.json"])["log"]


def test_a_strategys_state_is_that_of_its_task(hub: HubServer, remote, tmp_path: Path, options) -> None:
    """Pushed after each task or at the end: the same three tags, each with the state of its own time."""
    run = tiny_life(tmp_path / "run", warm_start=False, strategies=strategies())
    announce = run.publication.announce

    def pushing(label: str) -> None:
        announce(label)
        push_run(tmp_path / "run", remote("me/each"), options)

    run.publication.announce = pushing  # type: ignore[method-assign]
    run.train()
    push_run(tmp_path / "run", remote("me/life"), options)
    for repo_id in ("me/each", "me/life"):
        assert [entry["tag"] for entry in log(hub, repo_id)] == ["task-01-one", "task-02-two", "task-03-three"]
    state = json.loads(hub.repo("me/each").files("task-02-two")["slmc/strategies/counter/state.json"])
    assert state == {"tasks": ["one", "two"]}
    moved = tiny_life(tmp_path / "moved", warm_start=False, strategies=strategies(), continue_from=TWO)
    moved.train()
    assert read_json(tmp_path / "moved" / "counter" / "state.json") == {"tasks": ["one", "two", "three"]}


def test_a_state_that_cannot_be_published_is_refused(tmp_path: Path) -> None:
    class Dotted(Counter):
        name = "my.counter"

    with pytest.raises(ValueError, match=r"'my\.counter' keeps 'state\.json', which cannot be published"):
        tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False,
                  strategies=["consolidation", Dotted()]).train()  # fmt: skip


def test_secrets_in_settings_stay_secret_when_a_life_moves(hub: HubServer, remote, tmp_path: Path, options) -> None:
    tiny_life(
        tmp_path / "run", stream=tiny_stream()[:2], warm_start=False, strategies=strategies("first-s3cr3t")
    ).train()
    push_run(tmp_path / "run", remote(), options)
    moved = tiny_life(
        tmp_path / "moved", warm_start=False, strategies=strategies("other-s3cr3t"), continue_from="me/life"
    )  # fmt: skip
    moved.train()
    assert moved.state.content["notes"] == []
    push_run(tmp_path / "moved", remote(), options)
    for tag in hub.repo("me/life").tags:
        for content in hub.repo("me/life").files(tag).values():
            assert b"s3cr3t" not in content


def test_a_folder_with_a_run_is_not_taken_over(hub: HubServer, remote, life: Path, tmp_path: Path, options) -> None:
    push_run(life, remote(), options)
    with pytest.raises(ValueError, match="holds a run that began with the base"):
        tiny_life(life, warm_start=False, continue_from=TWO)
    # and that run goes on as it was
    tiny_life(life, warm_start=False).train()
    # a start that was refused blocks nothing
    from support.life import slmc

    with pytest.raises(ValueError, match="r: was 4, is 2"):
        tiny_life(tmp_path / "new", warm_start=False, continue_from=TWO, peft_config=slmc(r=2)).train()
    tiny_life(tmp_path / "new", warm_start=False, continue_from="me/life@task-01-one").train()


def test_all_tasks_measured_at_every_stage(hub: HubServer, remote, tmp_path: Path, options) -> None:
    """Results on later tasks are not published: they would be those of rows that nobody can compare."""
    tiny_life(tmp_path / "run", warm_start=False, evaluate_all_tasks=True).train()
    push_run(tmp_path / "run", remote(), options)
    assert b"three" not in hub.repo("me/life").files("task-01-one")["slmc/run.json"]
    other = Task("three", preference_dataset(12, start=800), swapped(preference_dataset(6, start=900)))
    moved = tiny_life(
        tmp_path / "moved", stream=TaskStream([*list(tiny_stream())[:2], other]), warm_start=False,
        evaluate_all_tasks=True, continue_from=TWO,
    )  # fmt: skip
    matrix = moved.train()
    rows = matrix["matrices"]["preference_accuracy"]
    assert [row[2] is None for row in rows] == [True, True, False]
    assert matrix["baseline"]["preference_accuracy"] == [0.5, 0.5, 0.5]
    summary = matrix["summary"]["preference_accuracy"]
    assert summary["forward_transfer"] is None
    assert summary["bwt"] is not None
    assert any("forward transfer" in note for note in moved.state.content["notes"])
    assert (tmp_path / "moved" / "report.md").is_file()


def test_another_base_is_refused_another_precision_is_not(hub: HubServer, remote, life, tmp_path, options) -> None:
    import torch

    push_run(life, remote(), options)
    go_on = {"warm_start": False, "continue_from": TWO}
    with pytest.raises(ValueError, match="The weights of your base"):
        tiny_life(tmp_path / "a", model=tiny_model(seed=1), **go_on).train()
    half = tiny_life(tmp_path / "b", model=tiny_model().to(torch.bfloat16), **go_on)
    half.train()
    assert any("base_digest" in note for note in half.state.content["notes"])


def test_another_general_text_keeps_the_old_perplexity_out(hub: HubServer, remote, tmp_path: Path, options) -> None:
    tiny_life(tmp_path / "run", stream=tiny_stream()[:2], warm_start=False, general_text="default").train()
    push_run(tmp_path / "run", remote(), options)
    text = tmp_path / "text.txt"
    text.write_text("another text\n" * 20)
    moved = tiny_life(tmp_path / "moved", warm_start=False, general_text=str(text), continue_from="me/life")
    perplexity = moved.train()["perplexity"]
    assert perplexity["after"][:2] == [None, None]
    assert perplexity["base"] > 0
    assert any("general_text" in note for note in moved.state.content["notes"])


def test_a_kill_while_the_origin_is_unpacked(
    hub: HubServer, remote, life: Path, tmp_path, options, monkeypatch
) -> None:
    """Half-copied files have no name yet; the next start begins again."""
    from hf_lifealign.lifelong import origin

    push_run(life, remote(), PushOptions(push_replay="rows", sleep=options.sleep))
    real, calls = shutil.copyfile, []

    def dying(source: Any, target: Any) -> Any:
        calls.append(target)
        if len(calls) == 2:
            Path(target).write_bytes(Path(source).read_bytes()[:40])
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(origin.shutil, "copyfile", dying)
    with pytest.raises(KeyboardInterrupt):
        tiny_life(tmp_path / "moved", warm_start=False, continue_from=TWO).train()
    monkeypatch.setattr(origin.shutil, "copyfile", real)
    tiny_life(tmp_path / "moved", warm_start=False, continue_from=TWO).train()
    weights = "adapters/03-three/adapter_model.safetensors"
    assert (tmp_path / "moved" / weights).read_bytes() == (life / weights).read_bytes()


def test_a_local_origin_may_move_away(life: Path, tmp_path: Path, monkeypatch) -> None:
    folder = str(life / "adapters" / "02-two")
    tiny_life(tmp_path / "moved", warm_start=False, continue_from=folder).train()
    life.rename(tmp_path / "elsewhere")
    tiny_life(tmp_path / "moved", warm_start=False, continue_from=folder).train()
    with pytest.raises(ValueError, match="Name one of its tasks"):
        tiny_life(tmp_path / "x", warm_start=False, continue_from=str(tmp_path / "elsewhere"))


def test_parents_are_found_by_content(hub: HubServer, remote, life: Path, tmp_path: Path, options) -> None:
    """From a folder, from a tag, from its commit, and where an earlier adapter was deleted to save space."""
    folder = str(life / "adapters" / "02-two")
    faster = {"training": {"learning_rate": 3e-3}}
    local = tiny_life(tmp_path / "local", warm_start=False, continue_from=folder, **faster)
    local.train()
    shutil.rmtree(life / "adapters" / "01-one")
    push_run(life, remote("me/gap"), options)
    assert [entry["parent"] and entry["parent"]["tag"] for entry in log(hub, "me/gap")] == [None, "task-02-two"]
    assert " unknown |" in hub.repo("me/gap").files("task-02-two")["README.md"].decode()
    push_run(tmp_path / "local", remote("me/gap"), options)
    last = log(hub, "me/gap")[-1]
    assert (last["tag"], last["parent"]["tag"]) == ("task-03-three.2", "task-02-two")
    commit = hub.repo("me/gap").tags["task-02-two"]
    for number, revision in enumerate(("task-02-two", commit)):
        run = tiny_life(tmp_path / f"r{number}", warm_start=False, continue_from=f"me/gap@{revision}", **faster)
        run.train()
        push_run(tmp_path / f"r{number}", remote("me/gap"), options)
    assert len(log(hub, "me/gap")) == 3, "the same life by three ways is one revision"


def test_what_waits_for_another_repository_goes_on_waiting(hub: HubServer, remote, life: Path, options) -> None:
    outbox = Outbox(life)
    outbox.announce("01-one", "me/first")
    push_run(life, remote("me/second"), options)
    assert list(outbox.waiting()) == ["01-one"]
    push_run(life, remote("me/first"), options)
    assert outbox.waiting() == {}
    assert outbox.target["repo_id"] == "me/first"
    with pytest.raises(RuntimeError, match="may not do that"):
        push_run(life, remote("you/theirs"), options)
    assert outbox.target["repo_id"] == "me/first", "a push that failed is not remembered as the target"


def test_private_is_not_taken_lightly(hub: HubServer, remote, life: Path, options) -> None:
    remote().create(private=False)
    before = hub.repo("me/life").snapshot()
    with pytest.raises(RuntimeError, match="is there and public"):
        push_run(life, remote(), PushOptions(private=True, sleep=options.sleep))
    assert hub.repo("me/life").snapshot() == before
    push_run(life, remote("me/hidden"), PushOptions(private=True, sleep=options.sleep))
    assert hub.repo("me/hidden").private


@pytest.mark.parametrize("name", ["model.safetensors", "matrix.json", "notes.txt"])
def test_files_of_another_making_are_not_replaced(hub: HubServer, remote, life: Path, options, name: str) -> None:
    remote().create(private=False)
    hub.elsewhere("me/life", {name: b"someone's", "README.md": b"# theirs"})
    with pytest.raises(RuntimeError, match=f"holds {name} and no slmc/lineage"):
        push_run(life, remote(), options)
    assert hub.repo("me/life").files("main")["README.md"] == b"# theirs"


def test_a_licence_lasts(hub: HubServer, remote, life: Path, options) -> None:
    from hf_lifealign.hub.history import rollback

    lines: list[str] = []
    licensed = PushOptions(license="apache-2.0", sleep=options.sleep, tell=lines.append)
    push_run(life, remote(), licensed)
    rollback(remote(), "task-01-one", options)
    assert b"license: apache-2.0" in hub.repo("me/life").files("main")["README.md"]
    push_run(life, remote(), PushOptions(license="mit", sleep=options.sleep, tell=lines.append))
    assert any("was published with the licence 'apache-2.0' and stays as it is" in line for line in lines)
