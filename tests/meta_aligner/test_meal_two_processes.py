"""Two gloo processes train what one process trains with batches twice as large."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from meal_helpers import everything, lora, trainer_of
from safetensors.torch import load_file

from hf_lifealign import MetaAlignerTrainer

HERE = Path(__file__).resolve().parent
SCRIPT = """
import json, sys
from test_meal_two_processes import trained
from meal_helpers import everything
from safetensors.torch import save_file
trainer = trained(sys.argv[1], 2)
if trainer.is_world_process_zero():
    save_file(everything(trainer), sys.argv[1] + "/trained.safetensors")
    with open(sys.argv[1] + "/log.json", "w") as file:
        json.dump(trainer.state.log_history, file)
"""


def trained(folder: str, batch: int) -> MetaAlignerTrainer:
    """Seven prompts, which two processes cannot share evenly; `top_k=1` lets all seeds draw the same answers."""
    trainer = trainer_of(
        folder, rows=7, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, top_k=1,
        conditioning="lora", peft_config=lora(), num_rounds=2, save_strategy="steps", save_steps=5,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "two"
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    one = trained(str(tmp_path / "one"), 4)
    expected, found = everything(one), load_file(folder / "trained.safetensors")
    start = everything(trainer_of(tmp_path / "start", conditioning="lora", peft_config=lora()))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=2e-2, atol=2e-3, msg=name)
    assert any((expected[name] - start[name]).abs().max() > 0.02 for name in expected), "training has to move something"
    logs = json.loads((folder / "log.json").read_text())
    for ours, theirs in zip(logs, one.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "kept", "supervised", "rewards/short/mean", "round", "num_tokens"):
            assert (key in ours) == (key in theirs)
            if key in theirs:
                assert abs(ours[key] - theirs[key]) <= 2e-2 * max(1.0, abs(theirs[key])), key
    assert (folder / "checkpoint-5" / "meta_aligner_rounds.json").is_file()
    assert not (folder / "_rounds").exists()
