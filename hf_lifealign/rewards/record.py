"""What is known of a fitted reward: the JSON beside its tensor, written and checked here."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hf_lifealign.hub.remote import check_repo_id
from hf_lifealign.models.embedded import PREFIX
from hf_lifealign.rewards.texts import TEMPLATES

FORMAT = 1
KIND = "bradley_terry"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LARGEST = 1_000_000


@dataclass(frozen=True)
class RewardRecord:
    """
    Args:
        name (`str`): the reward's name, under which TRL logs it.
        embedding (`str`): the embedding model: Hub id, local folder, or `"embedded:NAME"`.
        dimension (`int`): of an embedding.
        template (`str`): what of prompt and answer is embedded, see [`reward_text`].
        max_tokens (`int`): most tokens of a text that are read.
        l2 (`float`): penalty of the fit.
        pairs, held_out_pairs (`int`): pairs the head was fitted on, and those kept back.
        accuracy (`float`, *optional*): share of the held-out pairs in which the chosen answer has the higher reward.
        fit_accuracy (`float`): the same on the pairs it was fitted on.
        mean, std (`float`): of the rewards of all answers it was fitted on, to weigh it against others.
        dataset (`str`): what its pairs are, in words.
    """

    name: str
    embedding: str
    dimension: int
    template: str
    max_tokens: int
    l2: float
    pairs: int
    held_out_pairs: int
    accuracy: float | None
    fit_accuracy: float
    mean: float
    std: float
    dataset: str = ""

    def to_json(self) -> dict[str, Any]:
        """What is written."""
        return {"format": FORMAT, "kind": KIND, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any, where: str) -> "RewardRecord":
        """Reads what [`to_json`] gave, from whoever it came.

        Args:
            content (`Any`): parsed JSON.
            where (`str`): the file, for errors.

        Raises:
            ValueError: naming the field that is missing or wrong.
        """
        if not isinstance(content, Mapping) or content.get("kind") != KIND:
            raise ValueError(f"{where} is not that of a Bradley-Terry reward of hf_lifealign.")
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{where} has the format {content.get('format')!r}; this version reads {FORMAT}. Upgrade hf_lifealign."
            )
        known = {field.name for field in fields(cls)}
        facts = {key: value for key, value in content.items() if key in known}
        for name in known:
            if name not in facts or not _FITS[name](facts[name]):
                raise ValueError(f"{where} has {name}={facts.get(name)!r}, which cannot be. It was edited or damaged.")
        return cls(**facts)


def check_name(name: str) -> str:
    """The name, if a reward can have it.

    Raises:
        ValueError: if not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"You set name={name!r}. Set up to 64 letters, digits, '_', '-' and '.', e.g. name='helpful'.")
    return name


def is_public(embedding: str) -> bool:
    """Whether others can have an embedding model by its name: a Hub id, or one that comes as a package."""
    if embedding.startswith(PREFIX):
        return True
    try:
        check_repo_id(embedding)
    except ValueError:
        return False
    return not Path(embedding).is_dir()


def _whole(least: int, most: int = 10**12) -> Any:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(least: float = -1e12, most: float = 1e12) -> Any:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 10_000


_FITS: dict[str, Any] = {
    "name": lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
    "embedding": lambda value: _text(value) and value.strip() != "",
    "dimension": _whole(1, _LARGEST),
    "template": lambda value: value in TEMPLATES,
    "max_tokens": _whole(4, _LARGEST),
    "l2": _number(0.0),
    "pairs": _whole(1),
    "held_out_pairs": _whole(0),
    "accuracy": lambda value: value is None or _number(0, 1)(value),
    "fit_accuracy": _number(0, 1),
    "mean": _number(),
    "std": _number(0.0),
    "dataset": _text,
}
