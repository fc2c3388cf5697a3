"""Strategies and judges by name, found through Python entry points, and functions by the path of their module."""

import difflib
import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hf_lifealign.strategies.base import Strategy

STRATEGIES = "hf_lifealign.strategies"
JUDGES = "hf_lifealign.judges"


class PlugInError(ImportError):
    """What a run was asked to use cannot be imported."""


_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


def available(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name.

    Raises:
        ValueError: if two distributions offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise ValueError(
                f"Two packages offer {point.name!r} in the entry-point group {group!r}: {_origin(other)} and "
                f"{_origin(point)}. Uninstall one of them."
            )
        found[point.name] = point
    return found


def _origin(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version} ({point.value})" if dist is not None else point.value


def load(group: str, name: str) -> Any:
    """Imports what an entry point names.

    Raises:
        ValueError: if there is no such name; the close ones are suggested.
        PlugInError: if it cannot be imported; the distribution that offers it is named.
    """
    points = available(group)
    if name not in points:
        close = difflib.get_close_matches(name, points, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"You asked for {name!r} of {group!r}. No installed package offers it.{hint} There are: {sorted(points)}."
        )
    try:
        return points[name].load()
    except Exception as error:
        raise PlugInError(
            f"The plug-in {name!r} of {_origin(points[name])} cannot be imported: {type(error).__name__}: {error}. "
            "Repair or uninstall that package; a run does not go on without what it was asked to use."
        ) from error


def is_function_path(spec: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _FUNCTION.fullmatch(spec) is not None


def imported(spec: str, kind: str) -> Any:
    """Imports what `package.module:function` names.

    Args:
        spec (`str`): the path.
        kind (`str`): what it is set as, for errors, e.g. `"reward"`.

    Raises:
        PlugInError: if the module cannot be imported, or has nothing of that name.
    """
    module_name, _, path = spec.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        raise PlugInError(
            f"You set the {kind} {spec!r}. The module {module_name} cannot be imported: {type(error).__name__}: "
            f"{error}. Install it, or set PYTHONPATH to where it lies."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PlugInError(f"You set the {kind} {spec!r}. The module {module_name} has no {path}.")
        found = getattr(found, part)
    return found


def resolve_strategies(specs: Sequence[Any]) -> list[Strategy]:
    """Builds strategies from names, `{"name": ..., option: value}` mappings and [`Strategy`] objects.

    Raises:
        ValueError: for something that is none of these, an unknown name, wrong options, or a strategy that stands
            twice.
    """
    if isinstance(specs, (str, dict)):
        raise ValueError(f"You set strategies to {specs!r}. Give a list, e.g. [{specs!r}].")
    strategies: list[Strategy] = []
    for spec in specs:
        if isinstance(spec, Strategy):
            strategies.append(spec)
            continue
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, dict) or "name" not in spec:
            raise ValueError(
                f"You set the strategy {spec!r}. Give its name, a mapping with 'name' and options, or a Strategy."
            )
        options = dict(spec)
        name = options.pop("name")
        factory = load(STRATEGIES, name)
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            raise ValueError(
                f"You set the options {sorted(options)} of the strategy {name!r}: {error}. It takes "
                f"{sorted(inspect.signature(factory).parameters)}."
            ) from error
        try:
            strategy = factory(**options)
        except TypeError as error:
            raise ValueError(
                f"You set the options {options} of the strategy {name!r}, of which one is not of its type: {error}. "
                "Give numbers as numbers, e.g. 0.2 and not 20% or 1/5."
            ) from error
        if not isinstance(strategy, Strategy):
            raise PlugInError(
                f"The plug-in {name!r} gave a {type(strategy).__name__}, which is no hf_lifealign.Strategy."
            )
        strategies.append(strategy)
    names = [strategy.name for strategy in strategies]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The strategy {name!r} stands {names.count(name)} times. Name each strategy once.")
    return strategies
