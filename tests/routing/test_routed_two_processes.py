"""Two gloo processes route alike, and a life that dies in an evaluation goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, sys, signal
from hf_lifealign import TaskStream
from routing.test_routed_life import life, stream
root, deadly = sys.argv[1:]
run = life(root, TaskStream(list(stream())[:2]))
if deadly:
    examine = run.examiner._examine_task
    def mortal(after, name):
        if after == name == "omega":
            os.kill(os.getpid(), signal.SIGKILL)
        examine(after, name)
    run.examiner._examine_task = mortal
run.train()
"""


def live(script: Path, root: Path, deadly: str = "") -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(root), deadly], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 or deadly, done.stderr[-4000:]
    assert not deadly or str(-signal.SIGKILL) in done.stderr


def test_a_routed_life_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "life.py"
    script.write_text(SCRIPT)
    live(script, tmp_path / "whole")
    matrix = json.loads((tmp_path / "whole" / "matrix.json").read_text())
    assert matrix["matrices"]["preference_accuracy"] == [[1.0], [1.0, 1.0]]
    kept = json.loads((tmp_path / "whole" / "evaluation" / "after-02-omega" / "alpha.json").read_text())
    assert kept["routes"] == {"alpha": 6}
    live(script, tmp_path / "killed", deadly="yes")
    live(script, tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "matrix.json").read_text()) == matrix
