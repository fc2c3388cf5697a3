"""What a run makes ready for publication after each task, and how it is sent without training being held up."""

import logging
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import read_json, write_json
from hf_lifealign.hub.outbox import Outbox
from hf_lifealign.hub.record import RunRecord
from hf_lifealign.lifelong.config import LifelongConfig
from hf_lifealign.lifelong.matrix import published_matrix
from hf_lifealign.report import write_adapter_card, write_matrix_picture
from hf_lifealign.strategies import PREFERENCE

if TYPE_CHECKING:
    from hf_lifealign.lifelong.trainer import LifelongTrainer

logger = logging.getLogger(__name__)

_SAMPLES = "_samples"


def task_record(run: "LifelongTrainer", task: str, phases: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What state.json keeps of a finished task."""
    files = [file for strategy in run.strategies for file in strategy.state_files(run)]
    return {
        "phases": phases,
        "evaluation_seconds": round(seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": run.stream[task].provenance(),
        "strategy_files": [file.relative_to(run.directory.root).as_posix() for file in files],
    }


def run_record(run: "LifelongTrainer", index: int, record: dict[str, Any]) -> RunRecord:
    """What is known of a life after task `index` of the stream, whose record is given."""
    names = run.stream.names[: index + 1]
    content = run.state.content
    settings = dict(content["settings"])
    # a run that had stopped here would have had the same result
    settings["tasks"] = settings["tasks"][: index + 1]
    settings.pop("continued_from", None)
    records = {entry["name"]: entry["record"] for entry in content["tasks"][:index]} | {names[-1]: record}
    records = {name: _without_modules(kept) for name, kept in records.items()}
    root = run.directory.root / "evaluation"
    evaluation = {task: _results(root / f"after-{run.directory.label(task)}") for task in names}
    origin = run.origin
    if origin is not None:
        records = origin.record.records | records
        evaluation = origin.record.evaluation | evaluation
    return RunRecord(
        lived=run.lived[: run.lived.index(names[-1]) + 1],
        measured=names,
        settings=settings,
        records=records,
        evaluation=evaluation,
        base_evaluation=_results(root / "base"),
        versions=content["versions"],
        origin=origin.identity if origin is not None else None,
        notes=list(content["notes"]),
    )


def _without_modules(record: dict[str, Any]) -> dict[str, Any]:
    """A task's record without what consolidation did to each module, which the memory tells already."""
    phases = []
    for phase in record["phases"]:
        report = phase.get("consolidation")
        slim = {key: value for key, value in report.items() if key != "modules"} if report else report
        phases.append(phase | {"consolidation": slim})
    return record | {"phases": phases}


def _results(folder: Path) -> dict[str, dict[str, float]]:
    """Results at one stage, by task."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json")) if path.stem != _SAMPLES}


def fill_revision(run: "LifelongTrainer", folder: Path, index: int, record: dict[str, Any]) -> None:
    """Fills a folder with the state after task `index`, complete in itself: plain LoRA at its root, memory and record
    of the run in `slmc/`, matrix, picture and card."""
    shutil.copytree(run.directory.snapshot(run.stream.names[index], PREFERENCE), folder, dirs_exist_ok=True)
    (folder / "phase.json").unlink()
    known, matrix = run_record(run, index, record), published_matrix(run.matrix(index + 1), index + 1)
    known.write(folder)
    write_json(folder / "matrix.json", matrix)
    write_matrix_picture(matrix, folder / "matrix.png")
    context = {"base_model": run.base_name, "tasks": known.lived, "matrix": matrix, "settings": known.settings}
    write_adapter_card(folder, context)


class Publication:
    """Sends finished tasks by a process of its own, `lifealign push`, which training never waits for longer than asked.

    Whatever happens to that process, the task lies in the outbox until it was sent.

    Args:
        args ([`LifelongConfig`]): settings of the run.
        root (`Path`): its folder.
        is_main_process (`bool`): whether this process publishes.
    """

    def __init__(self, args: LifelongConfig, root: Path, is_main_process: bool) -> None:
        self.args = args
        self.root = root
        self.enabled = args.push_to_hub and is_main_process
        self.outbox = Outbox(root)
        self._process: subprocess.Popen[bytes] | None = None
        self._told: set[str] = set()

    def announce(self, label: str) -> None:
        """Notes a finished task for publication and has it sent, unless a push that is at work will come to it."""
        if self.enabled:
            for name, entry in self.outbox.waiting().items():
                if entry["error"] and entry["error"] not in self._told:
                    self._told.add(entry["error"])
                    logger.warning(f"{name} is not published yet: {entry['error']} The run goes on.")
            self.outbox.announce(label, self.args.repo_id)
            self._start()
            if not self.args.push_in_background:
                self._wait(self.args.push_timeout)

    def resume(self) -> None:
        """Has sent what an earlier start of the run left behind."""
        if self.enabled and self.outbox.waiting():
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        args = self.args
        # the process may not import anything from where the run was started, a token must not be seen in a process list
        command = [sys.executable, "-m", "hf_lifealign.cli.main", "push", str(self.root), args.repo_id, "--background"]
        command += ["--push-replay", args.push_replay]
        command += [] if args.hub_private_repo is None else ["--private" if args.hub_private_repo else "--public"]
        command += ["--license", args.license] if args.license else []
        environment = os.environ | ({"HF_TOKEN": args.hub_token} if args.hub_token else {})
        self.outbox.folder.mkdir(parents=True, exist_ok=True)
        with self.outbox.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def _wait(self, seconds: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            # what it was doing is done again by the next push
            self._process.terminate()
            self._process.wait()

    def finish(self) -> str | None:
        """Waits for what is being sent, at most `push_timeout`.

        Returns:
            `str`, *optional*: what came of it, for the user; `None` if nothing is published.
        """
        if not self.enabled:
            return None
        deadline = time.monotonic() + self.args.push_timeout
        self._wait(self.args.push_timeout)
        if self.outbox.waiting() and time.monotonic() < deadline:
            # a task may have been announced just when the last push ended
            self._start()
            self._wait(max(deadline - time.monotonic(), 0.1))
        waiting = self.outbox.waiting()
        if not waiting:
            repo_id = self.outbox.target.get("repo_id", self.args.repo_id)
            return f"Published: {len(self.outbox.published(repo_id))} tasks in {repo_id}"
        last = list(waiting.values())[-1]["error"] or f"it did not end within {self.args.push_timeout:.0f} s"
        return (
            f"NOT published: {', '.join(waiting)}: {last}\nThey lie in {self.outbox.folder}; `lifealign push "
            f"{self.root}` sends them."
        )
