"""What of a prompt and an answer a reward reads: one text each, from plain and conversational rows alike."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lifealign.stream.errors import RefusedError
from hf_lifealign.stream.loading import read_source
from hf_lifealign.stream.rows import COMPLETIONS, TEXTS, explicit_row, kind_of, text_of
from hf_lifealign.stream.sources import parse_source

if TYPE_CHECKING:
    from datasets import Dataset

# name of a template -> what it takes of the prompt
TEMPLATES = ("completion", "turn", "dialogue")


@dataclass(frozen=True)
class PreferenceTexts:
    """The texts of preference pairs, one entry a pair.

    Args:
        prompts, chosen, rejected (`list[str]`): the whole prompts, and both answers in their template.
    """

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: list[int]) -> "PreferenceTexts":
        """The pairs of these indices."""
        return PreferenceTexts(*([texts[row] for row in rows] for texts in (self.prompts, self.chosen, self.rejected)))


def reward_text(prompt: Any, completion: Any, template: str) -> str:
    """The text that is embedded for an answer.

    Args:
        prompt (`str` or `list[dict]`): a text or messages.
        completion (`str` or `list[dict]`): a text or messages.
        template (`str`): `"completion"`: the answer alone; `"turn"`: what the user said last, a line break, the answer;
            `"dialogue"`: the whole prompt, a line break, the answer. Of a plain prompt nobody can tell the turns, so
            that `"turn"` takes all of it. Roles are not written out.
    """
    if template == "completion":
        return text_of(completion)
    if template == "turn" and isinstance(prompt, list):
        asked = [message for message in prompt if message.get("role") == "user"] or prompt
        prompt = asked[-1:]
    return f"{text_of(prompt)}\n{text_of(completion)}"


def check_template(template: str) -> str:
    """The template, if there is one of that name.

    Raises:
        ValueError: if not.
    """
    if template not in TEMPLATES:
        raise ValueError(f"You set template={template!r}. Set one of {', '.join(TEMPLATES)}.")
    return template


def preference_texts(preferences: Iterable[Mapping[str, Any]], template: str) -> PreferenceTexts:
    """The texts of preference rows in any of TRL's forms: plain or conversational, with an explicit prompt or not.

    Args:
        preferences (`datasets.Dataset` or `list[dict]`): rows with `chosen`, `rejected` and, if explicit, `prompt`.
        template (`str`): see [`reward_text`].

    Raises:
        ValueError: if there is no row, or one that is no pair, has an empty answer, or the same answer twice.
    """
    check_template(template)
    texts = PreferenceTexts([], [], [])
    for index, given in enumerate(preferences):
        row = explicit_row(_as_row(given, index))
        sides = [reward_text(row["prompt"], row[name], template) for name in COMPLETIONS]
        answers = [text_of(row[name]).strip() for name in COMPLETIONS]
        for name, answer in zip(COMPLETIONS, answers, strict=True):
            if not answer:
                raise ValueError(f"Row {index} has an empty {name}. Leave it out: there is nothing in it to prefer.")
        if answers[0] == answers[1]:
            raise ValueError(
                f"In row {index} chosen and rejected are the same, up to white space around them. Leave it out: it "
                "says nothing about which is better."
            )
        texts.prompts.append(text_of(row["prompt"]))
        texts.chosen.append(sides[0])
        texts.rejected.append(sides[1])
    if not len(texts):
        raise ValueError("You gave no preference pairs. Give rows with prompt, chosen and rejected.")
    return texts


def _as_row(given: Any, index: int) -> Mapping[str, Any]:
    """A row, if it can be a pair."""
    if not isinstance(given, Mapping):
        raise ValueError(f"Row {index} is a {type(given).__name__}. Give rows with prompt, chosen and rejected.")
    kinds = {name: kind_of(given.get(name)) for name in COMPLETIONS}
    for name, kind in kinds.items():
        if kind not in ("standard", "conversational"):
            raise ValueError(
                f"Row {index} has {'no' if kind == 'None' else f'a {kind} as'} {name}. Each row needs prompt, chosen "
                "and rejected: texts, or lists of messages."
            )
    if kinds["chosen"] != kinds["rejected"]:
        raise ValueError(f"In row {index} chosen is {kinds['chosen']} and rejected {kinds['rejected']}. Use one form.")
    if "prompt" in given and kind_of(given["prompt"]) not in ("standard", "conversational"):
        raise ValueError(f"Row {index} has a prompt of the kind {kind_of(given['prompt'])}. Give a text or messages.")
    return given


def load_preferences(name_or_path: str, split: str) -> "Dataset":
    """Rows from a JSON, JSON Lines or Parquet file, or from a split of a dataset of the Hub.

    Args:
        name_or_path (`str`): a file or a Hub id.
        split (`str`): the split of a Hub id.

    Raises:
        ValueError: if nothing can be read there.
    """
    try:
        return read_source(parse_source(name_or_path, split), TEXTS)
    except RefusedError as error:
        raise ValueError(f"You set the preference pairs {name_or_path!r}. {error}") from error
