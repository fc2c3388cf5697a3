"""What a run makes ready for publication after each task, and how it is sent without training being held up."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import read_json, write_json
from hf_lifealign.hub.bundle import finished_tasks
from hf_lifealign.hub.contents import STRATEGIES, is_allowed
from hf_lifealign.hub.outbox import Outbox
from hf_lifealign.hub.record import RunRecord
from hf_lifealign.lifelong.config import LifelongConfig
from hf_lifealign.lifelong.evaluation import UNPUBLISHED
from hf_lifealign.lifelong.matrix import PERPLEXITY, published_matrix
from hf_lifealign.report import write_adapter_card, write_matrix_picture
from hf_lifealign.strategies import PREFERENCE

if TYPE_CHECKING:
    from hf_lifealign.lifelong.trainer import LifelongTrainer

logger = logging.getLogger(__name__)


def task_record(
    run: "LifelongTrainer", task: str, phases: list[dict[str, Any]], evaluation: float, strategies: float
) -> dict[str, Any]:
    """What state.json keeps of a finished task: among others the seconds of its evaluation, and those that strategies
    took before its first phase and after its evaluation."""
    return {
        "phases": phases,
        "evaluation_seconds": round(evaluation, 3),
        "strategy_seconds": round(strategies, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": run.stream[task].provenance(),
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
    evaluation = {task: _results(root / f"after-{run.directory.label(task)}", names) for task in names}
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
        base_evaluation=_results(root / "base", names),
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


def _results(folder: Path, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Results at one stage on tasks and on general text; later tasks are not spoken of, nor single pairs."""
    known = {*tasks, PERPLEXITY}
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json")) if path.stem in known}
    return {task: {k: v for k, v in results.items() if k not in UNPUBLISHED} for task, results in found.items()}


def freeze_strategies(run: "LifelongTrainer", folder: Path) -> None:
    """Copies what strategies kept by the end of a task into a folder, by strategy."""
    for strategy in run.strategies:
        for file in strategy.state_files(run):
            name = f"{strategy.name}/{file.name}"
            if not is_allowed(f"{STRATEGIES}/{name}"):
                raise ValueError(
                    f"The strategy {strategy.name!r} keeps {file.name!r}, which cannot be published under that name. "
                    "Use letters, digits, '-' and '_', and .json or .safetensors."
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


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
        self._fault: str | None = None
        self._told: set[str] = set()

    def announce(self, label: str) -> None:
        """Notes a finished task for publication and has it sent, unless a push that is at work will come to it."""
        if not self.enabled:
            return
        with self._never_fatal():
            for name, entry in self.outbox.waiting().items():
                if entry["error"] and entry["error"] not in self._told:
                    self._told.add(entry["error"])
                    logger.warning(f"{name} is not published yet: {entry['error']} The run goes on.")
            self.outbox.announce(label, self.args.repo_id)
            self._start()
            if not self.args.push_in_background:
                self._wait(self.args.push_timeout)

    def resume(self) -> None:
        """Has sent what earlier starts of the run left behind, announced or not."""
        if not self.enabled:
            return
        with self._never_fatal():
            args = self.args
            self.outbox.remember(args.repo_id, args.push_replay, args.hub_private_repo, args.license)
            for label in self._missing():
                self.outbox.announce(label, args.repo_id)
            if self.outbox.waiting():
                self._start()

    def _missing(self) -> list[str]:
        """Labels of finished tasks that were not sent."""
        sent = self.outbox.published(self.args.repo_id)
        return [folder.name for folder in finished_tasks(self.root) if folder.name not in sent]

    @contextmanager
    def _never_fatal(self) -> Iterator[None]:
        """Where publishing fails, the run says so and goes on."""
        try:
            yield
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._fault = str(error) or type(error).__name__
            logger.warning(f"Publishing is held up: {self._fault} The run goes on, `lifealign push` sends the rest.")

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        args = self.args
        # -P: nothing is imported from the folder in which the run was started. The token goes by the environment, since
        # a process list shows every command line.
        command = [sys.executable, "-P", "-m", "hf_lifealign.cli.main", "push", str(self.root), args.repo_id]
        command += ["--background", "--push-replay", args.push_replay]
        command += [] if args.hub_private_repo is None else ["--private" if args.hub_private_repo else "--public"]
        command += ["--license", args.license] if args.license else []
        environment = os.environ | ({"HF_TOKEN": args.hub_token} if args.hub_token else {})
        package = str(Path(__file__).resolve().parents[2])
        path = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
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
            self._process.kill()
            self._process.wait(10.0)

    def finish(self) -> str | None:
        """Waits for what is being sent, at most `push_timeout`.

        Returns:
            `str`, *optional*: what came of it, for the user; `None` if nothing is published.
        """
        if not self.enabled:
            return None
        deadline = time.monotonic() + self.args.push_timeout
        missing: list[str] = []
        with self._never_fatal():
            self._wait(self.args.push_timeout)
            if any(not entry["error"] for entry in self.outbox.waiting().values()) and time.monotonic() < deadline:
                # a task may have been announced just when the last push ended
                self._start()
                self._wait(max(deadline - time.monotonic(), 0.1))
        with self._never_fatal():
            missing = self._missing()
            if not missing:
                repo_id = self.outbox.target.get("repo_id", self.args.repo_id)
                return f"Published: {len(self.outbox.published(repo_id))} tasks in {repo_id}"
        return (
            f"NOT published: {', '.join(missing) or 'all tasks'}: {self._reason()}\nThey wait in {self.outbox.folder}; "
            f"`lifealign push {self.root}` sends them."
        )

    def _reason(self) -> str:
        """Why the last push did not send everything."""
        errors = [entry["error"] for entry in self.outbox.waiting().values() if entry["error"]]
        if errors:
            return str(errors[0])
        if self._fault:
            return self._fault
        code = self._process.returncode if self._process is not None else None
        if code is not None and code > 0:
            return f"the push ended with code {code}, see {self.outbox.log_file}."
        return f"the push did not end within {self.args.push_timeout:.0f} s."
