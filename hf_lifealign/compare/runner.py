"""Runs the arms of a comparison, each in a process of its own, and keeps what came of each."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_lifealign._files import read_json, write_json, write_text
from hf_lifealign.compare.figures import METRICS, TITLES, matrix_of, summarise
from hf_lifealign.compare.plan import Arm, Plan
from hf_lifealign.lifelong.evaluation import PAIR_MARGINS
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.slmc.memory import MEMORY_DIR

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

DONE, FAILED = "done", "failed"
_RESULT = "result.json"


def run_arms(plan: Plan, data_dir: Path, tell: Callable[[str], None], retry: bool = False) -> list[dict[str, Any]]:
    """Runs what has not been run, one arm after another.

    Each is `lifealign run` on the recipe that is written into its folder; what the base says is computed once for all.
    A comparison that was interrupted goes on where it stood. An arm that fails is told and kept as failed, and the
    others go on.

    Args:
        plan ([`Plan`]): the comparison.
        data_dir (`Path`): folder from which relative paths of data start.
        tell (`Callable[[str], None]`): takes a line after each arm.
        retry (`bool`): run arms again that have failed.

    Returns:
        what came of each arm, in the order of the plan.

    Raises:
        ValueError: if a folder holds an arm of other settings.
    """
    folders = [Path(plan.output_dir) / arm.name for arm in plan.arms]
    kept = [_kept(arm, folder, retry) for arm, folder in zip(plan.arms, folders, strict=True)]
    left = sum(result is None for result in kept)
    spent: list[float] = []
    results = []
    for number, (arm, folder, result) in enumerate(zip(plan.arms, folders, kept, strict=True), start=1):
        if result is None:
            started = time.monotonic()
            result = _run(arm, folder, data_dir)
            spent.append(time.monotonic() - started)
            left -= 1
            eta = f"; about {left * sum(spent) / len(spent) / 60:.0f} min left" if left else ""
            tell(f"[{number}/{len(plan.arms)}] {arm.name}: {_told(result)} in {spent[-1] / 60:.1f} min{eta}")
        results.append(result)
    return results


def collected(plan: Plan) -> list[dict[str, Any]]:
    """What came of the arms so far; those that have not ended are left out."""
    folders = [Path(plan.output_dir) / arm.name for arm in plan.arms]
    return [read_json(folder / _RESULT) for folder in folders if (folder / _RESULT).is_file()]


def _kept(arm: Arm, folder: Path, retry: bool) -> dict[str, Any] | None:
    """The result that lies in an arm's folder."""
    file = folder / "recipe.yaml"
    if file.is_file() and yaml.safe_load(file.read_text(encoding="utf-8")) != arm.recipe:
        raise ValueError(
            f"The folder {folder} holds a run of other settings than {arm.name} has now. Set another output_dir, or "
            "remove that folder."
        )
    if not (folder / _RESULT).is_file():
        return None
    result: dict[str, Any] = read_json(folder / _RESULT)
    return None if retry and result["status"] == FAILED else result


def _run(arm: Arm, folder: Path, data_dir: Path) -> dict[str, Any]:
    write_text(folder / "recipe.yaml", yaml.safe_dump(arm.recipe, sort_keys=False, allow_unicode=True))
    line = [sys.executable, "-m", "hf_lifealign.cli.main", "run", str(folder / "recipe.yaml")]
    line += ["--data-dir", str(data_dir), "--output-dir", str(folder / "run")]
    # the base is the same in all arms
    line += ["--set", f"run.reference_dir={json.dumps(str(folder.parents[2].resolve() / 'reference'))}"]
    with (
        _alone(arm, folder) as held,
        open(folder / "run.log", "ab") as log,
        _ended(subprocess.Popen(line, stdout=log, stderr=log, pass_fds=held)) as process,
    ):
        code = process.wait()
    what = {"order": arm.order, "method": arm.method, "seed": arm.seed}
    if code == 0:
        result = what | {"status": DONE} | _outcome(folder / "run")
    else:
        told = (folder / "run.log").read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        words = next((each for each in reversed(told) if each.strip()), "")
        if code in (130, -2):
            raise KeyboardInterrupt
        if code == -signal.SIGKILL:
            words = "killed by the system, as it does when memory runs out (signal 9)"
        elif code < 0:
            raise OSError(f"The run {arm.name} was ended by signal {-code}. Give the same command again to go on.")
        result = what | {"status": FAILED, "error": words.removeprefix("lifealign: error: ")}
    write_json(folder / _RESULT, result)
    return result


@contextlib.contextmanager
def _alone(arm: Arm, folder: Path) -> Iterator[tuple[int, ...]]:
    """What a run is given to hold as long as it lives, so that no other one begins in its folder: a comparison that is
    killed leaves its run behind.

    Raises:
        ValueError: if another one holds it.
    """
    if fcntl is None:  # Windows has no locks that are handed on
        yield ()
        return
    with open(folder / "run.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"A run of {arm.name} still goes on in {folder}, left by a comparison that was killed or begun by "
                "another one. Wait for its end, or end it, and give the same command again."
            ) from None
        yield (file.fileno(),)


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """The process, which does not outlive the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _outcome(root: Path) -> dict[str, Any]:
    """What a finished run measured."""
    matrix, state = read_json(root / "matrix.json"), read_json(root / "state.json")
    tasks = matrix["tasks"]
    directory = RunDirectory(root, tasks)
    margins = [
        [read_json(directory.evaluation(after, task))[PAIR_MARGINS] for task in tasks[: i + 1]]
        for i, after in enumerate(tasks)
    ]
    records = [entry["record"] for entry in state["tasks"]]
    phases = [phase for record in records for phase in record["phases"]]
    return {
        "tasks": tasks,
        "margins": [[[round(value, 4) for value in cell] for cell in row] for row in margins],
        "seconds": {
            "training": round(sum(phase["seconds"] for phase in phases), 1),
            "evaluation": round(sum(record["evaluation_seconds"] for record in records), 1),
        },
        "steps": sum(phase["steps"] for phase in phases),
        "peak_memory_mb": max(phase["peak_memory_mb"] for phase in phases),
        "trainable_parameters": phases[-1].get("trainable_parameters"),
        "kept_mb": round(_kept_bytes(root, directory.adapter(tasks[-1])) / 2**20, 4),
        "perplexity": matrix["perplexity"],
    }


def _kept_bytes(root: Path, adapter: Path) -> int:
    """What has to be kept of the past to go on: the strategies' files and the memory of the last adapter."""
    state = read_json(root / "state.json")
    folders = [root / strategy["name"] for strategy in state["settings"]["strategies"]]
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()]
    files += sorted((adapter / MEMORY_DIR).glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def _told(result: dict[str, Any]) -> str:
    if result["status"] == FAILED:
        return f"failed ({result['error']})"
    figures = zip(METRICS, summarise(matrix_of(result["margins"])), strict=True)
    return ", ".join(f"{TITLES[name]} {value:.3f}" for name, value in figures if not np.isnan(value))
