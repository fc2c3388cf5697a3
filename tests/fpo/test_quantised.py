"""QLoRA: 4-bit weights under an adapter, packed and padded, evaluated before and in the middle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fpo.test_pair_packing import uneven
from fpo.test_trainer import LORA, Steps
from peft import LoraConfig, prepare_model_for_kbit_training
from support.tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign._modes import evaluating
from hf_lifealign.lifelong.scoring import score_pairs
from hf_lifealign.packing import EncodedPair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose layers are wide enough for blocks of 64 weights."""
    folder = str(tmp_path_factory.mktemp("wide"))
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


def quantised(folder: str) -> Any:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)


def trained(model: Any, folder: Path, packing: str, **settings: Any) -> tuple[FPOTrainer, list[float]]:
    steps = Steps()
    args = FPOConfig(
        str(folder / packing), pair_packing=packing, learning_rate=5e-3, max_steps=8, per_device_train_batch_size=3,
        bf16=False, use_cpu=True, logging_steps=1, report_to="none", disable_tqdm=True, gradient_checkpointing=True,
        save_strategy="no", seed=3, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = FPOTrainer(
        model=model, args=args, train_dataset=uneven(), eval_dataset=uneven(6), processing_class=tiny_tokenizer(),
        callbacks=[steps], peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    trainer.train()
    return trainer, [log["loss"] for log in steps.logs if "loss" in log]


@pytest.mark.slow
def test_packed_rows_and_evaluations_leave_the_training_as_it_is(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="it is of the extra qlora")
    plain, losses = trained(quantised(folder), tmp_path / "plain", "off")
    assert any(type(module).__name__ == "Linear4bit" for module in plain.model.modules())
    packed, ours = trained(quantised(folder), tmp_path / "packed", "auto")
    assert packed.is_packed
    assert losses[-1] < 0.5 * losses[0]
    assert ours == pytest.approx(losses, rel=2e-3)

    evaluated = quantised(folder)
    score_pairs(evaluated, [EncodedPair([5, 6, 7], [5, 8], 1, 1)], pad_token_id=0)
    often = {"eval_strategy": "steps", "eval_steps": 2}
    _, looked_at = trained(evaluated, tmp_path / "evaluated", "off", **often)
    assert looked_at == pytest.approx(losses, rel=1e-4)


class InferenceLinear(torch.nn.Linear):
    """Has the attributes of bitsandbytes' `Linear4bit` on a CPU that has a layout for inference of its own."""

    support_avx512bf16_for_cpu = True


def test_the_layout_for_inference_is_kept_off() -> None:
    layer = InferenceLinear(4, 4)
    with evaluating(torch.nn.Sequential(layer)):
        assert layer.support_avx512bf16_for_cpu is False
        assert not layer.training


def test_a_model_that_was_laid_out_for_inference_is_refused(tmp_path: Path) -> None:
    model = tiny_model()

    class State:
        packing_format_for_cpu = True

    model.model.layers[0].mlp.up_proj.weight.quant_state = State()
    args = FPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj out for inference"):
        FPOTrainer(
            model=model, args=args, train_dataset=uneven(6), processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
        )  # fmt: skip
