"""Log-likelihoods of answers, each prompt read once for all its answers, and their gradients."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hf_lifealign._modes import evaluating
from hf_lifealign.dynamics.updates import Tensors
from hf_lifealign.prompt_pool import pools_of, told_prompts

# Logits that are held at once, in bytes; a backward needs about three times as much.
_LOGITS = 256 * 1024**2


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """The model in evaluation mode, dropout off; afterwards each of its modules, and all randomness of the process, is
    as it was, so that training goes on as if nothing had been measured."""
    import random

    import numpy as np

    own, numbers = random.getstate(), np.random.get_state()
    drawn = _random_states({p.device for p in model.parameters()})
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for put_back, state in drawn:
            put_back(state)
        random.setstate(own)
        np.random.set_state(numbers)


def _random_states(devices: Iterable[torch.device]) -> list[tuple[Callable[[torch.Tensor], None], torch.Tensor]]:
    """The random states of accelerators (CUDA, XPU, MPS and whatever torch knows), each with what puts it back."""
    found: list[tuple[Callable[[torch.Tensor], None], torch.Tensor]] = []
    for device in sorted(devices, key=str):
        kind: Any = getattr(torch, device.type, None)
        if device.type in ("cpu", "meta") or not hasattr(kind, "get_rng_state"):
            continue
        # Apple's is a single device, whose functions take none
        which: dict[str, Any] = {} if device.type == "mps" else {"device": device}
        found.append((partial(kind.set_rng_state, **which), kind.get_rng_state(**which)))
    return found


def takes(model: Any, name: str) -> bool:
    """Whether the forward of a model, inside its adapter, has a parameter of that name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(inner.forward).parameters


