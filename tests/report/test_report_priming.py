"""Tasks that were aligned again, as report, picture and lineage tell it, on made-up runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report.fake_run import TASKS, consolidation, fake_run, write_json

from hf_lifealign.report import write_report
from hf_lifealign.report.lineage import LINEAGE_HEAD, lineage_rows, lineage_table
from hf_lifealign.report.priming import priming_section
from hf_lifealign.report.run_data import read_run

TOLD = {
    "resumes": "truthful", "start_first": 0.31, "start_again": 0.335, "target": 0.8125, "first_steps": 32.0,
    "again_steps": 9.6, "ratio": 0.3, "area_ratio": 1.7, "area_steps": 50.0, "reason": None,
}  # fmt: skip


def curve(scores: list[float]) -> dict[str, Any]:
    return {
        "task": "x", "of": "truthful", "steps": [10 * i for i in range(len(scores))], "scores": scores,
        "low": [score - 0.1 for score in scores],
        "high": [None if not i else score + 0.1 for i, score in enumerate(scores)],
    }  # fmt: skip


def primed_run(root: Path, **told: Any) -> Path:
    """A made-up run whose last task took up the first one."""
    run = fake_run(root)
    state = json.loads((run / "state.json").read_text())
    state["tasks"][3]["record"]["phases"][-1]["priming"] = TOLD | told
    write_json(run / "state.json", state)
    write_json(run / "rehearsal_priming" / "01-truthful.json", curve([0.31, 0.5, 0.7, 0.8, 0.85]))
    write_json(run / "rehearsal_priming" / "04-safe.json", curve([0.335, 0.82, 0.84]))
    return run


def test_section_and_picture(tmp_path: Path) -> None:
    run = primed_run(tmp_path)
    names = [path.name for path in write_report(run)]
    assert names == ["matrix.png", "curves.png", "priming-04-safe.png", "report.md"]
    assert (run / "priming-04-safe.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (run / "report.md").read_text()
    assert text.index("### Reward margin") < text.index("## Aligned again") < text.index("## General perplexity")
    row = next(line for line in text.splitlines() if line.startswith("| 04-safe"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["04-safe", "truthful", "0.31 / 0.34", "0.81", "32.0", "9.6", "0.30", "1.70", ""]
    assert "below 1 the model was primed" in text
    assert "![Score of 04-safe, first and again](priming-04-safe.png)" in text
    first = (run / "priming-04-safe.png").read_bytes()
    write_report(run)
    assert (run / "priming-04-safe.png").read_bytes() == first


def test_what_was_not_estimable(tmp_path: Path) -> None:
    nothing = dict.fromkeys(key for key in TOLD if key not in ("resumes", "reason"))
    run = primed_run(tmp_path, **nothing, reason="not estimable: first has only one score")
    assert "priming-04-safe.png" in [path.name for path in write_report(run)], "both curves are there"
    row = next(line for line in (run / "report.md").read_text().splitlines() if line.startswith("| 04-safe"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["- / -", *["-"] * 5, "not estimable: first has only one score"]


@pytest.mark.parametrize("content", [None, [1], {}, curve([]), {**curve([0.1, 0.2]), "scores": ["a", "b"]},
                                     {**curve([0.1, 0.2]), "low": []}])  # fmt: skip
def test_without_a_sound_curve_there_is_no_picture(
    tmp_path: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = primed_run(tmp_path)
    file = run / "rehearsal_priming" / "01-truthful.json"
    file.unlink()
    if content is not None:
        write_json(file, content)
    assert [path.name for path in write_report(run)] == ["matrix.png", "curves.png", "report.md"]
    text = (run / "report.md").read_text()
    assert "## Aligned again" in text
    assert "priming-" not in text
    told = [record.getMessage() for record in caplog.records if "01-truthful.json" in record.getMessage()]
    assert bool(told) == (content not in (None, curve([])))


def test_figures_of_a_stranger_do_no_harm(tmp_path: Path) -> None:
    run = primed_run(tmp_path, ratio="0.3", target=[1], reason=["a"], resumes=None)
    write_report(run)
    assert "| None" in (run / "report.md").read_text()
    run = primed_run(tmp_path, ratio="0.3", again_steps={})
    assert "priming-04-safe.png" in [path.name for path in write_report(run)]


def test_no_section_without_such_a_task(tmp_path: Path) -> None:
    assert priming_section(read_run(fake_run(tmp_path))) == ""
    write_report(tmp_path)
    assert "Aligned again" not in (tmp_path / "report.md").read_text()


def test_the_lineage_has_a_column_where_there_is_one_to_tell() -> None:
    entries: list[dict[str, Any]] = [
        {"index": i, "task": task, "phase": "preference", "date": "2026-01-02", "report": consolidation(task, "x", i)}
        for i, task in enumerate(TASKS)
    ]
    assert {len(row) for row in lineage_rows(entries)} == {len(LINEAGE_HEAD)}
    assert "priming" not in lineage_table(entries)
    for entry, told in ((entries[1], {"ratio": None, "reason": "r"}), (entries[2], ["odd"]), (entries[3], TOLD)):
        entry["priming"] = told
    assert [row[-1] for row in lineage_rows(entries)] == ["-", "-", "-", "0.30"]
    assert {len(row) for row in lineage_rows(entries)} == {len(LINEAGE_HEAD) + 1}
    assert "| priming |" in lineage_table(entries)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run = primed_run(tmp_path)
    code = f"import sys; from hf_lifealign.report import write_report; write_report({str(run)!r}); "
    done = subprocess.run([sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (run / "priming-04-safe.png").is_file()
