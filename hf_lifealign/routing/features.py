"""What the untouched base makes of a prompt: the features by which a gate tells prompts apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, batch_size: int = 8
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

    Raises:
        ValueError: if the model has no list of its layers.
    """
    base = _base(model)
    told = [list(prompt) or [pad_token_id] for prompt in prompts]
    order = sorted(range(len(told)), key=lambda i: (len(told[i]), i))
    device = base.get_input_embeddings().weight.device
    found = np.zeros((len(told), 2 * int(base.config.get_text_config().hidden_size)))
    plain = model.disable_adapter() if is_peft_model(model) else nullcontext()
    with evaluating(model), plain, _middle_states(base.base_model) as seen:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = [len(told[i]) for i in batch]
            ids = torch.full((len(batch), lengths[-1]), pad_token_id, dtype=torch.long)
            mask = torch.arange(lengths[-1]) < torch.tensor(lengths)[:, None]
            for row, i in enumerate(batch):
                ids[row, : lengths[row]] = torch.tensor(told[i])
            base.base_model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
            states = seen.pop()
            mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            last = states[torch.arange(len(batch)), torch.tensor(lengths) - 1]
            found[batch] = torch.cat([mean, last], dim=1).numpy()
    return _projected(found)


@contextmanager
def _middle_states(backbone: Any) -> Iterator[list[torch.Tensor]]:
    """What the middle layer gives in each forward pass, of shape `(prompts, tokens, hidden)`, in float64 on the CPU."""
    count = int(backbone.config.get_text_config().num_hidden_layers)
    lists = (module for module in backbone.modules() if isinstance(module, torch.nn.ModuleList))
    # the outermost one: experts, of which there may be as many, lie in it
    layers = next((each for each in lists if len(each) == count), None)
    if layers is None:
        raise ValueError(f"{type(backbone).__name__} has no list of its {count} layers whose middle one could be read.")
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        states = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(states.detach().cpu().double())

    handle = layers[(count + 1) // 2 - 1].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _projected(features: NDArray[np.float64]) -> NDArray[np.float64]:
    width = features.shape[1]
    if width <= WIDEST:
        return features
    # the one stream of numpy that is promised never to change
    directions = np.random.RandomState(width).standard_normal((width, WIDEST))
    return np.asarray(features @ directions / np.sqrt(WIDEST))


def _base(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model
