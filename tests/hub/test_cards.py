"""Cards as the Hub reads them, and what a trainer's own push leaves there."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from support.hub_server import HubServer, client_environment

from hf_lifealign.hub.publish import PushOptions, push_run

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def card(hub: HubServer, remote, life: Path, waits) -> ModelCard:
    push_run(life, remote(), PushOptions(license="apache-2.0", sleep=waits.append))
    return ModelCard(hub.repo("me/life").files("task-02-two")["README.md"].decode())


def test_front_matter_as_the_hub_reads_it(card: ModelCard, life: Path) -> None:
    data = card.data.to_dict()
    assert data["library_name"] == "peft"
    assert data["license"] == "apache-2.0"
    assert {"trl", "fpo", "slmc", "lifelong-alignment"} <= set(data["tags"])
    results: list[EvalResult] = card.data.eval_results
    matrix = json.loads((life / "adapters" / "02-two" / "matrix.json").read_text())
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in results}
    last = matrix["matrices"]["preference_accuracy"][-1]
    assert found["one", "preference_accuracy"] == pytest.approx(last[0], abs=1e-4)
    assert found["two", "preference_accuracy"] == pytest.approx(last[1], abs=1e-4)
    bwt = matrix["summary"]["preference_accuracy"]["bwt"]
    assert found["one → two", "bwt"] == pytest.approx(bwt, abs=1e-4)


def test_a_base_on_the_hub_is_named_as_such(hub: HubServer, remote, life: Path, options) -> None:
    path = life / "adapters" / "01-one" / "slmc" / "run.json"
    body = json.loads(path.read_text())
    body["settings"]["base_model"] = "Qwen/Qwen2.5-0.5B-Instruct"
    path.write_text(json.dumps(body))
    push_run(life, remote(), options)
    data = ModelCard(hub.repo("me/life").files("task-01-one")["README.md"].decode()).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen2.5-0.5B-Instruct", "adapter")


def test_what_the_card_tells(card: ModelCard) -> None:
    text = card.text
    for part in (
        "one → two", "![Performance", "(matrix.png)", "## Lineage", "## Revisions", "task-01-one", "## Data",
        "lifealign run my.yaml --continue-from me/life@task-02-two", "lifealign verify me/life@task-02-two",
        "apache-2.0", "## Limits", "li2026lifealign", "rafailov2023direct", "hu2022lora", "not published",
    ):  # fmt: skip
        assert part in text, part
    assert "three" not in text
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for call in [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]:
            named = {keyword.arg for keyword in call.keywords}
            owner = getattr(getattr(call.func, "value", None), "id", "")
            # transformers would look for the adapter's revision in the base's repository
            assert "revision" not in named or owner in ("PeftModel", "hf_lifealign")


def test_no_blank_cards(card: ModelCard) -> None:
    for phrase in ("Model Card for Model ID", "[More Information Needed]", "Provide a quick summary"):
        assert phrase not in card.content


TRAINER = """
import sys
from support.tiny import preference_dataset, tiny_model, tiny_tokenizer
from hf_lifealign import FPOConfig, FPOTrainer, SLMCConfig
args = FPOConfig(sys.argv[1], max_steps=2, save_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False,
                 push_to_hub=True, hub_model_id="me/one-task", report_to=[], reference="previous")
config = SLMCConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
for _ in range(2):
    trainer = FPOTrainer(model=tiny_model() if _ == 0 else trainer.model, args=args, processing_class=tiny_tokenizer(),
                         train_dataset=preference_dataset(8), peft_config=config if _ == 0 else None)
    trainer.train()
trainer.push_to_hub(dataset_name="me/pairs")
"""


def test_a_trainers_own_push(hub: HubServer, tmp_path: Path) -> None:
    """FPOTrainer(push_to_hub=True), as with any trainer of TRL: our card, no reference adapter, no blank card."""
    environment = client_environment(hub, tmp_path / "home") | {"PYTHONPATH": str(TESTS)}
    folder = tmp_path / "checkpoints"  # which is no checkpoint
    (folder / "ref").mkdir(parents=True)
    (folder / "ref" / "mine.txt").write_text("the user's own")
    done = subprocess.run([sys.executable, "-c", TRAINER, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.repo("me/one-task").files("main")
    assert {"adapter_model.safetensors", "slmc/memory.json", "README.md"} <= set(files)
    assert [name for name in files if name.startswith(("ref/", "checkpoint"))] == ["ref/mine.txt"]
    assert (folder / "ref" / "mine.txt").is_file()
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["me/pairs"]
    assert "fpo" in card.data.tags
    assert "Model Card for Model ID" not in card.content
    assert list(folder.glob("checkpoint-*/ref")), "resuming needs it there"
    assert not [path for path in folder.rglob("README.md") if "Model ID" in path.read_text()]
