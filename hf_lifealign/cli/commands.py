"""What each sub-command of `lifealign` does, from parsed arguments to an exit code."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any


def run(args: argparse.Namespace) -> int:
    """`lifealign run`."""
    from hf_lifealign.lifelong.recipe import run_recipe

    return run_recipe(
        args.recipe,
        overrides=args.overrides,
        output_dir=args.output_dir,
        data_dir=args.data_dir,
        resume=not args.no_resume,
        continue_from=args.continue_from,
    )


def matrix(args: argparse.Namespace) -> int:
    """`lifealign matrix`."""
    from hf_lifealign.report.table import matrix_text
    from hf_lifealign.report.view import read_matrix_file, view_matrix

    view = view_matrix(read_matrix_file(args.path), args.metric)
    if args.json:
        rows = [[_number(cell) for cell in row] for row in view.cells.tolist()]
        baseline = None if view.baseline is None else [_number(cell) for cell in view.baseline.tolist()]
        content = {"metric": view.metric, "tasks": view.tasks, "matrix": rows, "baseline": baseline}
        print(json.dumps(content | view.summary(), indent=2))
        return 0
    if not view.trained:
        raise ValueError(
            f"{args.path} has no finished task yet, so there is no matrix to show. Wait for the first one."
        )
    print(matrix_text(view))
    return 0


def inspect(args: argparse.Namespace) -> int:
    """`lifealign inspect`."""
    from hf_lifealign.cli.inspection import describe_adapter, inspection_text

    found = describe_adapter(args.adapter, args.revision)
    print(json.dumps(found, indent=2) if args.json else inspection_text(found))
    return 0


def report(args: argparse.Namespace) -> int:
    """`lifealign report`."""
    from hf_lifealign.report import write_report

    for path in write_report(args.run):
        print(path)
    return 0


def metrics(args: argparse.Namespace) -> int:
    """`lifealign metrics`."""
    from hf_lifealign.metrics import METRICS, metric_path

    width = max(len(name) for name in METRICS)
    for name in METRICS:
        print(f"{name:<{width}}  {metric_path(name)}")
    print('\nLoad one with hf_lifealign.load_metric("bwt"), or evaluate.load(PATH).')
    return 0


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


COMMANDS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "run": run,
    "matrix": matrix,
    "inspect": inspect,
    "report": report,
    "metrics": metrics,
}
