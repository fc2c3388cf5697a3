"""write_dynamics_report: pictures, figures and text of series of alignment dynamics, each file whole or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_lifealign._files import write_json, write_text
from hf_lifealign.dynamics.findings import Findings, Priming
from hf_lifealign.report.dynamics_document import dynamics_parts, overview_parts
from hf_lifealign.report.dynamics_pictures import PICTURES, write_dynamics_pictures
from hf_lifealign.report.page import FORMATS, render
from hf_lifealign.report.privacy import without_folders, without_secrets

FORMAT, FIGURES = 1, "dynamics.json"


@dataclass(frozen=True)
class Again:
    """A second training that aligns the model again.

    Args:
        name (`str`): of it.
        priming ([`~hf_lifealign.dynamics.findings.Priming`]): how the first one compares with it.
    """

    name: str
    priming: Priming


def write_dynamics_report(
    folder: Path, name: str, found: Findings, again: Again | None = None, form: str = "md"
) -> tuple[dict[str, Any], list[Path]]:
    """Writes the report of one series, its pictures, and `dynamics.json`. Pictures of an earlier report go.

    Args:
        folder (`Path`): where they go.
        name (`str`): of the series.
        found ([`~hf_lifealign.dynamics.findings.Findings`]): what it says.
        again ([`Again`], *optional*): a second training to compare with.
        form (`str`): `"md"` or `"html"`.

    Returns:
        `tuple[dict, list[Path]]`: what `dynamics.json` holds, and the files that were written.
    """
    found = _public(found)
    priming = None if again is None else again.priming
    folder.mkdir(parents=True, exist_ok=True)
    _forget_pictures(folder)
    told = write_dynamics_pictures(found, priming, folder)
    content = {"format": FORMAT, "name": name, **found.to_json(), "pictures": told}
    if again is not None:
        content |= {"again": again.name, "priming": again.priming.to_json()}
    write_json(folder / FIGURES, content)
    report = folder / FORMATS[form]
    write_text(report, render(dynamics_parts(name, found, told, priming, again.name if again else ""), form))
    return content, [report, folder / FIGURES, *(folder / file for file, reason in told.items() if reason is None)]


def write_dynamics_overview(
    folder: Path, name: str, series: Mapping[str, Findings], form: str = "md"
) -> tuple[dict[str, Any], list[Path]]:
    """Writes a report of each series into a folder of its name, and an overview of all.

    Args:
        folder (`Path`): where they go.
        name (`str`): of the folder that holds the series.
        series (`dict[str, Findings]`): by their names, whose parts "/" divides.
        form (`str`): `"md"` or `"html"`.

    Returns:
        `tuple[dict, list[Path]]`: what the overview's `dynamics.json` holds, and the reports that were written.
    """
    contents, written = [], []
    for each, found in series.items():
        content, files = write_dynamics_report(folder.joinpath(*each.split("/")), each, found, form=form)
        contents.append(content)
        written.append(files[0])
    content = {"format": FORMAT, "name": name, "series": contents}
    write_json(folder / FIGURES, content)
    report = folder / FORMATS[form]
    write_text(report, render(overview_parts(name, series, FORMATS[form]), form))
    return content, [report, folder / FIGURES, *written]


def _public(found: Findings) -> Findings:
    """The findings without what errors of a judge may tell of this machine: folders and secrets."""
    clean = [replace(m, reason=str(without_secrets(without_folders(m.reason)))) for m in found.missing]
    return replace(found, missing=clean)


def _forget_pictures(folder: Path) -> None:
    """Removes the pictures of an earlier report, since some may not be drawn again; others' pictures stay."""
    if (folder / FIGURES).is_file():
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)
