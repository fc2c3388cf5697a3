"""Log-probabilities of preference pairs and perplexity of plain text, without padding to the widest row of all."""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer

from hf_lifealign._modes import evaluating
from hf_lifealign.packing import EncodedPair, why_not_packed
from hf_lifealign.packing.forward import PairScorer, packed_head
from hf_lifealign.prompt_pool import told_prompts

logger = logging.getLogger(__name__)


def encode_pairs(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, truncation_mode: str = "keep_start"
) -> list[EncodedPair]:
    """Tokenises preference rows with the very code that DPOTrainer runs.

    Args:
        rows (`datasets.Dataset`): preference rows, standard or conversational.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): with a chat template for conversational rows.
        max_length (`int`, *optional*): most tokens of prompt and completion together.
        truncation_mode (`str`): "keep_start" or "keep_end", as in DPOConfig.
    """
    # `_prepare_dataset` uses nothing of its trainer but the tokenizer; a whole trainer would need a model and a
    # training set. Without max_length it drops no row, so that indices keep their meaning.
    owner = cast(DPOTrainer, SimpleNamespace(_tokenizer=tokenizer))
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode=truncation_mode)
    encoded = DPOTrainer._prepare_dataset(owner, rows, tokenizer, cast(Any, args), "scored")
    return [_cut(row, max_length, truncation_mode) for row in encoded]


def _cut(row: dict[str, list[int]], max_length: int | None, mode: str) -> EncodedPair:
    start = len(row["prompt_ids"])
    sides = {}
    for side in ("chosen", "rejected"):
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        dropped = max(0, len(ids) - max_length) if max_length is not None else 0
        if mode == "keep_end":
            sides[side] = (ids[dropped:], max(0, start - dropped))
        else:
            kept = ids[: len(ids) - dropped]
            sides[side] = (kept, min(start, len(kept)))
    return EncodedPair(sides["chosen"][0], sides["rejected"][0], sides["chosen"][1], sides["rejected"][1])


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _completion_logps(model: torch.nn.Module, rows: list[tuple[list[int], int]], pad: int) -> list[torch.Tensor]:
    """Log-probabilities of the completion tokens of each row, each a `torch.Tensor` of shape `(completion,)`."""
    longest = max(len(ids) for ids, _ in rows)
    # A completion's first token may be the very first of the row (keep_end): nothing predicts that one.
    first = max(0, min(min(start for _, start in rows) - 1, longest - 2))
    device = _device(model)
    input_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows], device=device)
    kwargs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    cuts = "logits_to_keep" in inspect.signature(base.forward).parameters and not _is_prompt_learning(model)
    if cuts:
        kwargs["logits_to_keep"] = torch.arange(first, longest - 1, device=device)
    with told_prompts(model, torch.tensor([start for _, start in rows])):
        logits = model(**kwargs).logits
    if not cuts:
        virtual = logits.shape[1] - longest  # prompt-learning adapters put virtual tokens in front
        logits = logits[:, virtual + first : virtual + longest - 1]
    out = []
    for i, (ids, start) in enumerate(rows):
        begin = max(start, 1)
        targets = input_ids[i, begin : len(ids)]
        out.append(
            -F.cross_entropy(logits[i, begin - 1 - first : len(ids) - 1 - first].float(), targets, reduction="none")
        )
    return out


