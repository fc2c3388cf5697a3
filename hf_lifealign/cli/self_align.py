"""`lifealign self-align`: from written principles to a new task's data and an aligned model."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_lifealign.self_align.pipeline import SelfAlign

_SELF_ALIGN = """\
Make tasks, answer them by written principles, and engrave the answers into a base model (SELF-ALIGN): stages prompts,
responses, engrave, and where the recipe asks for it cloning and refine. Each leaves a folder with its rows, what was
dropped and why, and a manifest. A run that was interrupted goes on when the same command is given again; no call that
was made is made twice.
"""

_SELF_ALIGN_EPILOG = """\
examples:
  lifealign self-align recipes/self_align/compact.yaml --dry-run
  lifealign self-align recipes/self_align/compact.yaml --output-dir runs/self --limit 40
  lifealign self-align mine.yaml --from-stage responses --set responses.temperature=0.3
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("self-align", "make data from written principles, and align a base", _SELF_ALIGN, _SELF_ALIGN_EPILOG)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the run (default: the recipe's)")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
        help="override a setting of the recipe, e.g. responses.temperature=0.3; may be given several times",
    )  # fmt: skip
    parser.add_argument("--from-stage", metavar="STAGE", help="make this stage and all after it anew")
    parser.add_argument("--limit", type=int, metavar="N", help="make no more than N tasks")
    parser.add_argument("--dry-run", action="store_true", help="show the prompts and their lengths, and do nothing")


def self_align(args: argparse.Namespace) -> int:
    """`lifealign self-align`."""
    from hf_lifealign.lifelong.recipe import quiet_libraries
    from hf_lifealign.report.self_align import write_self_align_report
    from hf_lifealign.self_align.config import read_config
    from hf_lifealign.self_align.pipeline import SelfAlign

    config = read_config(args.recipe, args.overrides, args.output_dir)
    if args.limit is not None:
        config = config.limited(args.limit)
    quiet_libraries()
    run = SelfAlign(config)
    if args.dry_run:
        return _dry_run(run)
    told = run.run(args.from_stage)
    report = write_self_align_report(run.store.root, {stage: run.store.manifest(stage) for stage in told})
    prompts, responses = (len(run.store.rows(stage)) for stage in ("prompts", "responses"))
    print(f"Tasks:   {prompts}")
    print(f"Answers: {responses} ({100 * told['responses']['keep_rate']:.1f} % kept)")
    for stage in ("engrave", "refine"):
        if stage in told:
            before, after = (told[stage][when]["loss"] for when in ("before", "after"))
            print(
                f"Adapter: {run.store.folder(stage)} (loss on held-out answers {before:.3f} before, {after:.3f} after)"
            )
    print(f"Rows:    {run.store.folder('responses') / 'sft'}, {run.store.folder('responses') / 'preference'}")
    print(f"Report:  {report}")
    return 0


def _dry_run(run: "SelfAlign") -> int:
    from hf_lifealign.report.table import markdown_table
    from hf_lifealign.self_align.dry_run import shown_prompts

    shown = shown_prompts(run)
    for each in shown:
        print(f"===== {each.name} =====\n{each.text}\n")
    rows = [
        [each.name, str(each.tokens), str(each.answer), str(each.room or "?"), "yes" if each.fits else "no"]
        for each in shown
    ]
    print(markdown_table(("prompt", "tokens", "answer up to", "the model reads", "fits"), rows))
    return 0 if all(each.fits for each in shown) else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"self-align": self_align}
