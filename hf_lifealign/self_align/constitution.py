"""A constitution: principles, worked examples, first tasks and topics, and the templates that make prompts of them.

All of it is data. The shipped files lie in `recipes/self_align/constitution/`; each can be replaced by a file of the
user's own.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_lifealign._resources import resource_path

T = TypeVar("T")

TEMPLATES = (
    "tasks",
    "topics",
    "questions",
    "respond",
    "respond_compact",
    "respond_plain",
    "engraved",
    "at_length",
    "judge",
    "judged",
)
_FILES = ("principles", "exemplars", "seeds", "topics")


@dataclass(frozen=True)
class Principle:
    """What an answer should keep to.

    Args:
        name (`str`): short, and different from all others.
        text (`str`): as it stands in the full prompt.
        short (`str`): as it stands in the compact one.
        negated (`str`): its opposite, for a reward model that has to follow whatever principle it is shown; may be
            empty.
        may_decline (`bool`): whether it can be a reason to decline a request.
    """

    name: str
    text: str
    short: str
    negated: str = ""
    may_decline: bool = False


@dataclass(frozen=True)
class Exemplar:
    """A worked example.

    Args:
        request (`str`): what is asked.
        note (`str`): what goes through the assistant's mind, with numbers and names of the principles in front.
        reply (`str`): its answer.
        principles (`tuple[str]`): names of the principles that matter.
        compact (`bool`): whether the compact preset keeps it.
    """

    request: str
    note: str
    reply: str
    principles: tuple[str, ...]
    compact: bool = False


@dataclass(frozen=True)
class TopicSeed:
    """A kind of question that tempts a model to answer wrongly, with a first topic and question."""

    type: str
    topic: str
    question: str


@dataclass(frozen=True)
class Constitution:
    """Everything from which data is made.

    Args:
        principles, exemplars, seeds, topics: see above; `seeds` are tasks, one text each.
        templates (`dict[str, str]`): Jinja sources by name.
    """

    principles: tuple[Principle, ...]
    exemplars: tuple[Exemplar, ...]
    seeds: tuple[str, ...]
    topics: tuple[TopicSeed, ...]
    templates: dict[str, str]

    def digest(self) -> str:
        """SHA-256 of all of it, by which a run knows that it goes on with the same."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_constitution(
    files: Mapping[str, str | Path] | None = None, templates: str | Path | None = None
) -> Constitution:
    """Reads a constitution.

    Args:
        files (`dict`, *optional*): YAML files in place of shipped ones, by `"principles"`, `"exemplars"`, `"seeds"`,
            `"topics"`.
        templates (`str`, *optional*): folder whose `NAME.jinja` replace the shipped templates of these names.

    Raises:
        ValueError: naming the file, the entry, and what is wrong with it.
    """
    given = {name: Path(path) for name, path in (files or {}).items()}
    unknown = sorted(set(given) - set(_FILES))
    if unknown:
        raise ValueError(f"You named files for {unknown} of a constitution. It has {list(_FILES)}.")
    paths = {
        name: given.get(name) or resource_path("recipes", "self_align", "constitution", f"{name}.yaml")
        for name in _FILES
    }
    principles = _read(paths["principles"], _principle)
    _refuse_twins(paths["principles"], [principle.name for principle in principles])
    numbers = {principle.name: i + 1 for i, principle in enumerate(principles)}
    return Constitution(
        principles=tuple(principles),
        exemplars=tuple(_read(paths["exemplars"], lambda entry: _exemplar(entry, numbers))),
        seeds=tuple(_read(paths["seeds"], _seed)),
        topics=tuple(_read(paths["topics"], lambda entry: TopicSeed(**_texts(entry, ("type", "topic", "question"))))),
        templates=_templates(None if templates is None else Path(templates)),
    )


def _templates(folder: Path | None) -> dict[str, str]:
    found = {}
    for name in TEMPLATES:
        file = resource_path("recipes", "self_align", "constitution", "templates", f"{name}.jinja")
        if folder is not None and (folder / f"{name}.jinja").is_file():
            file = folder / f"{name}.jinja"
        found[name] = file.read_text(encoding="utf-8")
    if folder is not None:
        strange = sorted(path.name for path in folder.glob("*.jinja") if path.stem not in TEMPLATES)
        if strange or not folder.is_dir():
            raise ValueError(
                f"You set the templates folder {folder}, {f'which holds {strange}' if strange else 'which is none'}. "
                f"Templates are called {[f'{name}.jinja' for name in TEMPLATES]}."
            )
    return found


def _read(path: Path, make: Callable[[Any], T]) -> list[T]:
    """The entries of a YAML list."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The file {path} of the constitution cannot be read: {error}.") from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"The file {path} of the constitution has to be a YAML list with at least one entry.")
    found = []
    for i, entry in enumerate(content):
        try:
            found.append(make(entry))
        except ValueError as error:
            raise ValueError(f"Entry {i + 1} of {path}: {error}") from error
    return found


def _principle(entry: Any) -> Principle:
    told = _texts(entry, ("name", "text"), ("short", "negated", "may_decline"))
    return Principle(
        told["name"], told["text"], told.get("short", told["text"]), told.get("negated", ""),
        _flag(entry, "may_decline"),
    )  # fmt: skip


def _exemplar(entry: Any, numbers: Mapping[str, int]) -> Exemplar:
    told = _texts(entry, ("request", "thoughts", "reply"), ("principles", "compact"))
    names = entry.get("principles") or []
    unknown = [name for name in names if name not in numbers] if isinstance(names, list) else [names]
    if unknown or not names:
        raise ValueError(f"its 'principles' have to be names of the principles file; {unknown or 'none'} given.")
    named = ", ".join(f"{numbers[name]} ({name})" for name in names)
    return Exemplar(
        told["request"], f"{named}. {told['thoughts']}", told["reply"], tuple(names), _flag(entry, "compact")
    )


def _flag(entry: Any, key: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"its {key!r} is {value!r}. Set true or false.")
    return value


def _seed(entry: Any) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError(f"a task is a text, and this is {entry!r}. Put it into quotes if it has a colon.")
    return " ".join(entry.split())


def _texts(entry: Any, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, str]:
    """The texts of an entry, each without space around it."""
    if not isinstance(entry, dict):
        raise ValueError(f"it is {entry!r}, not an object with {list(needed)}.")
    unknown = sorted(set(map(str, entry)) - {*needed, *others})
    if unknown:
        raise ValueError(f"it has {unknown}, which mean nothing here. Known are {[*needed, *others]}.")
    for key in needed:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"its {key!r} has to be a text, and is {entry.get(key)!r}.")
    return {key: value.strip() for key, value in entry.items() if isinstance(value, str)}


def _refuse_twins(path: Path, names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"{path} has several principles called {twins}. Give each a name of its own.")