def _is_prompt_learning(model: torch.nn.Module) -> bool:
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def sequence_log_probs(
    chosen: torch.Tensor, rejected: torch.Tensor, ld_alpha: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each completion from those of its tokens.

    With `ld_alpha`, tokens beyond the shorter completion's length count that much less (LD-DPO, arXiv 2409.06411).

    Args:
        chosen (`torch.Tensor` of shape `(tokens_chosen,)`), rejected (`torch.Tensor` of shape `(tokens_rejected,)`).
        ld_alpha (`float`, *optional*): weight of the tail, in [0, 1].

    Returns:
        two scalars.
    """
    if ld_alpha is None:
        return chosen.sum(), rejected.sum()
    shared = min(len(chosen), len(rejected))

    def total(logps: torch.Tensor) -> torch.Tensor:
        return logps[:shared].sum() + ld_alpha * logps[shared:].sum()

    return total(chosen), total(rejected)


@contextmanager
def _token_scorer(model: torch.nn.Module, pad: int, pair_packing: str) -> Iterator[PairScorer]:
    """What gives the log-probabilities of the completion tokens of a batch of pairs: packed where that may be."""
    reason = why_not_packed(model) if pair_packing != "off" else "that is switched off"
    if reason is None:
        with packed_head(model) as score:
            yield score
        return
    logger.info(f"Pairs are not packed to be scored, as {reason}.")

    def padded(pairs: list[EncodedPair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows = [(pair.chosen, pair.chosen_start) for pair in pairs]
        rows += [(pair.rejected, pair.rejected_start) for pair in pairs]
        logps = _completion_logps(model, rows, pad)
        return list(zip(logps[: len(pairs)], logps[len(pairs) :], strict=True))

    yield padded


@torch.no_grad()
def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[EncodedPair],
    pad_token_id: int,
    batch_size: int = 8,
    ld_alpha: float | None = None,
    progress: Callable[[int], None] | None = None,
    pair_packing: str = "auto",
) -> list[tuple[float, float]]:
    """Sequence log-probabilities of chosen and rejected under the model as it stands.

    Pairs are scored in order of length, so that a batch needs little padding; the batches depend on the pairs alone,
    and so do the results. With several processes each scores a part and all get everything. Where the model allows
    it, a batch is laid in packed rows ([`~hf_lifealign.packing.lay_out`]).

    Args:
        model (`torch.nn.Module`): causal language model; switch adapters off around the call for the base.
        pairs (`Sequence[EncodedPair]`): what to score.
        pad_token_id (`int`): any valid token id.
        batch_size (`int`): pairs per forward pass.
        ld_alpha (`float`, *optional*): see [`sequence_log_probs`].
        progress (`Callable`, *optional*): called with the number of pairs just done.
        pair_packing (`str`): "auto" or "off", as in [`FPOConfig`].

    Returns:
        `list[tuple[float, float]]`: one (chosen, rejected) per pair, in nats.
    """
    order = sorted(range(len(pairs)), key=lambda i: (max(len(pairs[i].chosen), len(pairs[i].rejected)), i))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    state = PartialState()
    scored: list[tuple[int, float, float]] = []
    with evaluating(model), _token_scorer(model, pad_token_id, pair_packing) as score:
        for batch in batches[state.process_index :: state.num_processes]:
            for i, (chosen, rejected) in zip(batch, score([pairs[i] for i in batch]), strict=True):
                a, b = sequence_log_probs(chosen, rejected, ld_alpha)
                scored.append((i, a.item(), b.item()))
            if progress is not None:
                progress(len(batch) * state.num_processes)
    if state.num_processes > 1:
        scored = gather_object(scored)
    return [(a, b) for _, a, b in sorted(scored)]


def pair_log_probs(
    model: torch.nn.Module, pairs: Sequence[EncodedPair], pad_token_id: int, pair_packing: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence log-probabilities of a batch of pairs with their graph, for losses; the model stays in its mode.

    Args:
        model (`torch.nn.Module`): causal language model, also while a TRL trainer has it.
        pairs (`Sequence[EncodedPair]`): the batch, at least one pair.
        pad_token_id (`int`): any valid token id.
        pair_packing (`str`): "auto" or "off", as in [`FPOConfig`].

    Returns:
        two `torch.Tensor` of shape `(pairs,)`: of chosen and of rejected, in nats.
    """
    with _token_scorer(model, pad_token_id, pair_packing) as score:
        scored = score(list(pairs))
    return torch.stack([chosen.sum() for chosen, _ in scored]), torch.stack([rejected.sum() for _, rejected in scored])


@torch.no_grad()
def text_perplexity(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, text: str, window: int = 256, batch_size: int = 8
) -> float:
    """Perplexity of plain text in windows of `window` tokens: exp of the mean negative log-likelihood per token.

    Raises:
        ValueError: if the text has fewer than two tokens.
    """
    ids = tokenizer(text)["input_ids"]
    windows = [ids[i : i + window] for i in range(0, len(ids), window)]
    windows = [part for part in windows if len(part) > 1]
    if not windows:
        raise ValueError("The general text has fewer than two tokens. Name a longer plain-text file in general_text.")
    total, count = 0.0, 0
    with evaluating(model):
        for i in range(0, len(windows), batch_size):
            batch = [(part, 1) for part in windows[i : i + batch_size]]
            for logps in _completion_logps(model, batch, pad=0):
                total -= logps.double().sum().item()
                count += len(logps)
    return math.exp(total / count)
