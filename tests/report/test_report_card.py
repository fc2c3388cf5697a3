"""write_adapter_card: metadata the Hub accepts, code that is code, and nothing of the machine that trained."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from report.fake_run import TASKS, consolidation, matrix_content, write_json

from hf_lifealign.report import write_adapter_card
from hf_lifealign.report.privacy import public_model_name, without_folders

SETTINGS = {
    "base_model": "/home/someone/models/tiny-llama",
    "trainer": "FPOTrainer",
    "run": {"general_text": "/home/someone/texts/general.txt"},
    "adapter": {"r": 16, "target_modules": r".*\.layers\.\d+\.(q|v)_proj"},
    "tasks": [{"name": "safe", "train": "C:\\data\\safe\\train.jsonl", "source": "PKU-Alignment/PKU-SafeRLHF"}],
}


def add_memory(folder: Path) -> None:
    entries = [
        {"index": i, "task": task, "phase": "preference", "date": "2026-01-02T03:04:05+00:00",
         "report": consolidation(task, "preference", i)}
        for i, task in enumerate(TASKS[:2])
    ]  # fmt: skip
    write_json(folder / "slmc" / "memory.json", {"entries": entries})


def full_context() -> dict:
    return {
        "base_model": "/home/someone/models/tiny-llama",
        "tasks": TASKS[:2],
        "matrix": matrix_content(4, True, TASKS, True),
        "settings": SETTINGS,
        "versions": {"trl": "1.16.0"},
        "repo_id": "me/my-adapter",
        "revision": "02-harmless",
        "license": "apache-2.0",
    }


def test_full_card(tmp_path):
    add_memory(tmp_path)
    card = ModelCard.load(write_adapter_card(tmp_path, full_context()))
    assert card.data.base_model is None, "a folder's name is no model of the Hub"
    assert "tiny-llama" in card.text
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "apache-2.0"
    assert set(card.data.tags) >= {"trl", "lora", "lifelong-alignment", "fpo", "slmc"}
    for part in (
        "truthful → harmless",
        "0.862",
        "### ROUGE-L",
        "## Lineage",
        "2026-01-02T03:04",
        "| BWT ",
        "2509.17183",
    ):
        assert part in card.text
    assert "helpful |" not in card.text, "tasks after the last one trained do not belong on the card"
    assert r".*\.layers\.\d+\.(q" in card.text
    assert "PKU-Alignment/PKU-SafeRLHF" in card.text
    assert "\n\n\n" not in card.text


def test_nothing_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    text = write_adapter_card(tmp_path, full_context() | {"base_model": "models/base"}).read_text()
    assert "models/base" not in text
    for secret in ("/home", "someone", str(tmp_path), "C:", "\\data"):
        assert secret not in text
    assert re.search(r"(?<![\w:/.])/(?!/)\w+/", text) is None


@pytest.mark.parametrize("memory", [True, False])
def test_examples_are_valid_python(tmp_path, memory):
    if memory:
        add_memory(tmp_path)
    text = write_adapter_card(tmp_path, full_context() | {"base_model": 'odd "name'}).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1 + memory
    for block in blocks:
        ast.parse(block)
    assert 'PeftModel.from_pretrained(base, "me/my-adapter", revision="02-harmless")' in blocks[0]
    assert ("load_adapter" in text) == memory
    assert "base_model:" not in text.split("---")[1], "the Hub would refuse a base model that cannot be an id"


def test_least_context(tmp_path):
    text = write_adapter_card(tmp_path, {"base_model": "Qwen/Qwen2.5-0.5B-Instruct"}).read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert data["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert "slmc" not in data["tags"]
    assert "path-or-id-of-this-adapter" in text
    text = text.partition("## Citation")[0]
    assert not [word for word in ("Undefined", "None", "{{", "{%", "## Settings", "## Performance") if word in text]


def test_context_before_anything_was_measured(tmp_path):
    context = {"base_model": "", "tasks": ["a"], "matrix": matrix_content(0, False, ["a"], False), "settings": None}
    text = write_adapter_card(tmp_path, context).read_text()
    assert "1 preference task\n" in text
    assert "base_model" not in text.split("---")[1]


def test_same_context_same_bytes(tmp_path):
    first = write_adapter_card(tmp_path, full_context()).read_bytes()
    assert write_adapter_card(tmp_path, full_context()).read_bytes() == first


def test_values_are_not_templates(tmp_path):
    text = write_adapter_card(tmp_path, {"base_model": "a/b", "settings": {"x": "{{ 7 * 7 }}"}}).read_text()
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize(
    ("context", "match"), [({}, "lacks: base_model"), ({"base_model": "a/b", "metrix": {}}, "unknown keys: metrix")]
)
def test_bad_context(tmp_path, context, match):
    with pytest.raises(ValueError, match=match):
        write_adapter_card(tmp_path, context)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("/home/x/models/llama/", "llama"),
        ("~/llama", "llama"),
        ("./a/b", "b"),
        ("C:\\m\\llama", "llama"),
        ("\\\\server\\m\\llama", "llama"),
        ("a/b/c", "c"),
        ("gpt2", "gpt2"),
    ],
)
def test_public_model_name(given, shown):
    assert public_model_name(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/my user/train.jsonl", "train.jsonl"),
        ("json, /a/b.jsonl and ../c/d.jsonl", "json, b.jsonl and d.jsonl"),
        ("file:///home/x/y.json", "y.json"),
        ("D:/data/y.json", "y.json"),
        ("read from D:\\data\\y.json", "read from y.json"),
        ("https://huggingface.co/datasets/a/b", "https://huggingface.co/datasets/a/b"),
        ("org/name", "org/name"),
        (r"\.(q_proj|v_proj)$", r"\.(q_proj|v_proj)$"),
        ("and/or", "and/or"),
        (["/a/b", {"k": "/c/d"}, 3, None], ["b", {"k": "d"}, 3, None]),
    ],
)
def test_without_folders(given, shown):
    assert without_folders(given) == shown
