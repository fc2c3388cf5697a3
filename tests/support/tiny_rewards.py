"""Reward functions in TRL's protocol that need nothing, and a saved meta-aligned policy to rate with them."""

from pathlib import Path
from typing import Any

import torch

CALLS: list[int] = []
KILLED_AT: list[int] = []


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def short(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The fewer characters, the better."""
    CALLS.append(len(completions))
    if len(CALLS) in KILLED_AT:
        raise KeyboardInterrupt
    return [-float(len(_text(completion))) for completion in completions]


async def vowels(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The more vowels, the better."""
    return [float(sum(letter in "aeiou" for letter in _text(completion))) for completion in completions]


def save_tiny_policy(folder: Path, base: str, effect: float = 0.4, seed: int = 0) -> str:
    """Writes a policy on the tiny model in `base` that was not trained, but answers by the weights it is given.

    Args:
        effect (`float`): how strongly; 0 for not at all.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
    from hf_lifealign.meta_aligner.preferences import RewardStatistics

    model = AutoModelForCausalLM.from_pretrained(base)
    policy = MetaAlignedPolicy(model, AutoTokenizer.from_pretrained(base), ["short", "vowels"], hidden=8)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * effect
        parameter.data = drawn
    policy.statistics = RewardStatistics(torch.tensor([-10.0, 2.0]), torch.tensor([4.0, 1.5]))
    policy.generation = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.0, "top_k": 0}
    policy.save_pretrained(folder)
    return str(folder)
