"""Packed rows under DDP: two gloo processes see what they would see padded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, sys
from pathlib import Path
from peft import LoraConfig
from fpo.test_pair_packing import LORA, SETTINGS, uneven
from fpo.test_trainer import Steps
from support.tiny import tiny_model, tiny_tokenizer
from hf_lifealign import FPOConfig, FPOTrainer
told = {}
for packing in ("auto", "off"):
    steps = Steps()
    trainer = FPOTrainer(
        model=tiny_model(), processing_class=tiny_tokenizer(), callbacks=[steps], train_dataset=uneven(),
        args=FPOConfig(sys.argv[1] + packing, pair_packing=packing, **(SETTINGS | {"max_steps": 4})),
        peft_config=LoraConfig(**LORA),
    )
    trainer.train()
    told[packing] = [log["loss"] for log in steps.logs], trainer.is_packed, trainer.accelerator.num_processes
Path(sys.argv[1], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(told))
"""


def test_two_processes_lose_nothing_by_packing(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        told = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        (packed, is_packed, processes), (plain, was_packed, _) = told["auto"], told["off"]
        assert (is_packed, was_packed, processes) == (True, False, 2)
        assert packed == pytest.approx(plain, rel=1e-4)
        # both keep the losses of four steps
        assert len(packed) == 4
