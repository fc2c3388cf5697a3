"""Log-likelihoods and their gradients, against one plain forward for each answer, on models of several kinds."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, Mamba2Config, Mamba2ForCausalLM, MistralConfig, MistralForCausalLM

from hf_lifealign.dynamics import likelihood
from hf_lifealign.dynamics.likelihood import (
    _padded,
    _random_states,
    logps_of,
    prompt_cache,
    undisturbed,
    weighted_gradient,
)
from hf_lifealign.dynamics.updates import norm

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
ANSWERS = [[[20, 21], [22]], [[23, 24, 25, 1], [30, 31]], [[40], [41, 42, 43]]]
SMALL: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def gpt2() -> Any:
    """With learned absolute positions, which padding must not move."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **SMALL))


def mistral() -> Any:
    """With a sliding window, whose cache cannot be shared."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MistralForCausalLM(
        MistralConfig(num_key_value_heads=1, sliding_window=3, initializer_range=0.3, **shape, **SMALL)
    )


def lora() -> Any:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5
    )
    return get_peft_model(tiny_model(), config)


KINDS: dict[str, Callable[[], Any]] = {"llama": tiny_model, "gpt2": gpt2, "mistral": mistral, "lora": lora}


def plainly(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(answer).unsqueeze(1)).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_and_gradients_are_those_of_plain_forwards(kind: str) -> None:
    model = KINDS[kind]().eval()
    told = logps_of(model, PROMPTS, ANSWERS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]]
    expected = [[plainly(model, p, a) for a in row] for p, row in zip(PROMPTS, ANSWERS, strict=True)]
    for row, plain in zip(told, expected, strict=True):
        assert row == pytest.approx([float(x) for x in plain], abs=1e-4)
    whole = sum(w * x for row, plain in zip(weights, expected, strict=True) for w, x in zip(row, plain, strict=True))
    exact = torch.autograd.grad(whole, parameters, allow_unused=True)
    found = weighted_gradient(model, parameters, PROMPTS, ANSWERS, weights)
    size = norm(found)
    assert size > 0.1
    for mine, theirs in zip(found, exact, strict=True):
        assert norm([mine - (0 if theirs is None else theirs)]) < 1e-4 * size
    assert all(p.grad is None for p in parameters)


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().eval()
    together = logps_of(model, PROMPTS, ANSWERS)
    monkeypatch.setattr(likelihood, "_LOGITS", 1)
    alone = logps_of(model, PROMPTS, ANSWERS)
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_the_first_tokens_alone() -> None:
    model = tiny_model().eval()
    first = logps_of(model, PROMPTS, ANSWERS, first_tokens=1)
    for prompt, row, told in zip(PROMPTS, ANSWERS, first, strict=True):
        assert told == pytest.approx([float(plainly(model, prompt, ids[:1])) for ids in row], abs=1e-4)


def test_empty_answers_are_certain() -> None:
    model = tiny_model().eval()
    assert logps_of(model, [[5]], [[[], []]]) == [[0.0, 0.0]]
    assert logps_of(model, [[5]], [[[], [20]]])[0][0] == 0.0


def test_a_recurrent_model_is_read_whole() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1}
    model = Mamba2ForCausalLM(Mamba2Config(vocab_size=60, chunk_size=4, **shape)).eval()
    told = logps_of(model, PROMPTS[:1], ANSWERS[:1])
    assert told[0] == pytest.approx([float(plainly(model, PROMPTS[0], ids)) for ids in ANSWERS[0]], abs=1e-4)


def test_a_measurement_leaves_no_trace() -> None:
    model = lora().train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Dropout))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def measure() -> None:
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            torch.rand(3), random.random(), np.random.rand()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        measure()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_the_random_states_of_other_accelerators_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    for kind in ("xpu", "mps"):
        fake = getattr(torch, kind)
        monkeypatch.setattr(fake, "get_rng_state", lambda device=None, kind=kind: torch.ones(1) * len(kind))
        monkeypatch.setattr(
            fake, "set_rng_state", lambda state, device=None, kind=kind: calls.append((kind, str(device)))
        )
    devices = [torch.device(name) for name in ("cpu", "xpu:1", "mps:0", "meta", "xpu:0")]
    for put_back, state in _random_states(devices):
        put_back(state)
    # Apple's has one device, and takes none
    assert calls == [("mps", "None"), ("xpu", "xpu:0"), ("xpu", "xpu:1")]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_a_prompt_that_is_read_once_are_the_same(kind: str) -> None:
    model = KINDS[kind]().eval()
    ids, mask = _padded(PROMPTS, "left", torch.device("cpu"))
    repeated = {"input_ids": ids.repeat_interleave(3, dim=0), "attention_mask": mask.repeat_interleave(3, dim=0)}
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 5, "top_k": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    plain = model.generate(**repeated, **options)
    cache = prompt_cache(model, ids, mask, 3)
    assert (cache is None) == (kind == "mistral")
    if cache is not None:
        assert cache.get_seq_length() == ids.shape[1] - 1
        torch.manual_seed(0)
        assert torch.equal(model.generate(**repeated, **options, past_key_values=cache), plain)
    assert prompt_cache(model, ids[:, -1:], mask[:, -1:], 3) is None, "a single token is read with its answers"
