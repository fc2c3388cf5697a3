"""The stream benchmark: what each method keeps of truthful, safe, harmless and helpful, learnt one after another.

    python benchmarks/stream/run.py DATA [--stage sweep final orders baselines] [--methods sequential replay ...]

DATA is a folder of preference tasks (see prepare.py). One command; what has been run is not run again, and a run that
was killed goes on from its last checkpoint. The stages:

- `sweep`: each method with each learning rate of the grid, first order, a seed of its own; measured on validation rows.
- `final`: each required method and ours with its best rate, first order, three seeds; test rows.
- `orders`: the required methods that have an order, ours, and those named by --methods, on the other orders.
- `baselines`: the other methods with their best rate, first order, one seed.

Everything goes to --output (benchmarks/results/stream by default): `<stage>/` is a comparison as `lifealign compare`
writes it, `<stage>-pooled/` one of methods that learn the rows of all tasks together, and `chosen.json` says which
rates, and which of our candidates, were taken and why. `--swept FILE ...` takes the rates that sweeps elsewhere have
tried from their comparison.json (of two that tell the same, the later one's), and runs those alone that are missing
there.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from prepare import PARTS, TASKS, add_sizes, prepare

from hf_lifealign._files import read_json, write_json, write_text
from hf_lifealign.compare.document import write_comparison
from hf_lifealign.compare.figures import METRICS, matrix_of, summarise
from hf_lifealign.compare.plan import Plan, read_plan
from hf_lifealign.compare.runner import DONE, collected, run_arms

HERE = Path(__file__).resolve().parent
STAGES = ("sweep", "final", "orders", "baselines")
ORDERS = {
    "first": ["truthful", "safe", "harmless", "helpful"],
    "reverse": ["helpful", "harmless", "safe", "truthful"],
    "mixed": ["harmless", "truthful", "helpful", "safe"],
}
OTHERS = [order for order in ORDERS if order != "first"]
SWEEP_SEED, SEEDS = 100, [0, 1, 2]
POOLED = "pooled"


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """methods.yaml: what all methods share, and the methods."""
    content: dict[str, Any] = yaml.safe_load((HERE / "methods.yaml").read_text(encoding="utf-8"))
    if options.max_steps:
        content["common"]["training"]["max_steps"] = options.max_steps
    if options.dtype:
        content["common"]["model_init_kwargs"]["dtype"] = options.dtype
    return content


def plans_of(
    options: argparse.Namespace, stage: str, part: str, methods: dict[str, Any], orders: list[str], seeds: list[int],
) -> Iterator[Plan]:  # fmt: skip
    """The comparisons of a stage, each written as a recipe beside its results: of the methods that learn task after
    task, and of those that learn the rows of all tasks as one, which have no order."""
    common = settings_of(options)["common"]
    for pooled, told in ((False, {name: ORDERS[name] for name in orders}), (True, {"first": [POOLED]})):
        own = {name: method["settings"] for name, method in methods.items() if method.get("pooled", False) == pooled}
        if not own:
            continue
        folder = f"{stage}-{POOLED}" if pooled else stage
        names = next(iter(told.values()))
        tasks = [{"name": t, "train": f"data/{t}/train.jsonl", "test": f"data/{t}/{part}.jsonl"} for t in names]
        recipe = common | {
            "model": options.model, "tasks": tasks, "methods": own, "orders": told, "seeds": seeds,
            "against": "sequential" if "sequential" in own else next(iter(own)),
            "output_dir": str(options.output / folder),
        }  # fmt: skip
        file = options.output / f"{folder}.yaml"
        write_text(file, yaml.safe_dump(recipe, sort_keys=False))
        yield read_plan(file)


def live(plan: Plan, options: argparse.Namespace, asked: set[str]) -> list[dict[str, Any]]:
    """Runs the asked methods of a comparison, and writes its tables of all that have been run."""
    part = replace(plan, arms=[arm for arm in plan.arms if arm.method in asked])
    run_arms(part, options.output, lambda line: print(line, flush=True), jobs=options.jobs)
    results = collected(plan)
    write_comparison(plan, results)
    print(f"{plan.output_dir}/comparison.md, comparison.png", flush=True)
    return results


def grid_of(content: dict[str, Any], name: str) -> list[float]:
    """The learning rates that are tried for a method."""
    grid: list[float] = content["methods"][name].get("grid", content["grid"])
    return grid


def rated(method: dict[str, Any], rate: float) -> dict[str, Any]:
    """A method with a learning rate."""
    settings = method["settings"]
    return method | {"settings": settings | {"training": (settings.get("training") or {}) | {"learning_rate": rate}}}


def sweep(options: argparse.Namespace, content: dict[str, Any], asked: list[str]) -> dict[str, float]:
    """Runs the asked methods with each learning rate, and tells the best one of each that has been run with all: that
    with the highest Last on validation rows, of a seed of its own."""
    known = content["methods"]
    ended: dict[str, dict[float, float | None]] = {}
    labels = {f"{name}-{rate:g}": (name, rate) for name in known for rate in grid_of(content, name)}
    methods = {label: rated(known[name], rate) for label, (name, rate) in labels.items()}
    elsewhere = {label: last for file in options.swept for label, last in swept_elsewhere(file).items()}
    for label, last in elsewhere.items():
        if label in labels:
            name, rate = labels[label]
            ended.setdefault(name, {})[rate] = last
    missing = {label for label, (name, _) in labels.items() if name in asked} - elsewhere.keys()
    for plan in plans_of(options, "sweep", "validation", methods, ["first"], [SWEEP_SEED]):
        for result in live(plan, options, missing):
            name, rate = labels[result["method"]]
            ended.setdefault(name, {})[rate] = last_of(result)
    chosen, reached = {}, {}
    for name, rates in ended.items():
        found = {rate: value for rate, value in rates.items() if value is not None}
        if len(rates) == len(grid_of(content, name)) and found:
            chosen[name] = max(found, key=found.__getitem__)
            reached[name] = found[chosen[name]]
    candidates = [name for name, method in known.items() if method["kind"] == "ours" and name in chosen]
    ours = max(candidates, key=reached.__getitem__, default=None)
    write_json(options.output / "chosen.json", {"last_on_validation": ended, "chosen": chosen, "ours": ours})
    return {name: rate for name, rate in chosen.items() if name == ours or name not in candidates}


def last_of(result: dict[str, Any]) -> float | None:
    """Last of a run that was finished."""
    if result["status"] != DONE:
        return None
    return float(summarise(matrix_of(result["margins"]))[METRICS.index("last_performance")])


def swept_elsewhere(file: Path) -> dict[str, float | None]:
    """Last on validation rows by method and rate, as a sweep's comparison.json tells it; of a run that failed, None."""
    held = read_json(file)["orders"]["first"]
    ended: dict[str, float | None] = {told["method"]: None for told in held["failed"]}
    figures = {label: entry["accuracy"]["figures"]["last_performance"] for label, entry in held["methods"].items()}
    return ended | {label: figure["value"] for label, figure in figures.items()}


