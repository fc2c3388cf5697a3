"""Unmodified clients in processes of their own: PEFT without this package, `load_adapter`, the command, a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer, client_environment
from support.tiny import save_tiny

from hf_lifealign.cli.main import main

TAGS = ["task-01-one", "task-02-two", "task-03-three"]
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def shell(hub: HubServer, tmp_path: Path) -> Any:
    """Runs a command against the server: `shell("lifealign", "log", ...)` or `shell("python", "-c", ...)`."""

    def run(*command: Any, ok: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        program, *rest = map(str, command)
        start = [sys.executable] if program == "python" else [sys.executable, "-m", "hf_lifealign.cli.main"]
        done = subprocess.run(
            [*start, *rest], capture_output=True, text=True, cwd=tmp_path,
            env=client_environment(hub, tmp_path / "home") | {"PYTHONPATH": str(TESTS)} | environment,
        )  # fmt: skip
        assert (done.returncode == 0) == ok, done.stdout[-2000:] + done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def published(hub: HubServer, shell, life: Path) -> Path:
    """The life, published by the command."""
    shell("lifealign", "push", life, "me/life")
    return life


PEFT_ALONE = """
import sys
sys.modules["hf_lifealign"] = None   # cannot be imported
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
inputs = torch.arange(4, 20).unsqueeze(0)
for tag in sys.argv[2].split(","):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "me/life", revision=tag)
    print(repr(float(model(inputs).logits.double().sum())))
"""


def test_peft_alone_loads_any_tag(shell, published: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = save_tiny(tmp_path / "base")
    printed = shell("python", "-c", PEFT_ALONE, base, ",".join(TAGS)).stdout.split()
    inputs = torch.arange(4, 20).unsqueeze(0)
    for tag, value in zip(TAGS, printed, strict=True):
        folder = published / "adapters" / tag.removeprefix("task-")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
        assert float(value) == float(model(inputs).logits.double().sum())


LOAD = """
import sys, logging
from hf_lifealign import load_adapter
from transformers import AutoModelForCausalLM
for revision in sys.argv[2:]:
    model = load_adapter(sys.argv[1], "me/life", revision=revision)
    print(model.memory.length, model.lifealign_origin["commit"], model.lifealign_origin["tag"])
"""


def test_load_adapter_takes_tags_branches_and_commits(hub: HubServer, shell, published: Path, tmp_path: Path) -> None:
    base, repo = save_tiny(tmp_path / "base"), hub.repo("me/life")
    asked = {"task-02-two": TAGS[1], repo.tags[TAGS[1]]: TAGS[1], "main": TAGS[2]}
    lines = shell("python", "-c", LOAD, base, *asked).stdout.splitlines()
    for line, tag in zip(lines, asked.values(), strict=True):
        assert line.split() == [str(TAGS.index(tag) + 1), repo.tags[tag], tag]
    # what was fetched once is at hand without the Hub, verified again, and that is said
    hub.stop_listening()
    done = shell("python", "-c", LOAD, base, repo.tags[TAGS[1]])
    assert done.stdout.split()[2] == TAGS[1]
    assert "in the cache" in done.stderr
    done = shell("python", "-c", LOAD, base, repo.tags[TAGS[0]], ok=False)
    assert "did not answer" in done.stderr


def test_the_commands(hub: HubServer, shell, published: Path, capsys) -> None:
    def told(*command: Any) -> str:
        """The same in this process: each would take seconds to start."""
        capsys.readouterr()
        assert main([str(part) for part in command]) == 0
        return capsys.readouterr().out

    log = shell("lifealign", "log", "me/life").stdout
    assert all(tag in log for tag in TAGS)
    assert hub.repo("me/life").tags[TAGS[1]][:12] in log
    entries = json.loads(told("log", "me/life", "--json"))
    assert [entry["commit"] for entry in entries] == [hub.repo("me/life").tags[tag] for tag in TAGS]
    diff = shell("lifealign", "diff", "me/life", TAGS[0], TAGS[2]).stdout
    assert "q_proj" in diff
    assert "preference_accuracy" in diff
    found = json.loads(told("diff", "me/life", TAGS[0], TAGS[0], "--json"))
    assert found["total"]["overlap"] == pytest.approx(1.0)
    assert found["total"]["change"] == pytest.approx(0.0, abs=1e-6)
    back = shell("lifealign", "rollback", "me/life", TAGS[0]).stdout
    assert "is now at task-01-one" in back
    check = shell("lifealign", "verify", "me/life").stdout
    assert check.count("ok ") == 4
    assert "all is well" in check
    inspected = json.loads(told("inspect", "me/life", "--revision", TAGS[1], "--json"))
    assert inspected["commit"] == hub.repo("me/life").tags[TAGS[1]]
    again = told("push", published)
    assert again.count("there already") == 3


def test_errors_of_the_commands_are_one_line(hub: HubServer, published: Path, tmp_path: Path, capsys) -> None:
    """In this process: each would take a second to start."""
    for command, words in (
        (["log", "me/none"], "There is no repository me/none"),
        (["push", tmp_path / "none"], "is not the folder of a run"),
        (["diff", "me/life", "task-01-one", "task-07"], "no such revision"),
        (["rollback", "me/life", "task-07"], "no such revision"),
        (["push", published, "you/theirs"], "may not do that"),
    ):
        assert main([str(part) for part in command]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert "Traceback" not in told
    repo = hub.repo("me/life")
    hub.corrupt("me/life", repo.tags[TAGS[0]], "adapter_model.safetensors")
    assert main(["verify", f"me/life@{TAGS[0]}"]) == 1
    told = capsys.readouterr().out
    assert "FAILED" in told
    assert "adapter_model.safetensors" in told


PUSHING_LIFE = """
import sys
from support.life import tiny_life, tiny_stream
life = tiny_life(sys.argv[1], stream=tiny_stream()[:2], warm_start=False, push_to_hub=True, hub_model_id="me/pushed",
                 push_in_background=sys.argv[2] == "background", push_timeout=60, license="apache-2.0")
