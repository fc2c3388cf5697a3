"""benchmarks/life_overhead.py on a tiny model."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_life_and_the_bare_training_of_its_tasks_are_timed(tiny_dir: str) -> None:
    line = [sys.executable, "benchmarks/life_overhead.py", "recipes/quickstart.yaml", "--set", f"model={tiny_dir}"]
    # the tiny tokenizer makes a token of a byte
    for value in (
        "strategies=[consolidation]",
        "training.max_steps=2",
        "training.max_length=1024",
        "run.max_new_tokens=2",
    ):
        line += ["--set", value]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"life ([\d.]+) s \(([\d.]+) s of it in trainers, ([\d.]+) s evaluations\)", done.stdout)
    assert found, done.stdout
    whole, training, evaluation = (float(value) for value in found.groups())
    assert 0 < training + evaluation <= whole + 0.2
    assert re.search(r"a life takes [\d.]+ of the bare training of its tasks, and [\d.]+ of it with", done.stdout)
