"""comparison.json, comparison.md and comparison.png of a comparison, from what came of its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_lifealign._files import write_json, write_text
from hf_lifealign.compare.figures import METRICS, TITLES, Figure, compared, matrix_of, summarise
from hf_lifealign.compare.plan import Plan
from hf_lifealign.compare.runner import DONE, FAILED

Compared = dict[str, dict[str, dict[str, Figure | None]]]


def write_comparison(plan: Plan, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the three files into the plan's folder.

    Args:
        plan ([`Plan`]): the comparison.
        results (`list[dict]`): of [`~hf_lifealign.compare.runner.run_arms`]; arms may be missing.

    Returns:
        `dict`: the content of comparison.json.
    """
    root = Path(plan.output_dir)
    tables: dict[str, Any] = {}
    figures: dict[str, dict[str, Compared]] = {}
    for order in plan.orders:
        here = [result for result in results if result["order"] == order]
        done = [result for result in here if result["status"] == DONE]
        if not done:
            tables[order] = {"methods": {}, "failed": _failures(here)}
            continue
        arms = {
            method: {r["seed"]: r["margins"] for r in done if r["method"] == method}
            for method in plan.methods
            if any(r["method"] == method for r in done)
        }
        figures[order] = {kind: compared(arms, plan.against, kind == "accuracy") for kind in ("accuracy", "margin")}
        tables[order] = {
            "tasks": done[0]["tasks"],
            "pairs": [len(cell) for cell in done[0]["margins"][-1]],
            "methods": {method: _entry(method, figures[order], done) for method in arms},
            "failed": _failures(here),
        }
    content = {"format": 1, "against": plan.against, "seeds": plan.seeds, "orders": tables}
    write_json(root / "comparison.json", content)
    write_text(root / "comparison.md", comparison_text(content, plan.methods))
    if figures:
        from hf_lifealign.compare.picture import write_comparison_picture

        write_comparison_picture(root / "comparison.png", {o: f["accuracy"] for o, f in figures.items()}, plan.against)
    return content


def _failures(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = ("method", "seed", "error")
    return [{key: result[key] for key in kept} for result in results if result["status"] == FAILED]


def _entry(method: str, figures: Mapping[str, Compared], done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [result for result in done if result["method"] == method]

    def plain(found: Mapping[str, Figure | None]) -> dict[str, Any]:
        return {name: None if figure is None else figure.to_json() for name, figure in found.items()}

    cells = np.array([matrix_of(result["margins"]) for result in own])
    return {
        "seeds": [result["seed"] for result in own],
        **{kind: {part: plain(found) for part, found in figures[kind][method].items()} for kind in figures},
        "matrix": [[_number(v) for v in row[: i + 1]] for i, row in enumerate(cells.mean(axis=0))],
        "by_seed": [dict(zip(METRICS, map(_number, summarise(each)), strict=True)) for each in cells],
        **{key: float(np.median([result[key] for result in own])) for key in ("steps", "peak_memory_mb", "kept_mb")},
        "routes": [result.get("routes") for result in own],
        "trainable_parameters": own[0]["trainable_parameters"],
        "seconds": {
            part: float(np.median([result["seconds"][part] for result in own])) for part in ("training", "evaluation")
        },
    }


def _number(value: float) -> float | None:
    """For JSON, which has no NaN: what is not known is nothing."""
    return None if np.isnan(value) else round(float(value), 4)


def comparison_text(content: Mapping[str, Any], methods: Sequence[str]) -> str:
    """The comparison as Markdown."""
    lines = ["# Comparison", ""]
    entries = [entry for table in content["orders"].values() for entry in table["methods"].values()]
    one = all(len(entry["seeds"]) == 1 for entry in entries)
    over = "pairs; what another seed would change is left out" if one else "pairs, and seeds where there are several"
    lines += [
        f"Preference accuracy over test pairs, mean over seeds, with 95 % bootstrap intervals over {over}. Δ is the "
        f"difference to `{content['against']}` on the same pairs, over the seeds that both have. BWT below 0: the "
        "model forgot.",
        "",
    ]
    for order, table in content["orders"].items():
        lines += [f"## {order}", ""]
        if table["methods"]:
            pairs = ", ".join(f"{t} ({n})" for t, n in zip(table["tasks"], table["pairs"], strict=True))
            lines += [f"Tasks in order, with test pairs: {pairs}.", "", *_table(table, methods, content["against"]), ""]
        for failure in table["failed"]:
            lines.append(f"- `{failure['method']}`, seed {failure['seed']}, failed: {failure['error']}")
        lines += [""] if table["failed"] else []
    return "\n".join(lines)


def _table(table: Mapping[str, Any], methods: Sequence[str], against: str) -> list[str]:
    shown = [name for name in METRICS if name != "forgetting"]
    head = ["method", "seeds", *(TITLES[name] for name in shown), "Δ Last", "Δ AP", "mean margin at the end, nats",
            "steps", "training, min", "time", "peak, MiB", "kept, MiB", "trained parameters"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| :-- " + "| --: " * (len(head) - 1) + "|"]
    base = table["methods"].get(against)
    for method in methods:
        entry = table["methods"].get(method)
        if entry is None:
            lines.append(f"| {method} | not run |" + " |" * (len(head) - 2))
            continue
        accuracy, seconds = entry["accuracy"], entry["seconds"]["training"]
        time = "" if base is None else f"{seconds / max(base['seconds']['training'], 1e-9):.2f}"
        cells = [method, str(len(entry["seeds"]))]
        cells += [_cell(accuracy["figures"][name]) for name in shown]
        cells += [_cell(accuracy["differences"][name], True) for name in ("last_performance", "average_performance")]
        cells += [_cell(entry["margin"]["figures"]["last_performance"], False, 1), f"{entry['steps']:.0f}"]
        cells += [f"{seconds / 60:.1f}", time]
        parameters = entry["trainable_parameters"]
        cells += [f"{entry['peak_memory_mb']:.0f}", f"{entry['kept_mb']:.1f}"]
        cells.append("" if parameters is None else f"{parameters:,}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(figure: Mapping[str, float] | None, signed: bool = False, digits: int = 3) -> str:
    if figure is None:
        return ""
    sign = "+" if signed else ""
    return f"{figure['value']:{sign}.{digits}f} [{figure['low']:{sign}.{digits}f}, {figure['high']:{sign}.{digits}f}]"
