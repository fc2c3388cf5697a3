"""What a saved policy may decide, and what stands when it is refused: settings, tokenizer, devices, flags, points."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from meal_helpers import lora, randomised, short, vowels
from peft import get_peft_model
from support.tiny import CHAT_TEMPLATE, save_tiny, tiny_model, tiny_tokenizer
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MetaAlignedPolicy, load_meta_aligned
from hf_lifealign.hub.contents import check_listing
from hf_lifealign.hub.errors import DamagedRevisionError
from hf_lifealign.meta_aligner.encoders import AutoEncoder, without_adapter
from hf_lifealign.meta_aligner.front import sweep_front
from hf_lifealign.meta_aligner.preferences import RewardStatistics
from hf_lifealign.meta_aligner.prefix import PrefixCache
from hf_lifealign.meta_aligner.storage import FOLDER, SETTINGS, _is_of_the_policy, read_policy
from hf_lifealign.prompts import prompt_ids

NAMES = ["short", "vowels"]
PROMPTS = ["item 3?", "hello there, my friend"]
TURNS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
THINKING = {"thinking": False}


def thinking_tokenizer() -> Any:
    """Its template says aloud whether the model is to think."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if thinking is defined and not thinking %}{{ 'no!' }}{% endif %}"
    return tokenizer


