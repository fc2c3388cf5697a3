"""What the untouched base makes of a prompt: the features by which a gate tells prompts apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from numpy.typing import NDArray

from hf_lifealign._modes import evaluating

# most features of a prompt; wider bases are projected, so that a gate stays a file of megabytes
WIDEST = 2048


def feature_count(model: Any) -> int:
    """How many features [`prompt_features`] gives for a model."""
    return min(WIDEST, 2 * int(_base(model).config.get_text_config().hidden_size))


@torch.no_grad()
def prompt_features(
    model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, batch_size: int = 16
) -> NDArray[np.float64]:
    """Features of prompts under the untouched base: the hidden state in the middle layer, its mean over the prompt and
    that of its last token.

    Where these are more than 2048 numbers they are projected onto as many directions, drawn once and for all.

    Args:
        model (`torch.nn.Module`): causal language model, or the PEFT model around it, whose adapters do not count.
        prompts (`Sequence[Sequence[int]]`): token ids; an empty prompt is read as one padding token.
        pad_token_id (`int`): any valid token id.
        batch_size (`int`): prompts of a forward pass; they are taken in order of length.

    Returns:
        `numpy.ndarray` of shape `(prompts, features)`.
    """
    base = _base(model)
    told = [list(prompt) or [pad_token_id] for prompt in prompts]
    order = sorted(range(len(told)), key=lambda i: (len(told[i]), i))
    device = next(base.parameters()).device
    found = np.zeros((len(told), 2 * int(base.config.get_text_config().hidden_size)))
    with evaluating(model), _without_adapters(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(told[batch[-1]])
            ids = torch.full((len(batch), longest), pad_token_id, dtype=torch.long, device=device)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(told[i])] = torch.tensor(told[i], device=device)
                mask[row, : len(told[i])] = 1
            states = base.base_model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
            middle = states[len(states) // 2].double()
            mean = (middle * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            last = middle[torch.arange(len(batch)), mask.sum(dim=1) - 1]
            found[batch] = torch.cat([mean, last], dim=1).cpu().numpy()
    width = found.shape[1]
    if width > WIDEST:
        found = found @ np.random.default_rng(width).standard_normal((width, WIDEST)) / np.sqrt(WIDEST)
    return found


def _base(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def _without_adapters(model: Any) -> Any:
    from hf_lifealign.lifelong.evaluation import adapters_off

    return adapters_off(model)
