"""The runs of a comparison: one recipe, and what each method sets otherwise."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_lifealign._recipes import read_settings, refuse_unknown
from hf_lifealign.lifelong.recipe import KEYS, strategies_of

_OWN = {
    "methods": "by name: what the method sets otherwise, e.g. {strategy: replay}",
    "seeds": "list of seeds (default: that of run.seed)",
    "orders": "by name: the tasks in another order (default: as they are listed)",
    "against": "the method to which the others are compared (default: the first)",
}
# What belongs to the comparison, and not to one of its methods.
_SHARED = ("tasks", "output_dir")
# What is published is a life, not a comparison; and a token is stored nowhere, but each arm's recipe is.
_PUBLISHING = ("push_to_hub", "hub_token")
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
        ValueError: if a key is unknown, there is no method, orders and names do not fit, or an arm would be published.
    """
    content = read_settings(path, KEYS | _OWN, ("model", "tasks", "methods"), overrides)
    base = {key: value for key, value in content.items() if key not in _OWN}
    folder = output_dir or base.pop("output_dir", None)
    base.pop("output_dir", None)
    if not folder:
        raise ValueError("The recipe sets no output_dir. Set it there, or give --output-dir.")
    methods, orders = content["methods"], content.get("orders")
    if not isinstance(methods, dict) or not methods:
        raise ValueError("You set methods to something that names none. Give a mapping: name: {strategy: ...}.")
    _check_settings("the recipe", base)
    for name, over in methods.items():
        _check_settings(f"methods.{name}", {} if over is None else over, _SHARED)
    if not isinstance(base["tasks"], list) or not all(isinstance(task, dict) for task in base["tasks"]):
        raise ValueError(f"You set tasks to {base['tasks']!r}. Give a list of mappings: name, train, test.")
    # what self-align has made names itself, and keeps its place
    given = [str(task.get("name") or task.get("self_align")) for task in base["tasks"]]
    orders = {"given": given} if orders is None else orders
    if not isinstance(orders, dict) or not all(isinstance(tasks, list) for tasks in orders.values()) or not orders:
        raise ValueError(f"You set orders to {orders!r}. Give a mapping: name: [task, task, ...].")
    seeds = content.get("seeds") or [(base.get("run") or {}).get("seed", 42)]
    if not isinstance(seeds, list):
        raise ValueError(f"You set seeds to {seeds!r}. Give a list of whole numbers, e.g. [0, 1, 2].")
    against = content.get("against") or next(iter(methods))
    for kind, names in (("methods", methods), ("orders", orders)):
        for name in names:
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"You named one of the {kind} {name!r}. Use letters, digits, '-', '_' and '.'.")
    for name, tasks in orders.items():
        if sorted(map(str, tasks)) != sorted(given):
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


def _check_settings(where: str, settings: Any, foreign: Sequence[str] = ()) -> None:
    """Refuses what no recipe of an arm may hold."""
    if not isinstance(settings, dict):
        raise ValueError(f"You set {where} to {settings!r}. Give a mapping, e.g. {{strategy: replay}}.")
    refuse_unknown(settings, [key for key in KEYS if key not in foreign], where)
    if settings.get("strategy") is not None and settings.get("strategies") is not None:
        raise ValueError(f"You set strategy and strategies in {where}. Put all of them under strategies.")
    for key in ("run", "adapter", "training", "warm_start", "model_init_kwargs"):
        if not isinstance(settings.get(key) or {}, dict):
            raise ValueError(f"You set {key} in {where} to {settings[key]!r}. It has to be a mapping.")
    for key in _PUBLISHING:
        if (settings.get("run") or {}).get(key):
            raise ValueError(
                f"You set run.{key} in {where}. The arms of a comparison are not published: all of them would go to "
                "one repository. Take it out; lifealign push publishes the run of an arm afterwards."
            )


def _recipe(base: dict[str, Any], over: dict[str, Any], order: list[str], seed: int) -> dict[str, Any]:
    shared = base
    if "strategy" in over or "strategies" in over:
        base = {key: value for key, value in base.items() if key not in ("strategy", "strategies")}
    recipe = overlaid(base, over)
    _fit_adapter(recipe, shared, over)
    recipe["tasks"] = sorted(
        recipe["tasks"], key=lambda task: order.index(str(task.get("name") or task.get("self_align")))
    )
    recipe["run"] = (recipe.get("run") or {}) | {"seed": seed}
    return recipe


def _fit_adapter(recipe: dict[str, Any], shared: dict[str, Any], over: dict[str, Any]) -> None:
    """Takes out of an arm's adapter what all methods share, but the arm's type of adapter does not have: a prompt pool
    has no rank. What the method sets itself stays, and is refused where it does not fit."""
    inherited = set(shared.get("adapter") or {}) - set(over.get("adapter") or {}) - {"type"}
    if not inherited:
        return
    from hf_lifealign.lifelong.adapters import default_adapter_type
    from hf_lifealign.lifelong.recipe import adapter_class

    kinds = [(each.get("adapter") or {}).get("type") or default_adapter_type(strategies_of(each))
             for each in (shared, recipe)]  # fmt: skip
    if kinds[0] == kinds[1]:
        return
    known = {field.name for field in fields(adapter_class(kinds[1]))}
    recipe["adapter"] = {key: value for key, value in recipe["adapter"].items() if key not in inherited - known}


def check_methods(plan: Plan, data_dir: Path) -> None:
    """Looks at what each method sets, as its first run would, before the first run of any; no data, no model.

    Raises:
        ValueError: if a method's strategies, adapter or arguments are not known, or do not fit.
    """
    from hf_lifealign.lifelong.recipe import recipe_parts
    from hf_lifealign.strategies import resolve_strategies

    for method in plan.methods:
        arm = next((arm for arm in plan.arms if arm.method == method), None)
        try:
            parts = recipe_parts(arm.recipe, data_dir, plan.output_dir) if arm else None
            if parts and parts["args"].strategies is not None:
                resolve_strategies(parts["args"].strategies)
        except (ValueError, ImportError) as error:
            raise ValueError(f"The method {method!r} cannot be run. {error}") from error
