"""MetaAlignedPolicy under preferences: what they do to logits, to `generate()` and to gradients, and how it grows."""

from typing import Any

import pytest
import torch
from meal_helpers import lora, randomised
from peft import LoraConfig, get_peft_model
from support.tiny import tiny_model, tiny_tokenizer
from trl.trainer.utils import add_fused_lm_head

from hf_lifealign import MetaAlignedPolicy, SLMCConfig
from hf_lifealign.meta_aligner.encoders import PolicyEncoder, mean_pool
from hf_lifealign.stream.rows import text_of

NAMES = ["short", "vowels"]
KINDS = ["logit_bias", "lora"]
# different in length, so that a batch of them is padded
PROMPTS = ["item 3?", "hello there, my friend", "x", "what now"]
WEIGHTS = [[1.0, 0.0], [0.2, 0.8], [0.55, 0.45], [0.0, 1.0]]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def policy_of(kind: str, names: list[str] = NAMES, config: Any = None, **kwargs: Any) -> MetaAlignedPolicy:
    model: Any = tiny_model()
    if kind == "lora" or config is not None:
        model = get_peft_model(model, config or lora())
    model.eval()
    return MetaAlignedPolicy(model, tiny_tokenizer(), names, kind, hidden=16, **kwargs)


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest) -> MetaAlignedPolicy:
    return randomised(policy_of(request.param))


def ids_of(prompts: Any = PROMPTS) -> dict[str, torch.Tensor]:
    return dict(tiny_tokenizer()(list(prompts), return_tensors="pt", padding=True, padding_side="left"))


@torch.no_grad()
def logits_under(policy: MetaAlignedPolicy, weights: Any, **inputs: Any) -> torch.Tensor:
    if weights is None:
        return policy.model(**inputs).logits
    with policy.conditioning.given(torch.tensor(weights)):
        return policy.model(**inputs).logits


# The net


