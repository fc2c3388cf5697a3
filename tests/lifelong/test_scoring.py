"""Scores against the trainer's own numbers and against plain forward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support.tiny import preference_dataset, preference_rows, tiny_model, tiny_tokenizer
from trl import DPOConfig, DPOTrainer

from hf_lifealign.lifelong.evaluation import (
    generate_answers,
    judge_results,
    margin_results,
    pair_margins,
    preference_results,
)
from hf_lifealign.lifelong.scoring import EncodedPair, encode_pairs, score_pairs, sequence_log_probs, text_perplexity


def dpo(rows: Dataset, tmp_path: Path, **kwargs: Any) -> DPOTrainer:
    config = DPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **kwargs
    )  # fmt: skip
    return DPOTrainer(
        get_peft_model(tiny_model(), LoraConfig(r=2)),
        args=config,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
ROWS = {
    "conversational": preference_dataset(5),
    "standard": Dataset.from_list([{"prompt": f"a {i}", "chosen": f" b{i}", "rejected": " c"} for i in range(5)]),
    "tools": Dataset.from_list([row | {"tools": [TOOL]} for row in preference_rows(5)]),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    "options", [{}, {"max_length": 55}, {"max_length": 30, "truncation_mode": "keep_end"}, {"ld_alpha": 0.3}]
)
def test_scores_are_the_trainers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Same tokens, same cut, same sums as `compute_ref_log_probs` of DPOTrainer gives."""
    rows = ROWS[kind]
    trainer = dpo(rows, tmp_path, **options)
    pairs = encode_pairs(
        rows, trainer.processing_class, trainer.args.max_length, options.get("truncation_mode", "keep_start")
    )
    kept = [pair for pair in pairs if not pair.is_empty]
    assert kept or kind == "tools"
    prepared = [row for row in trainer.train_dataset if row["prompt_ids"] is not None]
    assert len(prepared) == len(kept)
    if not kept:
        return
    with torch.no_grad():
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(prepared))
    with trainer.model.disable_adapter():
        scored = torch.tensor(score_pairs(trainer.model, kept, 0, batch_size=2, ld_alpha=options.get("ld_alpha")))
    torch.testing.assert_close(scored, torch.stack([chosen, rejected], dim=1), rtol=1e-4, atol=1e-4)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=7
    ),
    st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_scores_do_not_depend_on_batching(shapes: list[tuple[int, int, int]], batch_size: int) -> None:
    """Any lengths, the empty prompt included, in any batch: each pair gets what it gets alone."""
    model = tiny_model().double()
    generator = torch.Generator().manual_seed(len(shapes))
    pairs = []
    for prompt, chosen, rejected in shapes:
        ids = torch.randint(4, 260, (prompt + chosen + rejected,), generator=generator).tolist()
        pairs.append(EncodedPair(ids[: prompt + chosen], ids[:prompt] + ids[prompt + chosen :], prompt, prompt))
    together = score_pairs(model, pairs, 0, batch_size)
    for pair, scores in zip(pairs, together, strict=True):
        for ids, start, score in zip((pair.chosen, pair.rejected), (pair.chosen_start,) * 2, scores, strict=True):
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logps[t - 1, ids[t]].item() for t in range(max(start, 1), len(ids)))
            assert score == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_prompt_learning_adapters_are_scored() -> None:
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    pairs = encode_pairs(preference_dataset(3), tiny_tokenizer(), None)
    with_prompt = score_pairs(model, pairs, 0)
    with model.disable_adapter():
        without = score_pairs(model, pairs, 0)
    torch.testing.assert_close(torch.tensor(without), torch.tensor(score_pairs(tiny_model(), pairs, 0)))
    assert (torch.tensor(with_prompt) - torch.tensor(without)).abs().min() > 1e-3


def test_ld_alpha_weighs_the_tail() -> None:
    chosen, rejected = sequence_log_probs(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.0, -1.0]), 0.25)
    assert (chosen.item(), rejected.item()) == (-4.0, -2.0)


def test_preference_results() -> None:
    """One win, one tie, one loss."""
    margins = pair_margins([(-1.0, -3.0), (-1.0, -1.0), (-4.0, -1.0)], [(-2.0, -2.0), (-1.0, -1.0), (-2.0, -2.0)])
    assert margins == [2.0, 0.0, -3.0]
    results = preference_results(margins)
    assert results["preference_accuracy"] == 0.5
    assert results["margin"] == pytest.approx((2 + 0 - 3) / 3)


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    model = tiny_model()
    model.lm_head.weight.data.zero_()
    assert text_perplexity(model, tiny_tokenizer(), "some plain text " * 40, window=32) == pytest.approx(260, rel=1e-4)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        text_perplexity(model, tiny_tokenizer(), "a")


def test_generation_is_the_same_in_any_batch_and_judges_are_checked() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = preference_dataset(3)
    side = tokenizer.padding_side
    answers = generate_answers(model, tokenizer, list(rows), 4, batch_size=3)
    assert answers == [generate_answers(model, tokenizer, [row], 4, 1)[0] for row in rows]
    assert tokenizer.padding_side == side

    def length(prompts: Any, texts: Any, references: Any) -> list[float]:
        assert references[0] == "yes 0."
        return [float(len(text)) for text in texts]

    def answer(asked: list[dict[str, Any]]) -> list[str]:
        return generate_answers(model, tokenizer, asked, 4, 2)

    results = judge_results(answer, rows, {"length": length})
    assert results == {"length": pytest.approx(sum(map(len, answers)) / 3)}
    with pytest.raises(ValueError, match="one for each"):
        judge_results(answer, rows, {"broken": lambda p, a, r: [1.0]})


def test_the_base_measured_against_itself_has_margins_of_zero() -> None:
    """Whatever batches its reference was computed in, and whichever pairs were left out of them."""
    pairs = [EncodedPair([1, 5, 6], [1, 7], 1, 1), EncodedPair([1, 5], [1, 7], 2, 1), EncodedPair([1, 8], [1, 9], 1, 1)]
    reference = [(-3.25, -1.7), (-1.0, 0.0), (-2.1, -2.2)]
    told = margin_results(None, pairs, reference)
    assert told == {"preference_accuracy": 0.5, "margin": 0.0, "scored_pairs": 2.0, "pair_margins": [0.0, 0.0]}


@pytest.mark.parametrize("lost", [float("nan"), float("-inf")])
def test_a_policy_that_has_diverged_is_no_policy_that_has_forgotten(lost: float) -> None:
    pairs = [EncodedPair([1, 2], [1, 3], 1, 1)] * 3
    reference = [(-1.0, -2.0)] * 3
    with pytest.raises(ValueError, match=r"1 of 3 test pairs are no finite numbers.*lower learning_rate"):
        margin_results(lambda kept: [(-1.0, -2.0), (lost, -2.0), (-1.5, -2.0)], pairs, reference)
