"""Where the preference-weight-net's features come from: the frozen policy's own states, or another encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn

from hf_lifealign._modes import evaluating
from hf_lifealign.models import resolve_model
from hf_lifealign.prompts import Prompt, prompt_ids
from hf_lifealign.stream.rows import text_of


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `states` (`torch.Tensor` of shape `(rows, tokens, width)`) over the tokens that `mask` (`(rows, tokens)`)
    marks with 1; `torch.Tensor` of shape `(rows, width)` in float32."""
    weight = mask.unsqueeze(-1).to(states.device, torch.float32)
    return (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def backbone_of(model: Any) -> nn.Module:
    """The part of a causal language model below its LM head, whose last hidden states the head reads.

    Raises:
        ValueError: if the model has no such part of its own.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    backbone = base.base_model
    if backbone is base or base.get_output_embeddings() is None:
        raise ValueError(
            f"You passed a {type(base).__name__}. Its hidden states and LM head cannot be told apart, and the "
            "preference enters between them. Use a causal language model with a backbone and an LM head."
        )
    return backbone


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model without its adapter, if it has one. PEFT makes all of an adapter trainable when it comes back; here
    every parameter is as it was."""
    if not is_peft_model(model):
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class PolicyEncoder:
    """Mean-pooled last hidden states of the policy with its adapters and its preference off: no second model to load,
    and the same features through the whole life of the policy.

    Args:
        model: the policy, a causal language model or a PEFT model of one.
        tokenizer: its tokenizer.
        chat_template_kwargs (`dict`, *optional*): for the chat template.
    """

    name = "policy"
    trainable = False

    def __init__(self, model: Any, tokenizer: Any, chat_template_kwargs: dict[str, Any] | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.width = int(model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Features of prompts, `torch.Tensor` of shape `(prompts, width)`, in float32."""
        ids = prompt_ids(self.tokenizer, prompts, self.chat_template_kwargs)
        longest = max(len(row) for row in ids)
        device = next(self.model.parameters()).device
        # padded on the right, so that positions do not depend on the other prompts
        tokens = torch.zeros(len(ids), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        backbone = backbone_of(self.model)
        with without_adapter(self.model), evaluating(self.model):
            states = backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        return mean_pool(states, mask)


class AutoEncoder(nn.Module):
    """Mean-pooled last hidden states of any `AutoModel`.

    Args:
        name (`str`): Hub id, local folder, or `"embedded:minilm-l6-v2"`.
        revision (`str`, *optional*): revision on the Hub.
        trainable (`bool`): whether it learns along with the preference-weight-net, as in the paper.
        max_length (`int`): longest prompt in tokens of the encoder; the end is what is kept.
    """

    def __init__(self, name: str, revision: str | None = None, trainable: bool = False, max_length: int = 512):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.name, self.revision, self.trainable = name, revision, trainable
        source = resolve_model(name, kind="encoder")
        # no pickle, and no code of a repository's
        self.model: Any = AutoModel.from_pretrained(
            source, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        self.model.requires_grad_(trainable).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        self.tokenizer.truncation_side = "left"
        self.tokenizer.padding_side = "right"
        longest = getattr(self.model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, longest)
        self.width = int(self.model.config.hidden_size)

    def encode(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Features of prompts, `torch.Tensor` of shape `(prompts, width)`, in float32; with gradients if trainable."""
        given = self.tokenizer(
            [text_of(prompt) for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            states = self.model(**given).last_hidden_state
            return mean_pool(states, given["attention_mask"])


Encoder = PolicyEncoder | AutoEncoder