life.train()
print(life.published)
"""


@pytest.mark.parametrize("way", ["background", "foreground"])
def test_a_run_publishes_its_tasks(hub: HubServer, shell, tmp_path: Path, way: str) -> None:
    done = shell("python", "-c", PUSHING_LIFE, tmp_path / "pushed", way)
    assert "Published: 2 tasks in me/pushed" in done.stdout
    repo = hub.repo("me/pushed")
    assert set(repo.tags) == {"task-01-one", "task-02-two"}
    assert "license: apache-2.0" in repo.files("main")["README.md"].decode()
    token = client_environment(hub, tmp_path)["HF_TOKEN"]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "pushed").rglob("*") if path.is_file())
    assert token.encode() not in kept


def test_a_hub_that_is_down_does_not_touch_the_run(hub: HubServer, shell, tmp_path: Path) -> None:
    hub.stop_listening()
    done = shell("python", "-c", PUSHING_LIFE.replace("=60", "=3"), tmp_path / "pushed", "background")
    assert "NOT published: 01-one, 02-two" in done.stdout
    assert json.loads((tmp_path / "pushed" / "state.json").read_text())["status"] == "done"
    hub.listen_again()
    assert shell("lifealign", "push", tmp_path / "pushed").stdout.count("sent") == 2
    assert set(hub.repo("me/pushed").tags) == {"task-01-one", "task-02-two"}
    assert not list((tmp_path / "pushed" / "outbox").glob("[0-9]*.json"))


def test_a_recipe_goes_on_from_the_hub(hub: HubServer, shell, tmp_path: Path) -> None:
    """As a user would: run two tasks here, publish, run the third elsewhere from the Hub, publish that."""
    import yaml
    from support.tiny import preference_rows, write_jsonl

    tasks = []
    for number, name in enumerate(("polite", "short", "kind")):
        for split, count in (("train", 8), ("test", 4)):
            rows = preference_rows(count, chosen=name, start=100 * number + 50 * (split == "test"))
            write_jsonl(tmp_path / name / f"{split}.jsonl", rows)
        tasks.append({"name": name, "train": f"{name}/train.jsonl", "test": f"{name}/test.jsonl", "license": "mit"})
    recipe: dict[str, Any] = {
        "model": save_tiny(tmp_path / "base"),
        "output_dir": "first",
        "tasks": tasks[:2],
        "adapter": {"r": 2, "target_modules": ["q_proj"]},
        "training": {"num_train_epochs": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True},
        "run": {"push_to_hub": True, "hub_model_id": "me/assistant", "push_replay": "rows", "general_text": "none"},
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe))
    assert "Published: 2 tasks" in shell("lifealign", "run", "first.yaml").stdout
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(recipe | {"tasks": tasks[2:], "output_dir": "next"}))
    go_on = ["--continue-from", "me/assistant@task-02-short"]
    assert "Published: 1 tasks" in shell("lifealign", "run", "next.yaml", *go_on).stdout
    repo = hub.repo("me/assistant")
    assert sorted(repo.tags) == ["task-01-polite", "task-02-short", "task-03-kind"]
    files = repo.files("main")
    log = json.loads(files["slmc/lineage.json"])["log"]
    assert [entry["parent"] and entry["parent"]["tag"] for entry in log] == [None, "task-01-polite", "task-02-short"]
    assert "slmc/strategies/replay/01-polite.json" in files
    assert "| kind " in files["README.md"].decode()
    assert "mit" in files["README.md"].decode()
    # nothing of this machine in anything that is text
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
