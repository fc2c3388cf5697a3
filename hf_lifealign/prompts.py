"""Prompts, plain or conversational: as token ids, as a batch."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from transformers import BatchEncoding
from trl.trainer.utils import pad

Prompt = str | list[dict[str, Any]]


def is_conversation(prompts: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether something is one conversation, and neither a text nor several conversations."""
    return isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], dict)


def prompt_ids(
    tokenizer: Any, prompts: Sequence[Prompt], chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """Tokens of prompts, all plain or all conversations, as the policy reads them."""
    if isinstance(prompts[0], str):
        return list(tokenizer(text=list(prompts))["input_ids"])
    encoded = tokenizer.apply_chat_template(
        list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
    )
    return list(encoded["input_ids"])


def tokenize(
    tokenizer: Any, prompts: Sequence[Prompt], chat_template_kwargs: dict[str, Any] | None = None
) -> BatchEncoding:
    """Prompts, all plain or all conversations, as a batch of `input_ids` and `attention_mask`, padded on the left."""
    ids = [torch.tensor(row, dtype=torch.long) for row in prompt_ids(tokenizer, prompts, chat_template_kwargs)]
    masks = [torch.ones_like(row) for row in ids]
    return BatchEncoding(
        {
            "input_ids": pad(ids, padding_value=tokenizer.pad_token_id, padding_side="left"),
            "attention_mask": pad(masks, padding_value=0, padding_side="left"),
        }
    )
