"""A run that publishes: whatever happens to the pushing process, the run ends, and says what was sent."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer, client_environment
from support.life import tiny_life, tiny_stream

PUSH = {"push_to_hub": True, "hub_model_id": "me/pushed", "warm_start": False, "push_timeout": 60.0}


@pytest.fixture
def online(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """What a process that is started from here needs to reach the server."""
    for name, value in client_environment(hub, tmp_path / "home").items():
        if name.startswith(("HF_", "HUGGINGFACE")):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def life(root: Path, tasks: int = 1, **options: Any) -> Any:
    return tiny_life(root, stream=tiny_stream()[:tasks], **(PUSH | options))


def test_what_was_never_announced_is_sent(online: HubServer, tmp_path: Path) -> None:
    """A run that ended before its last task was announced, or that never published, and is started again."""
    life(tmp_path / "run", tasks=2, push_to_hub=False).train()
    again = life(tmp_path / "run", tasks=2)
    again.train()
    assert again.published == "Published: 2 tasks in me/pushed"
    assert set(online.repo("me/pushed").tags) == {"task-01-one", "task-02-two"}
    assert json.loads((tmp_path / "run" / "outbox" / "sent.json").read_text())["target"]["repo_id"] == "me/pushed"


@pytest.mark.parametrize("fault", [BlockingIOError("no more processes"), OSError("disk full")])
def test_no_process_no_harm(online: HubServer, tmp_path: Path, monkeypatch, fault: OSError) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise fault

    monkeypatch.setattr(subprocess, "Popen", refused)
    run = life(tmp_path / "run")
    run.train()
    assert run.published.startswith("NOT published: 01-one")
    assert str(fault) in run.published


def test_an_outbox_that_cannot_be_written(online: HubServer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "outbox").write_text("in the way")
    run = life(tmp_path / "run")
    run.train()
    assert run.published.startswith("NOT published")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "done"


def test_the_reason_is_the_real_one(online: HubServer, tmp_path: Path) -> None:
    """A bad token with a bare name fails before any task is looked at, and long before the time is up."""
    run = life(tmp_path / "run", hub_model_id="pushed", hub_token="hf_unknown")
    run.train()
    assert "does not accept the token (401)" in run.published
    assert "hf_unknown" not in (tmp_path / "run" / "outbox" / "push.log").read_text()


def test_the_token_is_on_no_command_line(online: HubServer, tmp_path: Path, monkeypatch) -> None:
    seen: list[list[str]] = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: seen.append(command) or real(command, **rest))
    monkeypatch.delenv("HF_TOKEN")
    run = life(tmp_path / "run", hub_token="hf_test_write_me")
    run.train()
    assert run.published == "Published: 1 tasks in me/pushed"
    assert "hf_test_write_me" not in " ".join(seen[0])


def test_nothing_is_imported_from_where_the_run_was_started(online: HubServer, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "yaml.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    run = life(tmp_path / "run")
    run.train()
    assert run.published == "Published: 1 tasks in me/pushed"


def test_a_silent_hub_holds_a_run_no_longer_than_asked(online: HubServer, tmp_path: Path) -> None:
    from support.hub_server import Fault

    online.fail(Fault(step="refs", kind="stall", times=None, seconds=60))
    run = life(tmp_path / "run", push_timeout=2.0, push_in_background=False)
    run.train()
    assert "did not end within 2 s" in run.published
    online.faults.clear()
    again = life(tmp_path / "run")
    again.train()
    assert again.published == "Published: 1 tasks in me/pushed"


def test_settings_of_publishing_do_not_bind_a_run(online: HubServer, tmp_path: Path) -> None:
    life(tmp_path / "run", push_to_hub=False).train()
    life(tmp_path / "run", hub_model_id="me/other", push_replay="rows", license="mit").train()
    assert "slmc/strategies/replay/01-one.json" in online.repo("me/other").files("main")
    with pytest.raises(ValueError, match="push_replay='all'"):
        life(tmp_path / "x", push_replay="all")
    with pytest.raises(ValueError, match="owner/name"):
        life(tmp_path / "x", hub_model_id="a/b/c")
    with pytest.raises(ValueError, match="push_timeout"):
        life(tmp_path / "x", push_timeout=0)
    assert "HF_TOKEN" in os.environ
