"""The card of a revision: what was trained, how it did, how to load it and go on from it, and what else is there."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_lifealign.hub.contents import CONFIG, MATRIX, RECORD, STRATEGIES, Content
from hf_lifealign.hub.lineage import Entry
from hf_lifealign.report.card import adapter_variables, render_card
from hf_lifealign.report.privacy import without_folders, without_secrets
from hf_lifealign.report.table import SUMMARY, markdown_table
from hf_lifealign.report.view import MatrixView, view_matrix

LOG_HEAD = ("revision", "task", "date", "on the task", "BWT", "Last", "AP", "size", "went on from")


def revision_card(files: Mapping[str, Content], log: Sequence[Entry], repo_id: str) -> str:
    """The README.md of a revision.

    Args:
        files (`Mapping[str, Content]`): its other files.
        log (`Sequence[Entry]`): the repository's log, this revision last.
        repo_id (`str`): the repository.
    """
    record, matrix = (json.loads(files[name].read()) for name in (RECORD, MATRIX))
    memory = json.loads(files["slmc/memory.json"].read()) if "slmc/memory.json" in files else {}
    entry = log[-1]
    sources = {name: facts for name, facts in (record["records"] or {}).items() if name in record["lived"]}
    hub_ids = sorted({s for facts in sources.values() if (s := (facts.get("data") or {}).get("source"))})
    view = view_matrix(matrix)
    context = {
        "base_model": record["settings"].get("base_model"),
        "tasks": record["lived"],
        "matrix": matrix,
        "settings": record["settings"],
        "versions": record["versions"],
        "repo_id": repo_id,
        "revision": entry.tag,
        "license": entry.license,
        "datasets": hub_ids,
        "model_index": model_index(repo_id, view, sources),
    }
    shared = any(path.startswith(f"{STRATEGIES}/replay/") for path in files)
    replays = any(strategy.get("name") == "replay" for strategy in record["settings"].get("strategies") or ())
    peft_type = json.loads(files[CONFIG].read())["peft_type"]
    variables = adapter_variables(list(memory.get("entries") or ()), context, peft_type) | {
        "repo_id": repo_id,
        "tag": entry.tag,
        "license": without_secrets(without_folders(entry.license or "")),
        "log": log_table(log),
        "notes": record["notes"],
        "data": _data_table(record["lived"], sources),
        "replay_note": ""
        if shared or not replays
        else "The rows that the run kept for replay are not published. Where the earlier tasks' data is at hand they "
        "are drawn anew, else later tasks rehearse only what comes from here on.",
    }
    return render_card("run_card.md.jinja", variables)


def model_index(repo_id: str, view: MatrixView, sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results as the Hub reads them: the newest value on each task, and the numbers on the whole matrix."""
    kind = {"type": "text-generation", "name": "Preference alignment"}
    results: list[dict[str, Any]] = []
    for task, value in zip(view.tasks, view.cells[-1], strict=False):
        if value == value:
            source = ((sources.get(task) or {}).get("data") or {}).get("source")
            results.append({
                "task": kind,
                "dataset": {"type": source or task, "name": task},
                "metrics": [{"type": view.metric, "value": round(float(value), 4), "name": view.title}],
            })  # fmt: skip
    numbers = [
        {"type": name, "value": round(float(value), 4), "name": f"{SUMMARY[name][0]} ({view.title})"}
        for name, value in view.summary().items()
        if value is not None
    ]
    stream = {"type": "preference-stream", "name": " → ".join(view.tasks[: view.trained])}
    if numbers:
        results.append({"task": kind, "dataset": stream, "metrics": numbers})
    return [{"name": repo_id.split("/")[-1], "results": results}]


def log_rows(log: Sequence[Entry]) -> list[list[str]]:
    """A line for each entry, in the order of [`LOG_HEAD`]."""

    def number(value: Any, sign: bool = False) -> str:
        return (
            format(value, "+.3f" if sign else ".3f")
            if isinstance(value, int | float) and not isinstance(value, bool)
            else "-"
        )

    rows = []
    for entry in log:
        parent = entry.parent or {}
        came = parent.get("tag") or ("the base" if entry.parent is None else "unknown")
        came = f"{parent['repo']}@{came}" if parent.get("repo") else came
        name = entry.tag if entry.kind == "task" else f"(back to {entry.tag})"
        metrics = entry.metrics
        rows.append([
            name, entry.task, entry.date[:16], number(metrics.get("value")), number(metrics.get("bwt"), True),
            number(metrics.get("last_performance")), number(metrics.get("average_performance")),
            f"{entry.sizes.get('total', 0) / 1e6:.1f} MB", came if entry.kind == "task" else "-",
        ])  # fmt: skip
    return rows


def log_table(log: Sequence[Entry]) -> str:
    """The log as a Markdown table."""
    return markdown_table(LOG_HEAD, log_rows(log), left=3)


def _data_table(tasks: Sequence[str], records: Mapping[str, Any]) -> str:
    """Where each task's rows come from and under which licence, as its user stated it."""
    rows = []
    for task in tasks:
        data = (records.get(task) or {}).get("data") or {}
        count = ((records.get(task) or {}).get("phases") or [{}])[-1].get("train_rows", "")
        source = data.get("source") or "not on the Hub"
        rows.append([task, data.get("description") or "", source, data.get("license") or "not stated", str(count)])
    return markdown_table(("task", "what it teaches", "source", "licence", "training rows"), rows, left=4)
