"""`pair_packing` through the real trainer: the same training, packed or padded."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fpo.test_trainer import LORA, Steps
from peft import LoraConfig, PromptTuningConfig
from support.tiny import preference_dataset, preference_rows, tiny_model, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign.packing.forward import PackedForward

SETTINGS: dict[str, Any] = {
    "max_steps": 12, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "logging_steps": 1,
    "learning_rate": 2e-3, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True, "seed": 3,
}  # fmt: skip


def uneven(n: int = 24) -> Dataset:
    """Rows of very different lengths."""
    rows = preference_rows(n)
    for i, row in enumerate(rows):
        row["prompt"][0]["content"] += " and more" * (i % 5)
        row["chosen"][0]["content"] += "!" * (i % 7)
    return Dataset.from_list(rows)


def trained(folder: Path, packing: str, model: Any = None, adapter: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A trainer after its training, and its logs."""
    steps = Steps()
    trainer = FPOTrainer(
        model=model if model is not None else tiny_model(), processing_class=tiny_tokenizer(), callbacks=[steps],
        args=FPOConfig(str(folder / packing), pair_packing=packing, **(SETTINGS | settings)), train_dataset=uneven(),
        eval_dataset=uneven(6), peft_config=LoraConfig(**LORA) if adapter is None else adapter,
    )  # fmt: skip
    trainer.train()
    return trainer, steps.logs


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "precomputed": {"precompute_ref_log_probs": True},
    "tail": {"ld_alpha": 0.4},
    "with_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "dpo_weighted": {"focal_gamma": 0.0, "use_weighting": True},
    "ipo_beside": {"loss_type": ["sigmoid", "ipo"]},
    "cut_at_the_end": {"max_length": 34},
    "cut_at_the_start": {"max_length": 34, "truncation_mode": "keep_end"},
    "narrow_rows": {"max_row_length": 60},
    "previous": {"reference": "previous"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_trajectory_is_that_of_padded_rows(name: str, tmp_path: Path) -> None:
    """Losses, gradients, figures and weights of twelve steps, whatever the loss asks of the log-probabilities."""
    (packed, ours), (plain, theirs) = (trained(tmp_path, packing, **OPTIONS[name]) for packing in ("auto", "off"))
    assert packed.is_packed
    assert not plain.is_packed
    assert len(ours) == len(theirs) == 12
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for key in set(a) - {"epoch"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-4), key
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(packed.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    measured = [trainer.evaluate() for trainer in (packed, plain)]
    for key, value in measured[1].items():
        if not key.endswith(("runtime", "per_second")):
            assert measured[0][key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


def test_a_step_has_the_pairs_of_the_plain_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is packed is a batch as it comes, and nothing moves from one step to another."""
    met: list[list[int]] = []
    real = PackedForward._pairs

    def noted(self: Any, *args: Any) -> Any:
        found = real(self, *args)
        met[-1] += [hash(tuple(pair.chosen)) for pair in found or ()]
        return found

    monkeypatch.setattr(PackedForward, "_pairs", noted)
    batches: list[list[int]] = []

    class Watching(FPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            half = len(inputs["input_ids"]) // 2
            kept = inputs["attention_mask"].bool()
            batches.append([hash(tuple(inputs["input_ids"][i][kept[i]].tolist())) for i in range(half)])
            met.append([])
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Watching(
        model=tiny_model(), processing_class=tiny_tokenizer(), args=FPOConfig(str(tmp_path), **SETTINGS),
        train_dataset=uneven(), peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    trainer.train()
    assert len(batches) == 24
    # the policy's pass and the reference's
    assert all(b == a + a for a, b in zip(batches, met, strict=True))


def test_full_fine_tuning_packs_both_models(tmp_path: Path) -> None:
    losses = {}
    for packing in ("auto", "off"):
        steps = Steps()
        args = FPOConfig(str(tmp_path / packing), pair_packing=packing, **SETTINGS)
        trainer = FPOTrainer(
            model=tiny_model(), ref_model=tiny_model(1), args=args, processing_class=tiny_tokenizer(),
            train_dataset=uneven(), callbacks=[steps],
        )  # fmt: skip
        trainer.train()
        losses[packing] = [log["loss"] for log in steps.logs]
    assert losses["auto"] == pytest.approx(losses["off"], rel=1e-4)


@pytest.mark.parametrize("adapter", [None, LoraConfig(**LORA)], ids=["full", "lora"])
def test_mixed_precision(tmp_path: Path, adapter: Any) -> None:
    """TRL's default; the reference model's autocast lies inside its forward, the policy's around it."""
    losses = {}
    for packing in ("auto", "off"):
        steps = Steps()
        args = FPOConfig(str(tmp_path / packing), pair_packing=packing, **(SETTINGS | {"bf16": True, "max_steps": 3}))
        trainer = FPOTrainer(
            model=tiny_model(), ref_model=tiny_model(1) if adapter is None else None, args=args,
            processing_class=tiny_tokenizer(), train_dataset=uneven(), callbacks=[steps], peft_config=adapter,
        )  # fmt: skip
        trainer.train()
        assert trainer.is_packed == (packing == "auto")
        losses[packing] = [log["loss"] for log in steps.logs]
    assert losses["auto"] == pytest.approx(losses["off"], rel=3e-2)


def test_prompts_are_computed_once(tmp_path: Path) -> None:
    """Cells that reach the backbone: fewer than those that pads and doubled prompts would fill."""
    cells: dict[str, int] = {}
    for packing in ("auto", "off"):
        model = tiny_model()
        cells[packing] = 0

        def count(module: Any, args: Any, kwargs: Any, packing: str = packing) -> None:
            cells[packing] += kwargs["input_ids"].numel()

        model.model.register_forward_pre_hook(count, with_kwargs=True)
        trained(tmp_path, packing, model=model, max_steps=4)
    assert cells["auto"] < 0.75 * cells["off"]


def mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
                      eos_token_id=1, output_router_logits=True)
    )  # fmt: skip


def mistral() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, sliding_window=8, pad_token_id=0, eos_token_id=1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "adapter", "words"),
    [
        (mistral, LoraConfig(**LORA), "slides over a window of 8 tokens"),
        (mixtral, LoraConfig(**LORA), "mixture of experts"),
        (tiny_model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "virtual tokens"),
    ],
    ids=["window", "experts", "prompt"],
)
def test_where_it_is_not_known_to_be_equal_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: Any, adapter: Any, words: str
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer, _ = trained(tmp_path, "auto", model=model(), adapter=adapter, max_steps=1)
    assert not trainer.is_packed
    (told,) = [record.message for record in caplog.records if "not packed" in record.message]
    assert words in told


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="pair_packing='yes'"):
        FPOConfig("unused", use_cpu=True, bf16=False, pair_packing="yes")
    assert FPOConfig("unused", use_cpu=True, bf16=False, pair_packing=False).pair_packing == "off"  # YAML's `off`
    with pytest.raises(ValueError, match="max_row_length=0"):
        FPOConfig("unused", use_cpu=True, bf16=False, max_row_length=0)


def test_an_untouched_model_is_left_as_it_is_with_off(tmp_path: Path) -> None:
    trainer = FPOTrainer(
        model=tiny_model(), processing_class=tiny_tokenizer(), train_dataset=preference_dataset(4),
        args=FPOConfig(str(tmp_path), pair_packing="off", **SETTINGS), peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    # TRL's own, and nothing around it
    assert trainer.model.get_base_model().forward.__func__.__code__.co_name == "_fused_forward"
