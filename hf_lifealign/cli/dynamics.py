"""`lifealign dynamics`: the report of what AlignmentDynamicsCallback measured while a model was trained."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lifealign.dynamics.findings import Findings, Priming

_DYNAMICS = """\
Report what an AlignmentDynamicsCallback measured: how the alignment score went, which forces moved it, and whether they
can be relied on here, with pictures. RUN is the output folder of a training, its dynamics.jsonl, or a folder below
which several trainings lie, as those of a lifelong run: then each has its report, and there is an overview.
"""

_DYNAMICS_EPILOG = """\
examples:
  lifealign dynamics runs/sft
  lifealign dynamics runs/align --again runs/align-again --target 0.9
  lifealign dynamics runs/lifelong --format html --output-dir site/dynamics
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("dynamics", "report how a training moved an alignment score", _DYNAMICS, _DYNAMICS_EPILOG)
    parser.add_argument("run", metavar="RUN", help="folder of a training, dynamics.jsonl, or a folder of several")
    parser.add_argument(
        "--again", metavar="RUN2", help="a training that aligns the model again: adds the priming ratio"
    )
    parser.add_argument(
        "--target", type=float, metavar="S", help="score of which to tell when it is reached, between 0 and 1"
    )
    parser.add_argument("--format", choices=("md", "html"), default="md", help="of the report (default: md)")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the report (default: RUN/dynamics)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def dynamics(args: argparse.Namespace) -> int:
    """`lifealign dynamics`."""
    import json
    import sys

    from hf_lifealign.report.dynamics_writer import Again, write_dynamics_overview, write_dynamics_report

    if args.target is not None and not 0 < args.target < 1:
        raise ValueError(f"You set --target {args.target:g}. It is a score: set a number between 0 and 1.")
    run = Path(args.run)
    home = run if run.is_dir() else run.parent
    files = find_series(run)
    output = Path(args.output_dir) if args.output_dir else home / "dynamics"
    name = home.resolve().name
    if len(files) > 1:
        if args.again is not None:
            raise ValueError(
                f"You set --again with {args.run}, which holds {len(files)} series: {', '.join(files)}. Name one of "
                "them as RUN."
            )
        series = {each: _find(file, args.target) for each, file in files.items()}
        content, written = write_dynamics_overview(output, name, series, args.format)
        text = _overview_text(series)
    else:
        found, again = _find(next(iter(files.values())), args.target, empty=False), None
        if args.again is not None:
            again = Again(*_priming(args, found))
        content, written = write_dynamics_report(output, name, found, again, args.format)
        text = _text(found, again.priming.to_json() if again else None)
    if args.json:
        print(json.dumps(content, indent=2))
        return 0
    encoding = sys.stdout.encoding or "utf-8"
    # a real minus sign, and the name of a folder, may be none of this terminal's characters
    told = "\n".join([text, "", *map(str, written)])
    print(told.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def find_series(run: Path) -> dict[str, Path]:
    """The series of a training, or of all trainings below a folder, by names from their folders.

    Args:
        run (`Path`): a file, the folder of a training, or one below which several lie.

    Raises:
        FileNotFoundError: if there is none.
    """
    from hf_lifealign.dynamics.series import FILE

    if run.is_file():
        return {run.resolve().parent.name: run}
    if (run / FILE).is_file():
        return {run.resolve().name: run / FILE}
    found = sorted(run.rglob(FILE), key=lambda file: _natural(file.parent.relative_to(run)))
    # what begins with a dot is half-written
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(run).parts)]
    if not found:
        raise FileNotFoundError(
            f"There is no {FILE} in {run}, nor below it. Train with an AlignmentDynamicsCallback, or name the folder "
            "of a training that had one."
        )
    folders = [file.relative_to(run).parent.parts for file in found]
    shared = 0
    if len(folders) > 1:
        # the folders that all have in common tell nothing
        while all(len(parts) > shared + 1 and parts[shared] == folders[0][shared] for parts in folders):
            shared += 1
    return {"/".join(parts[shared:]): file for parts, file in zip(folders, found, strict=True)}


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which task-2 comes before task-10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", path.as_posix())]


def _find(file: Path, target: float | None, empty: bool = True) -> "Findings":
    """What a series says; an empty one is an error where it is the only one."""
    from hf_lifealign.dynamics.findings import find
    from hf_lifealign.dynamics.series import read_series

    entries = read_series(file)
    if not entries and not empty:
        raise ValueError(f"The series {file} is empty: nothing was measured yet. Wait for the first measurement.")
    return find(entries, target)


def _priming(args: argparse.Namespace, first: "Findings") -> tuple[str, "Priming"]:
    """The name of the second training, and how the first one compares with it."""
    from hf_lifealign.dynamics.findings import find_priming

    files = find_series(Path(args.again))
    if len(files) > 1:
        raise ValueError(
            f"You set --again {args.again}, which holds {len(files)} series: {', '.join(files)}. Name one."
        )
    name, file = next(iter(files.items()))
    return name, find_priming(first, _find(file, None, empty=False), args.target)


def _text(found: "Findings", priming: dict[str, Any] | None) -> str:
    """The key figures for a terminal."""
    from hf_lifealign.report.dynamics_document import key_figures
    from hf_lifealign.report.table import markdown_table

    lines = [markdown_table(("figure", "value", "meaning"), key_figures(found), left=3), "", " ".join(found.reasons)]
    count = sum(len(missing.steps) for missing in found.missing)
    if count:
        lines.append(f"{count} estimates were not possible; the report tells which, and why.")
    if priming is not None:
        estimate = priming["estimate"] or {"ratio": None, "reason": priming["reason"]}
        ratio = "none" if estimate["ratio"] is None else f"{estimate['ratio']:.2f}"
        lines.append(f"Priming ratio: {ratio}" + (f" ({estimate['reason']})" if estimate["reason"] else ""))
    return "\n".join(lines)


def _overview_text(series: dict[str, "Findings"]) -> str:
    from hf_lifealign.report.table import markdown_table

    rows = []
    for name, found in series.items():
        scores = found.scores
        ends = [f"{p.score:.3f}" for p in (scores[0], scores[-1])] if scores else ["–", "–"]
        correlation = found.prediction["cross"].correlation
        rows.append([name, found.verdict, *ends, "–" if correlation is None else f"{correlation:.2f}"])
    return markdown_table(("series", "verdict", "S at the start", "S at the end", "correlation"), rows, left=2)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"dynamics": dynamics}
