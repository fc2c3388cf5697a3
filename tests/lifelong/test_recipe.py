"""Recipes through the real commands, on one process and two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import preference_rows, write_jsonl

from hf_lifealign.compare.plan import read_plan
from hf_lifealign.lifelong.launch import processes_asked_for
from hf_lifealign.lifelong.recipe import build_adapter, build_run, find_recipe, read_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path: Path, tiny_dir: str) -> Path:
    for task, start in (("a", 0), ("b", 100)):
        write_jsonl(tmp_path / "data" / task / "train.jsonl", preference_rows(12, start=start))
        write_jsonl(tmp_path / "data" / task / "test.jsonl", preference_rows(4, start=start + 50))
    content = {
        "model": tiny_dir,
        "output_dir": str(tmp_path / "run"),
        "tasks": [
            {"name": t, "train": f"data/{t}/train.jsonl", "test": f"data/{t}/test.jsonl"} for t in ("a", "b")
        ],
        "adapter": {"type": "slmc", "r": 2, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "learning_rate": 1e-2, "per_device_train_batch_size": 2, "num_train_epochs": 1, "bf16": False,
            "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True,
        },
        "run": {"general_text": "none", "disable_tqdm": True},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def call(*command: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, **kwargs)


def test_lifealign_run_resumes_and_inspects(recipe: Path, tmp_path: Path) -> None:
    done = call("hf_lifealign.cli.main", "run", str(recipe), "--set", "warm_start.max_steps=1", "--set",
                "warm_start.use_cpu=true", "--set", "warm_start.bf16=false")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "BWT" in done.stdout
    assert str(tmp_path / "run" / "matrix.png") in done.stdout
    again = call("hf_lifealign.cli.main", "run", str(recipe), "--no-resume")
    assert again.returncode == 2
    assert "Remove it" in again.stderr
    changed = call("hf_lifealign.cli.main", "run", str(recipe))
    assert changed.returncode == 2
    assert "warm_start" in changed.stderr
    inspected = call("hf_lifealign.cli.main", "inspect", str(tmp_path / "run" / "adapters" / "02-b"))
    assert inspected.returncode == 0, inspected.stderr
    assert "preference" in inspected.stdout
    shown = call("hf_lifealign.cli.main", "matrix", str(tmp_path / "run"))
    assert shown.returncode == 0
    assert "BWT" in shown.stdout


@pytest.mark.slow  # a life on two processes is tried by test_two_processes.py
def test_two_processes_consolidate_once_and_identically(recipe: Path, tmp_path: Path) -> None:
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "recipes/lifelong_fpo.py"]
    done = call(*launch, "--config", str(recipe), env=os.environ | {"CI": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("BWT") >= 1
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["settings"]["processes"] == 2
    assert [len(task["record"]["phases"]) for task in state["tasks"]] == [1, 1]
    memory = json.loads((tmp_path / "run" / "adapters" / "02-b" / "slmc" / "memory.json").read_text())
    assert [entry["task"] for entry in memory["entries"]] == ["a", "b"]
    # 12 rows over two processes of batch 2: three steps; with the replayed rows of the first task four
    assert [task["record"]["phases"][0]["steps"] for task in state["tasks"]] == [3, 4]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modle": 1}, "Did you mean 'model'"),
        ({"strategy": "replay", "strategies": []}, "sets 'strategy' and 'strategies'"),
    ],
)
def test_wrong_recipes(recipe: Path, change: dict[str, Any], text: str) -> None:
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    with pytest.raises(ValueError, match=text):
        read_recipe(recipe)


def test_wrong_settings_inside_a_recipe(recipe: Path, tmp_path: Path) -> None:
    for override, text in (
        ("training.learning_rat=1", "Did you mean 'learning_rate'"),
        ("run.sede=1", "Did you mean 'seed'"),
        ("adapter.type=lorra", "Did you mean 'lora'"),
        ("adapter.rank=3", "no such setting"),
        ("trainer=ppo", "Use one of"),
        ("trainer=nowhere:Trainer", "cannot be imported"),
        ("strategies=[replai]", "Did you mean 'replay'"),
    ):
        with pytest.raises(ValueError, match=text):
            build_run(read_recipe(recipe, [override]), tmp_path)
    with pytest.raises(ValueError, match=r"key\.sub=value"):
        read_recipe(recipe, ["oops"])
    with pytest.raises(FileNotFoundError, match="no recipe"):
        read_recipe(tmp_path / "none.yaml")


def test_numbers_written_as_people_write_them(recipe: Path) -> None:
    """YAML 1.1 takes 1e-4 for a string."""
    content = read_recipe(recipe, ["training.learning_rate=1e-4"])
    assert content["training"]["learning_rate"] == 1e-4
    assert build_adapter({"type": "slmc", "denoising_threshold": "8e-1"}).denoising_threshold == 0.8


def test_a_strategy_alone_brings_the_adapter_that_it_can_work_with(recipe: Path) -> None:
    """`strategy: ewc` is all that a recipe has to say."""
    content = read_recipe(recipe) | {"strategy": "ewc"}
    content["adapter"] = {"r": 2, "target_modules": ["q_proj"]}
    assert build_run(content, recipe.parent).peft_config.peft_type == "LORA"
    del content["adapter"]
    assert build_run(content, recipe.parent).peft_config.peft_type == "LORA"
    assert build_run(content | {"strategy": "routed_memory"}, recipe.parent).peft_config.peft_type == "LORA"
    assert build_run(content | {"strategy": "consolidation"}, recipe.parent).peft_config.peft_type == "SLMC"
    del content["strategy"]
    assert build_run(content, recipe.parent).peft_config.peft_type == "SLMC"
    with pytest.raises(ValueError, match="No installed package offers it"):
        build_run(content | {"strategy": "ewx"}, recipe.parent)


# A constitution is data of its own.
RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if "self_align" not in path.parts]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_readable(path: Path) -> None:
    if "accelerate_configs" in path.parts:
        assert "num_processes" in yaml.safe_load(path.read_text())
        return
    if path.with_suffix(".py").is_file():
        return  # the arguments of a script of that name, whose own tests read them
    contents = [arm.recipe for arm in read_plan(path).arms] if path.stem == "compare" else [read_recipe(path)]
    for content in contents:
        assert build_adapter(content["adapter"]).r == 16
        for task in content["tasks"]:
            if path.stem.startswith(("quickstart", "compare")):
                assert (path.parent / task["train"]).is_file()


def test_the_number_of_processes_is_read_from_the_launcher(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("num_processes: 4\n")
    assert processes_asked_for(["accelerate", "launch", "--cpu", "--num_processes", "2", "s.py", "--set", "a=1"]) == 2
    assert processes_asked_for(["launch", "--num-processes=3", "s.py"]) == 3
    assert processes_asked_for(["launch", "--config_file", str(config), "s.py"]) == 4
    assert processes_asked_for(["launch", "s.py"]) is None


def test_shipped_recipes_are_found_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("recipes/quickstart.yaml").is_file()
    assert read_recipe("recipes/quickstart.yaml")["model"].startswith("embedded:")
    with pytest.raises(FileNotFoundError, match="no recipe"):
        read_recipe("recipes/none.yaml")
    # a file of the user's goes first
    own = tmp_path / "recipes" / "quickstart.yaml"
    own.parent.mkdir()
    own.write_text("model: mine\ntasks: []\n")
    assert read_recipe("recipes/quickstart.yaml")["model"] == "mine"