def policy_of(
    kind: str = "logit_bias", names: Any = NAMES, encoder: Any = None, hidden: int = 16, tokenizer: Any = None,
    adapted: bool = False, **kwargs: Any,
) -> MetaAlignedPolicy:  # fmt: skip
    model: Any = get_peft_model(tiny_model(), lora()) if adapted or kind == "lora" else tiny_model()
    policy = MetaAlignedPolicy(
        model.eval(), tokenizer or tiny_tokenizer(), names, kind, encoder, hidden=hidden, **kwargs
    )
    policy.statistics = RewardStatistics(torch.tensor([-10.0, 2.0]), torch.tensor([4.0, 1.5]))
    policy.generation = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": [1, 3]}
    return randomised(policy)


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A saved policy whose JSON somebody has changed."""
    policy_of().save_pretrained(folder)
    file = folder / FOLDER / SETTINGS
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))
    return folder


# (a) the JSON


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("custom_generate", "me/evil"),
        ("trust_remote_code", True),
        ("use_cache", True),
        ("max_new_tokens", "6"),
        ("temperature", float("nan")),
        ("eos_token_id", [1, "2"]),
        ("top_k", [1]),
        ("max_new_tokens", 10**400),
        ("early_stopping", "always"),
    ],
)
def test_generation_takes_no_other_settings(name: str, value: Any, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings["generation"].update({name: value}))
    with pytest.raises(ValueError, match=f"'generation' in .*{SETTINGS} sets '{name}'"):
        load_meta_aligned(tiny_model(), folder, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    "key",
    ["objectives", "conditioning", "encoder", "hidden", "base_model", "adapter", "generation", "reward_statistics"],
)
def test_every_setting_has_to_be_there_and_of_its_kind(key: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings.pop(key))
    with pytest.raises(ValueError, match=f"no '{key}' in the file .*{SETTINGS}"):
        read_policy(folder / FOLDER)
    for value in (7.5, [[]], "x" if key != "base_model" else 1):
        folder = edited(tmp_path, lambda settings, value=value: settings.update({key: value}))
        with pytest.raises(ValueError, match=f"'{key}' in the file .*{SETTINGS}"):
            read_policy(folder / FOLDER)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objectives", []),
        ("objectives", ["a", "a"]),
        ("objectives", ["a", 1]),
        ("hidden", 0),
        ("hidden", 10**9),
        ("hidden", True),
        ("encoder", {"kind": "auto", "name": "x", "revision": None}),
        ("encoder", {"kind": "auto", "name": "x", "revision": 1, "trainable": False}),
        ("encoder", {"kind": "policy", "name": "x"}),
        ("reward_statistics", {"mean": [1.0], "std": [1.0, 2.0]}),
        ("reward_statistics", {"mean": [float("inf")] * 2, "std": [1.0, 2.0]}),
        ("reward_statistics", {"mean": [1.0] * 3, "std": [1.0] * 3}),
    ],
)
def test_sizes_and_parts_are_bounded(key: str, value: Any, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings.update({key: value}))
    with pytest.raises(ValueError, match=f"'{key}' in the file"):
        read_policy(folder / FOLDER)


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    policy = policy_of()
    policy.generation = {"custom_generate": "x"}
    with pytest.raises(ValueError, match="'custom_generate'"):
        policy.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_what_nobody_knows_is_left_out(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings.update(more={"trust_remote_code": True}))
    assert "more" not in read_policy(folder / FOLDER).settings


# (b) the chat template


def test_conversations_are_read_as_in_training(tmp_path: Path) -> None:
    tokenizer = thinking_tokenizer()
    policy = policy_of(tokenizer=tokenizer, chat_template_kwargs=THINKING)
    texts = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\nno!" for prompt in PROMPTS]
    expected = policy.generate(texts, [0.3, 0.7], **GREEDY)
    assert policy.generate(TURNS, [0.3, 0.7], **GREEDY) == expected
    torch.testing.assert_close(policy.preference(TURNS), policy.preference(texts))
    assert prompt_ids(tokenizer, TURNS, THINKING) == prompt_ids(tokenizer, texts)
    assert prompt_ids(tokenizer, TURNS) != prompt_ids(tokenizer, texts)
    fronts = [
        sweep_front(policy, [{"prompt": prompt} for prompt in prompts], [short, vowels], [[0.3, 0.7]], progress=False,
                    store=tmp_path / name, keep_answers=True, generation={"do_sample": False})
        for name, prompts in (("texts", texts), ("turns", TURNS))
    ]  # fmt: skip
    assert fronts[0].points[0].nll == pytest.approx(fronts[1].points[0].nll)
    told = [json.loads((tmp_path / name / "0.3-0.7.json").read_text())["answers"] for name in ("texts", "turns")]
    assert told[0] == told[1] == expected
    policy.save_pretrained(tmp_path / "saved")
    loaded = load_meta_aligned(tiny_model(), tmp_path / "saved", tokenizer=thinking_tokenizer())
    assert loaded.chat_template_kwargs == THINKING
    assert loaded.generate(TURNS, [0.3, 0.7], **GREEDY) == expected
    assert torch.equal(loaded.preference(TURNS), policy.preference(TURNS))
    # a change reaches the features as well
    loaded.chat_template_kwargs = {}
    assert not torch.equal(loaded.preference(TURNS), policy.preference(TURNS))


def test_an_earlier_file_says_nothing_of_the_template(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings.pop("chat_template_kwargs"))
    assert load_meta_aligned(tiny_model(), folder, tokenizer=tiny_tokenizer()).chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "x"), ("tokenize", False), ("tools", "x"), ("add_generation_prompt", False),
        ("padding", True), ("truncation", True), ("return_tensors", "pt"), ("continue_final_message", True),
        ("thinking", {"a": 1}), ("thinking", None),
    ],
)  # fmt: skip
def test_the_template_takes_no_other_settings(name: str, value: Any, tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda settings: settings.update(chat_template_kwargs={name: value}))
    with pytest.raises(ValueError, match=f"'chat_template_kwargs' in .*set '{name}'"):
        read_policy(folder / FOLDER)
    with pytest.raises(ValueError, match=f"set '{name}'"):
        policy_of(chat_template_kwargs={name: value})


# (c) the tokenizer


def test_the_tokenizer_saved_with_the_policy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    policy = policy_of()
    policy.save_pretrained(tmp_path / "saved")
    assert load_meta_aligned(base, tmp_path / "saved").tokenizer.chat_template == CHAT_TEMPLATE
    thinking_tokenizer().save_pretrained(tmp_path / "saved")
    asked: list[Any] = []
    from hf_lifealign.meta_aligner import policy as module

    real = module.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        module.AutoTokenizer, "from_pretrained", lambda name, **kwargs: asked.append((str(name), kwargs)) or real(name)
    )
    loaded = load_meta_aligned(base, tmp_path / "saved")
    assert loaded.tokenizer.chat_template == thinking_tokenizer().chat_template
    assert asked.pop() == (str(tmp_path / "saved"), {"trust_remote_code": False})
    (tmp_path / "saved" / "tokenizer.json").unlink()
    load_meta_aligned(base, tmp_path / "saved", base_revision="v3")
    assert asked.pop() == (base, {"revision": "v3", "trust_remote_code": False})


def test_what_is_fetched_is_bounded() -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        with pytest.raises(DamagedRevisionError, match=name):
            check_listing({name: 300 * 1024**2}, "me/policy", _is_of_the_policy)
    check_listing({"adapter_model.safetensors": 300 * 1024**2}, "me/policy", _is_of_the_policy)
    for name in ("modeling.py", "adapter_model.bin", "slmc/strategies/meta_aligner/x.bin", "meta_aligner/other.json"):
        with pytest.raises(DamagedRevisionError, match=re.escape(name)):
            check_listing({name: 1}, "me/policy", _is_of_the_policy)


# (d) the base


@pytest.mark.parametrize("kind", ["logit_bias", "lora"])
def test_a_base_with_adapter_layers_is_refused(kind: str, tmp_path: Path) -> None:
    policy_of(kind).save_pretrained(tmp_path / "saved")
    base = tiny_model()
    taken = get_peft_model(base, lora())
    for given in (base, taken):
        with pytest.raises(ValueError, match="freshly loaded base"):
            load_meta_aligned(given, tmp_path / "saved", tokenizer=tiny_tokenizer())


# (e) devices


def devices(policy: MetaAlignedPolicy) -> set[str]:
    return {p.device.type for p in [*policy.parameters(), *policy.buffers(), *policy.model.parameters()]}


@pytest.mark.parametrize("kind", ["logit_bias", "lora"])
def test_model_and_modules_move_together(kind: str) -> None:
    policy = policy_of(kind).double()
    assert {p.dtype for p in policy.model.parameters()} == {torch.float64}
    policy.generate(PROMPTS, **GREEDY)
    assert devices(policy.to("meta")) == {"meta"}


@pytest.mark.parametrize("kind", ["logit_bias", "lora"])
def test_modules_follow_a_model_that_was_moved_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, steered = policy_of(kind), policy_of(kind)
    encoded.model.to("meta")
    # a backbone looks into its mask, which has no values on this device
    monkeypatch.setattr(encoded.encoder, "encode", lambda prompts: torch.zeros(len(prompts), 32, device="meta"))
    assert encoded.encode(PROMPTS).device.type == "meta"
    assert devices(encoded) == {"meta"}
    steered.model.to("meta")
    with steered.under([0.2, 0.8], 2):
        assert devices(steered) == {"meta"}


def test_a_model_on_several_devices_stays_there() -> None:
    policy = policy_of()
    policy.model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    policy.double()
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["logit_bias", "lora"])
def test_a_policy_on_a_gpu_and_back(kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind, encoder=AutoEncoder(save_tiny_encoder(tmp_path)))
    expected = policy.generate(PROMPTS, **GREEDY)
    assert policy.to("cuda").generate(PROMPTS, **GREEDY) == expected
    policy.model.to("cpu")
    assert policy.generate(PROMPTS, **GREEDY) == expected
    policy.model.to("cuda")
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    sweep_front(policy, rows, [short, vowels], [[0.3, 0.7]], include_base=True, progress=False)
    assert devices(policy) == {"cuda"}


# (f) flags


def test_reading_prompts_leaves_frozen_what_is_frozen() -> None:
    policy = policy_of(adapted=True)
    flags = {name: "lora_B" in name for name, _ in policy.model.named_parameters()}
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(flags[name])
    policy.encode(PROMPTS)
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == flags
    with pytest.raises(KeyError), without_adapter(policy.model):
        raise KeyError
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == flags
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    sweep_front(policy, rows, [short, vowels], [[0.3, 0.7]], include_base=True, progress=False)
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == flags


# (g) load_weights


def test_the_net_of_another_encoder_is_refused(tmp_path: Path) -> None:
    """All of them 32 wide, so that nothing but the name tells them apart."""
    first, second = (AutoEncoder(save_tiny_encoder(tmp_path / name)) for name in ("first", "second"))
    policy_of(encoder=first).save_pretrained(tmp_path / "saved")
    saved = read_policy(tmp_path / "saved" / FOLDER)
    for other, name in ((None, "the policy itself"), (second, "second")):
        with pytest.raises(ValueError, match=f"You set {name} as the encoder.*features of first"):
            policy_of(encoder=other).load_weights(saved)
    policy_of(encoder=first).load_weights(saved)
    policy_of(encoder=second).load_weights(saved, any_encoder_name=True)
    with pytest.raises(ValueError, match="the policy itself"):
        policy_of().load_weights(saved, any_encoder_name=True)
    given = str(tmp_path / "second")
    load_meta_aligned(tiny_model(), tmp_path / "saved", tokenizer=tiny_tokenizer(), encoder=given)


@pytest.mark.parametrize("part", ["conditioning.output.bias", "weight_net.output.bias", "encoder.pooler.dense.bias"])
def test_a_policy_that_cannot_be_loaded_changes_nothing(part: str, tmp_path: Path) -> None:
    source = save_tiny_encoder(tmp_path / "encoder")
    policy_of(encoder=AutoEncoder(source, trainable=True)).save_pretrained(tmp_path / "saved")
    saved = read_policy(tmp_path / "saved" / FOLDER)
    policy = policy_of(encoder=AutoEncoder(source, trainable=True))
    randomised(policy, seed=9)
    with torch.no_grad():
        for parameter in policy.encoder.parameters():  # type: ignore[union-attr]
            parameter.mul_(1.1)
    before = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    answers, parts = policy.generate(PROMPTS, [0.1, 0.9], **GREEDY), (policy.conditioning, policy.weight_net)
    for damage in (lambda tensor: tensor[:1], None):
        tensors = {**saved.tensors}
        wrong = tensors.pop(part)
        if damage is not None:
            tensors[part] = damage(wrong)
        with pytest.raises(ValueError, match=f"saved {part.split('.')[0]} does not fit"):
            policy.load_weights(type(saved)(saved.settings, tensors))
        assert (policy.conditioning, policy.weight_net) == parts
        assert all(torch.equal(tensor, before[name]) for name, tensor in policy.tensors().items())
        assert policy.generate(PROMPTS, [0.1, 0.9], **GREEDY) == answers, "the hooks are still there"
    policy.load_weights(saved)
    assert all(torch.equal(tensor, saved.tensors[name]) for name, tensor in policy.tensors().items())


# (j), (k) sweeps


class Noting:
    """Changes a plain attribute when it is called."""

    __name__ = "noting"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        self.calls += 1
        return [float(len(completion)) for completion in completions]


def test_a_reward_that_notes_its_calls_is_the_same_reward(tmp_path: Path) -> None:
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    options: dict[str, Any] = {"weights": [[0.3, 0.7]], "store": tmp_path, "progress": False}
    first, second = Noting(), Noting()
    front = sweep_front(policy_of(), rows, [first, vowels], **options)
    again = sweep_front(policy_of(), rows, [second, vowels], **options)
    assert (first.calls, second.calls) == (2, 0), "what is finished is known again"
    assert front.to_json() == again.to_json()


def test_prompts_are_not_read_once_where_the_backbone_hears_the_preference() -> None:
    class Mixing(MetaAlignedPolicy):
        backbone_is_frozen = False

    plain = policy_of()
    mixing = Mixing(tiny_model().eval(), tiny_tokenizer(), NAMES)
    inputs = plain.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert plain.backbone_is_frozen
    assert not policy_of("lora").backbone_is_frozen
    assert PrefixCache(plain, 1.0).of(0, inputs) is not None
    assert PrefixCache(mixing, 1.0).of(0, inputs) is None
