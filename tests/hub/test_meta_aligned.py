"""Meta-aligned policies on the Hub: pushed by the trainer or with a life, fetched and loaded, and nothing else sent."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.hub_server import HubServer, client_environment
from support.life import tiny_life
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from support.tiny_rewards import short, vowels

from hf_lifealign import MetaAlignerStrategy, load_adapter, load_meta_aligned, push_run
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.publish import PushOptions
from hf_lifealign.hub.remote import Remote

TESTS = Path(__file__).resolve().parents[1]
TRAIN = """
import sys
from datasets import Dataset
from peft import LoraConfig
from support.tiny import preference_rows
from support.tiny_rewards import short, vowels
from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer

args = MetaAlignerConfig("policy", max_completion_length=5, num_rounds=1, num_train_epochs=1, bf16=False, use_cpu=True,
                         gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
                         push_to_hub=True, hub_model_id="me/policy")
lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
rows = Dataset.from_list(preference_rows(6))
trainer = MetaAlignerTrainer(sys.argv[1], [short, vowels], args=args, train_dataset=rows, peft_config=lora)
trainer.train()
trainer.push_to_hub(dataset_name="me/pairs")
"""
ARGS: dict[str, Any] = {
    "num_rounds": 1, "num_train_epochs": 1, "max_completion_length": 5, "learning_rate": 1e-2, "use_cpu": True,
    "pretrain_learning_rate": 1e-2, "gradient_checkpointing": False, "bf16": False, "disable_tqdm": True,
}  # fmt: skip


def test_the_trainer_pushes_what_others_load(
    hub: HubServer, remote: Callable[..., Remote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base")
    environment = client_environment(hub, tmp_path / "home") | {"PYTHONPATH": str(TESTS)}
    line = [sys.executable, "-c", TRAIN, base]
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    handle = remote("me/policy")
    files = set(handle.tree(handle.resolve(None)))
    assert {"meta_aligner/meta_aligner.json", "meta_aligner/meta_aligner.safetensors", "adapter_config.json"} <= files
    assert not [name for name in files if name.startswith(("_", "checkpoint", "ref", "model"))]
    card = hub.repo("me/policy").files("main")["README.md"].decode()
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["datasets"] == ["me/pairs"]
    assert 'load_meta_aligned("base", "me/policy")' in card
    assert str(tmp_path) not in card

    policy = load_meta_aligned(tiny_model(), "me/policy", tokenizer=tiny_tokenizer())
    local = load_meta_aligned(tiny_model(), tmp_path / "policy", tokenizer=tiny_tokenizer())
    theirs, ours = policy.tensors(), local.tensors()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert policy.generate(["hello"], [1.0, 0.0], do_sample=False) == local.generate(
        ["hello"], [1.0, 0.0], do_sample=False
    )
    # with the tokenizer and chat template that it was trained with
    assert load_meta_aligned(tiny_model(), "me/policy").tokenizer.chat_template == tiny_tokenizer().chat_template
    with pytest.raises(HubError, match="v9"):
        load_meta_aligned(tiny_model(), "me/policy", revision="v9", tokenizer=tiny_tokenizer())
    with pytest.raises(HubError, match="There is no folder me/nothing"):
        load_meta_aligned(tiny_model(), "me/nothing", tokenizer=tiny_tokenizer())
    with pytest.raises(FileNotFoundError, match="owner/name"):
        load_meta_aligned(tiny_model(), "./policy", tokenizer=tiny_tokenizer())


def test_a_meta_aligned_task_travels_with_its_life(hub: HubServer, options: PushOptions, tmp_path: Path) -> None:
    strategy = MetaAlignerStrategy({"two": ["short", "vowels"]}, {"short": short, "vowels": vowels}, ARGS)
    root = tmp_path / "run"
    tiny_life(root, strategies=["consolidation", strategy], warm_start=False).train()
    push_run(root, "me/life", options=options)
    fetched = load_meta_aligned(tiny_model(), "me/life", revision="task-02-two", tokenizer=tiny_tokenizer())
    local = load_meta_aligned(tiny_model(), root / "adapters" / "02-two", tokenizer=tiny_tokenizer())
    assert all(torch.equal(fetched.tensors()[name], tensor) for name, tensor in local.tensors().items())
    # a later task keeps what the earlier one has learnt, and its adapter goes on as any other
    latest = load_meta_aligned(tiny_model(), "me/life", tokenizer=tiny_tokenizer())
    assert all(torch.equal(latest.tensors()[name], tensor) for name, tensor in local.tensors().items())
    assert load_adapter(tiny_model(), "me/life").peft_config["default"].peft_type == "SLMC"
    with pytest.raises(FileNotFoundError, match="no meta-aligned policy"):
        load_meta_aligned(tiny_model(), "me/life", revision="task-01-one", tokenizer=tiny_tokenizer())


def test_a_damaged_policy_of_a_life_is_refused(hub: HubServer, options: PushOptions, tmp_path: Path) -> None:
    strategy = MetaAlignerStrategy({"two": ["short", "vowels"]}, {"short": short, "vowels": vowels}, ARGS)
    root = tmp_path / "run"
    tiny_life(root, strategies=["consolidation", strategy], warm_start=False).train()
    push_run(root, "me/life", options=options)
    name = next(f for f in hub.repo("me/life").files("main") if "strategies/meta_aligner" in f and f.endswith(".json"))
    hub.corrupt("me/life", "main", name)
    with pytest.raises(DamagedRevisionError, match=name):
        load_meta_aligned(tiny_model(), "me/life", tokenizer=tiny_tokenizer())
