"""Tables and pictures of docs/evidence.md from what run.py has measured.

    python benchmarks/stream/evidence.py [--output benchmarks/results/stream] [--docs docs]

Nothing is run. Each part of the evidence is a comparison of its own under DOCS/evidence/<part>/ (comparison.json,
comparison.md, comparison.png), whose differences are to our configuration; and between the lines
`<!-- table: <part> -->` and `<!-- end -->` of DOCS/evidence.md its tables are written anew. The parts:

- `sweep`: each method at each learning rate, on validation rows, one seed;
- `final`: the required methods and ours, first order, on test rows;
- `orders`: those of them that have an order, the other orders;
- `methods`: every method, first order, the first seed alone.

Methods that were not run are named under each table. A part of its own, `tasks`, tells what became of each
task in each order.
"""

import argparse
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
Results = list[dict[str, Any]]


def results_of(folder: Path) -> Results:
    """What came of all arms of a stage, whatever plan they were part of."""
    return [read_json(file) for file in sorted(folder.glob(f"*/*/seed-*/{RESULT}"))]


def by_task(result: dict[str, Any], output: Path) -> dict[str, Any]:
    """A result of a method that learnt the rows of all tasks as one, with its pairs told apart: only the end of its
    life is known.

    Raises:
        ValueError: if its pairs are not those of all tasks, one after another.
    """
    if result["status"] != DONE:
        return result
    part = "validation" if result["seed"] == SWEEP_SEED else "test"
    data = read_json(output / "data" / "manifest.json")["tasks"]
    margins, rows = result["margins"][-1][-1], [data[task][part]["rows"] for task in TASKS]
    if len(margins) != sum(rows):
        raise ValueError(
            f"The run {result['method']}, seed {result['seed']}, was measured on {len(margins)} pairs, but there are "
            f"{sum(rows)} {part} rows in {output / 'data'}. Raise max_length in methods.yaml, so that no pair is lost."
        )
    ends = list(accumulate(rows))
    last = [margins[end - n : end] for end, n in zip(ends, rows, strict=True)]
    return result | {"tasks": list(TASKS), "margins": [[] for _ in TASKS[1:]] + [last]}


def part_plan(output: Path, methods: Sequence[str], results: Results, against: str) -> Plan:
    """A comparison of results, as they lie."""
    orders = {result["order"]: list(result.get("tasks") or []) for result in results}
    seeds = sorted({result["seed"] for result in results})
    return Plan(str(output), list(methods), orders, seeds, against, [])


def parts_of(output: Path, content: Mapping[str, Any]) -> dict[str, tuple[list[str], Results, str]]:
    """By part: its methods, its results, and the method that the others are compared to."""
    known = list(content["methods"])
    chosen = read_json(output / "chosen.json") if (output / "chosen.json").is_file() else {}
    ours = chosen.get("ours")
    if ours is None:
        raise SystemExit(
            f"In {output} none of our configurations has been swept yet, and the tables are differences to it. Run "
            "benchmarks/stream/run.py with this --output and --stage sweep first."
        )
    stages = {
        stage: results_of(output / stage)
        + [by_task(result, output) for result in results_of(output / f"{stage}-{POOLED}")]
        for stage in STAGES
    }
    rated = [f"{name}-{rate:g}" for name in known for rate in grid_of(content, name)]
    best = f"{ours}-{chosen['chosen'][ours]:g}"
    first = min((result["seed"] for result in stages["final"] + stages["baselines"]), default=0)
    alone = [r for r in stages["final"] + stages["baselines"] if r["seed"] == first]
    ran = [n for n in known if content["methods"][n]["kind"] == "required" or n == ours]
    return {
        "sweep": (rated, stages["sweep"], best),
        "final": (ran, stages["final"], ours),
        "orders": ([n for n in ran if not content["methods"][n].get("pooled", False)], stages["orders"], ours),
        "methods": ([n for n in known if content["methods"][n]["kind"] != "ours" or n == ours], alone, ours),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    content = yaml.safe_load((HERE / "methods.yaml").read_text(encoding="utf-8"))
    file = options.docs / "evidence.md"
    page = file.read_text(encoding="utf-8")
    parts = parts_of(options.output, content)
    for part, (methods, results, against) in parts.items():
        told = "Not run yet."
        if results:
            ran = {result["method"] for result in results}
            plan = part_plan(options.docs / "evidence" / part, [m for m in methods if m in ran], results, against)
            write_comparison(plan, results)
            told = tables((Path(plan.output_dir) / "comparison.md").read_text(encoding="utf-8"))
            missing = ", ".join(f"`{name}`" for name in methods if name not in ran)
            told += f"\n\nNot run: {missing}." if missing else ""
            told += f"\n\n![What each method keeps](evidence/{part}/comparison.png)"
        page = filled(page, part, told)
        print(f"{part}: {len(results)} runs", flush=True)
    lived = [result for part in ("final", "orders") for result in parts[part][1]]
    ends = [ends_table(lived), over_orders(lived, parts["final"][2])] if lived else ["Not run yet."]
    page = filled(page, "tasks", "\n\n".join(ends))
    write_json(options.docs / "evidence" / "rows.json", read_json(options.output / "data" / "manifest.json"))
    write_text(file, page)
    print(file)


if __name__ == "__main__":
    main()
