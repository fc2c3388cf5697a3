"""FPOTrainer through the real DPOTrainer, against DPOTrainer's own numbers."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from support.tiny import preference_dataset, preference_rows, tiny_model, tiny_tokenizer
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from hf_lifealign import FPOConfig, FPOTrainer

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True}


class Steps(TrainerCallback):
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))


def run(
    cls: type[DPOTrainer],
    tmp_path: Path,
    model: Any = None,
    rows: Dataset | None = None,
    peft_config: Any = None,
    **kw: Any,
) -> tuple[DPOTrainer, list[dict[str, float]]]:
    """Trains a few steps of batch 1 without shuffling away the pairing between two runs."""
    steps = Steps()
    settings: dict[str, Any] = {
        "learning_rate": 5e-2,
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    config = (FPOConfig if issubclass(cls, FPOTrainer) else DPOConfig)(str(tmp_path / "out"), **(settings | kw))
    trainer = cls(
        model=model if model is not None else tiny_model(),
        args=config,
        train_dataset=rows if rows is not None else preference_dataset(8),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        callbacks=[steps],
    )
    trainer.train()
    return trainer, steps.logs


def focal_of(sigmoid_loss: float, gamma: float) -> float:
    """The focal loss of one pair from DPO's sigmoid loss of that pair, in plain floats."""
    p = math.exp(-sigmoid_loss)
    return (1 - p) ** gamma * sigmoid_loss


def test_signature_is_dpo_trainers() -> None:
    ours, theirs = (list(inspect.signature(c.__init__).parameters) for c in (FPOTrainer, DPOTrainer))
    assert ours == theirs


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ld_alpha": {"ld_alpha": 0.3},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js": {"f_divergence_type": "js_divergence"},
    "alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    "precompute": {"precompute_ref_log_probs": True},
    "beta": {"beta": 0.7},
    "keep_start": {"max_length": 40},
}


