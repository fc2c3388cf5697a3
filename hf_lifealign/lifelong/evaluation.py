"""What a model is measured on after each task: preference margins, generated answers, general perplexity."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template

from hf_lifealign._modes import evaluating
from hf_lifealign.judges import Judge
from hf_lifealign.lifelong.scoring import EncodedPair

# Kept beside the measures: how many test pairs a result stands on, the margin of each in nats, in the order of the test
# rows, and how many of them each view answered, where prompts are routed. The last two stay in the run's folder.
SCORED_PAIRS, PAIR_MARGINS, ROUTES = "scored_pairs", "pair_margins", "routes"
BESIDE = frozenset({SCORED_PAIRS, PAIR_MARGINS, ROUTES})
UNPUBLISHED = frozenset({PAIR_MARGINS, ROUTES})


def pair_margins(policy: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]]) -> list[float]:
    """Margin of each pair, ``(logp_chosen - ref_chosen) - (logp_rejected - ref_rejected)`` in nats.

    Args:
        policy, reference (`Sequence[tuple[float, float]]` of the same length): log-probabilities of chosen and
            rejected.
    """
    return [(c - rc) - (r - rr) for (c, r), (rc, rr) in zip(policy, reference, strict=True)]


def preference_results(margins: Sequence[float]) -> dict[str, float]:
    """Preference accuracy and mean margin of pairs.

    Accuracy is the share of pairs with a positive margin; a margin of exactly 0, as every pair has under the untouched
    base, counts half.

    Args:
        margins (`Sequence[float]`): of [`pair_margins`], at least one.
    """
    wins = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)
    return {"preference_accuracy": wins / len(margins), "margin": sum(margins) / len(margins)}


def margin_results(
    score: Callable[[list[int]], list[tuple[float, float]]] | None,
    pairs: Sequence[EncodedPair],
    reference: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """[`preference_results`] of a policy, and the margins they are of; pairs without a completion left after the cut do
    not count.

    Args:
        score (`Callable`, *optional*): gives the policy's log-probabilities of chosen and rejected for the pairs of
            some indices. Without it the reference itself is measured, whose margins are zero and not only nearly so.
        pairs (`Sequence[EncodedPair]`), reference (`Sequence[tuple[float, float]]`): with their log-probabilities under
            the reference.

    Raises:
        ValueError: if no pair has a completion left, or the policy's log-probabilities are no numbers.
    """
    kept = [i for i, pair in enumerate(pairs) if not pair.is_empty]
    if not kept:
        raise ValueError(
            "No test pair has a completion left within max_length: every prompt fills it alone. Raise max_length in "
            "the training arguments."
        )
    base = [reference[i] for i in kept]
    margins = pair_margins(base if score is None else score(kept), base)
    lost = sum(not math.isfinite(margin) for margin in margins)
    if lost:
        raise ValueError(
            f"The policy's log-probabilities of {lost} of {len(margins)} test pairs are no finite numbers: its "
            "training has diverged. Start again in a new output_dir with a lower learning_rate, or with max_grad_norm."
        )
    return preference_results(margins) | {SCORED_PAIRS: float(len(kept)), PAIR_MARGINS: margins}


def prompt_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompts of rows as text, messages in the chat template.

    Args:
        rows (`Sequence[Mapping]`): each with `prompt` (a string, or messages) and, where it has them, `tools` and
            `chat_template_kwargs`, as in training.
    """
    texts = []
    for row in rows:
        if isinstance(row["prompt"], str):
            texts.append(row["prompt"])
            continue
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        kwargs = row.get("chat_template_kwargs") or {}
        texts.append(apply_chat_template({"prompt": row["prompt"]}, tokenizer, tools=tools, **kwargs)["prompt"])
    return texts


def prompt_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Token ids of [`prompt_texts`]; a chat template sets special tokens itself."""
    return [
        tokenizer(text, add_special_tokens=isinstance(row["prompt"], str))["input_ids"]
        for text, row in zip(prompt_texts(tokenizer, rows), rows, strict=True)
    ]


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Greedy answers to the prompts of rows, batched with padding on the left.

    Args:
        rows (`Sequence[Mapping]`): see [`prompt_texts`].
    """
    ids = prompt_ids(tokenizer, rows)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    answers: list[str] = []
    try:
        with evaluating(model):
            for i in range(0, len(ids), batch_size):
                batch = tokenizer.pad({"input_ids": ids[i : i + batch_size]}, return_tensors="pt")
                batch = batch.to(next(model.parameters()).device)
                out = model.generate(
                    **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
                )
                new = out[:, batch["input_ids"].shape[1] :]
                answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    finally:
        tokenizer.padding_side = side
    return answers


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(message["content"] or "" for message in value)


def judge_results(
    answer: Callable[[list[dict[str, Any]]], list[str]], rows: Dataset, judges: Mapping[str, Judge]
) -> dict[str, float]:
    """Mean score of each judge over a policy's answers to the rows' prompts.

    Args:
        answer (`Callable`): gives the policy's answers; not called without judges.
        rows (`datasets.Dataset`): with `prompt` and `chosen`.
        judges (`Mapping[str, Callable]`): by name.

    Raises:
        ValueError: if a judge gives another number of scores than it was given answers.
    """
    if not judges:
        return {}
    prompts = list(rows["prompt"])
    answers = answer(list(rows))
    references = [_text(chosen) for chosen in rows["chosen"]]
    results = {}
    for name, judge in judges.items():
        scores = list(judge([_text(prompt) for prompt in prompts], answers, references))
        if len(scores) != len(answers):
            raise ValueError(
                f"The judge {name!r} gave {len(scores)} scores for {len(answers)} answers. It has to give one for each."
            )
        results[name] = float(sum(scores) / len(scores))
    return results


def adapters_off(model: Any) -> Any:
    """Context in which a PEFT model is the untouched base."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
