"""Dynamic rehearsal on two gloo processes whose judges disagree or fail: all processes do what the first one found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, random, sys
from pathlib import Path
from support.life import tiny_life
from support.vowel_judge import has_vowel
from hf_lifealign.dynamics.mixture import Mixture
from hf_lifealign.strategies.dynamic_replay import DynamicReplayStrategy

root, mode = sys.argv[1:]
rank, calls, changes = int(os.environ["RANK"]), [], []

def judge(prompts, answers, references):
    calls.append(1)
    labels = has_vowel(prompts, answers, references)
    if mode == "noise":
        draw = random.Random(100 * rank + len(calls))
        labels = [0.8 * label + 0.2 * draw.random() for label in labels]
    if mode == "fail" and rank == 0 and len(calls) == 2:
        raise ConnectionError("the judge is gone")
    return labels

change = Mixture.change
def noted(self, share, batch):
    changes.append((share, batch))
    change(self, share, batch)
Mixture.change = noted

strategy = DynamicReplayStrategy({"one": judge}, every=2, probes=6, samples=4, max_new_tokens=6, force_rows=4,
                                 fraction=0.5, booster_steps=2)
training = {"learning_rate": 2e-2, "per_device_train_batch_size": 2, "ddp_timeout": 60}
tiny_life(root, strategies=[strategy, "consolidation"], warm_start=False, training=training).train()
Path(root, f"rank-{rank}.json").write_text(json.dumps({"changes": changes, "calls": len(calls)}))
"""


@pytest.mark.parametrize("mode", ["noise", pytest.param("fail", marks=pytest.mark.slow)])
def test_processes_do_not_part(tmp_path: Path, mode: str) -> None:
    script = tmp_path / "life.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    root = tmp_path / "run"
    done = subprocess.run([*command, str(root), mode], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    told: list[dict[str, Any]] = [json.loads((root / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0]["changes"] == told[1]["changes"]
    assert len(told[0]["changes"]) > 4
    # one process judges for all
    assert told[0]["calls"] > 1
    assert told[1]["calls"] == 0
    if mode == "fail":
        first = json.loads((root / "dynamic_replay" / "02-two-forces.json").read_text())[0]
        assert "the judge is gone" in first["tasks"]["one"]["not_estimable"]