@pytest.mark.parametrize("packing", ["off", "auto"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_first_losses_are_the_focal_form_of_dpos(name: str, packing: str, tmp_path: Path) -> None:
    """At learning rate 0 DPO and FPO see the same margins, away from zero thanks to a foreign reference."""
    options = OPTIONS[name] | {"learning_rate": 0.0}
    adapter = LoraConfig(**LORA)

    def moved() -> PeftModel:
        model = get_peft_model(tiny_model(), adapter)
        torch.manual_seed(3)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.3)
        return model

    fpo, fpo_logs = run(FPOTrainer, tmp_path, model=moved(), focal_gamma=2.0, pair_packing=packing, **options)
    assert fpo.is_packed == (packing == "auto")
    # packed, differences of sums of 40 to 80 nats are rounded otherwise in float32
    error = 1e-6 if packing == "off" else 4e-5 * fpo.beta
    # DPO's reference for a PeftModel is a copy of the adapter; the explicit base gives the reference "base".
    steps = Steps()
    config = DPOConfig(str(tmp_path / "dpo"), **_like(fpo.args, options))
    dpo = DPOTrainer(
        model=moved(), ref_model=tiny_model(), args=config, train_dataset=preference_dataset(8),
        processing_class=tiny_tokenizer(), callbacks=[steps],
    )  # fmt: skip
    dpo.train()
    assert len(fpo_logs) == len(steps.logs) == 4
    for ours, theirs in zip(fpo_logs, steps.logs, strict=True):
        assert abs(theirs["loss"] - math.log(2)) > 1e-3, "the margins must not be zero, or this test shows nothing"
        assert ours["loss"] == pytest.approx(focal_of(theirs["loss"], 2.0), rel=2e-5, abs=error)
        assert ours["rewards/margins"] == pytest.approx(theirs["rewards/margins"], rel=1e-5, abs=error)
        assert ours["focal/weight"] == pytest.approx((1 - math.exp(-theirs["loss"])) ** 2, rel=2e-5, abs=error)


def _like(args: FPOConfig, options: dict[str, Any]) -> dict[str, Any]:
    names = ("max_steps", "per_device_train_batch_size", "logging_steps", "gradient_checkpointing", "bf16", "use_cpu",
             "report_to", "save_strategy", "disable_tqdm")  # fmt: skip
    return {name: getattr(args, name) for name in names} | options


def test_other_entries_of_loss_type_keep_their_form_and_weight(tmp_path: Path) -> None:
    mixed = {"loss_type": ["sft", "sigmoid"], "loss_weights": [0.3, 0.7], "learning_rate": 0.0}
    _, dpo = run(DPOTrainer, tmp_path, peft_config=LoraConfig(**LORA), **mixed)
    _, fpo = run(FPOTrainer, tmp_path, peft_config=LoraConfig(**LORA), focal_gamma=2.0, **mixed)
    for ours, theirs in zip(fpo, dpo, strict=True):
        expected = theirs["loss"] - 0.7 * math.log(2) + 0.7 * 0.25 * math.log(2)
        assert ours["loss"] == pytest.approx(expected, rel=1e-5)


def test_gradient_at_zero_margin_is_the_closed_form(tmp_path: Path) -> None:
    """dL/dr at p = 0.5 is -0.5^g (0.5 + 0.5 g log 2): 0.298 for gamma 2 against DPO's 0.5."""
    still = {"max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 1e9}
    _, dpo = run(DPOTrainer, tmp_path, peft_config=LoraConfig(**LORA), **still)
    _, fpo = run(FPOTrainer, tmp_path, peft_config=LoraConfig(**LORA), **still)
    ratio = 0.25 * (0.5 + 2 * 0.5 * math.log(2)) / 0.5
    assert fpo[0]["grad_norm"] == pytest.approx(ratio * dpo[0]["grad_norm"], rel=1e-4)


def test_moe_auxiliary_loss_is_kept(tmp_path: Path) -> None:
    def moe() -> MixtralForCausalLM:
        torch.manual_seed(0)
        return MixtralForCausalLM(
            MixtralConfig(
                vocab_size=260, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, output_router_logits=True,
                router_aux_loss_coef=0.5, max_position_embeddings=256, pad_token_id=0,
            )
        )  # fmt: skip

    _, logs = run(FPOTrainer, tmp_path, model=moe(), reference="previous", learning_rate=0.0)
    for entry in logs:
        assert entry["aux_loss"] > 0.1
        assert entry["loss"] == pytest.approx(0.25 * math.log(2) + 0.5 * entry["aux_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "peft_config",
    [
        LoraConfig(**LORA),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=lambda c: c.peft_type.value,
)
def test_learns_with_adapters_of_several_types(peft_config: Any, tmp_path: Path) -> None:
    _, logs = run(FPOTrainer, tmp_path, peft_config=peft_config, max_steps=30, learning_rate=0.1)
    assert logs[-1]["rewards/margins"] > logs[0]["rewards/margins"] + 0.05


def test_standard_rows_tools_and_tags(tmp_path: Path) -> None:
    rows = [{"prompt": f"item {i}", "chosen": f" yes {i}", "rejected": " no"} for i in range(6)]
    trainer, logs = run(FPOTrainer, tmp_path, rows=Dataset.from_list(rows), max_steps=2, reference="previous")
    assert len(logs) == 2
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    with_tools = Dataset.from_list([row | {"tools": [tool]} for row in preference_rows(4)])
    trainer, _ = run(FPOTrainer, tmp_path, rows=with_tools, max_steps=1, reference="previous")
    text = trainer.processing_class.decode(trainer.train_dataset[0]["prompt_ids"])
    assert "tools" in text
    assert {"trl", "fpo"} <= set(trainer.model.model_tags)
    trainer.create_model_card(model_name="m")
    assert "2509.17183" in (tmp_path / "out" / "README.md").read_text()


def test_full_fine_tuning_keeps_a_frozen_copy_for_previous(tmp_path: Path) -> None:
    trainer, logs = run(FPOTrainer, tmp_path, reference="previous", learning_rate=1e-2)
    start = tiny_model()
    for (_, a), (_, b) in zip(start.named_parameters(), trainer.ref_model.named_parameters(), strict=True):
        assert torch.equal(a, b)
    assert logs[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert logs[-1]["rewards/margins"] != pytest.approx(0, abs=1e-4)


def test_evaluate_logs_the_gate(tmp_path: Path) -> None:
    trainer, _ = run(FPOTrainer, tmp_path, peft_config=LoraConfig(**LORA))
    metrics = trainer.evaluate(preference_dataset(4, start=20))
    assert {"eval_loss", "eval_rewards/accuracies"} <= set(metrics) or "eval_loss" in metrics
    logged = trainer.state.log_history[-1]
    assert {"eval_focal/weight", "eval_focal/mastered", "eval_focal/review"} <= set(logged)


def test_extra_losses_are_added_while_training_only(tmp_path: Path) -> None:
    seen: list[bool] = []

    class WithPenalty(FPOTrainer):
        extra_losses = (lambda model, inputs: seen.append(True) or torch.tensor(2.5),)  # type: ignore[func-returns-value]

    _, plain = run(FPOTrainer, tmp_path, max_steps=2, reference="previous", learning_rate=0.0)
    trainer, logs = run(WithPenalty, tmp_path, max_steps=2, reference="previous", learning_rate=0.0)
    assert logs[0]["loss"] == pytest.approx(plain[0]["loss"] + 2.5, rel=1e-5)
    assert logs[0]["extra_loss"] == 2.5
    calls = len(seen)
    trainer.evaluate(preference_dataset(2))
    assert len(seen) == calls


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"focal_gamma": -1.0}, "focal_gamma=-1.0"),
        ({"focal_gamma": float("nan")}, "focal_gamma=nan"),
        ({"reference": "start"}, "'base'"),
        ({"loss_type": ["ipo"]}, "Add 'sigmoid'"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "exactly once"),
        ({"use_weighting": True}, "use_weighting"),
        ({"sync_ref_model": True}, "sync_ref_model"),
    ],
)
def test_settings_without_a_meaning_are_refused(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FPOConfig("out", use_cpu=True, bf16=False, **kwargs)


def test_wrong_constructions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="FPOConfig"):
        FPOTrainer(tiny_model(), args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False))
    common: dict[str, Any] = {"train_dataset": preference_dataset(2), "processing_class": tiny_tokenizer()}

    def config(**kw: Any) -> FPOConfig:
        return FPOConfig(str(tmp_path), use_cpu=True, bf16=False, **kw)

    with pytest.raises(ValueError, match="Leave out ref_model"):
        FPOTrainer(tiny_model(), ref_model=tiny_model(1), args=config(reference="previous"), **common)
    with pytest.raises(ValueError, match="built in memory"):
        FPOTrainer(tiny_model(), args=config(), **common)
    with pytest.raises(ValueError, match="init_lora_weights='pissa'"):
        FPOTrainer(tiny_model(), args=config(), peft_config=LoraConfig(init_lora_weights="pissa"), **common)
    with pytest.raises(ValueError, match="bias='lora_only'"):
        FPOTrainer(tiny_model(), args=config(), peft_config=LoraConfig(bias="lora_only"), **common)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="get_peft_model"):
        FPOTrainer(tiny_model(), args=config(reference="previous"), peft_config=prompt, **common)
    other = get_peft_model(tiny_model(), LoraConfig(**LORA), adapter_name="mine")
    with pytest.raises(ValueError, match="'default'"):
        FPOTrainer(other, args=config(), **common)
