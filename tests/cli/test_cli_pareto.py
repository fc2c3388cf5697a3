"""`lifealign pareto` as a user starts it, on saved policies of the tiny model with rewards of a module."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects
from support.tiny import preference_rows, write_jsonl
from support.tiny_rewards import save_tiny_policy

from hf_lifealign.cli.main import main
from hf_lifealign.cli.pareto import _read
from hf_lifealign.meta_aligner.sources import read_record, write_record
from hf_lifealign.models import find_base
from hf_lifealign.stream.tables import load_rows

TESTS = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("lifealign")
REWARDS = ["support.tiny_rewards:short", "support.tiny_rewards:vowels"]


def lifealign(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TESTS)}
    command = [str(COMMAND), *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_dir: str) -> Path:
    """Two policies, one that says how it is measured, and prompts."""
    folder = tmp_path_factory.mktemp("work")
    for seed, name in enumerate(("meal", "random")):
        save_tiny_policy(folder / name, tiny_dir, seed=seed)
    write_jsonl(folder / "data" / "test.jsonl", preference_rows(6))
    write_record(folder / "meal", tiny_dir, REWARDS, [str(folder / "data")], "test")
    return folder


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hf_lifealign.cli.main import build_parser; p = build_parser(); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
    done = lifealign("pareto", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: lifealign pareto")
    assert "lifealign pareto runs/meta-aligner" in done.stdout


def test_run_alone(work: Path) -> None:
    done = lifealign("pareto", "meal", cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    front = json.loads((work / "meal" / "pareto" / "front.json").read_text())
    assert [len(f["points"]) for f in front["fronts"]] == [11]
    assert (work / "meal" / "pareto" / "front.png").stat().st_size > 10_000
    # the points are in none of a later push, which leaves out what begins with an underscore
    assert {file.name for file in (work / "meal" / "pareto").iterdir()} == {"front.json", "front.png"}
    assert len(list((work / "meal" / "_pareto_points" / "meal").glob("*.json"))) == 12
    named = [str(file.relative_to(work / "meal")) for file in (work / "meal").rglob("*") if file.is_file()]
    pushed = list(filter_repo_objects(named, ignore_patterns=["_*"]))
    assert sorted(name for name in pushed if "pareto" in name or "points" in name) == [
        "pareto/front.json", "pareto/front.png",
    ]  # fmt: skip
    assert done.stdout.splitlines()[-2:] == ["meal/pareto/front.json", "meal/pareto/front.png"]
    for part in ("meal: 6 prompts", "0.30 / 0.70", "own", "hypervolume", "controllability"):
        assert part in done.stdout
    text = (work / "meal" / "pareto" / "front.json").read_text()
    assert str(work) not in text
    assert "item 3" not in text


def test_arms_are_compared(
    work: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    options = ("--base", tiny_dir, "--weights", "3", "--limit", "4", "--batch-size", "3", "--max-new-tokens", "5",
               "--output-dir", "both", "--include-base", "--json")  # fmt: skip
    assert main(["pareto", "meal", "--compare", "random", "meal", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    first, second, third = content["fronts"]
    assert [front["name"] for front in content["fronts"]] == ["meal", "random", "meal~2"]
    assert first["reference_point"] == second["reference_point"]
    assert first["base"] == second["base"]
    assert first["points"] == third["points"] != second["points"]
    one, same = (pair["differences"]["hypervolume"] for pair in content["comparisons"])
    assert one["low"] <= one["high"]
    assert same["low"] == same["high"] == 0
    assert sorted(path.name for path in (work / "both" / "points").iterdir()) == ["meal", "meal~2", "random"]
    # another arm later, by the scale and reference point of the first
    again = ["pareto", str(work / "random"), "--base", tiny_dir, "--rewards", *REWARDS, "--prompts",
             str(work / "data"), "--weights", "3", "--limit", "4", "--output-dir", str(work / "later"),
             "--reference-point", str(work / "both" / "front.json")]  # fmt: skip
    assert main(again) == 0
    later = json.loads((work / "later" / "front.json").read_text())["fronts"][0]
    assert later["reference_point"] == first["reference_point"]


def test_errors_say_what_to_do(work: Path, tiny_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    meal, random = str(work / "meal"), str(work / "random")
    cases = [
        (["pareto", random], "Give --rewards"),
        (["pareto", random, "--rewards", *REWARDS], "Give --prompts"),
        (["pareto", meal, "--rewards", "brevity"], "You gave 1 rewards"),
        (["pareto", meal, "--rewards", "brevity", "brevitty"], "Did you mean 'brevity'"),
        (["pareto", meal, "--rewards", "brevity", "no.module:here"], "cannot be imported"),
        (["pareto", meal, "--split", "dev"], "no file for the split 'dev' (test.jsonl)"),
        (["pareto", meal, "--limit", "0"], "--limit 0"),
        (["pareto", meal, "--weights", "1"], "at least 2"),
        (["pareto", meal, "--reference-point", "x", "y"], "one number for each objective"),
        (["pareto", meal, "--reference-point", "1"], "1 numbers for 2 objectives"),
        (["pareto", str(work / "data")], "no meta-aligned policy"),
        (["pareto", random, "--rewards", *REWARDS, "--prompts", str(work / "data")], "Give --base"),
    ]
    for line, words in cases:
        assert main(line) == 2, line
        assert words in capsys.readouterr().err
    assert not (work / "random" / "pareto").exists()


def test_the_base_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_base("given", "recorded", "run") == "given"
    assert find_base(None, "org/name", "run") == "org/name"
    monkeypatch.setattr("hf_lifealign.models.embedded.find_spec", lambda name: object())
    for recorded in ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert find_base(None, recorded, "run") == "embedded:smollm2-135m"
    monkeypatch.setattr("hf_lifealign.models.embedded.find_spec", lambda name: None)
    assert find_base(None, "HuggingFaceTB/SmolLM2-135M-Instruct", "run") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    with pytest.raises(ValueError, match="Give --base"):
        find_base(None, "smollm2-135m", "run")


def test_the_record_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_record(tmp_path) == {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "brevity").mkdir()
    write_record(
        tmp_path, "mine", ["brevity", "mine", "a.b:c", "me/x"], ["org/data"], "test", "me/enc", {"dtype": "bf"}
    )
    found = read_record(tmp_path)
    assert found["base"] == str(tmp_path / "mine")
    assert found["rewards"] == ["brevity", str(tmp_path / "mine"), "a.b:c", "me/x"]
    assert (found["prompts"], found["encoder"], found["model_init_kwargs"]) == (["org/data"], "me/enc", {"dtype": "bf"})
    assert all(file.name.startswith("_") for file in tmp_path.iterdir() if file.is_file())
    (tmp_path / "_pareto.json").write_text("{}")
    with pytest.raises(ValueError, match="Remove it"):
        read_record(tmp_path)


def test_of_how_a_base_was_loaded_only_revision_and_dtype_count(tmp_path: Path) -> None:
    given = {"dtype": "bfloat16", "revision": "v1", "trust_remote_code": True, "device_map": {"": "cpu"}}
    write_record(tmp_path, "base", REWARDS, ["org/data"], "test", None, given)
    assert read_record(tmp_path)["model_init_kwargs"] == {"dtype": "bfloat16", "revision": "v1"}
    write_record(tmp_path, "base", REWARDS, ["org/data"], "test", None, {"dtype": ["x"]})
    assert read_record(tmp_path)["model_init_kwargs"] == {}


def test_the_revision_of_the_record_is_that_of_the_base(
    work: Path, tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(work / "meal", tmp_path / "meal"))
    write_record(run, tiny_dir, REWARDS, [str(work / "data")], "test", None, {"revision": "v7", "dtype": "float32"})
    asked: list[dict[str, Any]] = []

    def loading(base: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        raise ValueError("enough")

    monkeypatch.setattr("hf_lifealign.meta_aligner.policy.load_meta_aligned", loading)
    assert main(["pareto", str(run)]) == 2
    assert main(["pareto", str(run), "--base", tiny_dir]) == 2
    assert [given["base_revision"] for given in asked] == ["v7", None]
    assert all("revision" not in given for given in asked)


def test_the_record_of_a_fetched_policy_is_not_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_lifealign.meta_aligner.storage.locate_policy", lambda *given: work / "meal")
    assert _read("me/meal")[0] == {}
    assert _read(str(work / "meal"))[0]["rewards"] == REWARDS


def test_rows_of_several_sources(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a" / "test.jsonl", preference_rows(2))
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": [{"role": "user", "content": "x"}], "topic": "t"}])
    rows = load_rows([str(tmp_path / "a"), str(tmp_path / "b.jsonl")], "test")
    assert rows.column_names == ["prompt"]
    assert len(rows) == 3
    write_jsonl(tmp_path / "c.jsonl", [{"topic": "t"}])
    for wrong, words in (([], "no data"), ([str(tmp_path / "a"), str(tmp_path / "c.jsonl")], "no column in common"),
                         ("gone.jsonl", "does not exist"), (str(tmp_path), "no file for the split")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            load_rows(wrong, "test")
