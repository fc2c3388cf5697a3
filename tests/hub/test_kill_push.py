"""A push that is killed again and again leaves the repository that an undisturbed one leaves."""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer, client_environment

from hf_lifealign.hub.outbox import Outbox

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "mortal_push.py"


def push(server: HubServer, run: Path, home: Path, fatal: int) -> tuple[int, str]:
    """Starts a push that dies at the `fatal`-th event."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(run), "me/life", str(fatal)],
        capture_output=True, text=True, env=client_environment(server, home),
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def undisturbed(life_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], int]]:
    """The repository after a push to its end, and the number of events of it."""
    root = tmp_path_factory.mktemp("undisturbed")
    run = Path(shutil.copytree(life_once, root / "run"))
    with HubServer() as server:
        code, out = push(server, run, root / "home", 0)
        assert code == 0
        yield server.repo("me/life").snapshot(), int(out.rsplit("events ", 1)[1])


def assert_same(server: HubServer, run: Path, expected: dict[str, Any]) -> None:
    assert server.repo("me/life").snapshot() == expected
    assert Outbox(run).waiting() == {}
    assert not list(run.rglob("*.partial"))


def test_killed_at_seeded_points(undisturbed, life: Path, tmp_path: Path) -> None:
    """One push with eight deaths, at points drawn over all its events."""
    expected, events = undisturbed
    draw = random.Random(3)
    with HubServer() as server:
        deaths = 0
        for _ in range(8):
            code, _ = push(server, life, tmp_path / "home", draw.randint(1, events // 2))
            deaths += code != 0
        assert deaths >= 5
        assert push(server, life, tmp_path / "home", 0)[0] == 0
        assert_same(server, life, expected)


@pytest.mark.slow
def test_killed_once_at_every_third_event(undisturbed, life_once: Path, tmp_path: Path) -> None:
    expected, events = undisturbed
    for fatal in range(1, events + 1, 3):
        run = Path(shutil.copytree(life_once, tmp_path / f"run-{fatal}"))
        with HubServer() as server:
            assert push(server, run, tmp_path / "home", fatal)[0] == -signal.SIGKILL
            # a tag that is there is complete, and points where it will always point
            for tag, oid in getattr(_repo(server), "tags", {}).items():
                assert oid == expected["tags"][tag]
            assert push(server, run, tmp_path / "home", 0)[0] == 0
            assert_same(server, run, expected)


def _repo(server: HubServer) -> Any:
    try:
        return server.repo("me/life")
    except KeyError:
        return None
