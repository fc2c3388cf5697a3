"""What became of each task, by the order in which tasks were learnt: tables of the evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prepare import TASKS

from hf_lifealign.compare.figures import compared, matrix_of
from hf_lifealign.compare.runner import DONE

Results = Sequence[Mapping[str, Any]]
LAST = "last_performance"


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
    lived, of the first seed alone, with intervals over pairs and orders. Methods of one order are left out."""
    seed = min((result["seed"] for result in results), default=0)
    ends: dict[str, dict[str, Any]] = {}
    for result in results:
        if result["status"] == DONE and result["seed"] == seed:
            last = dict(zip(result["tasks"], result["margins"][-1], strict=True))
            ends.setdefault(result["method"], {})[result["order"]] = [last[task] for task in TASKS]
    orders = sorted(ends.get(against, {}))
    others = {method: held for method, held in ends.items() if len(held.keys() & set(orders)) > 1}
    if len(orders) < 2 or len(others) < 2:
        return "Only one order has been lived by several methods."
    # an order stands for a seed: of all of a life only the end is told, or of a task nothing but the task
    whole: dict[str, dict[int, Any]] = {}
    for method, held in others.items():
        whole[method] = {i: [[] for _ in TASKS[1:]] + [held[order]] for i, order in enumerate(orders) if order in held}
    alone = [
        {method: {i: [[life[-1][at]]] for i, life in lives.items()} for method, lives in whole.items()}
        for at in range(len(TASKS))
    ]
    columns = [compared(arms, against) for arms in [*alone, whole]]
    lines = [
        f"Differences to `{against}` at the end, mean over orders ({', '.join(orders)}), seed {seed}.",
        "",
        "| method | orders | " + " | ".join(TASKS) + " | Last |",
        "| :-- |" + " --: |" * (len(TASKS) + 2),
    ]
    for method in (name for name in whole if name != against):
        found = [column[method]["differences"][LAST] for column in columns]
        cells = ["" if f is None else f"{f.value:+.3f} [{f.low:+.3f}, {f.high:+.3f}]" for f in found]
        lines.append(f"| {method} | {len(whole[method])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
