"""What the README claims, run: its script, its loading lines, its commands and links."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.tiny import preference_rows, tiny_model, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SCRIPT, LOADING = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_script_and_what_it_leaves(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, but for the model's name and the arguments that keep a tiny CPU run short."""
    monkeypatch.chdir(tmp_path)
    for name, start in (("helpful", 0), ("harmless", 50)):
        write_jsonl(Path("data") / name / "train.jsonl", preference_rows(8, start=start))
        write_jsonl(Path("data") / name / "test.jsonl", preference_rows(4, start=start + 20))
    short = "bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, "
    script = SCRIPT.replace("Qwen/Qwen2.5-0.5B-Instruct", tiny_dir).replace('"unused", ', f'"unused", {short}')
    assert short in script
    scope: dict[str, Any] = {"base": tiny_model()}
    exec(script, scope)
    run = Path("runs/assistant")
    for name in ("adapters/01-helpful", "adapters/02-harmless", "matrix.json", "matrix.png", "curves.png", "report.md"):
        assert (run / name).exists(), name
    first, second = LOADING.rsplit("model = ", 1)
    exec(first, scope)
    plain = scope["model"]
    assert plain.peft_config["default"].peft_type == "LORA"
    scope["base"] = tiny_model()
    exec("model = " + second, scope)
    assert scope["model"].peft_config["default"].peft_type == "SLMC"
    assert scope["model"].base_model.memory.entries[-1]["task"] == "harmless"


def test_commands_and_links_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for recipe in re.findall(r"recipes/\w+\.yaml", README):
        assert (ROOT / recipe).is_file(), recipe
