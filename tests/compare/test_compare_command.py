"""`lifealign compare` in a process of its own, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiny import preference_rows, write_jsonl

Comparison = tuple[Path, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def compared(
    tiny_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """A comparison of three methods, one of which cannot work."""
    folder = tmp_path_factory.mktemp("compare")
    tasks = []
    for i, name in enumerate(("one", "two")):
        sides = ("yes", "no") if i == 0 else ("no", "yes")
        write_jsonl(folder / f"{name}.jsonl", preference_rows(8, *sides, start=20 * i))
        write_jsonl(folder / f"{name}-test.jsonl", preference_rows(4, *sides, start=20 * i + 10))
        tasks.append({"name": name, "train": f"{name}.jsonl", "test": f"{name}-test.jsonl"})
    recipe = {
        "model": tiny_dir,
        "output_dir": str(folder / "out"),
        "tasks": tasks,
        "adapter": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_checkpointing": False, "bf16": False,
            "use_cpu": True, "num_train_epochs": 2,
        },
        "run": {"general_text": "none", "disable_tqdm": True},
        "methods": {
            "sequential": {"strategies": []},
            "replay": {"strategy": {"name": "replay", "fraction": 0.5}},
            "broken": {"strategy": {"name": "o_lora", "rank": 3}},
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder, call(folder)


def call(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "hf_lifealign.cli.main", "compare", str(folder / "recipe.yaml"), *flags]
    return subprocess.run(line, capture_output=True, text=True, timeout=280, env=os.environ)


def test_methods_stand_side_by_side(compared: Comparison) -> None:
    folder, done = compared
    assert "[1/3] given/sequential/seed-42: BWT" in done.stdout
    content = json.loads((folder / "out" / "comparison.json").read_text())
    table = content["orders"]["given"]
    assert table["tasks"] == ["one", "two"]
    assert table["pairs"] == [4, 4]
    assert list(table["methods"]) == ["replay", "sequential"]
    for method, entry in table["methods"].items():
        matrix = json.loads((folder / "out" / "given" / method / "seed-42" / "run" / "matrix.json").read_text())
        cells = matrix["matrices"]["preference_accuracy"]
        assert entry["matrix"] == [pytest.approx(row[: i + 1], abs=1e-4) for i, row in enumerate(cells)]
        assert entry["accuracy"]["figures"]["bwt"]["value"] == pytest.approx(
            matrix["summary"]["preference_accuracy"]["bwt"]
        )
        assert entry["trainable_parameters"] > 0
        assert entry["seconds"]["training"] > 0
    assert table["methods"]["replay"]["kept_mb"] > table["methods"]["sequential"]["kept_mb"] == 0
    assert (folder / "out" / "comparison.png").stat().st_size > 5000


def test_a_method_that_fails_is_in_the_table(compared: Comparison) -> None:
    folder, done = compared
    assert done.returncode == 2
    assert "failed" in done.stdout
    text = (folder / "out" / "comparison.md").read_text()
    assert "| broken | not run |" in text
    assert "needs 6: 3 for each of the 2 tasks" in text


def test_what_was_measured_is_not_run_again(compared: Comparison) -> None:
    folder, _ = compared
    before = (folder / "out" / "comparison.json").read_bytes()
    runs = folder / "out" / "given"
    times = {file: file.stat().st_mtime_ns for file in runs.rglob("*") if file.is_file()}
    again = call(folder)
    assert "[1/3]" not in again.stdout
    assert (folder / "out" / "comparison.json").read_bytes() == before
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*") if file.is_file()} == times
    told = call(folder, "--tell")
    assert "| replay | 1 |" in told.stdout
    other = call(folder, "--set", "training.beta=0.3")
    assert other.returncode == 2
    assert "holds a run of other settings" in other.stderr


def test_nothing_measured_is_said(compared: Comparison, tmp_path: Path) -> None:
    done = call(compared[0], "--tell", "--output-dir", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "Nothing has been measured" in done.stderr
