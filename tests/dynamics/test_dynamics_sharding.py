"""Training that is spread over processes by FSDP, on two gloo processes: the score alone is followed, and rightly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny import tiny_model
from transformers import TrainingArguments

from hf_lifealign.dynamics.series import read_series
from hf_lifealign.dynamics.sharding import why_sharded

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import distributed
from support.tiny import tiny_model, tiny_tokenizer
from support.vowel_judge import has_vowel
from transformers import TrainerControl, TrainerState, TrainingArguments
from hf_lifealign import AlignmentDynamicsCallback

root, kind = sys.argv[1:]
distributed.init_process_group("gloo")
rank = distributed.get_rank()
model, tokenizer = tiny_model(), tiny_tokenizer()
if kind == "fsdp2":
    from torch.distributed.fsdp import fully_shard
    mesh = distributed.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
if kind == "fsdp1":
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    model = FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({type(model.model.layers[0])}), use_orig_params=True,
        device_id=torch.device("cpu"),
    )
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
watch = AlignmentDynamicsCallback(
    [{"prompt": "How?", "chosen": "No.", "rejected": "So."}, {"prompt": "Why?", "chosen": "I.", "rejected": "U!"}],
    has_vowel, every=1, anchor_every=3, samples=4, max_new_tokens=6, forces="none" if kind == "whole" else "auto",
)
args = TrainingArguments(root, use_cpu=True, report_to=[])
state, control = TrainerState(max_steps=5, is_world_process_zero=rank == 0), TrainerControl()
given = {"model": model, "processing_class": tokenizer, "optimizer": optimizer}
model.train()
watch.on_train_begin(args, state, control, **given)
batch = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(0))
losses = []
for step in range(5):
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
    state.global_step = step + 1
    watch.on_step_end(args, state, control, **given)
assert model.training
Path(root, f"rank-{rank}.json").write_text(json.dumps(losses))
"""


def train(folder: Path, kind: str) -> tuple[list[dict[str, Any]], list[list[float]]]:
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder), kind], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return read_series(folder), [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("sharding") / "whole", "whole")


@pytest.mark.parametrize("kind", [pytest.param("fsdp1", marks=pytest.mark.slow), "fsdp2"])
def test_a_sharded_training_is_followed_without_forces(tmp_path: Path, kind: str, whole: Any) -> None:
    series, losses = train(tmp_path / kind, kind)
    plain, plain_losses = whole
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] == pytest.approx(plain_losses[0], rel=1e-4), "measuring leaves the sharded model as it was"
    assert len(series) == len(plain) == 6
    for entry, other in zip(series, plain, strict=True):
        assert entry["score"]["score"] == pytest.approx(other["score"]["score"], abs=1e-4)
        assert entry["reference_margin"]["margin"] == pytest.approx(other["reference_margin"]["margin"], abs=1e-3)
        assert "forces" not in entry
        assert "attribution" not in entry
    anchors = [entry["not_estimable"]["forces"] for entry in series if "narrowness" in entry]
    assert 2 <= len(anchors) < 6, "and weighed anew in between"
    assert all(reason.startswith("FSDP spreads") for reason in anchors)
    assert len({entry["score"]["score"] for entry in series}) > 2, "the score does move"


def test_whatever_spreads_a_model_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, model = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]), tiny_model()
    assert why_sharded(args, model) is None
    for flags in ({"deepspeed": "z.json"}, {"deepspeed_plugin": object()}):
        assert why_sharded(SimpleNamespace(**flags), model) == "DeepSpeed"
    assert why_sharded(SimpleNamespace(fsdp="full_shard"), model) == "FSDP"
    next(model.parameters()).ds_id = 0  # type: ignore[attr-defined]
    assert why_sharded(args, model) == "DeepSpeed"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert why_sharded(args, tiny_model()) == "FSDP", "as `accelerate launch --use_fsdp` tells it"
