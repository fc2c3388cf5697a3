"""Tasks that took up earlier ones: how fast each was aligned again, as a section of the report and as curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.dynamics.score_curve import is_number, read_curve
from hf_lifealign.report.run_data import RunData
from hf_lifealign.report.table import markdown_table

if TYPE_CHECKING:
    from hf_lifealign.dynamics.findings import Point, Priming

# The strategy's folder in a run.
_FOLDER = "rehearsal_priming"
_HEAD = ("task", "takes up", "score at its start (first / again)", "target", "steps first", "steps again", "ratio",
         "area ratio", "remark")  # fmt: skip
_MEANING = (
    "The ratio is the steps that it took to reach the target score again over those that it took first: below 1 the "
    "model was primed, and came back faster than it first came there."
)


@dataclass(frozen=True)
class PrimedTask:
    """A task that took up an earlier one.

    Args:
        root (`Path`): the run's folder.
        task (`str`): its name.
        label (`str`): `NN-<task>`.
        first (`str`, *optional*): label of the earlier task; `None` if the run does not know it.
        told (`Mapping`): `"priming"` of its record.
    """

    root: Path
    task: str
    label: str
    first: str | None
    told: Mapping[str, Any]

    @property
    def picture(self) -> str:
        """File name of its picture."""
        return f"priming-{self.label}.png"

    def row(self) -> list[str]:
        """Its row in the report."""
        starts = " / ".join(_text(self.told.get(name), 2) for name in ("start_first", "start_again"))
        figures = (("target", 2), ("first_steps", 1), ("again_steps", 1), ("ratio", 2), ("area_ratio", 2))
        cells = [_text(self.told.get(name), digits) for name, digits in figures]
        return [self.label, str(self.told.get("resumes")), starts, *cells, str(self.told.get("reason") or "")]

    def curves(self) -> "Priming | None":
        """Both curves with what the record says of them; `None` if one of them is not at hand."""
        from hf_lifealign.dynamics.findings import Priming
        from hf_lifealign.metrics.alignment_dynamics import PrimingEstimate

        first = _points(self.root / _FOLDER / f"{self.first}.json")
        again = _points(self.root / _FOLDER / f"{self.label}.json")
        if not first or not again:
            return None
        figures = {field.name: self.told.get(field.name) for field in fields(PrimingEstimate)}
        told: dict[str, Any] = {name: value if is_number(value) else None for name, value in figures.items()}
        told["reason"] = str(figures["reason"]) if figures["reason"] else None
        estimate = PrimingEstimate(**told) if told["target"] is not None else None
        return Priming(first, again, estimate, told["reason"])


def primed_tasks(data: RunData) -> list[PrimedTask]:
    """The finished tasks of a run that took up earlier ones, in order."""
    entries = data.state.get("tasks") or []
    labels = {str(entry.get("name")): _label(i, entry) for i, entry in enumerate(entries)}
    found = []
    for index, entry in enumerate(entries):
        for phase in data.phases(index):
            told = phase.get("priming")
            if isinstance(told, Mapping):
                first = labels.get(str(told.get("resumes")))
                found.append(PrimedTask(data.root, str(entry.get("name")), _label(index, entry), first, told))
    return found


def priming_section(data: RunData, pictures: Sequence[str] = ()) -> str:
    """The section of the report, as Markdown; empty if no task took up an earlier one.

    Args:
        data (`RunData`): the run.
        pictures (`Sequence[str]`): file names of the pictures that lie beside the report.
    """
    tasks = primed_tasks(data)
    if not tasks:
        return ""
    table = markdown_table(_HEAD, [task.row() for task in tasks], left=len(_HEAD))
    shown = [f"![Score of {task.label}, first and again]({task.picture})" for task in tasks if task.picture in pictures]
    return "\n\n".join(["## Aligned again", table, _MEANING, *shown])


def _label(index: int, entry: Mapping[str, Any]) -> str:
    return str(entry.get("label") or f"{index + 1:02d}-{entry.get('name')}")


def _points(file: Path) -> "list[Point] | None":
    """The points of a curve; `None` if there is no such file, or none that holds a curve."""
    from hf_lifealign.dynamics.findings import Point

    content = read_curve(file) if file.is_file() else None
    if content is None:
        return None
    unknown = [None] * len(content["steps"])
    ends = [[x if is_number(x) else None for x in content.get(name, unknown)] for name in ("low", "high")]
    rows = zip(content["steps"], content["scores"], *ends, strict=True)
    return [Point(step, step, score, low, high, None) for step, score, low, high in rows]


def _text(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if is_number(value) else "-"
