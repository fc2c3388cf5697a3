"""Two gloo processes: a life that moves, and a life whose processes die together and start again."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, sys, signal
from support.life import tiny_life
root, origin, deadly = sys.argv[1:]
life = tiny_life(root, warm_start=False, continue_from=origin or None)
if deadly:
    # both processes die while the second task is evaluated
    examine = life.examiner._examine_task
    def mortal(after, name):
        if after == "two" and name == "two":
            os.kill(os.getpid(), signal.SIGKILL)
        examine(after, name)
    life.examiner._examine_task = mortal
life.train()
"""


def live(script: Path, root: Path, origin: str = "", deadly: str = "") -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(root), origin, deadly], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 or deadly, done.stderr[-4000:]
    return done.returncode


def test_a_life_on_two_processes_moves_and_survives(tmp_path: Path) -> None:
    script = tmp_path / "life.py"
    script.write_text(SCRIPT)
    live(script, tmp_path / "whole")
    assert live(script, tmp_path / "killed", deadly="yes") != 0
    assert not (tmp_path / "killed" / "adapters" / "02-two").exists()
    live(script, tmp_path / "killed")
    live(script, tmp_path / "moved", origin=str(tmp_path / "whole" / "adapters" / "02-two"))
    weights = "adapters/03-three/adapter_model.safetensors"
    expected = (tmp_path / "whole" / weights).read_bytes()
    for name in ("killed", "moved"):
        assert (tmp_path / name / weights).read_bytes() == expected, name
        ours, theirs = (json.loads((tmp_path / n / "matrix.json").read_text()) for n in (name, "whole"))
        assert ours == theirs, name
    assert json.loads((tmp_path / "moved" / "state.json").read_text())["notes"] == []
