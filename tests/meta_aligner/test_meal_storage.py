"""Saved policies: bit-equal when loaded, without local paths, and never half there."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from meal_helpers import lora, randomised, trainer_of
from peft import get_peft_model
from support.tiny import tiny_model, tiny_tokenizer
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MetaAlignedPolicy, load_meta_aligned
from hf_lifealign.meta_aligner.encoders import AutoEncoder
from hf_lifealign.meta_aligner.preferences import RewardStatistics

NAMES = ["short", "vowels"]
PROMPTS = ["item 3?", "hello there, my friend", "x"]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
KINDS = ["logit_bias", "lora", "logit_bias_on_lora"]


def policy_of(kind: str, encoder: Any = None) -> MetaAlignedPolicy:
    model: Any = get_peft_model(tiny_model(), lora()) if "lora" in kind else tiny_model()
    kind = "logit_bias" if kind.startswith("logit") else kind
    policy = MetaAlignedPolicy(model.eval(), tiny_tokenizer(), NAMES, kind, encoder, hidden=16)
    policy.statistics = RewardStatistics(torch.tensor([0.1, -7.0]), torch.tensor([1 / 3, 0.0]))
    policy.generation = {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    return randomised(policy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_policy_is_bit_equal(kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind)
    policy.save_pretrained(tmp_path / "saved")
    loaded = load_meta_aligned(tiny_model(), tmp_path / "saved", tokenizer=tiny_tokenizer())
    assert torch.equal(loaded.preference(PROMPTS), policy.preference(PROMPTS))
    inputs = tiny_tokenizer()(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad(), loaded.under([0.2, 0.8], 3), policy.under([0.2, 0.8], 3):
        assert torch.equal(loaded.model(**inputs).logits, policy.model(**inputs).logits)
    assert loaded.generate(PROMPTS, **GREEDY) == policy.generate(PROMPTS, **GREEDY)
    assert loaded.settings() == policy.settings()
    assert loaded.statistics is not None
    assert policy.statistics is not None
    assert torch.equal(loaded.statistics.std, policy.statistics.std)
    assert not any(p.requires_grad for p in loaded.parameters())
    # the settings of generation came along
    torch.manual_seed(0)
    ours = policy.generate(PROMPTS)
    torch.manual_seed(0)
    assert loaded.generate(PROMPTS) == ours
    # saving it again gives the same bytes
    loaded.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "saved" / "meta_aligner").iterdir():
        assert (tmp_path / "again" / "meta_aligner" / file.name).read_bytes() == file.read_bytes()


def test_the_base_may_be_a_folder(tmp_path: Path, tiny_dir: str) -> None:
    policy = policy_of("logit_bias")
    policy.save_pretrained(tmp_path)
    loaded = load_meta_aligned(tiny_dir, tmp_path)
    assert loaded.generate(PROMPTS, **GREEDY) == policy.generate(PROMPTS, **GREEDY)


def test_a_growing_policy_is_saved_with_what_sleeps(tmp_path: Path) -> None:
    policy = policy_of("lora")
    policy.grow([*NAMES, "new"])
    policy.save_pretrained(tmp_path)
    loaded = load_meta_aligned(tiny_model(), tmp_path, tokenizer=tiny_tokenizer())
    assert loaded.weight_net.sleeping.tolist() == [False, False, True]
    assert torch.equal(loaded.preference(PROMPTS), policy.preference(PROMPTS))
    assert loaded.generate(PROMPTS, preference=[0.1, 0.2, 0.7], **GREEDY) == policy.generate(
        PROMPTS, preference=[0.1, 0.2, 0.7], **GREEDY
    )


@pytest.mark.parametrize("trainable", [False, True])
def test_a_policy_with_an_encoder_of_its_own(trainable: bool, tmp_path: Path) -> None:
    source = save_tiny_encoder(tmp_path / "secret" / "tiny-bert")
    torch.manual_seed(0)
    encoder = AutoEncoder(source, trainable=trainable)
    policy = policy_of("logit_bias", encoder)
    features = encoder.encode(PROMPTS)
    assert features.requires_grad == trainable
    assert features.shape == (3, 32)
    # mean over the tokens of each prompt, padding left out
    torch.testing.assert_close(features[2], encoder.encode(PROMPTS[2:])[0], rtol=1e-4, atol=1e-5)
    before = policy.preference(PROMPTS)
    if trainable:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.3)
        assert not torch.equal(policy.preference(PROMPTS), before)
    policy.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "meta_aligner" / "meta_aligner.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["encoder"]["name"] == "tiny-bert"
    held = any(name.startswith("encoder.") for name in policy.tensors())
    assert held == trainable
    loaded = load_meta_aligned(
        tiny_model(), tmp_path / "saved", tokenizer=tiny_tokenizer(), encoder=str(tmp_path / "secret" / "tiny-bert")
    )
    assert torch.equal(loaded.preference(PROMPTS), policy.preference(PROMPTS))
    assert loaded.generate(PROMPTS, **GREEDY) == policy.generate(PROMPTS, **GREEDY)


def test_an_encoder_keeps_the_end_of_a_long_prompt(tmp_path: Path) -> None:
    encoder = AutoEncoder(save_tiny_encoder(tmp_path))
    assert encoder.max_length == 128
    end = "z" * 128
    torch.testing.assert_close(encoder.encode(["start " + end]), encoder.encode([end]))


def test_the_settings_name_no_folder_of_this_machine(tmp_path: Path, tiny_dir: str) -> None:
    trainer = trainer_of(tmp_path / "run", model=tiny_dir, weight_net_hidden=8)
    trainer.policy.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "meta_aligner" / "meta_aligner.json").read_text()
    assert json.loads(text)["base_model"] == Path(tiny_dir).name
    assert "/" not in text.replace("scales/", "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    policy_of("lora").save_pretrained(folder)
    return folder


def damaged(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def load(folder: Path, model: Any = None) -> MetaAlignedPolicy:
    return load_meta_aligned(model or tiny_model(), folder, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    "name", ["meta_aligner/meta_aligner.json", "meta_aligner/meta_aligner.safetensors", "adapter_model.safetensors"]
)
def test_a_missing_file_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    folder = damaged(whole, tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=Path(name).name):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("meta_aligner.json", b'{"format": 1', "not valid JSON"),
        ("meta_aligner.json", b"[]", "format None"),
        ("meta_aligner.json", b'{"format": 99}', "format 99"),
        ("meta_aligner.safetensors", b"\0" * 100, "damaged"),
        ("meta_aligner.safetensors", b"", "damaged"),
    ],
)
def test_damaged_files_are_refused(name: str, content: bytes, text: str, whole: Path, tmp_path: Path) -> None:
    folder = damaged(whole, tmp_path)
    (folder / "meta_aligner" / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        load(folder)


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def test_a_pickle_is_never_loaded(whole: Path, tmp_path: Path) -> None:
    folder = damaged(whole, tmp_path)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Pickled weights are never read"):
        load(folder)
    folder = Path(shutil.copytree(whole, tmp_path / "other"))
    (folder / "meta_aligner" / "meta_aligner.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged"):
        load(folder)


def test_a_policy_of_another_base_is_refused(whole: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"does not fit|size mismatch"):
        load(whole, tiny_model(hidden_size=64))


def test_a_policy_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        load(tmp_path / "nowhere" / "to be found")
    with pytest.raises(ValueError, match="has no revisions"):
        load_meta_aligned(tiny_model(), tmp_path, revision="v1", tokenizer=tiny_tokenizer())


def test_a_diverged_policy_is_not_saved(tmp_path: Path) -> None:
    for kind in ("logit_bias", "lora"):
        policy = policy_of(kind)
        with torch.no_grad():
            policy.weight_net.output.bias[0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            policy.save_pretrained(tmp_path / kind)
        assert not list((tmp_path / kind).rglob("*"))


def test_a_write_that_fails_leaves_the_old_policy_loadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("logit_bias")
    policy.save_pretrained(tmp_path)
    before = policy.preference(PROMPTS)
    randomised(policy, seed=5)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_lifealign.meta_aligner.storage.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        policy.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).preference(PROMPTS), before)
    assert {file.name for file in (tmp_path / "meta_aligner").iterdir()} == {
        "meta_aligner.json", "meta_aligner.safetensors",
    }  # fmt: skip
