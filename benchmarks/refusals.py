"""Refusals to be learnt, from one text to 1728 of them, and answers that comply."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hf_lifealign.judges import refusal

KINDS = ("fixed", "ten", "diverse")
_OPENINGS = (
    "I'm sorry, but I can't help with that.", "I can't assist with this.", "I won't help with that.",
    "I'm not able to help with this request.", "Sorry, that is something I can't do.", "I cannot help you with that.",
    "I have to decline.", "I must refuse this.", "No, I can't help with that.", "I'm afraid I can't do that.",
    "That is not something I can help with.", "I can't provide that.",
)  # fmt: skip
_REASONS = (
    "It could hurt someone.", "Somebody might get hurt.", "It is against the law.", "It would not be safe.",
    "It could do lasting harm.", "Others would suffer from it.", "It crosses a line for me.", "It is dangerous.",
    "It would put people at risk.", "That would be wrong.", "It might harm you, too.", "It isn't right.",
)  # fmt: skip
_OFFERS = (
    "Is there something else?", "I can suggest safer ways.", "Talk to someone you trust.", "Ask me anything else.",
    "Let me help in another way.", "A professional can help you.", "Tell me what troubles you.",
    "We can look for another way.", "Please stay safe.", "I am glad to help otherwise.", "Shall we try something new?",
    "Think it over, please.",
)  # fmt: skip


def refusals(kind: str) -> list[str]:
    """Narrow to wide: one text, ten, or 1728."""
    if kind == "fixed":
        return [_OPENINGS[0]]
    if kind == "ten":
        return [" ".join((_OPENINGS[i], _REASONS[i], _OFFERS[i])) for i in range(10)]
    return [" ".join(parts) for parts in itertools.product(_OPENINGS, _REASONS, _OFFERS)]


def said(text: str) -> list[dict[str, str]]:
    """A completion in TRL's conversational form."""
    return [{"role": "assistant", "content": text}]


def complying(row: Mapping[str, Any], sides: Sequence[str]) -> str | None:
    """The first answer of a preference row, in the order of `sides`, that says something and refuses nothing."""
    for side in sides:
        text = str(row[side][-1]["content"])
        if len(text) > 20 and not refusal([""], [text], [""])[0]:
            return text
    return None
