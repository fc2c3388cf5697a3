"""A tiny Meta-Aligner training: rewards of two objectives, settings, and a trainer that has them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from hf_lifealign import MetaAlignedPolicy, MetaAlignerConfig, MetaAlignerTrainer


def text_of(completion: Any) -> str:
    """A completion as text, plain or conversational."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def short(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [-float(len(text_of(c))) for c in completions]


def vowels(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [float(sum(ch in "aeiouAEIOU" for ch in text_of(c))) for c in completions]


def lora(**kwargs: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"]} | kwargs))


def config(folder: Path | str, **settings: Any) -> MetaAlignerConfig:
    defaults: dict[str, Any] = {
        "max_completion_length": 8,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "num_rounds": 1,
        "num_train_epochs": 1,
        "weight_net_hidden": 16,
        "learning_rate": 1e-2,
        "weight_learning_rate": 2e-2,
        "pretrain_learning_rate": 1e-2,
        "pretrain_weight_learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "generation_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return MetaAlignerConfig(str(folder), **(defaults | settings))


def trainer_of(
    folder: Path | str,
    rewards: Any = (short, vowels),
    rows: Any = 8,
    model: Any = None,
    peft_config: Any = None,
    callbacks: Any = None,
    offline: Dataset | None = None,
    eval_rows: Dataset | None = None,
    names: Any = None,
    **settings: Any,
) -> MetaAlignerTrainer:
    """A trainer on preference rows, whose answers are its offline set."""
    return MetaAlignerTrainer(
        tiny_model() if model is None else model,
        list(rewards),
        objective_names=names,
        args=config(folder, **settings),
        train_dataset=Dataset.from_list(preference_rows(rows)) if isinstance(rows, int) else rows,
        eval_dataset=eval_rows,
        offline_dataset=offline,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def prompts_only(n: int) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"]} for row in preference_rows(n)])


def randomised(policy: MetaAlignedPolicy, seed: int = 1, std: float = 0.5) -> MetaAlignedPolicy:
    """A policy whose conditioning, net and adapter have left their zeros."""
    generator = torch.Generator().manual_seed(seed)
    own = [*policy.conditioning.parameters(), *policy.weight_net.parameters()]
    own += [p for name, p in policy.model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for parameter in own:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return policy


def everything(trainer: MetaAlignerTrainer) -> dict[str, torch.Tensor]:
    """All that is trained, by name, as copies."""
    tensors = {**trainer.policy.tensors(), **trainer.adapter_tensors()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


class Watch(TrainerCallback):
    """Gradients and parameters of both sides at each update, with its kind."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.grads: list[dict[str, Any]] = []
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.trainer: MetaAlignerTrainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        policy = self.trainer.policy
        self.kinds.append(self.trainer._kind)
        sides = {
            "conditioning": list(policy.conditioning.parameters()),
            "weight_net": list(policy.weight_net.parameters()),
            "adapter": list(self.trainer.adapter_tensors().values()),
        }
        self.grads.append({k: [None if p.grad is None else p.grad.clone() for p in v] for k, v in sides.items()})
        self.before.append(everything(self.trainer))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.after.append(everything(self.trainer))


def watched(folder: Path, **kwargs: Any) -> tuple[MetaAlignerTrainer, Watch]:
    watch = Watch()
    watch.trainer = trainer_of(folder, callbacks=[watch], **kwargs)
    return watch.trainer, watch
