"""The fused head on packed rows against the fused head on padded ones."""

import copy
import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing.test_layout import pairs
from peft import LoraConfig, get_peft_model
from support.tiny import tiny_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from hf_lifealign.lifelong.scoring import score_pairs
from hf_lifealign.packing import EncodedPair, why_not_packed
from hf_lifealign.packing.forward import PackedPathError, add_pair_packing, compare, read_pairs

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
SMALL = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}  # fmt: skip


def small_gpt2() -> GPT2LMHeadModel:
    shape = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def both(model: Any) -> tuple[Any, Any]:
    """A model with TRL's fused head, and its copy that packs."""
    other = copy.deepcopy(model)
    for each in (model, other):
        add_fused_lm_head(each, outputs=FIELDS)
    add_pair_packing(other)
    return model.eval(), other.eval()


def padded(given_pairs: list[EncodedPair]) -> dict[str, torch.Tensor]:
    """A batch as DPOTrainer's collator makes it."""
    sequences = [(p.chosen, p.chosen_start) for p in given_pairs] + [
        (p.rejected, p.rejected_start) for p in given_pairs
    ]
    longest = max(2, *(len(ids) for ids, _ in sequences))
    shape = (len(sequences), longest)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.zeros(shape, dtype=torch.long),
             "labels": torch.full(shape, -100)}  # fmt: skip
    for i, (ids, start) in enumerate(sequences):
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, start : len(ids)] = torch.tensor(ids[start:], dtype=torch.long)
    return batch


def run(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return model(**batch, fused_lm_head=True, use_cache=False)


@pytest.fixture(scope="module")
def sides() -> tuple[Any, Any]:
    return both(tiny_model(vocab_size=60).double())


@settings(max_examples=60, deadline=None)
@given(given_pairs=st.lists(pairs(), min_size=1, max_size=5))
def test_every_field_and_gradient_is_that_of_the_padded_batch(sides, given_pairs: list[EncodedPair]) -> None:
    """Prompts of any length, none too; completions of one token, or of none; cut at either end."""
    plain, packed = sides
    batch = padded(given_pairs)
    assert read_pairs(batch["input_ids"], batch["attention_mask"], batch["labels"]) == given_pairs
    ours, theirs = run(packed, batch), run(plain, batch)
    for name in (*FIELDS, "label_mask"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, check_dtype=True)
    weights = torch.linspace(0.5, 1.5, ours.log_probs.numel()).view(ours.log_probs.shape)
    found = []
    for model, out in ((packed, ours), (plain, theirs)):
        model.zero_grad()
        (out.log_probs * weights).sum().backward()
        found.append([p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


PAIRS = [
    EncodedPair([5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12], 3, 3),
    EncodedPair([20, 21, 22], [20, 23, 24, 25], 1, 1),
    EncodedPair([30, 31, 32, 33, 34, 35, 36, 37], [30, 31, 32, 33, 34, 38], 5, 5),
]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_families_and_attentions(kind: str, implementation: str) -> None:
    torch.manual_seed(0)
    models = {"llama": lambda: tiny_model(vocab_size=60), "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
              "gpt2": small_gpt2}  # fmt: skip
    model = models[kind]().double()
    model.set_attn_implementation(implementation)
    assert why_not_packed(model) is None
    plain, packed = both(model)
    batch = padded(PAIRS)
    torch.testing.assert_close(run(packed, batch).log_probs, run(plain, batch).log_probs, rtol=1e-5, atol=1e-6)


def test_bfloat16_within_its_rounding() -> None:
    plain, packed = both(tiny_model(vocab_size=60).bfloat16())
    batch = padded(PAIRS)
    ours, theirs = run(packed, batch).log_probs, run(plain, batch).log_probs
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


NEO = GPTNeoConfig(vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, window_size=8,
                   attention_types=[[["global", "local"], 1]], max_position_embeddings=64)  # fmt: skip


def headed() -> Any:
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))


def _named(name: str) -> Any:
    model = tiny_model()
    model.config._attn_implementation = name
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=16)), "slides over a window of 16"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL)), "of type 'sliding_attention'"),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2)), "no positions"),
        (lambda: GPTNeoForCausalLM(NEO), "attend by 'local' windows"),
        (lambda: tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "stretched"),
        (lambda: headed(), "adapter on the head"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)), "Mamba|attn_impl"),
        (lambda: _named("flash_attention_2"), "attn_implementation='flash_attention_2' takes no mask"),
        (lambda: _named("flex_attention"), "on CUDA only"),
        (lambda: torch.nn.Linear(2, 2), "is not a transformers model"),
    ],
)
def test_what_is_not_known_to_be_equal_is_named(make: Any, words: str) -> None:
    import re

    reason = why_not_packed(make())
    assert reason is not None
    assert re.search(words, reason), reason


