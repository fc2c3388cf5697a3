"""`lifealign dynamics` as a user starts it, on series that real trainings have written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from support.tiny_words import word_model, word_tokenizer
from trl import SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback
from hf_lifealign.cli.dynamics import find_series
from hf_lifealign.cli.main import main

COMMAND = Path(sys.executable).with_name("lifealign")
PROMPTS = ["ask about yes", "about no", "ask no", "yes"]
PICTURES = ["forces.png", "phase.png", "prediction.png", "score.png"]


def lifealign(*args: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *(str(arg) for arg in args)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=240, env={**os.environ, **environment}
    )


def train(folder: Path, steps: int, seed: int) -> None:
    """A tiny SFT that learns to say what the judge calls aligned."""
    watch = AlignmentDynamicsCallback(
        PROMPTS, lambda prompts, answers, references: [float("fine" in answer) for answer in answers],
        every=2, anchor_every=4, samples=12, max_new_tokens=2, force_batch=4,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"{PROMPTS[i % 4]} ", "completion": "fine"} for i in range(8)])
    args = SFTConfig(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, use_cpu=True, report_to=[],
        save_strategy="no", bf16=False, gradient_checkpointing=False, disable_tqdm=True, lr_scheduler_type="constant",
        seed=seed,
    )  # fmt: skip
    SFTTrainer(
        model=word_model(seed), args=args, train_dataset=rows, processing_class=word_tokenizer(), callbacks=[watch]
    ).train()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A life of two trainings."""
    folder = tmp_path_factory.mktemp("work")
    train(folder / "life" / "tasks" / "task-2" / "sft", 24, 0)
    train(folder / "life" / "tasks" / "task-10" / "sft", 8, 0)
    return folder


def test_help_needs_no_torch(tmp_path: Path) -> None:
    done = lifealign("dynamics", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: lifealign dynamics")
    assert "lifealign dynamics runs/lifelong --format html" in done.stdout
    code = "import sys, hf_lifealign.report.dynamics_writer; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_the_report_of_a_training(work: Path) -> None:
    run = work / "life" / "tasks" / "task-2" / "sft"
    done = lifealign("dynamics", "life/tasks/task-2/sft", cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(file.name for file in (run / "dynamics").iterdir()) == ["dynamics.json", *PICTURES[:3], "report.md",
                                                                          PICTURES[3]]  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| figure ")
    order = ("report.md", "dynamics.json", "score.png", "forces.png", "phase.png", "prediction.png")
    assert lines[-6:] == [f"life/tasks/task-2/sft/dynamics/{name}" for name in order]
    content = json.loads((run / "dynamics" / "dynamics.json").read_text())
    entries = [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()]
    anchors = [entry for entry in entries if entry["score"]["anchor"] == entry["step"]]
    assert (content["start"], content["end"], content["measurements"]) == (0, 24, len(entries))
    assert len(content["forces"]) == sum("forces" in entry for entry in entries) >= 4
    # every change that was measured is there, the last one of each anchor as a whole interval
    last = [change for change in content["changes"] if change["last"]]
    assert len(content["changes"]) == sum("log_odds_change" in entry for entry in entries)
    assert [change["since"] for change in last] == [entry["step"] for entry in anchors if entry["step"] < 24]
    split = [change for change in last if change["net"] is not None]
    assert split
    for change in split:
        parts = change["drive"] + change["rebound"] + change["residual"]
        assert parts == pytest.approx(change["predicted"], abs=1e-9)
    # it learns to be aligned, and what the updates did by the gradient has the sign of what was measured
    curve = content["curve"]
    assert curve[0]["score"] < 0.5 < curve[-1]["score"]
    assert all(change["measured"] > 0 for change in split[:3])
    assert all(change["predicted"] > 0 for change in split[:3])
    # at the start no answer is aligned, so that there is nothing to tell apart
    lacking = {entry["step"] for entry in entries if "not_estimable" in entry}
    assert 0 in lacking == {s for m in content["missing"] if m["what"] == "forces" for s in m["steps"]}
    report = (run / "dynamics" / "report.md").read_text()
    assert f"**{content['verdict'].capitalize()}.**" in report
    assert content["verdict"] in done.stdout
    assert str(work) not in report + (run / "dynamics" / "dynamics.json").read_text()


def test_a_life_has_a_report_for_each_task(work: Path) -> None:
    done = lifealign("dynamics", "life", "--format", "html", "--output-dir", "site", cwd=work,
                     PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:4]] == ["| task-2/sft ", "| task-10/sft"]
    overview = (work / "site" / "report.html").read_text()
    assert '<a href="./task-2/sft/report.html">task-2/sft</a>' in overview
    assert '<a href="./task-10/sft/report.html">task-10/sft</a>' in overview
    assert '<img src="score.png"' in (work / "site" / "task-10" / "sft" / "report.html").read_text()
    names = [each["name"] for each in json.loads((work / "site" / "dynamics.json").read_text())["series"]]
    assert names == ["task-2/sft", "task-10/sft"]
    assert not (work / "life" / "dynamics").exists()


def test_again_and_a_target(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (work / "life" / "tasks" / name / "sft" for name in ("task-2", "task-10"))
    options = ["--again", str(again / "dynamics.jsonl"), "--target", "0.6", "--output-dir", str(work / "pair")]
    assert main(["dynamics", str(first / "dynamics.jsonl"), *options, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((work / "pair" / "dynamics.json").read_text())
    estimate = content["priming"]["estimate"]
    assert content["again"] == "sft"
    # the second is the same training, cut short: it is exactly as fast
    assert estimate["ratio"] == pytest.approx(1.0)
    assert estimate["first_steps"] == pytest.approx(content["reached"])
    assert 0 < content["reached"] < 8
    assert (work / "pair" / "priming.png").is_file()
    assert "Priming ratio 1.00" not in (work / "pair" / "report.md").read_text()
    assert main(["dynamics", str(first), *options]) == 0
    assert "Priming ratio: 1.00" in capsys.readouterr().out


def test_errors_say_what_to_do(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    life, run = str(work / "life"), str(work / "life" / "tasks" / "task-2" / "sft")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "dynamics.jsonl").write_text("")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dynamics.jsonl").write_text('nonsense\n{"step": 1}\n')
    (tmp_path / "none" / ".hidden").mkdir(parents=True)
    (tmp_path / "none" / ".hidden" / "dynamics.jsonl").write_text('{"step": 0}\n')
    cases = [
        ([str(tmp_path / "none")], "There is no dynamics.jsonl in"),
        ([str(tmp_path / "gone")], "AlignmentDynamicsCallback"),
        ([str(tmp_path / "empty")], "nothing was measured yet"),
        ([str(tmp_path / "bad")], "Line 1"),
        ([run, "--target", "1.5"], "You set --target 1.5"),
        ([run, "--target", "nan"], "You set --target nan"),
        ([life, "--again", run], "which holds 2 series: task-2/sft, task-10/sft"),
        ([run, "--again", life], "which holds 2 series"),
        ([run, "--again", str(tmp_path / "empty")], "nothing was measured yet"),
    ]
    for line, words in cases:
        assert main(["dynamics", *line, "--output-dir", str(tmp_path / "out")]) == 2, line
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_series_have_the_names_of_their_folders(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("")
        return list(find_series(root))

    own = "dynamics.jsonl"
    assert names(f"work/01-a/{own}", f"work/02-b/{own}") == ["01-a", "02-b"]
    assert names(f"work/01-a/{own}") == ["work/01-a"]
    assert names(f"a/{own}", f"a/b/{own}") == ["a", "a/b"]
    assert names(own, f"a/{own}") == ["3"]
