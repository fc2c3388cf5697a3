"""recipes/meta_aligner.py as a user starts it: one process with rewards that are fitted, two under accelerate."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import preference_rows, write_jsonl
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "recipes" / "meta_aligner.py")
REWARDS = ["support.tiny_rewards:short", "support.tiny_rewards:vowels"]


def start(*command: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def the_script() -> Any:
    """The recipe as a module."""
    spec = importlib.util.spec_from_file_location("meta_aligner_recipe", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def config(work: Path, tiny_dir: str, **changes: object) -> Path:
    """The shipped configuration, for the tiny model and few steps."""
    settings = yaml.safe_load((ROOT / "recipes" / "meta_aligner.yaml").read_text())
    for name, word in (("yes", "yes"), ("certain", "certainly")):
        write_jsonl(work / "data" / name / "train.jsonl", preference_rows(8, chosen=word))
        write_jsonl(work / "data" / name / "test.jsonl", preference_rows(3, chosen=word, start=50))
    data = ["data/yes", "data/certain"]
    settings |= {"model_name_or_path": tiny_dir, "prompt_datasets": data, "max_completion_length": 6,
                 "prompts_per_round": 4, "pretrain_epochs": 1, "num_rounds": 1, "save_strategy": "no",
                 "disable_tqdm": True}  # fmt: skip
    file = work / "meal.yaml"
    file.write_text(yaml.safe_dump(settings | changes))
    return file


def test_one_process_and_its_front(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    fitted = {"reward_funcs": ["rewards/yes", "rewards/certain"], "fit_rewards": ["data/yes", "data/certain"],
              "objective_names": ["yes", "certain"], "reward_embedding": encoder}  # fmt: skip
    settings = config(tmp_path, tiny_dir, **fitted, eval_strategy="steps", eval_steps=3)
    line = (SCRIPT, "--config", str(settings), "--output_dir", "run", "--conditioning", "lora", "--use_peft",
            "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj")  # fmt: skip
    told = start(*line, cwd=tmp_path)
    assert told.count("Fitted MiniLMBradleyTerryReward") == 2
    assert "eval_rewards/yes/mean" in told
    run = tmp_path / "run"
    for name in ("meta_aligner/meta_aligner.json", "adapter_model.safetensors", "README.md", "_pareto.json"):
        assert (run / name).is_file(), name
    assert json.loads((run / "_pareto.json").read_text())["prompts"] == [
        str(tmp_path / "data" / name) for name in ("yes", "certain")
    ]
    # from elsewhere, with nothing but the folder's name
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["pareto", "../run", "--weights", "3", "--include-base"]) == 0
    front = json.loads((run / "pareto" / "front.json").read_text())["fronts"][0]
    assert front["objectives"] == ["yes", "certain"]
    assert front["settings"]["prompts"] == 6
    assert [point["label"] for point in front["points"]] == ["0-1", "0.5-0.5", "1-0"]


@pytest.mark.slow  # training on two processes is tried by test_meal_two_processes.py
def test_two_processes(tmp_path: Path, tiny_dir: str) -> None:
    settings = config(tmp_path, tiny_dir, reward_funcs=REWARDS, fit_rewards=None, objective_names=None)
    line = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2", SCRIPT, "--config",
            str(settings), "--output_dir", "run", "--per_device_train_batch_size", "2")  # fmt: skip
    told = start(*line, cwd=tmp_path)
    assert told.count("Model saved to run.") == 1
    saved = json.loads((tmp_path / "run" / "meta_aligner" / "meta_aligner.json").read_text())
    assert saved["objectives"] == ["short", "vowels"]
    assert saved["reward_statistics"]["std"][1] > 0
    assert json.loads((tmp_path / "run" / "_pareto.json").read_text())["rewards"] == REWARDS


def test_what_is_missing_is_said(tmp_path: Path, tiny_dir: str) -> None:
    from trl import ModelConfig, ScriptArguments

    from hf_lifealign import MetaAlignerConfig

    recipe = the_script()
    args = MetaAlignerConfig(str(tmp_path), use_cpu=True, bf16=False)
    model = ModelConfig(model_name_or_path=tiny_dir)
    rewards = recipe.RewardArguments(reward_funcs=REWARDS, fit_rewards=["a"], prompt_datasets=["b"])
    for model_args, reward_args, words in (
        (ModelConfig(), rewards, "no model"),
        (model, recipe.RewardArguments(reward_funcs=REWARDS), "no data"),
        (model, rewards, "1 fit_rewards for 2 reward_funcs"),
        (model, recipe.RewardArguments(prompt_datasets=["b"]), "no rewards"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe.main(ScriptArguments(), args, model_args, reward_args)
    assert recipe._has_split("org/data", "test")
    assert not recipe._has_split(str(tmp_path), "test")


def test_the_shipped_configuration_is_read() -> None:
    from trl import ModelConfig, ScriptArguments, TrlParser

    from hf_lifealign import MetaAlignerConfig

    recipe = the_script()
    groups = (ScriptArguments, MetaAlignerConfig, ModelConfig, recipe.RewardArguments)
    line = recipe._find_config(["--config", "recipes/meta_aligner.yaml"])
    _, args, model, rewards = TrlParser(groups).parse_args_and_config(line)
    assert (args.pretrain_learning_rate, args.weight_learning_rate) == (1e-3, 1e-4)
    assert model.model_name_or_path == "embedded:smollm2-135m"
    assert len(rewards.reward_funcs) == len(rewards.fit_rewards) == 2
    for source in recipe._shipped(rewards.fit_rewards):
        for split in ("train", "test"):
            assert (ROOT / source / f"{split}.jsonl").is_file()