def test_a_model_that_does_not_keep_to_the_mask_is_stopped() -> None:
    model = tiny_model(vocab_size=60)
    add_fused_lm_head(model, outputs=("log_probs",))
    backbone, heard = model.model, model.model.forward

    def deaf(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Sees all that stands before, whatever it is told."""
        return heard(*args, attention_mask=None, **kwargs)

    backbone.forward = deaf
    add_pair_packing(model)
    with pytest.raises(PackedPathError, match=r"does not keep to the mask.*pair_packing='off'"):
        run(model, padded(PAIRS))


def test_a_model_that_counts_positions_itself_is_stopped() -> None:
    model = tiny_model(vocab_size=60)
    add_fused_lm_head(model, outputs=("log_probs",))
    backbone, heard = model.model, model.model.forward

    def counting(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return heard(*args, **kwargs)

    backbone.forward = counting
    add_pair_packing(model)
    with pytest.raises(PackedPathError):
        run(model, padded(PAIRS))


LONG = [EncodedPair(list(range(3, 45)), [3, 4, *range(50, 10, -1)], 2, 2), *PAIRS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_missed_in_bfloat16_too(dtype: torch.dtype) -> None:
    model = tiny_model(vocab_size=60).to(dtype)
    add_fused_lm_head(model, outputs=("log_probs",))
    heard = model.model.forward
    model.model.forward = lambda *args, position_ids=None, **kwargs: heard(*args, **kwargs)
    add_pair_packing(model)
    with pytest.raises(PackedPathError, match=str(dtype)):
        run(model, padded(LONG))


def test_a_coarse_precision_may_miss_a_token_but_not_many() -> None:
    plain = torch.linspace(-8, 0, 40)
    one = plain.clone()
    one[-1] -= 0.25  # as far as two neighbouring logits of 32 and more are apart
    compare(tiny_model(), one, plain, torch.bfloat16)
    with pytest.raises(PackedPathError, match=r"float32"):
        compare(tiny_model(), one, plain, torch.float32)
    with pytest.raises(PackedPathError, match=r"bfloat16"):
        compare(tiny_model(), plain - 0.2, plain, torch.bfloat16)
    with pytest.raises(PackedPathError):
        compare(tiny_model(), plain * float("nan"), plain, torch.bfloat16)


def test_a_model_is_compared_once_for_each_way_it_computes() -> None:
    model = tiny_model(vocab_size=60)
    calls = []
    model.model.register_forward_hook(lambda *args: calls.append(1))
    counts = []
    for _ in range(2):
        calls.clear()
        score_pairs(model, PAIRS, 0)
        counts.append(len(calls))
    assert counts[0] > counts[1] == 1
    calls.clear()
    score_pairs(model.double(), PAIRS, 0)
    assert len(calls) == counts[0]


def test_a_window_that_only_longer_pairs_reach_over_is_found() -> None:
    """Attention that looks back over so many places of a row, whatever mask it is given."""
    model = tiny_model(vocab_size=60)
    add_fused_lm_head(model, outputs=("log_probs",))
    heard = model.model.forward

    def windowed(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        width = kwargs["input_ids"].shape[1]
        near = torch.ones(width, width, dtype=torch.bool).tril().triu(-20)
        seen = near if attention_mask is None or attention_mask.dim() < 4 else attention_mask & near
        return heard(*args, attention_mask=seen.expand(len(kwargs["input_ids"]), 1, width, width), **kwargs)

    model.model.forward = windowed
    add_pair_packing(model)
    short = [EncodedPair([5, 6, 7, 8], [5, 6, 9, 10], 2, 2)]
    assert run(model, padded(short)).log_probs.shape == (2, 3)
    with pytest.raises(PackedPathError):
        run(model, padded(LONG))


def test_what_has_nothing_to_compare_does_not_count_as_compared() -> None:
    model = tiny_model(vocab_size=60)
    add_fused_lm_head(model, outputs=("log_probs",))
    heard = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: heard(*args, **kwargs)
    add_pair_packing(model)
    run(model, padded([EncodedPair([5, 6, 7, 8, 9], [5, 6, 7], 5, 3)]))  # no completion at all: the plain path
    with pytest.raises(PackedPathError):
        run(model, padded([EncodedPair([5, 6, 7, 8, 9], [5, 6, 7], 2, 3), EncodedPair([5], [5, 6], 1, 2)]))


def test_a_copy_runs_its_own_weights() -> None:
    _, packed = both(tiny_model(vocab_size=60))
    other = copy.deepcopy(packed)
    with torch.no_grad():
        other.lm_head.weight.mul_(3)
    batch = padded(PAIRS)
    assert not torch.allclose(run(other, batch).log_probs, run(packed, batch).log_probs)


def test_a_mixture_of_experts_is_scored_without_its_balancing_loss() -> None:
    torch.manual_seed(0)
    shape = SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    model = MixtralForCausalLM(MixtralConfig(**shape)).eval()
    packed, plain = (score_pairs(model, PAIRS, 0, pair_packing=packing) for packing in ("auto", "off"))
    assert sum(packed, ()) == pytest.approx(sum(plain, ()), rel=1e-4)


def test_the_check_leaves_modes_and_random_numbers_alone() -> None:
    model = tiny_model(vocab_size=60, attention_dropout=0.2)
    add_fused_lm_head(model, outputs=("log_probs",))
    add_pair_packing(model)
    model.train()
    model.model.layers[1].eval()
    torch.manual_seed(5)
    first = run(model, padded(PAIRS)).log_probs
    assert [module.training for module in model.model.layers] == [True, False]
    torch.manual_seed(5)
    assert torch.equal(run(model, padded(PAIRS)).log_probs, first), "the check of the first batch drew random numbers"


def test_other_batches_take_the_plain_path_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    plain, packed = both(tiny_model(vocab_size=60))
    batch = padded(PAIRS)
    left = {key: value.flip(1) for key, value in batch.items()}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(run(packed, left).log_probs, run(plain, left).log_probs)
    told = [record.message for record in caplog.records if "not packed" in record.message]
    assert told == ["Pairs are not packed: the batch is not padded on the right as DPOTrainer pads pairs."]


def test_other_calls_are_the_models_own() -> None:
    plain, packed = both(tiny_model(vocab_size=60))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(packed(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert torch.equal(packed(input_ids=ids, labels=ids).loss, plain(input_ids=ids, labels=ids).loss)
    written = [model.generate(ids, max_new_tokens=3, do_sample=False) for model in (packed, plain)]
    assert torch.equal(*written)
