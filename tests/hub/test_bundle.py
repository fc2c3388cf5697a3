"""What may not leave the machine does not: damaged tensors, secrets, folders of this machine."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hub_server import HubServer

from hf_lifealign.hub.bundle import build_bundle, finished_tasks
from hf_lifealign.hub.errors import NotPublishableError
from hf_lifealign.hub.publish import push_run
from hf_lifealign.report.privacy import find_private, without_secrets

WEIGHTS = "adapter_model.safetensors"


def changed(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)


def first(tensors: dict, value) -> dict:
    name = sorted(tensors)[0]
    return tensors | {name: value(tensors[name])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {}, "holds no tensor"),
        (lambda t: first(t, lambda x: x * float("nan")), "not finite"),
        (lambda t: first(t, lambda x: (x * float("inf")).to(torch.bfloat16)), "not finite"),
        (lambda t: first(t, lambda x: x[:0]), "is empty"),
        (lambda t: dict(sorted(t.items())[1:]), "lacks a factor"),
        (lambda t: {"something": torch.ones(2)}, "no factors"),
    ],
)
def test_damaged_adapters_are_not_sent(hub: HubServer, remote, life: Path, options, change, words: str) -> None:
    changed(life / "adapters" / "02-two", change)
    with pytest.raises(NotPublishableError, match=words):
        push_run(life, remote(), options)
    # what came before it is there, what would come after it waits
    assert set(hub.repo("me/life").tags) == {"task-01-one"}
    assert "02-two" in json.loads((life / "outbox" / "02-two.json").read_text())["error"]


def test_a_file_that_is_no_safetensors(life: Path) -> None:
    folder = life / "adapters" / "01-one"
    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(NotPublishableError, match="not a readable safetensors file"):
        build_bundle(life, folder)


@pytest.mark.parametrize("name", ["slmc/run.json", "matrix.json", "matrix.png", "adapter_config.json", WEIGHTS])
def test_missing_files_are_named(life: Path, name: str) -> None:
    folder = life / "adapters" / "01-one"
    (folder / name).unlink()
    with pytest.raises(NotPublishableError, match=name):
        build_bundle(life, folder)


@pytest.mark.parametrize("what", ["token", "pattern", "folder", "home"])
def test_secrets_and_folders_stop_a_push(hub: HubServer, remote, life: Path, options, what: str, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    text = {
        "token": "hf_test_write_me", "pattern": "hf_" + "a1" * 12, "folder": f"{life.resolve()}/x",
        "home": "/home/somebody/data.json",
    }[what]  # fmt: skip
    path = life / "adapters" / "01-one" / "slmc" / "run.json"
    body = json.loads(path.read_text())
    body["settings"]["run"]["note"] = f"see {text} there"
    path.write_text(json.dumps(body))
    with pytest.raises(NotPublishableError, match=r"slmc/run\.json would publish"):
        push_run(life, remote(), options)
    with pytest.raises(KeyError):
        hub.repo("me/life")


def test_the_token_is_not_published_even_in_rows(hub: HubServer, remote, life: Path, options, waits) -> None:
    from hf_lifealign.hub.publish import PushOptions

    path = life / "strategies" / "01-one" / "replay" / "01-one.json"
    path.write_text(path.read_text().replace("yes", "hf_test_write_me"))
    with pytest.raises(NotPublishableError, match=r"strategies/replay/01-one\.json would publish the access token"):
        push_run(life, remote(), PushOptions(push_replay="rows", sleep=waits.append))


def test_nothing_of_this_machine_in_a_repository(hub: HubServer, remote, life: Path, tmp_path: Path, options) -> None:
    """The greps of the cards and the lineage: folders, the user, the token, the host."""
    import getpass
    import socket

    push_run(life, remote(), options)
    repo = hub.repo("me/life")
    needles = [str(tmp_path), str(life), str(Path.home()), str(Path.cwd()), "hf_test_write_me", socket.gethostname()]
    for tag in repo.tags:
        for name, content in repo.files(tag).items():
            if name.endswith((".json", ".md")):
                text = content.decode()
                assert not [needle for needle in needles if len(needle) > 2 and needle in text], name
                assert f"/{getpass.getuser()}/" not in text
                assert "/tmp/" not in text


def test_secrets_in_settings_are_hidden() -> None:
    given = {"model_init_kwargs": {"token": "hf_abc", "hub_token": "x"}, "pad_token": "<pad>", "api_key": "k",
             "note": "use hf_" + "Z9" * 12, "list": [{"password": "p"}], "token": None}  # fmt: skip
    hidden = without_secrets(given)
    assert hidden["model_init_kwargs"] == {"token": "(hidden)", "hub_token": "(hidden)"}
    assert hidden["pad_token"] == "<pad>"
    assert hidden["api_key"] == hidden["list"][0]["password"] == "(hidden)"
    assert hidden["note"] == "use (hidden)"
    assert hidden["token"] is None


def test_what_counts_as_private(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert find_private("all is public: org/model, https://huggingface.co/home/x") is None
    assert find_private("at /home/somebody/x") == "the local path /home/somebody"
    assert find_private("/home/somebodyelse/x") is None
    assert "token" in str(find_private("hf_" + "q" * 30))
    assert find_private("x secret y", ["secret"]) == "the access token in use"


def test_tasks_in_their_order(life: Path) -> None:
    assert [folder.name for folder in finished_tasks(life)] == ["01-one", "02-two", "03-three"]
    state = json.loads((life / "state.json").read_text())
    state["tasks"][2]["status"] = "pending"
    (life / "state.json").write_text(json.dumps(state))
    assert [folder.name for folder in finished_tasks(life)] == ["01-one", "02-two"]
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        finished_tasks(life / "adapters")


def test_a_base_in_a_local_folder_is_published_by_its_last_name(life: Path, monkeypatch, tmp_path: Path) -> None:
    """And the same from wherever it is pushed."""
    folder = life / "adapters" / "01-one"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "models/llama"}))
    path = folder / "slmc" / "run.json"
    body = json.loads(path.read_text())
    body["settings"]["base_model"] = "llama"
    path.write_text(json.dumps(body))
    first = build_bundle(life, folder)
    assert json.loads(first.files["adapter_config.json"].read())["base_model_name_or_path"] == "llama"
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert build_bundle(life, folder).content == first.content


def test_the_card_is_searched_too(hub: HubServer, remote, life: Path, waits) -> None:
    from hf_lifealign.hub.publish import PushOptions

    with pytest.raises(NotPublishableError, match=r"would publish the access token"):
        push_run(life, remote(), PushOptions(license="hf_test_write_me", sleep=waits.append))


@pytest.mark.parametrize("name", ["matrix.json", "adapter_config.json", "slmc/memory.json"])
def test_files_that_were_edited_end_in_the_outbox(hub: HubServer, remote, life: Path, options, name: str) -> None:
    (life / "adapters" / "01-one" / name).write_text("[1]")
    with pytest.raises(NotPublishableError, match="01-one"):
        push_run(life, remote(), options)
    assert json.loads((life / "outbox" / "01-one.json").read_text())["error"]
