"""focal_gamma=0 reproduces DPOTrainer step for step, through the real command lines of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import preference_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
TIMING = ("runtime", "per_second", "total_flos")


def train(script: list[str], output: Path, tiny_dir: str, data: Path, *flags: str) -> list[dict[str, float]]:
    """Runs a script and returns the trainer's log."""
    command = [
        sys.executable, *script, "--model_name_or_path", tiny_dir, "--dataset_name", str(data),
        "--output_dir", str(output), "--max_steps", "6", "--per_device_train_batch_size", "2",
        "--gradient_accumulation_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-2", "--use_cpu", "true",
        "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none", "--save_strategy", "steps",
        "--save_steps", "6", "--eval_strategy", "steps", "--eval_steps", "3", "--use_peft", "--lora_r", "4",
        "--lora_target_modules", "q_proj", "v_proj", "--dtype", "float32", *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"CI": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]


MIXED = pytest.param(("--ld_alpha", "0.4", "--loss_type", "sft", "sigmoid"), marks=pytest.mark.slow, id="mixed")


@pytest.mark.parametrize("flags", [pytest.param((), id="plain"), MIXED])
def test_gamma_zero_is_dpo(flags: tuple[str, ...], tiny_dir: str, tmp_path: Path) -> None:
    """Packed within float32's rounding; padded exactly."""
    write_jsonl(tmp_path / "data" / "train.jsonl", preference_rows(24))
    write_jsonl(tmp_path / "data" / "test.jsonl", preference_rows(6, start=50))
    data = tmp_path / "data"
    dpo = train(["-m", "trl.scripts.dpo"], tmp_path / "dpo", tiny_dir, data, *flags)
    for packing, rel, least in (("off", 1e-6, 1e-9), ("auto", 1e-5, 1e-5)):
        told = ("--focal_gamma", "0", "--pair_packing", packing, *flags)
        fpo = train(["recipes/fpo.py"], tmp_path / packing, tiny_dir, data, *told)
        assert len(dpo) == len(fpo) == 8
        for theirs, ours in zip(dpo, fpo, strict=True):
            for key, value in theirs.items():
                if not any(word in key for word in TIMING):
                    assert ours[key] == pytest.approx(value, rel=rel, abs=least), (packing, key)
            assert set(ours) - set(theirs) <= {
                f"{prefix}focal/{name}" for prefix in ("", "eval_") for name in ("weight", "mastered", "review")
            }
