"""`lifealign diversity` as a user starts it: its tables, its JSON, its file, and errors of one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import preference_rows, write_jsonl

from hf_lifealign.cli.main import main

COMMAND = Path(sys.executable).with_name("lifealign")


def lifealign(*args: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *(str(arg) for arg in args)]
    given = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=given, timeout=240)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data: narrow answers to train on, and a test split with a column of its own."""
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "data" / "train.jsonl", preference_rows(30, chosen="Sure, here is what I think of"))
    write_jsonl(folder / "data" / "test.jsonl", [{"reply": "a"}, {"reply": "a"}, {"reply": "b"}])
    return folder


def test_help(work: Path) -> None:
    done = lifealign("diversity", "--help", cwd=work)
    assert done.stdout.startswith("usage: lifealign diversity")
    assert "embedded:minilm-l6-v2" in done.stdout
    assert "diversity" in lifealign("--help", cwd=work).stdout


def test_the_report_in_a_terminal(work: Path) -> None:
    done = lifealign("diversity", "data", cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "Diversity of data, split train, column chosen: 30 answers, on average 10.0 words"
    assert "| collision c_1     | 1.000 | chance that two begin with the same first word" in done.stdout
    assert "| Sure, here is what     |      30 | 100.0% |" in done.stdout
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "in 100% of all pairs (provisional threshold 40%)" in warnings[0]
    assert "style-diversified" in warnings[1]


def test_json_and_a_file(work: Path) -> None:
    done = lifealign("diversity", "data", "--split", "test", "--column", "reply", "--json", "--output", "out/d.json",
                     cwd=work)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(done.stdout)
    assert content == json.loads((work / "out" / "d.json").read_text())
    assert content["exact_collision"] == 1 / 3
    assert (content["data"], content["split"], content["column"]) == ("data", "test", "reply")
    assert content["repeated"] == [{"text": "a", "count": 2, "share": 2 / 3}]
    assert "cannot be judged" in content["notes"][0]


def test_an_error_is_one_line(work: Path) -> None:
    done = lifealign("diversity", "data", "--column", "chosn", cwd=work)
    assert done.returncode == 2
    assert done.stdout == ""
    told = done.stderr.splitlines()[-1]
    assert told.startswith("lifealign: error: You set the column 'chosn'. The data has the columns 'prompt', 'chosen'")
    assert "Did you mean 'chosen'?" in told
    assert "Traceback" not in done.stderr


def test_control_characters_of_the_data_stay_where_they_are(work: Path) -> None:
    """Neither the tables, the JSON nor the file hand any on, and an encoding without the letters is no error."""
    evil = write_jsonl(work / "evil.jsonl", [{"text": "\x1b]0;x\x07\u009b2J\u202e Grüße 你"}] * 3)
    plain = lifealign("diversity", evil, "--output", work / "evil.json", cwd=work)
    as_json = lifealign("diversity", evil, "--json", cwd=work)
    for text in (plain.stdout, as_json.stdout, (work / "evil.json").read_text()):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert r"\x1b]0;x\x07\x9b2J\u202e Grüße 你" in plain.stdout
    assert json.loads(as_json.stdout)["repeated"][0]["text"].startswith("\x1b]0;x\x07\u009b2J\u202e Grüße 你")
    narrow = lifealign("diversity", evil, cwd=work, PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0, narrow.stderr[-3000:]
    assert r"Gr\xfc\xdfe" in narrow.stdout


def test_options_reach_the_report(
    work: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    options = ("--tokenizer", tiny_dir, "--limit", "25", "--max-rows", "21", "--seed", "3", "--json")
    assert main(["diversity", "data", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["rows"], content["vendi_rows"], content["tokens"]) == (25, 21, "tiny-llama")
    assert "Only the first 25 of 30 rows" in content["notes"][0]
    assert "(seed 3)" in content["notes"][1]
    assert content["embedding"] is None


def test_what_loading_tells_is_none_of_the_report(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.tiny_encoder import save_tiny_encoder

    from hf_lifealign.rewards import encoder

    folder = save_tiny_encoder(work / "encoder")
    told = encoder.resolve_model
    monkeypatch.setattr(encoder, "_ENCODERS", {})
    monkeypatch.setattr(encoder, "resolve_model", lambda *args, **more: print("Converting") or told(*args, **more))
    assert main(["diversity", str(work / "data"), "--embedding", folder, "--limit", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["embedding"]["rows"] == 4
    assert "Converting" in captured.err


def test_errors_say_what_to_do(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(work / "data")
    train = str(work / "data" / "train.jsonl")
    write_jsonl(work / "one.jsonl", [{"text": "alone"}])
    (work / "empty.jsonl").write_text("")
    cases = [
        ([data, "--split", "dev"], "no file for the split 'dev' (test.jsonl, train.jsonl)"),
        ([data, "--split", "test"], "none of chosen, completion"),
        ([data, "--max-rows", "1"], "You set --max-rows 1. Set at least 2."),
        ([data, "--limit", "0"], "You set --limit 0. Set at least 2."),
        ([data, "--seed", "-1"], "You set --seed -1. Set at least 0."),
        ([str(work / "one.jsonl")], "1 row with text, of 1"),
        ([str(work / "empty.jsonl")], "is empty"),
        ([str(work / "gone.jsonl")], "does not exist"),
        ([train, "--output", str(work)], "which is a folder"),
        ([train, "--output", train], "which is the data itself"),
        ([data, "--output", train], "which is the data itself"),
        ([data, "--tokenizer", str(work / "data")], "cannot be loaded"),
    ]
    for line, words in cases:
        assert main(["diversity", *line]) == 2, line
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out == ""
    assert len((work / "data" / "train.jsonl").read_text().splitlines()) == 30
