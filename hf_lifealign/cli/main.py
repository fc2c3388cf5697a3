"""The console command `lifealign`: its sub-commands, their help, and errors as one line instead of a traceback.

Whatever needs torch is imported by the command that needs it, so that the help appears at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from hf_lifealign import __version__
from hf_lifealign.cli import (
    choices,
    commands,
    compare,
    diversity,
    dynamics,
    hub_commands,
    pareto,
    preflight,
    self_align,
)

_DESCRIPTION = "Keep a language model aligned through a stream of preference tasks."

_EPILOG = """\
examples:
  lifealign run recipes/quickstart.yaml --output-dir runs/first
  lifealign run my.yaml --set training.learning_rate=1e-4 --set adapter.r=32
  lifealign matrix runs/first
  lifealign compare recipes/compare.yaml
  lifealign inspect runs/first/adapters/02-harmless
  lifealign pareto runs/meta-aligner
  lifealign dynamics runs/sft
  lifealign preflight runs/first --task new.yaml --judge harmless=refusal
  lifealign self-align recipes/self_align/compact.yaml --limit 40
  lifealign choices embedded:smollm2-135m questions.jsonl --adapter runs/self-align/engrave
  lifealign push runs/first me/first-lifelong
  lifealign run more.yaml --continue-from me/first-lifelong@task-02-harmless

`lifealign COMMAND --help` tells more about a command.
"""

_RUN = """\
Train the tasks of a recipe one after another, measure every task met so far after each one, and write the adapters,
the performance matrix and a report. A run that was interrupted goes on when the same command is given again.
"""

_RUN_EPILOG = """\
examples:
  lifealign run recipes/quickstart.yaml
  lifealign run my.yaml --output-dir runs/b --set adapter.projection_weight=0 --set run.seed=1
"""

_MATRIX = """\
Print a performance matrix and the numbers on it: BWT, forgetting, Last, AP and forward transfer. FILE_OR_RUN is the
folder of a run, a matrix.json, or a file with a bare JSON matrix whose row i holds the performance after task i.
"""

_MATRIX_EPILOG = """\
examples:
  lifealign matrix runs/first --metric margin
  echo '[[0.75], [0.5, 1.0]]' > m.json && lifealign matrix m.json --json
"""

_INSPECT = """\
Show what an adapter remembers: the tasks and phases that entered its memory, what consolidation did to each, its
settings, its size and its base model. Checksums are verified on the way.
"""

_INSPECT_EPILOG = """\
examples:
  lifealign inspect runs/first/adapters/02-harmless
  lifealign inspect me/my-adapter --revision 02-harmless --json
"""

_ROOMS = (commands, hub_commands, compare, pareto, diversity, dynamics, preflight, self_align, choices)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS keeps the default of a sub-command from undoing a --debug that was given before it.
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="lifealign",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lifealign {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def add(name: str, short: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return subparsers.add_parser(
            name,
            help=short,
            description=text,
            epilog=epilog,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_run(add("run", "train a stream of tasks from a recipe", _RUN, _RUN_EPILOG))
    matrix = add("matrix", "print a performance matrix and its numbers", _MATRIX, _MATRIX_EPILOG)
    matrix.add_argument("path", metavar="FILE_OR_RUN", help="folder of a run, matrix.json, or a bare JSON matrix")
    matrix.add_argument("--metric", metavar="NAME", help="measure to show (default: the one that the run puts first)")
    matrix.add_argument("--json", action="store_true", help="print JSON")
    inspect = add("inspect", "show the lineage and memory of an adapter", _INSPECT, _INSPECT_EPILOG)
    inspect.add_argument("adapter", metavar="ADAPTER", help="folder of an adapter, or a Hub repository owner/name")
    inspect.add_argument("--revision", metavar="REV", help="branch, tag or commit of the Hub repository")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    report = add("report", "write the report and pictures of a run again", "Write report.md and the pictures of a run.")
    report.add_argument("run", metavar="RUN", help="folder of a run, finished or in progress")
    compare.add_parser(add)
    pareto.add_parser(add)
    diversity.add_parser(add)
    dynamics.add_parser(add)
    preflight.add_parser(add)
    self_align.add_parser(add)
    choices.add_parser(add)
    hub_commands.add_parsers(add)
    add("metrics", "list the metrics for `evaluate` that come with the package", "List the shipped evaluate metrics.")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the run (default: the recipe's)")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a setting of the recipe, e.g. training.learning_rate=1e-4; may be given several times",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder from which relative paths of data start (default: the recipe's own folder)",
    )
    parser.add_argument(
        "--continue-from",
        metavar="REPO[@REV]",
        help="go on with the life that was published there, or that lies in a folder adapters/NN-<task>",
    )
    parser.add_argument(
        "--no-resume", action="store_true", help="refuse to go on with a run that lies in the folder already"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 2 for an error, 130 when interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        every = {name: command for room in _ROOMS for name, command in room.COMMANDS.items()}
        return every[args.command](args)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        hint = (
            " Give the same command again to go on."
            if args.command in ("run", "compare", "pareto", "self-align")
            else ""
        )
        print(f"lifealign: interrupted.{hint}", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_expected(error):
            raise
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"lifealign: error: {error_text(error)}", file=sys.stderr)
        return 2


def is_expected(error: Exception) -> bool:
    """Whether an error tells what was set wrong: values, files, and the project's own errors. Others are bugs."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.partition(".")[0] == "hf_lifealign"


def error_text(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    told = str(error).strip() or type(error).__name__
    return " ".join([told, *getattr(error, "__notes__", ())])


if __name__ == "__main__":
    sys.exit(main())
