"""Tables and pictures of docs/evidence.md from what run.py has measured.

    python benchmarks/stream/evidence.py [--output benchmarks/results/stream] [--docs docs] [--parts final ...]

Nothing is run. Each run's margins and costs are kept in DOCS/evidence/runs/, so that tables can be made anew, and later
runs be compared pair by pair, where --output is gone. Each part of the evidence is a comparison of its own under
DOCS/evidence/<part>/ (comparison.json, comparison.md, comparison.png), whose differences are to our configuration; and
between the lines `<!-- table: <part> -->` and `<!-- end -->` of DOCS/evidence.md its tables are written. The parts:

- `sweep`: each method at each learning rate, on validation rows, one seed;
- `final`: the required methods and ours, first order, on test rows;
- `orders`: those of them that have an order, and what else was run, the other orders;
- `methods`: every method, first order, the first seed alone.

Methods that were not run are named under each table. A part of its own, `tasks`, tells what became of each
task in each order. With `--prefix later-` the parts are `later-sweep` and so on, for runs of another machine, and what
the part without the prefix holds is not named as missing. With `--against METHOD` differences are to it instead. A
table is not written where runs that it tells are gone.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from by_order import ends_table, over_orders
from prepare import TASKS
from run import POOLED, STAGES, SWEEP_SEED, grid_of

from hf_lifealign._files import read_json, write_json, write_text
from hf_lifealign.compare.document import write_comparison
from hf_lifealign.compare.plan import Plan
from hf_lifealign.compare.runner import DONE

HERE = Path(__file__).resolve().parent
RESULT = "result.json"
PARTS = ("sweep", "final", "orders", "methods")
DIGITS = 4
Results = list[dict[str, Any]]


def results_of(folder: Path, kept: Path) -> Results:
    """What came of all arms of a stage, whatever plan they were part of: those that lie in `folder`, and those that are
    `kept` from earlier."""
    files = {file.relative_to(kept).with_suffix(""): file for file in kept.glob("*/*/seed-*.json")}
    files |= {file.parent.relative_to(folder): file for file in folder.glob(f"*/*/seed-*/{RESULT}")}
    return [read_json(files[name]) for name in sorted(files)]


def keep(output: Path, runs: Path) -> None:
    """Copies what came of each run in `output` to `runs`, its margins with four digits, and the rates."""
    if (output / "chosen.json").is_file():
        write_json(runs / "chosen.json", read_json(output / "chosen.json"))
    for stage in (stage + pooled for stage in STAGES for pooled in ("", f"-{POOLED}")):
        for file in (output / stage).glob(f"*/*/seed-*/{RESULT}"):
            result = read_json(file)
            if result["status"] == DONE:
                short = [[[float(f"{m:.{DIGITS}g}") for m in task] for task in after] for after in result["margins"]]
                result |= {"margins": short}
            name = file.parent.relative_to(output).with_suffix(".json")
            write_text(runs / name, json.dumps(result, sort_keys=True, separators=(",", ":")) + "\n")


def gone(published: Path, results: Results) -> list[str]:
    """Runs that a published comparison tells, and that are not among the results."""
    if not published.is_file():
        return []
    orders = read_json(published)["orders"]
    told = {(o, m, s) for o in orders for m, entry in orders[o]["methods"].items() for s in entry["seeds"]}
    told |= {(o, failure["method"], failure["seed"]) for o in orders for failure in orders[o]["failed"]}
    return [f"{m} (order {o}, seed {s})" for o, m, s in sorted(told - {
        (result["order"], result["method"], result["seed"]) for result in results
    })]  # fmt: skip


def by_task(result: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A result of a method that learnt the rows of all tasks as one, with its pairs told apart: only the end of its
    life is known.

    Raises:
        ValueError: if its pairs are not those of all tasks, one after another.
    """
    if result["status"] != DONE:
        return result
    part = "validation" if result["seed"] == SWEEP_SEED else "test"
    margins, rows = result["margins"][-1][-1], [data[task][part]["rows"] for task in TASKS]
    if len(margins) != sum(rows):
        raise ValueError(
            f"The run {result['method']}, seed {result['seed']}, was measured on {len(margins)} pairs, but there are "
            f"{sum(rows)} {part} rows. Raise max_length in methods.yaml, so that no pair is lost."
        )
    ends = list(accumulate(rows))
    last = [margins[end - n : end] for end, n in zip(ends, rows, strict=True)]
    return result | {"tasks": list(TASKS), "margins": [[] for _ in TASKS[1:]] + [last]}


def part_plan(output: Path, methods: Sequence[str], results: Results, against: str) -> Plan:
    """A comparison of results, as they lie."""
    orders = {result["order"]: list(result.get("tasks") or []) for result in results}
    seeds = sorted({result["seed"] for result in results})
    return Plan(str(output), list(methods), orders, seeds, against, [])


