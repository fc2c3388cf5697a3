"""What becomes of an arm whose process ends otherwise than it should."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_lifealign.compare import runner
from hf_lifealign.compare.plan import Arm, Plan

ARM = Arm("given", "plain", 0, {"model": "m", "tasks": []})


def plan_in(folder: Path) -> Plan:
    return Plan(str(folder), ["plain"], {"given": ["a"]}, [0], "plain", [ARM])


def ends_with(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Arms are processes that do this instead."""
    real = subprocess.Popen

    def popen(line: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(runner.subprocess, "Popen", popen)


def test_an_arm_that_the_system_kills_is_kept_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    told: list[str] = []
    (result,) = runner.run_arms(plan_in(tmp_path), tmp_path, told.append)
    assert result["status"] == "failed"
    assert "memory" in result["error"]
    assert json.loads((tmp_path / ARM.name / "result.json").read_text()) == result
    assert runner.run_arms(plan_in(tmp_path), tmp_path, told.append) == [result]
    assert len(told) == 1


def test_an_arm_that_somebody_ends_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, "import os; os.kill(os.getpid(), 15)")
    with pytest.raises(OSError, match="signal 15"):
        runner.run_arms(plan_in(tmp_path), tmp_path, print)
    assert not (tmp_path / ARM.name / "result.json").exists()


@pytest.mark.skipif(runner.fcntl is None, reason="no locks that are handed on")
def test_a_run_that_was_left_behind_is_not_joined_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ARM.name
    folder.mkdir(parents=True)
    # as a comparison that is killed leaves it
    with runner._alone(ARM, folder) as held:
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
