"""write_report on made-up runs: every state of a run, every missing part, and pictures that are really pictures."""

import json
import os
import stat

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from report.fake_run import TASKS, fake_run, write_json

from hf_lifealign.report import write_report
from hf_lifealign.report.document import duration, history_hint, share_text
from hf_lifealign.report.drawing import spread
from hf_lifealign.report.run_data import flatten, read_run


def picture(path):
    """Pixels of a PNG, after checking that it is one of a sensible size with something in it."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    height, width = pixels.shape[:2]
    assert 800 <= width <= 3000
    assert 400 <= height <= 3500
    assert np.ptp(pixels[..., :3]) > 0.8
    return pixels


def test_finished_run_has_everything(tmp_path):
    run = fake_run(tmp_path, judges=True)
    written = write_report(run)
    assert [path.name for path in written] == ["matrix.png", "curves.png", "report.md"]
    picture(run / "matrix.png")
    picture(run / "curves.png")
    text = (run / "report.md").read_text()
    for part in ("The run is complete: 4 tasks.", "| BWT ", "| Forgetting ", "| Last ", "| AP ", "| Forward transfer ",
                 "### Reward margin", "### ROUGE-L", "## General perplexity", "+7.9%", "## Time and memory", "2,414",
                 "## Consolidation", "0.21%", "hardly changed anything", "training.learning_rate", "0.0001",
                 "seven years", "## Where everything lies", "`logs/`", "trl 1.16.0"):  # fmt: skip
        assert part in text
    assert "no history" in text
    assert str(tmp_path) not in text


def test_numbers_in_the_report_are_those_of_the_formulas(tmp_path):
    run = fake_run(tmp_path)
    write_report(run)
    lines = (run / "report.md").read_text().splitlines()
    values = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines if line.count("|") == 4}
    bwt = np.mean([0.871 - 0.879, 0.607 - 0.714, 0.524 - 0.661])
    assert values["BWT"] == f"{bwt:+.3f}"
    assert values["Last"] == f"{np.mean([0.871, 0.607, 0.524, 0.744]):.3f}"
    assert values["Forward transfer"] == f"{np.mean([0.512, 0.422, 0.503]) - 0.5:+.3f}"


@pytest.mark.parametrize("full", [True, False])
def test_run_in_progress(tmp_path, full):
    run = fake_run(tmp_path, trained=1, tasks=["a", "b", "c"], full=full)
    names = [path.name for path in write_report(run)]
    assert names == ["matrix.png", "curves.png", "report.md"]
    picture(run / "matrix.png")
    picture(run / "curves.png")
    text = (run / "report.md").read_text()
    assert "in progress: 1 of 3 tasks are finished" in text
    assert "needs two finished tasks" in text
    assert "Answers before and after" not in text


def test_run_before_its_first_task(tmp_path):
    run = fake_run(tmp_path, trained=0)
    assert [path.name for path in write_report(run)] == ["report.md"]
    text = (run / "report.md").read_text()
    assert "No task is finished yet" in text
    assert ".png" not in text


def test_logs_of_a_task_that_is_not_finished_are_drawn(tmp_path):
    run = fake_run(tmp_path, trained=0)
    write_json(run / "logs" / "01-truthful-preference.json", [{"step": 5, "loss": 0.17}, {"step": 10, "loss": 0.15}])
    assert [path.name for path in write_report(run)] == ["curves.png", "report.md"]
    picture(run / "curves.png")


@pytest.mark.parametrize("missing", ["logs", "samples.json", "state.json", "perplexity", "counts"])
def test_missing_optional_parts(tmp_path, missing):
    run = fake_run(tmp_path)
    if missing == "logs":
        for file in (run / "logs").iterdir():
            file.unlink()
    elif missing in ("perplexity", "counts"):
        content = json.loads((run / "matrix.json").read_text())
        content[missing] = None
        write_json(run / "matrix.json", content)
    else:
        (run / missing).unlink()
    assert [path.name for path in write_report(run)] == ["matrix.png", "curves.png", "report.md"]
    picture(run / "matrix.png")
    picture(run / "curves.png")


def test_run_without_a_memory_or_focal_gate(tmp_path):
    run = fake_run(tmp_path, warm_start=False)
    state = json.loads((run / "state.json").read_text())
    for task in state["tasks"]:
        for phase in task["record"]["phases"]:
            phase["consolidation"] = None
    write_json(run / "state.json", state)
    for file in (run / "logs").iterdir():
        entries = [{k: v for k, v in e.items() if not k.startswith("focal")} for e in json.loads(file.read_text())]
        write_json(file, entries)
    write_report(run)
    picture(run / "curves.png")
    assert "## Consolidation" not in (run / "report.md").read_text()


def test_missing_cells_many_tasks_and_odd_names(tmp_path):
    names = [f"a-rather-long-task-name-{i}.with_$dollar" for i in range(12)]
    rows = [[0.5 + 0.02 * (i - j) for j in range(i + 1)] for i in range(12)]
    rows[4][2] = None
    content = {"format": 1, "metric": "m$x^2$", "tasks": names, "matrices": {"m$x^2$": rows}, "baseline": None}
    write_json(tmp_path / "matrix.json", content)
    write_report(tmp_path)
    picture(tmp_path / "matrix.png")
    picture(tmp_path / "curves.png")


def test_same_folder_gives_same_bytes(tmp_path):
    run = fake_run(tmp_path)
    first = {path: path.read_bytes() for path in write_report(run)}
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        assert write_report(run) == list(first)
    assert {path: path.read_bytes() for path in first} == first


def test_drawing_leaves_global_settings_alone_and_no_temporary_files(tmp_path):
    before = dict(matplotlib.rcParams)
    run = fake_run(tmp_path)
    written = write_report(run)
    assert dict(matplotlib.rcParams) == before
    assert not [name for name in os.listdir(run) if name.startswith(".")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o644}


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither state\.json nor matrix.json"):
        write_report(tmp_path)


def test_damaged_file_is_named(tmp_path):
    run = fake_run(tmp_path)
    (run / "samples.json").write_text("{")
    with pytest.raises(ValueError, match=r"samples.json"):
        write_report(run)


def test_step_axis_of_the_run(tmp_path):
    data = read_run(fake_run(tmp_path))
    assert data.tasks == TASKS
    assert [(log.phase, log.start, log.steps) for log in data.logs[:3]] == [
        ("warm_start", 0, 12), ("preference", 12, 50), ("warm_start", 62, 20)]  # fmt: skip
    assert data.task_ends() == [62.0, 140.0, 202.0, 280.0]
    steps, losses = data.logs[1].series("loss")
    assert steps[0] == 14
    assert len(steps) == len(losses) == 25


def test_settings_are_flattened_by_name():
    flat = dict(
        flatten({"a": {"b": 1, "c": None}, "s": [{"name": "replay", "share": 0.2}, {"name": "x"}], "l": [1, 2]})
    )
    assert flat == {"a.b": "1", "a.c": "none", "s.replay.share": "0.2", "s.x": "on", "l": "1, 2"}


def test_labels_are_moved_apart_and_stay_inside():
    assert spread([0.1, 0.9], 0.2, 0, 1) == pytest.approx([0.1, 0.9])
    assert spread([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    placed = spread([0.98, 0.99, 0.1, 1.0], 0.1, 0, 1)
    assert placed == pytest.approx([0.8, 0.9, 0.1, 1.0])
    crowded = sorted(spread([0.5] * 11, 0.5, 0, 1))
    assert crowded == pytest.approx(np.linspace(0, 1, 11))


def test_words():
    assert [duration(s) for s in (0.42, 59.2, 59.7, 725, 11220)] == [
        "0.4 s", "59 s", "1 min 00 s", "12 min 05 s", "3 h 07 min"]  # fmt: skip
    assert [share_text(s) for s in (0.0, 0.00001, 0.0021, 0.42)] == ["0.0%", "< 0.01%", "0.21%", "42.0%"]
    assert "no earlier history" in history_hint([])
    assert "has only denoised" in history_hint([0.002])
    assert "has only denoised" not in history_hint([0.002, 0.3])