def parts_of(
    output: Path, runs: Path, content: Mapping[str, Any], data: Mapping[str, Any], against: str | None = None
) -> dict[str, tuple[list[str], Results, str]]:
    """By part: its methods, its results, and the method that the others are compared to (ours, or `against`)."""
    known = list(content["methods"])
    files = [file for file in (output / "chosen.json", runs / "chosen.json") if file.is_file()]
    chosen = read_json(files[0]) if files else {}
    ours = chosen.get("ours")
    if ours is None:
        raise SystemExit(
            f"In {output} none of our configurations has been swept yet, and the tables are differences to it. Run "
            "benchmarks/stream/run.py with this --output and --stage sweep first."
        )
    stages = {
        stage: results_of(output / stage, runs / stage)
        + [by_task(result, data) for result in results_of(*(each / f"{stage}-{POOLED}" for each in (output, runs)))]
        for stage in STAGES
    }
    rated = [f"{name}-{rate:g}" for name in known for rate in grid_of(content, name)]
    against = against or ours
    rate = chosen["chosen"].get(against)
    best = against if rate is None else f"{against}-{rate:g}"
    first = min((result["seed"] for result in stages["final"] + stages["baselines"]), default=0)
    alone = [r for r in stages["final"] + stages["baselines"] if r["seed"] == first]
    ran = [n for n in known if content["methods"][n]["kind"] == "required" or n == ours]
    named = {result["method"] for result in stages["orders"]}
    ordered = [n for n in known if n in named or (n in ran and not content["methods"][n].get("pooled", False))]
    return {
        "sweep": (rated, stages["sweep"], best),
        "final": (ran, stages["final"], against),
        "orders": (ordered, stages["orders"], against),
        "methods": ([n for n in known if content["methods"][n]["kind"] != "ours" or n == ours], alone, against),
        "tasks": (known, [*stages["final"], *stages["baselines"], *stages["orders"]], against),
    }


def tables(text: str) -> str:
    """A comparison's tables without its title and first paragraph."""
    return "\n\n".join(part.split("\n", 1)[1].strip() for part in text.split("\n## ")[1:])


def filled(page: str, part: str, told: str) -> str:
    """A page with the tables of a part in their place.

    Raises:
        SystemExit: if the page has no place for them.
    """
    place = re.compile(rf"(<!-- table: {re.escape(part)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        raise SystemExit(f"The page has no lines '<!-- table: {part} -->' and '<!-- end -->' for these tables.")
    return place.sub(lambda found: f"{found.group(1)}{told}\n{found.group(2)}", page)


def refuse_losses(published: Path, results: Results) -> None:
    """Refuses to write a table anew without runs that it tells now.

    Raises:
        SystemExit: if runs that the published comparison tells are not among the results.
    """
    lost = gone(published, results)
    if lost:
        raise SystemExit(
            f"{published.parent} tells runs that lie neither in --output nor among those kept beside it: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Leave this part out (--parts), write what is "
            "here as a part of its own (--prefix), or remove that folder."
        )


def write_part(evidence: Path, name: str, part: tuple[list[str], Results, str], elsewhere: set[str]) -> str | None:
    """Writes the comparison of a part, and returns its tables for the page, or nothing if there is nothing new.

    Raises:
        SystemExit: if runs that the published comparison tells are gone.
    """
    methods, results, against = part
    published = evidence / name / "comparison.json"
    if not results:
        return None if published.is_file() else "Not run yet."
    refuse_losses(published, results)
    ran = {result["method"] for result in results}
    plan = part_plan(evidence / name, [m for m in methods if m in ran], results, against)
    write_comparison(plan, results)
    told = tables((Path(plan.output_dir) / "comparison.md").read_text(encoding="utf-8"))
    missing = ", ".join(f"`{name}`" for name in methods if name not in ran | elsewhere)
    told += f"\n\nNot run: {missing}." if missing else ""
    return f"{told}\n\n![What each method keeps](evidence/{name}/comparison.png)"


def methods_in(published: Path) -> set[str]:
    """The methods that a published comparison tells."""
    orders = read_json(published)["orders"].values() if published.is_file() else []
    return {method for order in orders for method in order["methods"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--parts", nargs="+", default=[*PARTS, "tasks"], choices=[*PARTS, "tasks"])
    parser.add_argument("--prefix", default="", help="before the parts' names")
    content = yaml.safe_load((HERE / "methods.yaml").read_text(encoding="utf-8"))
    parser.add_argument("--against", choices=list(content["methods"]), help="differences to it (default: to ours)")
    options = parser.parse_args()
    file, evidence = options.docs / "evidence.md", options.docs / "evidence"
    page = file.read_text(encoding="utf-8")
    manifest, known = options.output / "data" / "manifest.json", evidence / "rows.json"
    rows = read_json(manifest if manifest.is_file() else known)
    parts = parts_of(options.output, evidence / "runs", content, rows["tasks"], options.against)
    if known.is_file() and read_json(known) != rows:
        raise SystemExit(f"The runs in {options.output} learnt other rows than {known} tells: their "
                         "tables would not go together. Give another --docs.")  # fmt: skip
    write_json(known, rows)
    keep(options.output, evidence / "runs")
    for part in (part for part in PARTS if part in options.parts):
        name = options.prefix + part
        elsewhere = methods_in(evidence / part / "comparison.json") if options.prefix else set()
        told = write_part(evidence, name, parts[part], elsewhere)
        page = page if told is None else filled(page, name, told)
        print(f"{name}: {len(parts[part][1])} runs", flush=True)
    if "tasks" in options.parts:
        for part in ("final", "orders", "methods"):
            refuse_losses(evidence / f"{options.prefix}{part}" / "comparison.json", parts[part][1])
        _, lived, against = parts["tasks"]
        ends = [ends_table(lived), over_orders(lived, against)] if lived else ["Not run yet."]
        page = filled(page, f"{options.prefix}tasks", "\n\n".join(ends))
    write_text(file, page)
    print(file)


if __name__ == "__main__":
    main()
