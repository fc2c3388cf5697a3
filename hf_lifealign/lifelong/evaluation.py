"""What a model is measured on after each task: preference margins, generated answers, general perplexity."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template

from hf_lifealign._modes import evaluating
from hf_lifealign.judges import Judge
from hf_lifealign.lifelong.scoring import EncodedPair, score_pairs

# how many test pairs a result stands on, and the margin of each in nats, in the order of the test rows; both are kept
# beside the measures
SCORED_PAIRS, PAIR_MARGINS = "scored_pairs", "pair_margins"
BESIDE = frozenset({SCORED_PAIRS, PAIR_MARGINS})


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
    model: Any | None,
    pairs: Sequence[EncodedPair],
    reference: Sequence[tuple[float, float]],
    pad_token_id: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    pair_packing: str = "auto",
) -> dict[str, Any]:
    """[`preference_results`] of the model as it stands, and the margins they are of; pairs without a completion left
    after the cut do not count.

    Without a model it is the reference itself that is measured, whose margins are zero and not only nearly so.

    Raises:
        ValueError: if no pair has a completion left.
    """
    kept = [i for i, pair in enumerate(pairs) if not pair.is_empty]
    if not kept:
        raise ValueError(
            "No test pair has a completion left within max_length: every prompt fills it alone. Raise max_length in "
            "the training arguments."
        )
    base = [reference[i] for i in kept]
    if model is None:
        scored = base
        if progress is not None:
            progress(len(kept))
    else:
        scored = score_pairs(
            model, [pairs[i] for i in kept], pad_token_id, batch_size, progress=progress, pair_packing=pair_packing
        )
    margins = pair_margins(scored, base)
    return preference_results(margins) | {SCORED_PAIRS: float(len(kept)), PAIR_MARGINS: margins}


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
        rows (`Sequence[Mapping]`): each with `prompt` (a string, or messages) and, where it has them, `tools` and
            `chat_template_kwargs`, as in training.
    """
    texts, standard = [], all(isinstance(row["prompt"], str) for row in rows)
    for row in rows:
        if isinstance(row["prompt"], str):
            texts.append(row["prompt"])
            continue
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        kwargs = row.get("chat_template_kwargs") or {}
        example = {"prompt": row["prompt"]}
        texts.append(apply_chat_template(example, tokenizer, tools=tools, **kwargs)["prompt"])
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    answers: list[str] = []
    try:
        with evaluating(model):
            for i in range(0, len(texts), batch_size):
                batch = tokenizer(
                    texts[i : i + batch_size], return_tensors="pt", padding=True, add_special_tokens=standard
                ).to(next(model.parameters()).device)
                batch.pop("token_type_ids", None)
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
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    judges: Mapping[str, Judge],
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, float]:
    """Mean score of each judge over the model's answers to the rows' prompts.

    Raises:
        ValueError: if a judge gives another number of scores than it was given answers.
    """
    if not judges:
        return {}
    prompts = list(rows["prompt"])
    answers = generate_answers(model, tokenizer, list(rows), max_new_tokens, batch_size)
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
