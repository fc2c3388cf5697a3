"""`lifealign compare`: several strategies on one stream, one table, one picture."""

import argparse
from collections.abc import Callable
from pathlib import Path

_COMPARE = """\
Live the same life with several methods, and over several seeds and orders of the tasks if they are given, and tell what
each keeps, with bootstrap intervals over test pairs and seeds. RECIPE is a recipe of `lifealign run` with a mapping
`methods` beside it: what each method sets otherwise. Every arm is a run of its own, in a process of its own. A
comparison that was interrupted goes on when the same command is given again.
"""

_COMPARE_EPILOG = """\
examples:
  lifealign compare recipes/compare.yaml
  lifealign compare my.yaml --output-dir runs/mine --set 'seeds=[0,1,2]'
  lifealign compare my.yaml --tell
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("compare", "compare strategies on one stream", _COMPARE, _COMPARE_EPILOG)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the comparison (default: the recipe's)")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
                        help="override a setting of the recipe; may be given several times")  # fmt: skip
    parser.add_argument("--data-dir", metavar="DIR", help="folder from which relative paths of data start (default: "
                        "the recipe's own folder)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="arms that run at a time, each with its part "
                        "of the cores (default: 1); times can then be compared with each other only")  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="run arms again that have failed")
    parser.add_argument("--tell", action="store_true", help="run nothing: tell what has been measured so far")


def _compare(args: argparse.Namespace) -> int:
    from hf_lifealign._recipes import find_recipe
    from hf_lifealign.compare.document import comparison_text, write_comparison
    from hf_lifealign.compare.plan import check_methods, read_plan
    from hf_lifealign.compare.runner import collected, run_arms

    if args.jobs < 1:
        raise ValueError(f"You gave --jobs {args.jobs}. Give at least 1.")
    plan = read_plan(args.recipe, args.overrides, args.output_dir)
    data_dir = Path(args.data_dir) if args.data_dir else find_recipe(args.recipe).resolve().parent
    if args.tell:
        results = collected(plan)
        if not results:
            raise ValueError(f"Nothing has been measured in {plan.output_dir} yet. Leave --tell out to begin.")
    else:
        check_methods(plan, data_dir)
        results = run_arms(plan, data_dir, lambda line: print(line, flush=True), args.retry, args.jobs)
    content = write_comparison(plan, results)
    print()
    print(comparison_text(content, plan.methods))
    if any(result["status"] == "done" for result in results):
        print(f"Picture: {Path(plan.output_dir) / 'comparison.png'}")
    return 2 if any(result["status"] == "failed" for result in results) else 0


COMMANDS = {"compare": _compare}
