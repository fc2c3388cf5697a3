"""The lineage in an adapter's memory as a table: which tasks entered it, when, and what consolidation did to each."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lifealign.report.document import history_hint, share_text
from hf_lifealign.report.table import markdown_table

# A column "priming" comes after these where a task took up an earlier one.
LINEAGE_HEAD = ("#", "task", "phase", "date", "mean rank", "energy kept", "in history", "norm", "norm kept")


def lineage_rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each consolidation, in the order of [`lineage_head`].

    Args:
        entries (`Sequence[dict]`): the `entries` of an adapter's memory.
    """
    rows = []
    primed = _primed(entries)
    for entry in entries:
        totals = entry["report"]["totals"]
        first = entry["index"] == 0
        rows.append([
            str(entry["index"] + 1), str(entry["task"]), str(entry["phase"] or "-"), str(entry["date"])[:16],
            f"{totals['mean_rank_kept']:.1f}", f"{totals['energy_kept']:.1%}",
            "-" if first else share_text(totals["history_share"]),
            f"{totals['update_norm']:.4g}", f"{totals['refined_norm']:.4g}", *([_ratio(entry)] if primed else []),
        ])  # fmt: skip
    return rows


def lineage_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The lineage as a Markdown table, with a line in plain words on what the projection could do."""
    shares = [float(entry["report"]["totals"]["history_share"]) for entry in entries if entry["index"] > 0]
    return f"{markdown_table(lineage_head(entries), lineage_rows(entries), left=4)}\n\n{history_hint(shares)}"


def lineage_head(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The titles of the columns of [`lineage_rows`]."""
    return (*LINEAGE_HEAD, "priming") if _primed(entries) else LINEAGE_HEAD


def _primed(entries: Sequence[Mapping[str, Any]]) -> bool:
    return any("priming" in entry for entry in entries)


def _ratio(entry: Mapping[str, Any]) -> str:
    told = entry.get("priming")
    ratio = told.get("ratio") if isinstance(told, Mapping) else None
    return f"{ratio:.2f}" if isinstance(ratio, int | float) and not isinstance(ratio, bool) else "-"