def prepared(options: argparse.Namespace) -> None:
    """Cuts the data, or ends the benchmark if the output holds others."""
    told = {"tokens": options.tokens, "sizes": {part: getattr(options, part) for part in PARTS}, "model": options.model}
    file = options.output / "data" / "manifest.json"
    if not file.is_file():
        prepare(options.data, options.output / "data", told["sizes"], options.tokens, options.model)
    held = read_json(file)
    other = sorted(key for key in told if held.get(key) != told[key])
    if other:
        raise SystemExit(
            f"{file.parent} holds rows cut with other settings ({', '.join(other)}). Give another --output."
        )
    (file.parent / POOLED).mkdir(exist_ok=True)
    for part in PARTS:
        rows = "".join((file.parent / task / f"{part}.jsonl").read_text(encoding="utf-8") for task in TASKS)
        write_text(file.parent / POOLED / f"{part}.jsonl", rows)


def stages_of(
    best: dict[str, Any], named: list[str], seeds: list[int], others: list[str] = OTHERS
) -> dict[str, tuple[dict[str, Any], list[str], list[int]]]:
    """By stage after the sweep: its methods of those that have a rate, its orders, and its seeds."""
    final = {n: m for n, m in best.items() if m["kind"] in ("required", "ours")}
    ordered = {n: m for n, m in best.items() if not m.get("pooled", False) and (n in final or n in named)}
    baselines = {n: m for n, m in best.items() if m["kind"] == "baseline"}
    return {
        "final": (final, ["first"], seeds),
        "orders": (ordered, others, seeds),
        "baselines": (baselines, ["first"], seeds[:1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of preference tasks")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream"))
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--methods", nargs="+", default=None, help="only these (default: all of methods.yaml)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the final stages")
    parser.add_argument("--orders", nargs="+", default=OTHERS, choices=OTHERS, help="of the stage orders")
    parser.add_argument("--jobs", type=int, default=1, help="lives at a time, each with its part of the cores")
    parser.add_argument("--swept", nargs="+", type=Path, default=[], help="comparison.json of sweeps made elsewhere")
    parser.add_argument("--dtype", default=None, help="of the base; float32 where a processor has no fast bfloat16")
    parser.add_argument("--max-steps", type=int, default=None, help="cut each task's training, to try the script")
    add_sizes(parser)
    options = parser.parse_args()
    content = settings_of(options)
    prepared(options)
    asked = options.methods or list(content["methods"])
    chosen = sweep(options, content, asked if "sweep" in options.stage else [])
    best = {name: rated(content["methods"][name], rate) for name, rate in chosen.items()}
    wanted = stages_of(best, options.methods or [], options.seeds, options.orders)
    swept = read_json(options.output / "chosen.json")["chosen"]
    unswept = ", ".join(name for name in asked if name not in swept)
    for stage in (stage for stage in options.stage if stage in wanted):
        methods, orders, seeds = wanted[stage]
        if unswept:
            print(f"{stage}: no learning rate has been chosen yet for {unswept}; run the stage sweep", flush=True)
        for plan in plans_of(options, stage, "test", methods, orders, seeds):
            live(plan, options, set(asked))


if __name__ == "__main__":
    main()
