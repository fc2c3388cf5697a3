"""The text of report.md: what came of a run, what it cost, what consolidation did, and where everything lies."""

import math
import re
from collections.abc import Sequence
from typing import Any

from hf_lifealign.report.priming import priming_section
from hf_lifealign.report.run_data import RunData, flatten
from hf_lifealign.report.table import markdown_table, summary_rows, view_table
from hf_lifealign.report.view import MatrixView, view_matrix

_LONGEST_ANSWER = 1500
# Below this share of an update the projection changes its norm by less than it is worth to speak of.
_INERT = 0.05

_FILES = (
    ("matrix.json", "the matrices and the numbers on them"),
    ("matrix.png", "picture of the matrix"),
    ("curves.png", "training curves, and performance on each task over the run"),
    ("samples.json", "answers of the base and of the trained policy"),
    ("state.json", "settings, progress and cost of every phase"),
    ("adapters/", "one folder for each finished task: the adapter, with the memory in `slmc/` where there is one"),
    ("logs/", "what the trainer logged in each phase"),
    ("rehearsal_priming/", "the alignment scores of the tasks that were followed, as curves"),
    ("evaluation/", "the result on every task at every stage"),
    ("tracking/", "TensorBoard events of the whole run"),
)


def report_text(data: RunData, pictures: Sequence[str]) -> str:
    """The report as Markdown.

    Args:
        data (`RunData`): the run.
        pictures (`Sequence[str]`): file names of the pictures that lie beside the report.
    """
    sections = [
        _opening(data),
        _performance(data, "matrix.png" in pictures),
        "## Course of the run\n\n![Training curves and performance over the run](curves.png)"
        if "curves.png" in pictures
        else "",
        _other_measures(data),
        priming_section(data, pictures),
        _perplexity(data),
        _cost(data),
        _consolidation(data),
        _samples(data),
        _settings(data),
        _where(data),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(data: RunData) -> str:
    total = len(data.tasks)
    if data.done:
        progress = f"The run is complete: {total} task{'s' * (total != 1)}."
    else:
        progress = f"The run is in progress: {data.finished} of {total} tasks are finished."
    settings = data.state.get("settings") or {}
    base = settings.get("base_model") if isinstance(settings.get("base_model"), str) else None
    order = " → ".join(data.tasks)
    lines = [f"Tasks: {order}."] if order else []
    lines += [f"Base model: {base}."] if base else []
    return "# Report of a lifelong run\n\n" + " ".join([progress, *lines])


def _performance(data: RunData, picture: bool) -> str:
    if data.matrix is None or not data.finished:
        return "## Performance\n\nNo task is finished yet, so nothing was measured."
    view = view_matrix(data.matrix)
    parts = [f"## {view.title}"]
    parts += ["![Performance on each task after each task](matrix.png)"] if picture else []
    parts += [view_table(view), markdown_table(("number", "value", "meaning"), summary_rows(view), left=3)]
    note = _reading_note(view)
    return "\n\n".join([*parts, *([note] if note else []), _per_task(view)])


def _reading_note(view: MatrixView) -> str:
    """What keeps a reader from reading too much into the digits."""
    if view.metric == "margin":
        return (
            "The margin is the mean of log p(chosen) - log p(rejected) under the policy minus the same under the base, "
            "in nats. The base has 0."
        )
    if view.metric != "preference_accuracy":
        return ""
    text = "Accuracy is the share of test pairs with a positive margin over the base; the base has 0.5 by definition."
    if view.counts and min(view.counts) > 0:
        fewest, most = min(view.counts), max(view.counts)
        errors = [math.sqrt(0.25 / count) for count in (fewest, most)]
        size = f"{errors[0]:.3f}"
        if fewest != most:
            size = f"{errors[1]:.3f} ({most} pairs) to {errors[0]:.3f} ({fewest} pairs)"
        text += f" One standard error of a single value, near 0.5, is about {size}: smaller differences may be chance."
    return text


def _per_task(view: MatrixView) -> str:
    rows = []
    for j in range(view.trained):
        own, now = float(view.cells[j, j]), float(view.cells[-1, j])
        base = float(view.baseline[j]) if view.baseline is not None else view.centre
        gain = "" if base is None else view.number(own - base, sign=True)
        since = view.number(now - own, sign=True) if j < view.trained - 1 else ""
        rows.append([f"{j + 1} {view.tasks[j]}", view.number(base), view.number(own), gain, view.number(now), since])
    head = ("task", "base", "after its own training", "gained by it", "now", "changed since")
    return markdown_table(head, rows)


def _other_measures(data: RunData) -> str:
    others = data.metrics[1:] if data.finished else []
    parts = []
    for name in others:
        view = view_matrix(data.matrix or {}, name)
        numbers = ", ".join(f"{short} {value}" for short, value, _ in summary_rows(view) if value != "-")
        note = _reading_note(view)
        parts.append("\n\n".join([f"### {view.title}", view_table(view), numbers, *([note] if note else [])]))
    return "\n\n".join(["## Other measures", *parts]) if parts else ""


def _perplexity(data: RunData) -> str:
    content = (data.matrix or {}).get("perplexity")
    if not isinstance(content, dict) or content.get("base") is None:
        return ""
    base = float(content["base"])
    rows = [["(base)", f"{base:.2f}", ""]]
    for index, (task, value) in enumerate(zip(data.tasks, content.get("after") or (), strict=False), start=1):
        if value is not None:
            rows.append([f"{index} {task}", f"{value:.2f}", f"{value / base - 1:+.1%}"])
    text = "Perplexity on plain text that no task trains on. A clear rise means that general ability was lost."
    table = markdown_table(("after task", "perplexity", "against the base"), rows)
    return f"## General perplexity\n\n{text}\n\n{table}"


def _cost(data: RunData) -> str:
    rows = []
    seconds = 0.0
    for index, task in enumerate(data.tasks):
        phases = data.phases(index)
        for phase in phases:
            took = float(phase.get("seconds") or 0)
            seconds += took
            memory = phase.get("peak_memory_mb")
            steps = int(phase.get("steps") or 0)
            rows.append([
                f"{index + 1} {task}", str(phase.get("phase", "")).replace("_", " "), steps,
                phase.get("train_rows", ""), phase.get("replay_rows", ""), duration(took),
                f"{took / steps:.2f}" if steps else "",
                f"{memory:,.0f}" if memory is not None else "",
            ])  # fmt: skip
        for what, key in (("evaluation", "evaluation_seconds"), ("strategies", "strategy_seconds")):
            told = _record(data, index).get(key)
            if phases and told:
                seconds += float(told)
                rows.append([f"{index + 1} {task}", what, "", "", "", duration(float(told)), "", ""])
    if not rows:
        return ""
    head = ("task", "phase", "steps", "own rows", "replayed rows", "time", "s per step", "peak memory (MB)")
    return f"## Time and memory\n\n{markdown_table(head, rows, left=2)}\n\nTogether {duration(seconds)}."


def _record(data: RunData, index: int) -> dict[str, Any]:
    entries = data.state.get("tasks") or []
    return (entries[index].get("record") if index < len(entries) else None) or {}


def duration(seconds: float) -> str:
    """Seconds as people read them: `0.4 s`, `53 s`, `12 min 05 s`, `3 h 07 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _consolidation(data: RunData) -> str:
    rows, shares = [], []
    for index, task in enumerate(data.tasks):
        for phase in data.phases(index):
            report = phase.get("consolidation") or {}
            totals = report.get("totals")
            if not isinstance(totals, dict):
                continue
            first = report.get("index") == 0
            if not first:
                shares.append(float(totals["history_share"]))
            error = totals.get("max_recompression_error")
            rows.append([
                f"{index + 1} {task}", str(phase.get("phase", "")).replace("_", " "), f"{totals['update_norm']:.4g}",
                f"{totals['refined_norm']:.4g}", f"{totals['energy_kept']:.1%}", f"{totals['mean_rank_kept']:.1f}",
                "no history" if first else share_text(totals["history_share"]),
                "" if error is None else f"{error:.2%}",
            ])  # fmt: skip
    if not rows:
        return ""
    head = ["task", "phase", "norm of the update", "norm kept", "energy kept", "mean rank",
            "share of the update that lay in the history", "worst recompression error"]  # fmt: skip
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    table = markdown_table(head, rows, left=2)
    return f"## Consolidation\n\n{table}\n\n{history_hint(shares)}"


def share_text(share: float) -> str:
    """A share of an update in per cent, with digits where it is small."""
    return f"{share:.1%}" if share >= 0.1 or share == 0 else f"{share:.2%}" if share >= 0.0001 else "< 0.01%"


def history_hint(shares: Sequence[float]) -> str:
    """In plain words, what the shares of the updates that lay in the history mean for this adapter."""
    if not shares:
        return (
            "The share of the update that lay in the history says how much of a change the projection can act on. "
            "There is no earlier history to compare with yet."
        )
    largest = max(shares)
    text = (
        "The share of the update that lay in the history is the part that the projection can act on; "
        f"the largest so far is {share_text(largest)}. "
    )
    if largest < _INERT:
        return text + (
            "A share near 0 means that the projection hardly changed anything: consolidation has only denoised here."
        )
    return text + "A share near 0 would mean that the projection hardly changed anything."


def _samples(data: RunData) -> str:
    content = data.samples or {}
    triples = zip(content.get("prompts") or (), content.get("base") or (), content.get("after") or (), strict=False)
    parts = []
    for prompt, base, after in triples:
        parts.append(f"**Asked**\n\n{_block(prompt)}\n\n**Before**\n\n{_block(base)}\n\n**After**\n\n{_block(after)}")
    return "\n\n".join(["## Answers before and after", "\n\n---\n\n".join(parts)]) if parts else ""


def _block(value: Any) -> str:
    """Text of a model in a fence that it cannot close; lists of messages are written one under the other."""
    if isinstance(value, list):
        messages = [m if isinstance(m, dict) else {"content": m} for m in value]
        value = "\n".join(f"{m.get('role', 'text')}: {m.get('content', '')}" for m in messages)
    text = str(value).strip() or "(empty)"
    if len(text) > _LONGEST_ANSWER:
        text = text[:_LONGEST_ANSWER].rstrip() + " …"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _settings(data: RunData) -> str:
    settings = data.state.get("settings")
    if not isinstance(settings, dict) or not settings:
        return ""
    parts = ["## Settings", settings_table(settings)]
    versions = data.state.get("versions")
    if isinstance(versions, dict) and versions:
        parts.append("Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".")
    return "\n\n".join(parts)


def settings_table(settings: dict[str, Any]) -> str:
    """All settings as one table, nested names joined by dots."""
    rows = []
    for name, value in flatten(settings):
        short = value if len(value) <= 200 else value[:199] + "…"
        # A pattern of module names would be read as emphasis, and a template as HTML.
        rows.append((f"`{name}`", f"`{short}`" if re.search(r"[*<>\[\]\\|~]", short) and "`" not in short else short))
    return markdown_table(("setting", "value"), rows, left=2)


def _where(data: RunData) -> str:
    rows = [(f"`{name}`", text) for name, text in _FILES if (data.root / name).exists()]
    return "## Where everything lies\n\n" + markdown_table(("file", "what it holds"), rows, left=2) if rows else ""
