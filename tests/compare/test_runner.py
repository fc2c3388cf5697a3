"""What becomes of an arm whose process ends otherwise than it should."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hf_lifealign.compare import processes, runner
from hf_lifealign.compare.plan import Arm, Plan

RECIPE: dict[str, Any] = {"model": "m", "tasks": []}
ARM = Arm("given", "plain", 0, RECIPE)


def plan_in(folder: Path) -> Plan:
    return Plan(str(folder), ["plain"], {"given": ["a"]}, [0], "plain", [ARM])


def ends_with(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Arms are processes that do this instead."""
    real = subprocess.Popen

    def popen(line: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)


def test_an_arm_that_the_system_kills_is_kept_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    told: list[str] = []
    (result,) = runner.run_arms(plan_in(tmp_path), tmp_path, told.append)
    assert result["status"] == "failed"
    assert "memory" in result["error"]
    assert json.loads((tmp_path / ARM.name / "result.json").read_text()) == result
    assert runner.run_arms(plan_in(tmp_path), tmp_path, told.append) == [result]
    assert len(told) == 1


def test_an_arm_that_crashes_is_kept_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, "import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)")
    (result,) = runner.run_arms(plan_in(tmp_path), tmp_path, print)
    assert "signal 11" in result["error"]
    assert "last words" in result["error"]


def test_an_arm_that_somebody_ends_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, "import os; os.kill(os.getpid(), 15)")
    with pytest.raises(OSError, match="signal 15"):
        runner.run_arms(plan_in(tmp_path), tmp_path, print)
    assert not (tmp_path / ARM.name / "result.json").exists()


@pytest.mark.skipif(processes.fcntl is None, reason="no locks that are handed on")
def test_a_run_that_was_left_behind_is_not_joined_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ARM.name
    folder.mkdir(parents=True)
    # as a comparison that is killed leaves it
    with processes.alone_in(folder, ARM.name) as held:
        line = [sys.executable, "-c", "input()"]
        left = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=held)
    try:
        with pytest.raises(ValueError, match="still goes on"):
            runner.run_arms(plan_in(tmp_path), tmp_path, print)
    finally:
        left.kill()
        left.communicate()
    ends_with(monkeypatch, "raise SystemExit('lifealign: error: no such model')")
    (result,) = runner.run_arms(plan_in(tmp_path), tmp_path, print)
    assert result["error"] == "no such model"


def test_several_at_a_time_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that wait for each other, and each is told how many threads are its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "_cores", lambda: 6)
    meet = (
        "import os, pathlib, sys, time\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "(root / f'here-{os.getpid()}').touch()\n"
        "until = time.monotonic() + 60\n"
        "while len(list(root.glob('here-*'))) < 2:\n"
        "    time.sleep(0.01)\n"
        "    assert time.monotonic() < until\n"
        "sys.exit('lifealign: error: threads ' + os.environ['OMP_NUM_THREADS'])"
    )
    ends_with(monkeypatch, meet)
    arms = [Arm("given", "plain", seed, RECIPE) for seed in (0, 1)]
    plan = Plan(str(tmp_path), ["plain"], {"given": ["a"]}, [0, 1], "plain", arms)
    told: list[str] = []
    results = runner.run_arms(plan, tmp_path, told.append, jobs=2)
    assert [(result["seed"], result["error"]) for result in results] == [(0, "threads 3"), (1, "threads 3")]
    assert told[0].startswith("[1/2]")
    assert "left" in told[0]
    assert told[1].startswith("[2/2]")


def test_when_one_cannot_go_on_the_others_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is begun after that."""
    code = (
        "import os, pathlib, time\n"
        f"mark = pathlib.Path({str(tmp_path)!r}) / 'first'\n"
        "try:\n"
        "    mark.touch(exist_ok=False)\n"
        "except FileExistsError:\n"
        "    time.sleep(600)\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), 15)"
    )
    ends_with(monkeypatch, code)
    arms = [Arm("given", "plain", seed, RECIPE) for seed in range(3)]
    plan = Plan(str(tmp_path), ["plain"], {"given": ["a"]}, [0, 1, 2], "plain", arms)
    with pytest.raises(OSError, match="signal 15"):
        runner.run_arms(plan, tmp_path, print, jobs=2)
    assert not list(tmp_path.glob("given/plain/*/result.json"))
    assert not (tmp_path / "given/plain/seed-2").exists()


def test_a_comparison_that_is_ended_takes_its_runs_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is what `kill` and job schedulers send."""
    begun = tmp_path / "begun"
    ends_with(monkeypatch, f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        while not (begun.is_file() and begun.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run_arms(plan_in(tmp_path), tmp_path, print)
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / ARM.name / "result.json").exists()


def test_a_failed_arm_is_run_again_with_what_was_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe may have changed; one that ended well is never removed."""
    ends_with(monkeypatch, "import sys; sys.exit('wrong')")
    runner.run_arms(plan_in(tmp_path), tmp_path, print)
    mended = Plan(
        str(tmp_path), ["plain"], {"given": ["a"]}, [0], "plain", [Arm("given", "plain", 0, RECIPE | {"x": 1})]
    )
    with pytest.raises(ValueError, match=r"other settings.*give --retry"):
        runner.run_arms(mended, tmp_path, print)
    with pytest.raises(ValueError, match="other settings"):
        runner.collected(mended)
    (result,) = runner.run_arms(mended, tmp_path, print, retry=True)
    assert result["status"] == "failed"
    assert runner.collected(mended) == [result]
    file = tmp_path / ARM.name / "result.json"
    file.write_text(json.dumps(result | {"status": "done"}))
    with pytest.raises(ValueError, match="or remove that folder"):
        runner.run_arms(plan_in(tmp_path), tmp_path, print, retry=True)
    assert file.is_file()
