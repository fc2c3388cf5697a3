"""What a conditioning can express: two prompts whose answers the user's weights exchange.

Under the first objective p0 is to be answered by a0 and p1 by a1, under the second the other way round. A constant
bias b(w) cannot do that. Let h_i be the log-odds of a0 against a1 at prompt i without it, and d and e what it adds to
them at both ends: the four probabilities that are wanted are s(h_0 + d), 1 - s(h_1 + d), 1 - s(h_0 + e), s(h_1 + e),
with the sigmoid s. They add up to 2 + g(d) - g(e) with g(x) = s(h_0 + x) - s(h_1 + x), whose sign does not depend on x
and whose size is below 1. So their mean stays below 3/4, whatever is learnt, and an adapter whose ranks are scaled can
reach 1.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_meal_toy import VOCABULARY, model, tokenizer

from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer

PROMPTS, ANSWERS = ["p0", "p1"], ["a0", "a1"]


def wanted(objective: int, prompt: str) -> str:
    return ANSWERS[(PROMPTS.index(prompt) + objective) % 2]


def reward(objective: int) -> Any:
    def rate(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [float(c.split()[:1] == [wanted(objective, p)]) for p, c in zip(prompts, completions, strict=True)]

    return rate


def reached(conditioning: str, folder: Path) -> float:
    """Mean probability of the wanted answer, over both prompts and both ends of the user's weights."""
    args: dict[str, Any] = {
        "num_rounds": 0, "pretrain_epochs": 40, "tau": 0.25, "pretrain_learning_rate": 2e-2,
        "pretrain_weight_learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16,
        "max_completion_length": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "seed": 0,
        "conditioning": conditioning,
    }  # fmt: skip
    rows = [{"prompt": prompt, "completion": answer} for prompt in PROMPTS for answer in ANSWERS] * 8
    trainer = MetaAlignerTrainer(
        model=model(0),
        reward_funcs=[reward(0), reward(1)],
        objective_names=["straight", "crossed"],
        args=MetaAlignerConfig(str(folder / conditioning), **args),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        offline_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    ids = torch.tensor([[VOCABULARY[prompt]] for prompt in PROMPTS])
    found = []
    for objective in (0, 1):
        weights = [1.0 - objective, float(objective)]
        with torch.no_grad(), trainer.policy.under(weights, len(PROMPTS)):
            chances = trainer.policy.model(input_ids=ids).logits[:, -1].softmax(-1)
        found += [float(chances[i, VOCABULARY[wanted(objective, prompt)]]) for i, prompt in enumerate(PROMPTS)]
    return sum(found) / len(found)


@pytest.mark.parametrize(("conditioning", "least", "most"), [("logit_bias", 0.4, 0.75), ("lora", 0.9, 1.0)])
def test_an_adapter_moves_more_than_a_constant_bias(
    conditioning: str, least: float, most: float, tmp_path: Path
) -> None:
    assert least <= reached(conditioning, tmp_path) <= most
