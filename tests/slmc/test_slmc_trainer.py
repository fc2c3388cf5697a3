"""ConsolidationCallback under transformers' Trainer and TRL's DPOTrainer, undisturbed and resumed in mid-task."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from slmc_helpers import live, same, slmc_config, tiny_base, tiny_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_lifealign import load_adapter
from hf_lifealign.slmc import ConsolidationCallback, SLMCMemoryError

SPACES = ["factors", "delta"]
ROWS = [
    {"input_ids": [(7 * i + j) % 64 for j in range(8)], "labels": [(3 * i + j) % 64 for j in range(8)]}
    for i in range(16)
]


def arguments(folder, **overrides):
    settings = {"max_steps": 6, "save_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "seed": 3}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 100}
    return TrainingArguments(output_dir=str(folder), **{**settings, **quiet, **overrides})


class Crash(TrainerCallback):
    """Kills the run after a step, as a machine that goes away would."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_for(model, folder, callback, *others, **overrides):
    return Trainer(model, arguments(folder, **overrides), train_dataset=ROWS, callbacks=[callback, *others])


def second_task(space):
    model = tiny_model(space=space)
    live(model, 1)
    return model


@pytest.mark.parametrize("space", SPACES)
def test_resumed_run_is_bit_identical_to_an_undisturbed_one(tmp_path, space):
    whole = second_task(space)
    callback = ConsolidationCallback("b", phase="sft")
    trainer = trainer_for(whole, tmp_path / "whole", callback)
    trainer.train()
    assert callback.report.task == "b"
    assert trainer.state.log_history[-1]["slmc/history_share"] > 0
    assert "load_adapter" not in whole.__dict__

    killed = second_task(space)
    with pytest.raises(KeyboardInterrupt):
        trainer_for(killed, tmp_path / "run", ConsolidationCallback("b", phase="sft"), Crash(4)).train()
    # A moved checkpoint, and a new process that knows only code and checkpoint: not even the first task.
    shutil.move(tmp_path / "run" / "checkpoint-3", tmp_path / "moved")
    fresh = tiny_model(space=space)
    resumed = ConsolidationCallback("b", phase="sft")
    trainer_for(fresh, tmp_path / "run", resumed).train(resume_from_checkpoint=str(tmp_path / "moved"))
    assert same(dict(whole.state_dict()), dict(fresh.state_dict()))
    assert same(whole.memory.tensors(), fresh.memory.tensors())
    assert resumed.report.modules == callback.report.modules
    assert [entry["task"] for entry in fresh.memory.entries] == ["task0", "b"]


def test_checkpoints_are_adapters_with_a_running_task(tmp_path):
    model = second_task("factors")
    trainer_for(model, tmp_path, ConsolidationCallback("b"), max_steps=3).train()
    middle = load_adapter(tiny_base(), tmp_path / "checkpoint-3")
    assert middle.memory.running.task == "b"
    middle.consolidate()
    assert same(dict(model.state_dict()), dict(middle.state_dict()))
    PeftModel.from_pretrained(tiny_base(), tmp_path / "checkpoint-3")


def test_resuming_without_a_verified_memory_is_refused(tmp_path):
    model = second_task("factors")
    trainer_for(model, tmp_path, ConsolidationCallback("b"), max_steps=3).train()
    with pytest.raises(SLMCMemoryError, match="'other'"):
        trainer_for(tiny_model(), tmp_path, ConsolidationCallback("other")).train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "checkpoint-3" / "slmc")
    with pytest.raises(SLMCMemoryError, match="without a memory"):
        trainer_for(tiny_model(), tmp_path, ConsolidationCallback("b")).train(resume_from_checkpoint=True)


def test_a_fresh_run_over_a_running_task_is_refused(tmp_path):
    model = second_task("factors")
    model.begin_task("b")
    with pytest.raises(RuntimeError, match="abandon_task"):
        trainer_for(model, tmp_path, ConsolidationCallback("c")).train()


def test_a_model_without_slmc_fails_before_training(tmp_path):
    with pytest.raises(TypeError, match="SLMCConfig"):
        trainer_for(tiny_base(), tmp_path, ConsolidationCallback("a"))


def preference_rows(tokenizer):
    words = ["alpha", "beta", "gamma", "delta"]
    rows = [{"prompt": f"{w} {i % 3}", "chosen": f" {w}", "rejected": " no"} for i, w in enumerate(words * 2)]
    return Dataset.from_list(rows)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "alpha", "beta", "gamma", "delta", "no", "0", "1", "2"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("space", SPACES)
def test_two_tasks_through_trl(tmp_path, tokenizer, space):
    from trl import DPOConfig, DPOTrainer

    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_length": 16, "bf16": False}
    steps = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}

    def dpo(model, folder, callback, **kwargs):
        args = DPOConfig(output_dir=str(folder), **quiet, **steps)
        rows = preference_rows(tokenizer)
        return DPOTrainer(
            model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[callback], **kwargs
        )

    first = ConsolidationCallback("a")
    trainer = dpo(tiny_base(), tmp_path / "a", first, peft_config=slmc_config(space=space))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert first.report.totals["update_norm"] > 0

    # A PeftModel gets a frozen "ref" copy, made with the very same config object.
    model = load_adapter(tiny_base(), tmp_path / "adapter")
    second = ConsolidationCallback("b")
    trainer = dpo(model, tmp_path / "b", second)
    assert set(model.peft_config) == {"default", "ref"}
    trainer.train()
    assert second.report.index == 1
    assert not (tmp_path / "b" / "checkpoint-1" / "ref" / "slmc").exists()

    # And resuming with a "ref" folder in the checkpoint.
    again = load_adapter(tiny_base(), tmp_path / "adapter")
    resumed = ConsolidationCallback("b")
    trainer = dpo(again, tmp_path / "c", resumed)
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-1"))
    assert same(dict(model.state_dict()), dict(again.state_dict()))
    assert torch.equal(
        model.memory.tensors()[next(iter(model.memory.tensors()))],
        again.memory.tensors()[next(iter(again.memory.tensors()))],
    )