def answer_logps(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    first_tokens: int | None = None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Log-likelihoods of answers, batch by batch; with a graph where gradients are enabled.

    Args:
        model: causal language model, in evaluation mode.
        prompt_ids (`P` lists of int): tokens of the prompts.
        completion_ids (`P` lists of `n` lists of int): tokens of the answers, as many to each prompt.
        first_tokens (`int`, *optional*): only so many tokens of each answer count.

    Yields:
        Numbers of some prompts, and `torch.Tensor` of shape `(prompts, n)`, float32, in nats.
    """
    cut = [[list(ids)[:first_tokens] for ids in row] for row in completion_ids]
    count = max(len(row) for row in cut)
    width = max((len(ids) for row in cut for ids in row), default=1)
    vocabulary = int(model.config.get_text_config().vocab_size)
    together = max(1, _LOGITS // (4 * vocabulary * max(width, 1) * count))
    # alike in length, so that a batch has little padding
    order = sorted(range(len(cut)), key=lambda i: (len(prompt_ids[i]), i))
    for start in range(0, len(order), together):
        chosen = order[start : start + together]
        yield chosen, _logps(model, [prompt_ids[i] for i in chosen], [cut[i] for i in chosen])


def _logps(model: Any, prompts: list[Sequence[int]], answers: list[list[list[int]]]) -> torch.Tensor:
    device = next(model.parameters()).device
    count = len(answers[0])
    rows = [ids for row in answers for ids in row]
    new, there = _padded(rows, "right", device)
    if not new.shape[1]:
        return torch.zeros(len(answers), count, device=device)
    ids, mask = _padded(prompts, "left", device)
    heads: dict[str, Any] = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **_positions(model, mask, ids.shape[1]), **heads)
    cache: Any = getattr(output, "past_key_values", None)
    if not _can_be_extended(cache):
        return _logps_of_whole_rows(model, prompts, rows, count)
    first = output.logits[:, -1].float().repeat_interleave(count, dim=0)
    logits = first.unsqueeze(1)
    if new.shape[1] > 1:
        cache.batch_repeat_interleave(count)
        seen = torch.cat([mask.repeat_interleave(count, dim=0), there[:, :-1]], dim=1)
        later = model(
            input_ids=new[:, :-1], attention_mask=seen, past_key_values=cache, use_cache=True,
            **_positions(model, seen, new.shape[1] - 1),
        ).logits  # fmt: skip
        logits = torch.cat([logits, later.float()], dim=1)
    return _chosen(logits, new, there).reshape(len(answers), count)


def _logps_of_whole_rows(model: Any, prompts: list[Sequence[int]], rows: list[list[int]], count: int) -> torch.Tensor:
    """Where a cache cannot be shared (sliding windows, recurrent states), prompt and answer are read together."""
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(rows), count):
        prompt = list(prompts[start // count])
        whole, mask = _padded([prompt + ids for ids in rows[start : start + count]], "right", device)
        with told_prompts(model, torch.full((len(whole),), len(prompt))):
            logits = model(input_ids=whole, attention_mask=mask, use_cache=False).logits
        logits = logits[:, len(prompt) - 1 : -1].float()
        found.append(_chosen(logits, whole[:, len(prompt) :], mask[:, len(prompt) :]))
    return torch.stack(found)


def _chosen(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logps = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)
    return (logps * mask).sum(-1)


@torch.no_grad()
def prompt_cache(model: Any, input_ids: torch.Tensor, mask: torch.Tensor, count: int) -> Any:
    """What a model remembers of prompts but for their last tokens, each `count` times over, so that answers to the same
    prompt need it read once. `None` where there is nothing to remember, or a cache cannot be shared: that of a model
    with a prompt pool holds more than the prompt.

    Args:
        model: causal language model, in evaluation mode.
        input_ids, mask (`torch.Tensor` of shape `(prompts, length)`): padded on the left.
        count (`int`): answers to each prompt.
    """
    if input_ids.shape[1] < 2 or any(pools.active_pool is not None for pools in pools_of(model)):
        return None
    ids, seen = input_ids[:, :-1], mask[:, :-1]
    heads: dict[str, Any] = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    output = model(input_ids=ids, attention_mask=seen, use_cache=True, **_positions(model, seen, ids.shape[1]), **heads)
    cache: Any = getattr(output, "past_key_values", None)
    if not _can_be_extended(cache):
        return None
    cache.batch_repeat_interleave(count)
    return cache


def _can_be_extended(cache: Any) -> bool:
    # a layer of another kind forgets, or holds a state that cannot be repeated from the middle
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _positions(model: Any, mask: torch.Tensor, last: int) -> dict[str, torch.Tensor]:
    if not takes(model, "position_ids"):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -last:]}


def _padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(list(row), dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
def logps_of(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    first_tokens: int | None = None,
) -> list[list[float]]:
    """Log-likelihoods of answers as numbers; arguments as of [`answer_logps`]."""
    found: list[list[float]] = [[] for _ in prompt_ids]
    for chosen, logps in answer_logps(model, prompt_ids, completion_ids, first_tokens):
        for i, row in zip(chosen, logps.tolist(), strict=True):
            found[i] = row
    return found


def weighted_gradient(
    model: Any,
    parameters: Sequence[torch.Tensor],
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    weights: Sequence[Sequence[float]],
    first_tokens: int | None = None,
) -> Tensors:
    """Gradient of the weighted sum of log-likelihoods.

    Args:
        model: causal language model, in evaluation mode.
        parameters (`list[torch.Tensor]`): by which it is differentiated; their own `.grad` is left alone.
        prompt_ids, completion_ids, first_tokens: as of [`answer_logps`].
        weights (`P` lists of `n` float): of the answers.
    """
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    with torch.enable_grad():
        for chosen, logps in answer_logps(model, prompt_ids, completion_ids, first_tokens):
            told = torch.tensor([list(weights[i]) for i in chosen], dtype=torch.float32, device=logps.device)
            add_gradient(total, (told * logps).sum(), parameters)
    return total


def add_gradient(
    total: Tensors, loss: torch.Tensor, parameters: Sequence[torch.Tensor], retain_graph: bool = False
) -> None:
    """Adds the gradient of a loss to `total`, in place."""
    found = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    for whole, part in zip(total, found, strict=True):
        if part is not None:
            whole += part.float()
