"""`lifealign preflight`: what a new task's data would do to the earlier tasks of a run, before it is trained."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lifealign.dynamics.preflight import Forecast
    from hf_lifealign.stream import Task

_PREFLIGHT = """\
Predict what training on a new task would do to the score of every earlier task of a run, without training: how surely
its pairs are ranked right, or with a judge the share of aligned answers. Told are
the change of log-odds in one step, how many steps each score would stand, and how much rehearsal would hold it. RUN is
the folder of a lifelong run. The new task is described in YAML as in a recipe: name, train, test.
"""

_PREFLIGHT_EPILOG = """\
examples:
  lifealign preflight runs/assistant --task new.yaml
  lifealign preflight runs/assistant --task new.yaml --judge harmless=refusal
  lifealign preflight runs/assistant --task new.yaml --judge polite=my_package.judges:polite --samples 16 --json

It is a first-order prediction of the first steps: a direction and an order of magnitude.
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("preflight", "predict what a new task would undo", _PREFLIGHT, _PREFLIGHT_EPILOG)
    parser.add_argument("run", metavar="RUN", help="folder of a lifelong run")
    parser.add_argument("--task", metavar="FILE.yaml", required=True, help="the new task, or a recipe whose last it is")
    parser.add_argument(
        "--judge",
        metavar="TASK=SPEC",
        action="append",
        default=[],
        help="judge of an earlier task (default: the run's own, or else the task's pairs); may be given several times",
    )
    parser.add_argument("--base", metavar="MODEL", help="Hub id, folder or embedded:NAME (default: what RUN names)")
    parser.add_argument("--trainer", metavar="NAME", help="fpo, dpo or module:Class (default: that of RUN)")
    parser.add_argument("--tolerance", type=float, default=0.05, metavar="X", help="how far below its score a floor is")
    parser.add_argument("--probes", type=int, default=32, metavar="N", help="prompts of each task")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="answers to each")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer")
    parser.add_argument("--force-rows", type=int, default=32, metavar="N", help="rows on which forces are measured")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of answers and rows")
    parser.add_argument("--json", action="store_true", help="print JSON")


def preflight(args: argparse.Namespace) -> int:
    """`lifealign preflight`."""
    import json

    for name, least in (("probes", 2), ("samples", 2), ("max_new_tokens", 1), ("force_rows", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"You set --{name.replace('_', '-')} {getattr(args, name)}. Set at least {least}.")
    if not 0 < args.tolerance < 1:
        raise ValueError(f"You set --tolerance {args.tolerance}. Set it between 0 and 1.")
    task, judges = _task(Path(args.task)), _judges(args.judge)
    from hf_lifealign.dynamics.preflight import preflight as forecast

    found = forecast(
        args.run, task, judges, args.base, args.trainer, args.tolerance, args.probes, args.samples,
        args.max_new_tokens, args.force_rows, args.seed,
    )  # fmt: skip
    if args.json:
        print(json.dumps({"task": task.name, "forecasts": [one.to_json() for one in found]}, indent=2))
        return 0
    print(_text(task.name, found))
    return 0


def _task(path: Path) -> "Task":
    """The new task: a mapping, a list of mappings, or the `tasks` of a recipe, of which the last one counts."""
    import yaml

    from hf_lifealign.stream import TaskStream

    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Give a YAML file with name, train and test of the new task.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The file {path} is not valid YAML: {error}") from error
    if isinstance(content, dict) and "tasks" in content:
        content = content["tasks"]
    entries = content if isinstance(content, list) else [content]
    if not entries or not isinstance(entries[-1], dict):
        raise ValueError(f"The file {path} describes no task. Give a mapping with name, train and test.")
    return next(iter(TaskStream.from_config(entries[-1:], path.resolve().parent)))


def _judges(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        task, equals, spec = text.partition("=")
        if not equals or not task or not spec:
            raise ValueError(f"You gave --judge {text!r}. It has to read TASK=SPEC, e.g. harmless=refusal.")
        found[task] = spec
    return found


def _text(name: str, found: "Sequence[Forecast]") -> str:
    """The forecasts as a table for a terminal."""
    from hf_lifealign.report.table import markdown_table

    rows = [[one.task, *_cells(one)] for one in found]
    header = ("task", "score", "floor", "log-odds a step", "after the task", "stands for", "rehearsal")
    steps = found[0].steps
    lines = [f"{name}: {steps} steps on its rows alone would move the earlier tasks so:", markdown_table(header, rows)]
    lines += [f"{one.task}: {one.reason}" for one in found if one.reason]
    return "\n".join([*lines, "First order, at the full learning rate: a direction and an order of magnitude."])


def _cells(one: "Forecast") -> list[Any]:
    if one.score is None:
        return ["–"] * 6
    score = f"{one.score:.2f} [{one.low:.2f}, {one.high:.2f}]"
    if one.force is None:
        return [score, f"{one.floor:.2f}", "–", "–", "–", "–"]
    stands = "as far as this tells, on" if one.horizon is None or one.horizon > 1e6 else f"{one.horizon:.0f} steps"
    share = f"{one.share:.0%}" if one.feasible else "cannot hold it"
    return [score, f"{one.floor:.2f}", f"{one.force:+.4f}", f"{one.predicted:.2f}", stands, share]


COMMANDS = {"preflight": preflight}
