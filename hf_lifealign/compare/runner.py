"""Runs the arms of a comparison, each in a process of its own, and keeps what came of each."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_lifealign._files import read_json, remove_folder, write_json, write_text
from hf_lifealign.compare.figures import METRICS, TITLES, matrix_of, summarise
from hf_lifealign.compare.plan import Arm, Plan
from hf_lifealign.compare.processes import Children, alone_in, interrupted_by_termination
from hf_lifealign.lifelong.evaluation import PAIR_MARGINS, ROUTES
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.slmc.memory import MEMORY_DIR

DONE, FAILED = "done", "failed"
_RESULT = "result.json"
_ENDED_BY_SOMEBODY = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}


def run_arms(
    plan: Plan, data_dir: Path, tell: Callable[[str], None], retry: bool = False, jobs: int = 1
) -> list[dict[str, Any]]:
    """Runs what has not been run.

    Each is `lifealign run` on the recipe that is written into its folder; what the base says is computed once for all.
    A comparison that was interrupted goes on where it stood. An arm that fails is told and kept as failed, and the
    others go on.

    Args:
        plan ([`Plan`]): the comparison.
        data_dir (`Path`): folder from which relative paths of data start.
        tell (`Callable[[str], None]`): takes a line after each arm.
        retry (`bool`): run arms again that have failed.
        jobs (`int`): arms that run at a time, each with its part of the CPU's cores unless `OMP_NUM_THREADS` is set.
            Their seconds can be compared with each other only.

    Returns:
        what came of each arm, in the order of the plan.

    Raises:
        ValueError: if a folder holds an arm of other settings, or another process runs one.
    """
    folders = [Path(plan.output_dir) / arm.name for arm in plan.arms]
    results = [_kept(arm, folder, retry) for arm, folder in zip(plan.arms, folders, strict=True)]
    todo = [i for i, result in enumerate(results) if result is None]
    children = Children()
    spent: list[float] = []
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // jobs)))
    errors: list[BaseException] = []

    def run(i: int) -> float | None:
        started = time.monotonic()
        if errors:
            return None
        try:
            results[i] = _run(plan.arms[i], folders[i], data_dir, children, environment)
        except BaseException as error:
            errors.append(error)
            children.stop()
            return None
        return time.monotonic() - started

    with interrupted_by_termination(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, i): i for i in todo}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                seconds, result = future.result(), results[futures[future]]
                if seconds is None or result is None:
                    continue
                spent.append(seconds)
                left = -(-(len(todo) - done) // jobs) * sum(spent) / len(spent) / 60
                eta = f"; about {left:.0f} min left" if done < len(todo) else ""
                tell(f"[{len(plan.arms) - len(todo) + done}/{len(plan.arms)}] {plan.arms[futures[future]].name}: "
                     f"{_told(result)} in {seconds / 60:.1f} min{eta}")  # fmt: skip
        except BaseException as error:
            errors.append(error)
            children.stop()
    if errors:
        raise errors[0]
    return [result for result in results if result is not None]


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collected(plan: Plan) -> list[dict[str, Any]]:
    """What came of the arms so far; those that have not ended are left out.

    Raises:
        ValueError: if a folder holds an arm of other settings.
    """
    kept = [_kept(arm, Path(plan.output_dir) / arm.name, False) for arm in plan.arms]
    return [result for result in kept if result is not None]


def _kept(arm: Arm, folder: Path, retry: bool) -> dict[str, Any] | None:
    """The result that lies in an arm's folder; none for a failed one that is to be run again, whatever its settings."""
    result: dict[str, Any] | None = read_json(folder / _RESULT) if (folder / _RESULT).is_file() else None
    failed = result is not None and result["status"] == FAILED
    if _is_of_others(arm, folder) and not (failed and retry):
        hint = ", remove that folder, or, as it has failed, give --retry" if failed else ", or remove that folder"
        raise ValueError(
            f"The folder {folder} holds a run of other settings than {arm.name} has now. Set another output_dir{hint}."
        )
    return None if retry and failed else result


def _is_of_others(arm: Arm, folder: Path) -> bool:
    """Whether a folder holds an arm of other settings."""
    file = folder / "recipe.yaml"
    return file.is_file() and yaml.safe_load(file.read_text(encoding="utf-8")) != arm.recipe


def _run(arm: Arm, folder: Path, data_dir: Path, children: Children, environment: Mapping[str, str]) -> dict[str, Any]:
    if _is_of_others(arm, folder):  # it has failed, and was mended
        remove_folder(folder)
    write_text(folder / "recipe.yaml", yaml.safe_dump(arm.recipe, sort_keys=False, allow_unicode=True))
    line = [sys.executable, "-m", "hf_lifealign.cli.main", "run", str(folder / "recipe.yaml")]
    line += ["--data-dir", str(data_dir), "--output-dir", str(folder / "run")]
    # the base is the same in all arms
    line += ["--set", f"run.reference_dir={json.dumps(str(folder.parents[2].resolve() / 'reference'))}"]
    with alone_in(folder, arm.name) as held, open(folder / "run.log", "ab") as log:
        code = children.run(line, log, held, environment)
    what = {"order": arm.order, "method": arm.method, "seed": arm.seed}
    if code == 0:
        result = what | {"status": DONE} | _outcome(folder / "run")
    else:
        told = (folder / "run.log").read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        words = next((each for each in reversed(told) if each.strip()), "")
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code == -signal.SIGKILL:
            words = "killed by the system, as it does when memory runs out (signal 9)"
        elif code < 0 and -code not in _ENDED_BY_SOMEBODY:
            words = f"ended by signal {-code} ({signal.strsignal(-code)}); the last line of its log: {words}"
        elif code < 0:
            raise OSError(f"The run {arm.name} was ended by signal {-code}. Give the same command again to go on.")
        result = what | {"status": FAILED, "error": words.removeprefix("lifealign: error: ")}
    write_json(folder / _RESULT, result)
    return result


def _outcome(root: Path) -> dict[str, Any]:
    """What a finished run measured."""
    matrix, state = read_json(root / "matrix.json"), read_json(root / "state.json")
    tasks = matrix["tasks"]
    directory = RunDirectory(root, tasks)
    margins = [
        [read_json(directory.evaluation(after, task))[PAIR_MARGINS] for task in tasks[: i + 1]]
        for i, after in enumerate(tasks)
    ]
    routes = {task: read_json(directory.evaluation(tasks[-1], task)).get(ROUTES) for task in tasks}
    records = [entry["record"] for entry in state["tasks"]]
    beside = sum(record.get("strategy_seconds", 0.0) for record in records)
    phases = [phase for record in records for phase in record["phases"]]
    return {
        "tasks": tasks,
        "margins": [[[round(value, 4) for value in cell] for cell in row] for row in margins],
        "seconds": {
            "training": round(sum(phase["seconds"] for phase in phases) + beside, 1),
            "evaluation": round(sum(record["evaluation_seconds"] for record in records), 1),
        },
        "steps": sum(phase["steps"] for phase in phases),
        "peak_memory_mb": max(phase["peak_memory_mb"] for phase in phases),
        "trainable_parameters": phases[-1].get("trainable_parameters"),
        "kept_mb": round(_kept_bytes(root, directory.adapter(tasks[-1])) / 2**20, 4),
        "perplexity": matrix["perplexity"],
        "routes": routes if any(routes.values()) else None,  # of each task's test pairs, by the view that answered
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
