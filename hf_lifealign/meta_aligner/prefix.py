"""Prompts that are read once: under a logit bias their keys and values are the same for every preference."""

import copy
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import DynamicCache

from hf_lifealign.meta_aligner.encoders import backbone_of
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.states import head_is_plain

# Answers whose logits are held together.
_SCORED = 8


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among those that `mask` marks, both of shape `(rows, tokens)`; 0 at padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class PrefixCache:
    """Keys and values of batches of prompts, all but their last token.

    Args:
        policy ([`MetaAlignedPolicy`]): that answers.
        gigabytes (`float`): memory for them, in GiB; batches past it are read anew each time.
    """

    def __init__(self, policy: MetaAlignedPolicy, gigabytes: float):
        self.policy = policy
        self.room = gigabytes * 1024**3
        self.applies = policy.backbone_is_frozen and head_is_plain(policy.model)
        # with an adapter the base reads prompts otherwise
        self.scores = self.applies and not is_peft_model(policy.model)
        self._kept: dict[int, DynamicCache] = {}

    def of(self, number: int, inputs: Any) -> DynamicCache | None:
        """A copy of the cache of batch `number`, which generation may extend; `None` where it cannot be kept.

        Args:
            number (`int`): of the batch.
            inputs (`BatchEncoding`): its prompts, padded on the left.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if number not in self._kept:
            if not self.applies or ids.shape[1] < 2 or self.room <= 0:
                return None
            cache = self._read(ids[:, :-1], mask[:, :-1])
            held = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
            size = sum(part.nbytes for part in held if isinstance(part, torch.Tensor))
            # a layer without keys and values keeps a state that cannot be extended from the middle
            if size > self.room or not all(isinstance(part, torch.Tensor) for part in held):
                self.room = 0
                return None
            self.room -= size
            self._kept[number] = cache
        return copy.deepcopy(self._kept[number])

    @torch.no_grad()
    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache:
        cache = DynamicCache(config=self.policy.model.config)
        backbone_of(self.policy.model)(
            input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), past_key_values=cache, use_cache=True
        )
        return cache

    @torch.no_grad()
    def nll(self, number: int, inputs: Any, answers: list[list[int]]) -> list[float] | None:
        """Negative log-likelihoods of answers without a preference, in nats; `None` where the prompts are not kept."""
        cache = self.of(number, inputs) if self.scores else None
        if cache is None:
            return None
        device = inputs["input_ids"].device
        width = max(len(answer) for answer in answers)
        new = torch.zeros(len(answers), width, dtype=torch.long, device=device)
        there = torch.zeros_like(new)
        for i, answer in enumerate(answers):
            new[i, : len(answer)] = torch.tensor(answer)
            there[i, : len(answer)] = 1
        # the last token of the prompt predicts the first of the answer
        ids = torch.cat([inputs["input_ids"][:, -1:], new[:, :-1]], dim=1)
        mask = torch.cat([inputs["attention_mask"], there[:, :-1]], dim=1)
        states = backbone_of(self.policy.model)(
            input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)[:, -width:], past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        head = self.policy.model.get_output_embeddings()
        found: list[float] = []
        for start in range(0, len(answers), _SCORED):
            rows = slice(start, start + _SCORED)
            logps = torch.log_softmax(head(states[rows]).float(), dim=-1)
            chosen = logps.gather(-1, new[rows].unsqueeze(-1)).squeeze(-1)
            found += (-(chosen * there[rows]).sum(-1)).tolist()
        return found
