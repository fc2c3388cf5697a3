"""A Hub on this machine, a client that talks to it, and a finished life to publish."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.hub_server import HubServer

from hf_lifealign.hub import patience
from hf_lifealign.hub.publish import PushOptions
from hf_lifealign.hub.remote import Remote

WRITE, READ, STRANGER = "hf_test_write_me", "hf_test_read_me", "hf_test_write_you"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A server; the client in this process may go online and keeps its cache in the test's folder."""
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with HubServer() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        # what may pass is tried again, and nobody waits for that
        monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
    close_session()


@pytest.fixture
def remote(hub: HubServer) -> Callable[..., Remote]:
    """Makes a repository's handle: `remote("me/x", token=...)`."""
    from huggingface_hub import HfApi

    def make(repo_id: str = "me/life", token: str = WRITE) -> Remote:
        return Remote(repo_id, api=HfApi(endpoint=hub.url, token=token))

    return make


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pushes waited for; nobody really waits, the client of huggingface_hub neither."""
    import huggingface_hub.utils._http as http

    slept: list[float] = []
    real = http.time
    clock = SimpleNamespace(sleep=lambda seconds: None, time=real.time, monotonic=real.monotonic)
    monkeypatch.setattr(http, "time", clock)
    return slept


@pytest.fixture
def options(waits: list[float]) -> PushOptions:
    """Options that wait for nobody and note what they would have waited."""
    return PushOptions(sleep=waits.append)


@pytest.fixture(scope="session")
def life_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished life of three tasks."""
    from support.life import tiny_life

    root = tmp_path_factory.mktemp("lives") / "run"
    tiny_life(root, warm_start=False).train()
    return root


@pytest.fixture
def life(life_once: Path, tmp_path: Path) -> Path:
    """A copy of the finished life, for one test."""
    return Path(shutil.copytree(life_once, tmp_path / "run"))
