"""Tables that read as plain text and as Markdown alike: the performance matrix and the numbers on it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lifealign.report.view import MatrixView, view_matrix

# name in a summary -> (short name, what it means, why it may be missing)
SUMMARY = {
    "bwt": (
        "BWT",
        "mean change of earlier tasks since their own training; below 0 the model forgot",
        "needs two finished tasks",
    ),
    "forgetting": (
        "Forgetting",
        "mean drop of earlier tasks from their best stage; above 0 something was lost",
        "needs two finished tasks",
    ),
    "last_performance": ("Last", "mean over the trained tasks as the model is now", "needs the last row whole"),
    "average_performance": (
        "AP",
        "mean over the stages of the mean over the tasks trained so far",
        "needs every trained task at every stage",
    ),
    "forward_transfer": (
        "Forward transfer",
        "mean change of a task before its own training, against the base; above 0 earlier tasks helped it",
        "needs two tasks, all tasks evaluated at every stage, and the base",
    ),
}


def cell_text(value: Any) -> str:
    """Text that can stand in a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown_table(head: Sequence[Any], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table, padded so that its columns align as plain text too.

    Args:
        head (`Sequence`): column titles.
        rows (`Sequence[Sequence]`): cells, each row as long as `head`.
        left (`int`): number of leading columns that are aligned to the left; the others go to the right.
    """
    lines = [[cell_text(cell) for cell in line] for line in (head, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]

    def render(line: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return f"| {' | '.join(cells)} |"

    ruler = [":" + "-" * (w - 1) if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([render(lines[0]), render(ruler), *(render(line) for line in lines[1:])])


def view_table(view: MatrixView) -> str:
    """The matrix of a view as a Markdown table, with the base in the first row and the number of test pairs last."""
    several = len(view.tasks) > 1
    head = ["after task", *view.tasks, *(["mean so far"] if several else [])]
    tail = [""] if several else []
    rows: list[list[str]] = []
    if view.baseline is not None:
        rows.append(["(base)", *(view.number(value) for value in view.baseline), *tail])
    early = False
    for stage, (task, row) in enumerate(zip(view.tasks, view.cells, strict=False)):
        cells = [view.number(value) for value in row]
        for j in range(stage + 1, len(cells)):
            if cells[j]:
                cells[j], early = f"({cells[j]})", True
        rows.append([f"{stage + 1} {task}", *cells, *([view.number(view.stage_means[stage])] if several else [])])
    if view.counts:
        rows.append(["test pairs", *(str(count) for count in view.counts), *tail])
    note = "\n\nIn parentheses: before the task's own training." if early else ""
    return markdown_table(head, rows) + note


def matrix_table(matrix: Mapping[str, Any], metric: str | None = None) -> str:
    """One performance matrix as a table that is Markdown and readable text at once.

    Args:
        matrix (`dict`): content of a run's `matrix.json`, finished or in progress.
        metric (`str`, *optional*): the measure; by default the one that the run puts first.

    Raises:
        ValueError: see [`~hf_lifealign.report.view.view_matrix`].
    """
    return view_table(view_matrix(matrix, metric))


def matrix_text(view: MatrixView) -> str:
    """The matrix with its title and the metrics below it, for a terminal."""
    numbers = markdown_table(("number", "value", "meaning"), summary_rows(view), left=3)
    return "\n\n".join([view.title, view_table(view), numbers])


def summary_rows(view: MatrixView) -> list[tuple[str, str, str]]:
    """`(short name, value, meaning)` of each number on a matrix; a missing one says what it needs."""
    rows = []
    for name, value in view.summary().items():
        short, meaning, needs = SUMMARY[name]
        signed = name in ("bwt", "forgetting", "forward_transfer")
        rows.append((short, "-" if value is None else view.number(value, signed), needs if value is None else meaning))
    return rows
