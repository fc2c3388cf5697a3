"""Settings from YAML: each key is checked before anything is loaded."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from hf_lifealign._resources import resource_path


def read_settings(
    path: str | Path, known: Mapping[str, str], needed: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads a recipe, applies overrides, and checks its keys.

    Args:
        path (`str` or `Path`): YAML file.
        known (`dict[str, str]`): its keys, and what each holds.
        needed (`list[str]`): keys that have to be there.
        overrides (`Sequence[str]`): `"key.sub=value"` each; the value is YAML.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a mapping of known keys, one is lacking, or an override cannot be read.
    """
    path = find_recipe(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {path}. Give the path of a YAML file, e.g. recipes/quickstart.yaml."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"The recipe {path} holds a {type(content).__name__}. It has to be a mapping with {list(known)}."
        )
    for override in overrides:
        apply_override(content, override)
    refuse_unknown(content, known, f"the recipe {path.name}")
    for key in needed:
        if key not in content:
            raise ValueError(f"The recipe {path} lacks {key!r} ({known[key]}).")
    return content


def find_recipe(path: str | Path) -> Path:
    """The recipe's file: as it is named, or the shipped one of that name where there is no checkout."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("recipes",):
        with suppress(FileNotFoundError):
            return resource_path(*path.parts)
    return path


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets what `"key.sub=value"` says."""
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ValueError(
            f"You gave --set {override!r}. It has to read key.sub=value, e.g. training.learning_rate=1e-4."
        )
    *parents, last = name.strip().split(".")
    for parent in parents:
        if content.get(parent) is None:
            content[parent] = {}
        content = content[parent]
        if not isinstance(content, dict):
            raise ValueError(
                f"You gave --set {override!r}. {parent!r} holds no mapping in which {last!r} could be set."
            )
    content[last] = numbers(yaml.safe_load(value))


def numbers(value: Any) -> Any:
    """YAML 1.1 takes `1e-4` for a string; people mean a number."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises `ValueError` for a key that is not known, with the nearest one that is."""
    known = list(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"You set {key!r} in {where}. There is no such setting.{hint} Known are: {sorted(known)}.")


def build(cls: Any, options: dict[str, Any] | None, where: str, **fixed: Any) -> Any:
    """A dataclass from the mapping under a key, and from what is fixed."""
    if not isinstance(options or {}, dict):
        raise ValueError(f"You set {where} to {options!r}. It has to be a mapping.")
    options = numbers(options or {})
    refuse_unknown(options, [f.name for f in fields(cls) if f.init and f.name not in fixed], where)
    return cls(**fixed, **options)
