"""The hidden states of a buffer's answers, read once: under a logit bias a frozen backbone always gives the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from tqdm.auto import tqdm

from hf_lifealign._modes import evaluating
from hf_lifealign.meta_aligner.buffers import Answer, Buffer, shares
from hf_lifealign.meta_aligner.encoders import backbone_of

# What some models do between backbone, head and logits, with the values at which it is nothing.
_AFTER_THE_HEAD = {
    "final_logit_softcapping": (None, 0, 0.0),
    "logit_scale": (None, 1, 1.0),
    "output_multiplier": (None, 1, 1.0),
    "lm_head_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
}


def head_is_plain(model: Any) -> bool:
    """Whether the logits are nothing but the head's product with the last hidden states."""
    config = model.config.get_text_config()
    return all(getattr(config, name, None) in plain for name, plain in _AFTER_THE_HEAD.items())


def states_size(buffer: Buffer, model: Any) -> int:
    """Bytes of the hidden states of the answers that are trained on."""
    tokens = sum(len(buffer.answers[i].completion_ids) for i in buffer.kept)
    return int(tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize)


class AnswerStates:
    """Last hidden states from which the tokens of each kept answer are predicted, in the computer's memory.

    They are read in an order of their own, so that a resumed training has the same to the last bit.

    Args:
        rows (`dict[int, torch.Tensor]`): for each kept answer its states, of shape `(tokens, width)`.
    """

    def __init__(self, rows: dict[int, torch.Tensor]):
        self.rows = rows

    @classmethod
    def read(
        cls,
        buffer: Buffer,
        model: Any,
        padded: Callable[[Sequence[Answer]], dict[str, torch.Tensor]],
        batch: int,
        accelerator: Any,
        quiet: bool = False,
    ) -> "AnswerStates":
        """Reads the states of a buffer, each process those of its share.

        Args:
            buffer (`Buffer`): whose kept answers are read.
            model: the policy; its preference has to be off.
            padded (`Callable`): makes a batch of answers.
            batch (`int`): answers that are read together.
            accelerator (`accelerate.Accelerator`): of the trainer.
            quiet (`bool`): whether to show no progress.
        """
        order = sorted(buffer.kept, key=lambda i: (len(buffer.answers[i].prompt_ids), i))
        found: dict[int, torch.Tensor] = {}
        backbone = backbone_of(model)
        plan = shares(len(order), batch, accelerator.num_processes, accelerator.process_index)
        quiet = quiet or not accelerator.is_main_process
        for positions, own in tqdm(plan, desc="reading answers", unit="batch", dynamic_ncols=True, disable=quiet):
            rows = [order[i] for i in positions[:own]]
            if not rows:
                continue
            inputs = padded([buffer.answers[i] for i in rows])
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            with torch.no_grad(), evaluating(model), accelerator.autocast():
                states = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            width = inputs["completion_ids"].size(1)
            states = states[:, -width - 1 : -1].cpu()
            for row, own_states in zip(rows, states, strict=True):
                # a view would keep the whole batch in memory
                found[row] = own_states[: len(buffer.answers[row].completion_ids)].clone()
        if accelerator.num_processes > 1:
            found = {row: value for part in gather_object([found]) for row, value in part.items()}
        return cls(found)

    def log_probs(
        self, model: Any, rows: Sequence[int], ids: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of answers' tokens under a logit bias.

        Args:
            model: the policy, whose head is used.
            rows (`Sequence[int]`): the answers.
            ids, mask (`torch.Tensor` of shape `(answers, tokens)`): their tokens, padded on the right.
            bias (`torch.Tensor` of shape `(answers, width)`): what the preference adds to the states.

        Returns:
            Log-probabilities and entropies, two `torch.Tensor` of shape `(answers, tokens)`, 0 at padding.
        """
        base = model.get_base_model() if is_peft_model(model) else model
        head = base.get_output_embeddings()
        there = mask.bool()
        states = torch.cat([self.rows[row] for row in rows]).to(bias.device)
        logits = head(states + bias.repeat_interleave(there.sum(1), dim=0).to(states)).float()
        logps = torch.log_softmax(logits, dim=-1)
        chosen = logps.gather(-1, ids[there].unsqueeze(-1)).squeeze(-1)
        entropy = -(logps.detach().exp() * logps.detach()).sum(-1)
        empty = torch.zeros(mask.shape, dtype=chosen.dtype, device=chosen.device)
        return empty.masked_scatter(there, chosen), empty.masked_scatter(there, entropy)
