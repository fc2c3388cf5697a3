"""FPOTrainer with an SLMC adapter: it consolidates once, across a resumption too, and from the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.life import slmc
from support.tiny import preference_dataset, preference_rows, tiny_model, tiny_tokenizer, write_jsonl
from transformers import TrainerCallback

from hf_lifealign import ConsolidationCallback, FPOConfig, FPOTrainer, load_adapter

ROOT = Path(__file__).resolve().parents[2]


def trainer_in(folder: Path, callbacks: list[TrainerCallback] | None = None, model: Any = None) -> FPOTrainer:
    args = FPOConfig(
        str(folder), max_steps=6, save_steps=3, learning_rate=1e-2, per_device_train_batch_size=2, bf16=False,
        use_cpu=True, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return FPOTrainer(
        model or tiny_model(),
        args=args,
        train_dataset=preference_dataset(8),
        processing_class=tiny_tokenizer(),
        peft_config=None if model is not None else slmc(),
        callbacks=callbacks,
    )


def test_it_consolidates_by_itself_once(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path / "helpful")
    trainer.train()
    entries = trainer.model.base_model.memory.entries
    assert [entry["task"] for entry in entries] == ["helpful"]
    trainer.save_model(str(tmp_path / "saved"))
    model = load_adapter(tiny_model(), str(tmp_path / "saved"))
    again = trainer_in(tmp_path / "harmless", model=model)
    again.train()
    assert [entry["task"] for entry in again.model.base_model.memory.entries] == ["helpful", "harmless"]


def test_a_callback_of_the_users_is_the_only_one(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path / "x", [ConsolidationCallback("mine", phase="fpo")])
    trainer.train()
    assert [(e["task"], e["phase"]) for e in trainer.model.base_model.memory.entries] == [("mine", "fpo")]


def test_resumed_in_the_middle_of_a_task(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    whole = trainer_in(tmp_path / "a" / "task")
    whole.train()
    whole.save_model(str(tmp_path / "whole"))
    broken = trainer_in(tmp_path / "b" / "task", [Stop()])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = trainer_in(tmp_path / "b" / "task")
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model(str(tmp_path / "resumed"))
    for name in ("adapter_model.safetensors", "slmc/memory.safetensors"):
        ours, theirs = (load_file(tmp_path / which / name) for which in ("resumed", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in theirs), name


def test_from_the_command_line(tiny_dir: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", preference_rows(8))
    base = [
        sys.executable, "recipes/fpo.py", "--model_name_or_path", tiny_dir, "--dtype", "float32",
        "--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--max_steps", "2",
        "--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none",
        "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj",
    ]  # fmt: skip
    env = os.environ | {"CI": "1"}
    wrong = subprocess.run([*base, "--space", "delta"], capture_output=True, text=True, cwd=ROOT, env=env)
    assert "Add --use_slmc" in wrong.stderr
    flags = ["--use_slmc", "--space", "delta", "--projection_weight", "0.25", "--memory_rank", "3"]
    done = subprocess.run([*base, *flags], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    model = load_adapter(tiny_model(), str(tmp_path / "out"))
    settings = model.peft_config["default"].slmc_settings()
    assert settings == {"denoising_threshold": 0.9, "projection_weight": 0.25, "space": "delta", "memory_rank": 3}
    assert len(model.base_model.memory.entries) == 1