def test_the_net_starts_at_equal_weights_and_stays_on_the_simplex() -> None:
    policy = policy_of("logit_bias", ["a", "b", "c"])
    assert policy.preference(PROMPTS).tolist() == [pytest.approx([1 / 3] * 3)] * 4
    weights = randomised(policy).preference(PROMPTS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert (weights > 0).all()
    assert not torch.allclose(weights[0], weights[1]), "the net has to tell prompts apart"


def test_features_are_those_of_the_frozen_policy_whatever_preference_or_adapter(policy: MetaAlignedPolicy) -> None:
    plain = tiny_model().eval()
    with torch.no_grad():
        expected = [plain.model(**tiny_tokenizer()(p, return_tensors="pt")).last_hidden_state.mean(1)[0] for p in PROMPTS]  # fmt: skip # noqa: E501
    torch.testing.assert_close(policy.encode(PROMPTS), torch.stack(expected), rtol=1e-4, atol=1e-5)
    free = policy.preference(PROMPTS)
    with policy.under([0.9, 0.1], len(PROMPTS)):
        assert torch.equal(policy.preference(PROMPTS), free)
    # and they do not depend on the other prompts of a batch
    alone = torch.cat([policy.encode([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(policy.encode(PROMPTS), alone, rtol=1e-4, atol=1e-5)


def test_the_encoder_leaves_the_models_mode_as_it_was() -> None:
    model = tiny_model().train()
    PolicyEncoder(model, tiny_tokenizer()).encode(["a"])
    assert model.training


def test_mean_pooling_leaves_padding_out() -> None:
    states = torch.tensor([[[2.0], [4.0], [99.0]], [[7.0], [99.0], [99.0]]])
    assert mean_pool(states, torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist() == [[3.0], [7.0]]


def test_the_text_of_a_conversation_is_that_of_its_messages() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]},
    ]
    assert text_of(turns) == "one\ntwo\nthree"
    assert text_of("plain") == "plain"


# Logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_conditioning_leaves_the_logits_bit_equal(kind: str) -> None:
    policy = policy_of(kind)
    expected = tiny_model().eval()(**ids_of()).logits
    assert torch.equal(logits_under(policy, WEIGHTS, **ids_of()), expected)
    assert torch.equal(logits_under(policy, None, **ids_of()), expected)


def test_without_weights_a_trained_policy_is_the_base(policy: MetaAlignedPolicy) -> None:
    adapted = logits_under(policy, None, **ids_of())
    assert not torch.allclose(logits_under(policy, WEIGHTS, **ids_of()), adapted)
    policy.conditioning.detach()
    assert torch.equal(logits_under(policy, WEIGHTS, **ids_of()), adapted)


def test_a_logit_bias_is_one_constant_vector_at_all_positions_and_cached_steps() -> None:
    policy = randomised(policy_of("logit_bias"))
    inputs = ids_of()
    shift = logits_under(policy, WEIGHTS, **inputs) - logits_under(policy, None, **inputs)
    with torch.no_grad():
        bias = policy.model.lm_head(policy.conditioning(torch.tensor(WEIGHTS)))
    assert bias.abs().max() > 0.1
    assert (bias[0] - bias[1]).abs().max() > 0.1
    torch.testing.assert_close(shift, bias.unsqueeze(1).expand_as(shift), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        prefill = policy.model(**inputs, use_cache=True)
        token = prefill.logits[:, -1:].argmax(-1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(token), 1, dtype=torch.long)], dim=1)
        free = policy.model(input_ids=token, attention_mask=mask, past_key_values=prefill.past_key_values).logits
        with policy.conditioning.given(torch.tensor(WEIGHTS)):
            prefill = policy.model(**inputs, use_cache=True)
            step = policy.model(input_ids=token, attention_mask=mask, past_key_values=prefill.past_key_values).logits
    torch.testing.assert_close(step - free, bias.unsqueeze(1), rtol=1e-4, atol=1e-4)


def test_the_lora_adapter_is_itself_at_the_centre_and_scaled_rank_by_rank_elsewhere() -> None:
    policy = randomised(policy_of("lora"))
    plain = logits_under(policy, None, **ids_of())
    torch.testing.assert_close(logits_under(policy, [[0.5, 0.5]] * 4, **ids_of()), plain, rtol=1e-5, atol=1e-5)
    # W x + B diag(1 + C (w - c)) A x, by hand: merge the scales into A
    weights = torch.tensor([0.9, 0.1])
    expected = randomised(policy_of("lora"))
    with torch.no_grad():
        for name, layer in expected.conditioning._layers(expected.model).items():
            scale = 1 + policy.conditioning.scales[name.replace(".", "/")].weight @ (weights - 0.5)
            assert (scale - 1).abs().max() > 0.05
            layer.weight.mul_(scale.unsqueeze(1))
    by_hand = logits_under(expected, None, **ids_of())
    assert (by_hand - plain).abs().max() > 1e-3
    torch.testing.assert_close(
        logits_under(policy, [weights.tolist()] * 4, **ids_of()), by_hand, rtol=1e-4, atol=1e-4
    )  # fmt: skip


def test_the_fused_head_of_trl_sees_the_preference(policy: MetaAlignedPolicy) -> None:
    inputs = ids_of()
    expected = torch.log_softmax(logits_under(policy, WEIGHTS, **inputs)[:, :-1].double(), -1)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    base = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    add_fused_lm_head(base)
    with torch.no_grad(), policy.conditioning.given(torch.tensor(WEIGHTS)):
        found = policy.model(**inputs, labels=labels, fused_lm_head=True).log_probs
    mask = labels[:, 1:] != -100
    wanted = expected.gather(-1, inputs["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found[mask].double(), wanted[mask], rtol=1e-4, atol=1e-5)


def test_a_wrong_number_of_preferences_is_an_error(policy: MetaAlignedPolicy) -> None:
    with pytest.raises(ValueError, match="given 3 preferences, and a batch of 4 rows"):
        logits_under(policy, WEIGHTS[:3], **ids_of())
    # and leaves nothing behind
    assert policy.conditioning._given is None
    logits_under(policy, None, **ids_of())


# generate()


def greedy(policy: MetaAlignedPolicy, prompts: Any = PROMPTS, weights: Any = WEIGHTS, **kwargs: Any) -> list[str]:
    return policy.generate(prompts, preference=weights, **(GREEDY | kwargs))


def test_preferences_change_the_answers(policy: MetaAlignedPolicy) -> None:
    assert greedy(policy, weights=[1.0, 0.0]) != greedy(policy, weights=[0.0, 1.0])


def test_a_padded_batch_answers_as_each_prompt_alone(policy: MetaAlignedPolicy) -> None:
    alone = [greedy(policy, prompt, weights)[0] for prompt, weights in zip(PROMPTS, WEIGHTS, strict=True)]
    assert len(set(alone)) > 1
    assert greedy(policy) == alone
    assert greedy(policy, batch_size=3) == alone


def test_the_cache_makes_no_difference(policy: MetaAlignedPolicy) -> None:
    assert greedy(policy, use_cache=False) == greedy(policy, use_cache=True)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_the_preference_of_their_prompt(policy: MetaAlignedPolicy, settings: dict[str, Any]) -> None:
    alone = [a for p, w in zip(PROMPTS, WEIGHTS, strict=True) for a in greedy(policy, p, w, **settings)]
    assert greedy(policy, **settings) == alone
    assert alone != [a for p in PROMPTS for a in greedy(policy, p, [0.5, 0.5], **settings)]


def test_several_answers_to_a_prompt_are_sampled_under_its_own_preference(policy: MetaAlignedPolicy) -> None:
    """The scores of the first sampled step are those of the conditioned logits, row by row."""
    inputs = ids_of()
    expected = logits_under(policy, WEIGHTS, **inputs)[:, -1]
    with policy.under(WEIGHTS, len(PROMPTS)):
        torch.manual_seed(0)
        out = policy.model.generate(
            **inputs, do_sample=True, top_k=0, num_return_sequences=3, max_new_tokens=2, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    torch.testing.assert_close(out.logits[0], expected.repeat_interleave(3, 0), rtol=1e-4, atol=1e-4)
    again = torch.cat([inputs["input_ids"].repeat_interleave(3, 0), out.sequences[:, -2:-1]], dim=1)
    mask = torch.cat([inputs["attention_mask"].repeat_interleave(3, 0), torch.ones(12, 1, dtype=torch.long)], dim=1)
    rows = torch.tensor(WEIGHTS).repeat_interleave(3, 0).tolist()
    second = logits_under(policy, rows, input_ids=again, attention_mask=mask)[:, -1]
    torch.testing.assert_close(out.logits[1], second, rtol=1e-4, atol=1e-4)


def test_without_a_preference_the_net_decides_prompt_by_prompt(policy: MetaAlignedPolicy) -> None:
    chosen = policy.preference(PROMPTS)
    assert policy.generate(PROMPTS, **GREEDY) == greedy(policy, weights=chosen)
    assert policy.generate(PROMPTS[1], **GREEDY) == greedy(policy, weights=chosen)[1:2]


def test_plain_and_conversational_prompts(policy: MetaAlignedPolicy) -> None:
    turns = [{"role": "user", "content": "item 3?"}]
    text = "<|im_start|>user\nitem 3?<|im_end|>\n<|im_start|>assistant\n"
    expected = greedy(policy, text, [0.3, 0.7])
    assert greedy(policy, turns, [0.3, 0.7]) == expected
    assert greedy(policy, [turns], [0.3, 0.7]) == expected
    longer = [{"role": "user", "content": "hello there, all of you"}]
    assert greedy(policy, [longer, turns], [0.3, 0.7])[1:] == expected
    torch.testing.assert_close(policy.preference([turns]), policy.preference([text]))


def test_answers_come_in_order_and_the_mode_is_left_as_it_was(policy: MetaAlignedPolicy) -> None:
    policy.model.train()
    backwards = greedy(policy, PROMPTS[::-1], WEIGHTS[::-1])
    assert policy.model.training
    policy.model.eval()
    assert backwards[::-1] == greedy(policy)


@pytest.mark.parametrize(
    ("prompts", "preference", "text"),
    [
        ([], None, "no prompts"),
        (["a"], [0.5, 0.6], "sum to 1"),
        (["a"], [1.0], "needs 2 weights"),
        (["a"], {"tall": 1.0}, "tall"),
        (["a", "b", "c"], [[0.5, 0.5]] * 2, "2 preferences for 3 prompts"),
    ],
)
def test_wrong_requests_are_refused(prompts: Any, preference: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        policy_of("logit_bias").generate(prompts, preference=preference, **GREEDY)


# Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    """Also those of the weights, which reach a checkpointed layer from outside."""
    found = []
    for on in (False, True):
        policy = randomised(policy_of(kind))
        policy.model.train()
        if on:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.enable_input_require_grads()
        weights = torch.tensor(WEIGHTS, requires_grad=True)
        with policy.conditioning.given(weights):
            policy.model(**ids_of()).logits.square().mean().backward()
        own = [weights, *policy.conditioning.parameters()]
        own += [p for name, p in policy.model.named_parameters() if "lora_" in name]
        assert all(p.grad is not None for p in own)
        assert all(p.grad.abs().sum() > 0 for p in own if p.grad is not None)
        found.append([p.grad for p in own])
    for off, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(off, checkpointed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "no adapter"),
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "use_dora=True"),
        (SLMCConfig(r=2, target_modules=["q_proj"]), "SLMCConfig"),
        (LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]), "embed_tokens"),
    ],
    ids=["none", "dora", "slmc", "embedding"],
)
def test_adapters_whose_ranks_cannot_be_scaled_are_refused(config: Any, text: str) -> None:
    model: Any = tiny_model() if config is None else get_peft_model(tiny_model(), config)
    with pytest.raises(ValueError, match=text):
        MetaAlignedPolicy(model, tiny_tokenizer(), NAMES, "lora")


# Growth


def test_a_grown_policy_answers_as_before_until_it_is_woken(policy: MetaAlignedPolicy) -> None:
    fronts = [[1.0, 0.0], [0.3, 0.7]]
    before = [logits_under(policy, [w] * 4, **ids_of()) for w in fronts]
    chosen, answers = policy.preference(PROMPTS), policy.generate(PROMPTS, **GREEDY)
    policy.grow([*NAMES, "new", "newer"])
    after = [logits_under(policy, [[*w, 0.0, 0.0]] * 4, **ids_of()) for w in fronts]
    for old, now in zip(before, after, strict=True):
        assert torch.equal(old, now)
    assert torch.equal(policy.preference(PROMPTS)[:, :2], chosen)
    assert policy.preference(PROMPTS)[:, 2:].tolist() == [[0.0, 0.0]] * 4
    assert policy.generate(PROMPTS, **GREEDY) == answers


def test_a_woken_objective_can_learn_in_net_and_conditioning(policy: MetaAlignedPolicy) -> None:
    policy.grow([*NAMES, "new"])
    policy.weight_net.wake()
    features = policy.encode(PROMPTS)
    weights = policy.weight_net(features)
    bias = policy.weight_net.output.bias.tolist()
    assert bias[2] == pytest.approx((bias[0] + bias[1]) / 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert (weights[:, 2] > 0.01).all()
    own = [*policy.conditioning.parameters(), *policy.weight_net.parameters()]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    target = tiny_tokenizer()(["aaaa"] * 4, return_tensors="pt")["input_ids"]

    def loss() -> torch.Tensor:
        with policy.conditioning.given(torch.tensor([[0.0, 0.0, 1.0]] * 4)):
            logps = torch.log_softmax(policy.model(input_ids=target).logits, -1)
        return -logps[..., target[0, 0]].mean() - policy.weight_net.log_weights(features)[:, 2].mean()

    start = loss().item()
    for _ in range(15):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < start - 0.3
    assert policy.preference(PROMPTS)[:, 2].mean() > weights[:, 2].mean() + 0.05
    new = policy.conditioning.input.weight[:, 2:] if policy.conditioning.kind == "logit_bias" else torch.cat(
        [layer.weight[:, 2:] for layer in policy.conditioning.scales.values()]
    )  # fmt: skip
    assert new.abs().max() > 0


@pytest.mark.parametrize("names", [["vowels", "short", "new"], ["short"], ["short", "vowels", "short"]])
def test_growth_keeps_order_and_names(names: list[str]) -> None:
    with pytest.raises(ValueError, match="added at the end"):
        policy_of("logit_bias").grow(names)
