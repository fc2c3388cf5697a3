"""`lifealign choices` as a user starts it, with questions and an adapter of a Hub; and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.hub_server import HubServer, client_environment
from support.tiny import tiny_model, write_jsonl

from hf_lifealign import evaluate_choices, load_questions
from hf_lifealign.cli.choices import _named
from hf_lifealign.cli.main import main

COMMAND = Path(sys.executable).with_name("lifealign")
ROWS = [{"input": f"Which is {i}?", "target_scores": {f"It is {i}.": 1, f"None {i}.": 0}} for i in range(12)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapters") / "aligned"
    torch.manual_seed(1)
    model: Any = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


def test_questions_and_an_adapter_of_a_hub(
    tmp_path: Path, tiny_dir: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    from huggingface_hub import CommitOperationAdd, HfApi

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    file = write_jsonl(tmp_path / "hhh.jsonl", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token="hf_test_write_me")
        sent = {
            "dataset": {"data/validation-00000-of-00001.parquet": tmp_path / "rows.parquet"},
            "model": {path.name: path for path in Path(adapter).iterdir() if path.name != "README.md"},
        }
        for kind, files in sent.items():
            api.create_repo(f"me/{kind}", repo_type=kind)
            operations = [CommitOperationAdd(name, path.read_bytes()) for name, path in files.items()]
            api.create_commit(f"me/{kind}", operations, commit_message="made", repo_type=kind)
        arguments = ["choices", tiny_dir, "me/dataset@main", "--adapter", "me/model@main", "--output", "out/c.json"]
        done = subprocess.run(
            [str(COMMAND), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env=client_environment(hub, tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 questions, each in two orders of its answers; chance finds 0.500 of the best ones." in done.stdout
    assert "| with me/model | " in done.stdout
    assert done.stdout.splitlines()[-1] == "out/c.json"
    content = json.loads((tmp_path / "out" / "c.json").read_text())
    assert content["asked"] == {"questions": "me/dataset@main", "config": None, "split": None, "limit": None}
    told = evaluate_choices(tiny_dir, load_questions(file), adapter)
    assert told.adapted is not None
    for name, expected in (("result", told.result), ("adapted", told.adapted)):
        assert content[name]["accuracy"] == expected.accuracy
        assert content[name]["consistency"] == expected.consistency
    assert f"{told.result.accuracy:.3f} | {told.result.low:.3f} to {told.result.high:.3f}" in done.stdout


def test_a_file_in_this_process(tmp_path: Path, tiny_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "q.jsonl", ROWS)
    assert main(["choices", tiny_dir, str(file), "--limit", "5", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["result"]["questions"] == 5
    assert (content["adapter"], content["seed"], content["model"]) == (None, 0, "tiny-llama")
    assert "difference" not in content
    assert 0 <= content["result"]["low"] <= content["result"]["accuracy"] <= content["result"]["high"] <= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.jsonl"], "You set the questions gone.jsonl, which does not exist"),
        (["q.jsonl", "--limit", "0"], "You set --limit 0. Set at least 1."),
        (["q.jsonl", "--batch-size", "0"], "You set --batch-size 0"),
        (["q.jsonl", "--seed", "-1"], "You set --seed -1. Set at least 0."),
        (["q.jsonl", "--output", "."], "You set --output ., which is a folder"),
        (["q.jsonl", "--split", "test"], "You set split for the file q.jsonl"),
        (["q.jsonl", "--adapter", "./nothing"], "./nothing is neither a folder nor a Hub repository"),
        (["bad.jsonl"], "You set the questions 'bad.jsonl'. Row 1 is no question with answers"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, tiny_dir: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    write_jsonl(tmp_path / "bad.jsonl", [ROWS[0], {"input": "Q", "target_scores": {"a": 1, "b": 1}}])
    assert main(["choices", tiny_dir, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lifealign: error: ")
    assert told in shown.err


def test_names_with_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _named("me/x@v1") == ("me/x", "v1")
    assert _named("me/x@refs/pr/3") == ("me/x", "refs/pr/3")
    assert _named("me/x") == ("me/x", None)
    assert _named("embedded:smollm2-135m") == ("embedded:smollm2-135m", None)
    (tmp_path / "a@b.jsonl").touch()
    assert _named("a@b.jsonl") == ("a@b.jsonl", None), "a file that is there"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["choices", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lifealign choices")
    for word in ("--adapter", "95 % interval", "mc1_targets", "by --seed"):
        assert word in shown
