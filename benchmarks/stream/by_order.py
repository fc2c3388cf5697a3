"""What became of each task, by the order in which tasks were learnt: tables of the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prepare import TASKS

from hf_lifealign.compare.figures import LEVEL, REPLICATES, drawn, matrix_of, wins
from hf_lifealign.compare.runner import DONE

Results = Sequence[Mapping[str, Any]]
# Of one method, by order and seed: the margins at the end of the life, task by task as in TASKS.
Ends = dict[str, dict[int, list[Any]]]


def ends_table(results: Results) -> str:
    """By order and method: accuracy of each task at the end of the life, and its change since the task was learnt, mean
    over seeds. The change is left out for the last task, and where only the end is known."""
    found: dict[tuple[str, str], list[Any]] = {}
    for result in results:
        if result["status"] == DONE:
            matrix = matrix_of(result["margins"])
            changes = [*(matrix[-1] - np.diagonal(matrix))[:-1], np.nan]
            told = [[matrix[-1, i], changes[i]] for i in map(result["tasks"].index, TASKS)]
            found.setdefault((result["order"], result["method"]), []).append(told)
    lines = ["| order | method | seeds | " + " | ".join(TASKS) + " |", "| :-- | :-- |" + " --: |" * (len(TASKS) + 1)]
    for (order, method), values in sorted(found.items(), key=lambda item: item[0][0] != "first"):
        cells = [
            f"{end:.3f}" + ("" if np.isnan(change) else f" ({change.round(3) + 0.0:+.3f})")
            for end, change in np.mean(values, axis=0)
        ]
        lines.append(f"| {order} | {method} | {len(values)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_orders(results: Results, against: str) -> str:
    """Differences at the end of the life to a method, of each task and of Last: mean over the orders that both have
    lived, with intervals over pairs and over the seeds of each order, drawn for each method by itself. Methods of one
    order are left out.

    A method whose end does not depend on the order has lived one life for each seed, and not one for each order: each
    of its seeds counts in all orders, and is drawn once for all.
    """
    ends: dict[str, Ends] = {}
    for result in results:
        if result["status"] == DONE:
            last = dict(zip(result["tasks"], result["margins"][-1], strict=True))
            of_method = ends.setdefault(result["method"], {})
            of_method.setdefault(result["order"], {})[result["seed"]] = [np.asarray(last[task]) for task in TASKS]
    own = ends.get(against, {})
    others = {method: held for method, held in ends.items() if method != against and len(held.keys() & own.keys()) > 1}
    if len(own) < 2 or not others:
        return "Only one order has been lived by several methods."
    draws = drawn([len(margins) for margins in next(iter(next(iter(own.values())).values()))], REPLICATES, seed=0)
    orders = sorted(own)
    told = f"Differences to `{against}` at the end, mean over orders ({', '.join(orders)})."
    free = not depends_on_order(own)
    every = {seed: margins for held in own.values() for seed, margins in held.items()}
    if free:
        told += f" `{against}` ends the same in whatever order: each of its {len(every)} seeds counts in all."
    lines = [told, "", "| method | lives | " + " | ".join(TASKS) + " | Last |", "| :-- |" + " --: |" * (len(TASKS) + 2)]
    for method, held in others.items():
        shared = [order for order in orders if order in held]
        base = _drawn_ends([every] if free else [own[order] for order in shared], draws, seed=1)
        found = _drawn_ends([held[order] for order in shared], draws, seed=2) - base
        columns = np.column_stack([found, found.mean(axis=1)])
        low, high = np.quantile(columns[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        cells = [f"{v:+.3f} [{a:+.3f}, {b:+.3f}]" for v, a, b in zip(columns[0], low, high, strict=True)]
        lines.append(f"| {method} | {sum(len(held[order]) for order in shared)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def depends_on_order(ends: Ends) -> bool:
    """Whether a method ended otherwise in another order with the same seed; yes where no seed has lived two orders."""
    lives: dict[int, list[Any]] = {}
    for held in ends.values():
        for seed, margins in held.items():
            lives.setdefault(seed, []).append(margins)
    pairs = [(life[0], other) for life in lives.values() for other in life[1:]]
    return not pairs or any(not np.array_equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def _drawn_ends(orders: Sequence[Mapping[int, Any]], draws: Sequence[Any], seed: int) -> Any:
    """Share of pairs that are won of each task, mean over orders and over the seeds that are drawn in each: of shape
    `(replicates + 1, tasks)`, the first of the sample itself."""
    generator = np.random.default_rng(seed)
    means = []
    for seeds in orders:
        shares = np.array([
            [times @ wins(margins) / times.sum(axis=1) for times, margins in zip(draws, life, strict=True)]
            for life in seeds.values()
        ])  # fmt: skip
        picked = generator.integers(0, len(seeds), size=(shares.shape[-1], len(seeds)))
        picked[0] = np.arange(len(seeds))
        means.append(shares[picked, :, np.arange(len(picked))[:, None]].mean(axis=1))
    return np.mean(means, axis=0)
