"""The runs of a comparison: one recipe, and what each method sets otherwise."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lifealign._recipes import read_settings
from hf_lifealign.lifelong.recipe import KEYS

_OWN = {
    "methods": "by name: what the method sets otherwise, e.g. {strategy: replay}",
    "seeds": "list of seeds (default: that of run.seed)",
    "orders": "by name: the tasks in another order (default: as they are listed)",
    "against": "the method to which the others are compared (default: the first)",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Arm:
    """One run of a comparison.

    Args:
        order, method (`str`), seed (`int`): what it is.
        recipe (`dict`): its whole recipe, as [`~hf_lifealign.lifelong.recipe.build_run`] takes it.
    """

    order: str
    method: str
    seed: int
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        """`order/method/seed-N`, its folder too."""
        return f"{self.order}/{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison as its recipe describes it."""

    output_dir: str
    methods: list[str]
    orders: dict[str, list[str]]
    seeds: list[int]
    against: str
    arms: list[Arm]


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them: mappings key by key, everything else replaced; `None` takes a key out."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlaid(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_plan(path: str | Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> Plan:
    """Reads the recipe of a comparison.

    Args:
        path (`str` or `Path`): YAML file.
        overrides (`Sequence[str]`): `"key.sub=value"` each.
        output_dir (`str`, *optional*): takes the place of the recipe's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a key is unknown, there is no method, or orders and names do not fit.
    """
    content = read_settings(path, KEYS | _OWN, ("model", "tasks", "methods"), overrides)
    base = {key: value for key, value in content.items() if key not in _OWN}
    folder = output_dir or base.pop("output_dir", None)
    base.pop("output_dir", None)
    if not folder:
        raise ValueError("The recipe sets no output_dir. Set it there, or give --output-dir.")
    methods = content["methods"]
    if not isinstance(methods, dict) or not methods:
        raise ValueError("You set methods to something that names none. Give a mapping: name: {strategy: ...}.")
    # what self-align has made names itself, and keeps its place
    given = [str(task.get("name") or task.get("self_align")) for task in base["tasks"]]
    orders = content.get("orders") or {"given": given}
    seeds = content.get("seeds") or [(base.get("run") or {}).get("seed", 42)]
    against = content.get("against") or next(iter(methods))
    for kind, names in (("methods", methods), ("orders", orders)):
        for name in names:
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"You named one of the {kind} {name!r}. Use letters, digits, '-', '_' and '.'.")
    for name, tasks in orders.items():
        if sorted(tasks) != sorted(given):
            raise ValueError(f"You set the order {name!r} to {tasks}. It has to hold each of {given} once.")
    if against not in methods:
        raise ValueError(f"You set against: {against!r}. There is no such method; there are {list(methods)}.")
    if any(type(seed) is not int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"You set seeds: {seeds}. Give whole numbers, each once.")
    arms = [
        Arm(order, method, seed, _recipe(base, over or {}, tasks, seed))
        for order, tasks in orders.items()
        for seed in seeds
        for method, over in methods.items()
    ]
    return Plan(str(folder), list(methods), orders, list(seeds), against, arms)


def _recipe(base: dict[str, Any], over: dict[str, Any], order: list[str], seed: int) -> dict[str, Any]:
    if "strategy" in over or "strategies" in over:
        base = {key: value for key, value in base.items() if key not in ("strategy", "strategies")}
    recipe = overlaid(base, over)
    recipe["tasks"] = sorted(
        recipe["tasks"], key=lambda task: order.index(str(task.get("name") or task.get("self_align")))
    )
    recipe["run"] = (recipe.get("run") or {}) | {"seed": seed}
    return recipe
