"""benchmarks/pair_throughput.py on a tiny model: the script stands ready where there is time or a GPU to run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(tiny_dir: str, *flags: str) -> str:
    line = [sys.executable, "benchmarks/pair_throughput.py", "--model", tiny_dir, "--shape", "tiny", "--batches", "2"]
    # its tokenizer makes a token of a byte
    line += ["--max-length", "1024"]
    done = subprocess.run([*line, *flags], capture_output=True, text=True, cwd=ROOT, timeout=240, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_both_sides_are_measured_in_turn(tiny_dir: str, tmp_path: Path) -> None:
    told = call(tiny_dir, "--steps", "3", "--output", str(tmp_path / "told.json"))
    form = r"made-up, batch 2: DPOTrainer [\d.]+ pairs/s, FPOTrainer [\d.]+, ratio [\d.]+ \(median of 3"
    assert re.search(form, told)
    (row,) = json.loads((tmp_path / "told.json").read_text())
    assert row["ratio"] > 0
    assert len(row["pairs_per_second"]) == 2


def test_the_losses_of_both_sides_stay_together(tiny_dir: str) -> None:
    told = call(tiny_dir, "--trajectory", "6", "--rate", "1e-3")
    assert float(re.search(r"differ by ([\d.e+-]+) at most", told)[1]) <= 1e-4  # type: ignore[index]
