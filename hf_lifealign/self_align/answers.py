"""What a model wrote when it was asked for a note and a reply: cleaned, and kept or dropped with a reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_lifealign.judges.form import refusal
from hf_lifealign.self_align.constitution import Constitution
from hf_lifealign.self_align.near_duplicates import count_words, tokens
from hf_lifealign.self_align.rendering import NOTE, REPLY, REQUEST
from hf_lifealign.self_align.tasks import BEHAVIOURS

# Reasons for which an answer is dropped.
NO_NOTE, NO_REPLY, UNFINISHED, LEAST_LENGTH = "no_note", "no_reply", "unfinished", "too_short"
LEAKED_EXEMPLAR, LEAKED_PRINCIPLE, LEAKED_NOTE, LEAKED_MARK = (
    "leaked_exemplar", "leaked_principle", "leaked_note", "leaked_mark",
)  # fmt: skip
REFUSAL, REPETITION = "undue_refusal", "repetition"
ANSWER_REASONS = (
    NO_NOTE, NO_REPLY, UNFINISHED, LEAST_LENGTH, LEAKED_EXEMPLAR, LEAKED_PRINCIPLE, LEAKED_NOTE, LEAKED_MARK, REFUSAL,
    REPETITION,
)  # fmt: skip

_NAMED = re.compile(r"(\d{1,2})\s*\(([^()\n]{1,60})\)")
_ENDS = re.compile(r"[.!?。！？…]['\"”’»)\]]*(?=\s|$)|[。！？](?=\S)")
# So many words in a row that stand in a principle, an exemplar or the note are no chance.
_LEAKED_WORDS = 8
# At the start of a line, a mark begins another note or reply.
_ANOTHER = re.compile(rf"^[ \t]*(?:{re.escape(NOTE)}|{re.escape(REPLY)})", re.MULTILINE)
# An unfinished answer of fewer words is dropped as published; a longer one is cut at the end of a sentence.
_SHORT_WORDS = 32
# A segment of at least so many words that comes again is a loop.
_REPEATED_WORDS = 6


@dataclass(frozen=True)
class Answer:
    """A reply, and what led to it.

    Args:
        reply (`str`): what goes into training rows.
        note (`str`): what the assistant noted for itself; never part of a row.
        principles (`tuple[str]`): names of the principles that the note speaks of, in the order of the constitution.
        changes (`tuple[str]`): what was done to the reply: `"cut_repetition"`, `"cut_unfinished"`.
    """

    reply: str
    note: str = ""
    principles: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass
class AnswerReader:
    """Reads answers under a constitution.

    A reply is dropped that shows a principle, a worked example or its own note: eight words in a row of theirs, or a
    principle by number and name. What stands in the request may stand in the reply.

    Args:
        constitution ([`Constitution`]): that the model was shown.
        behaviour (`str`): `"paper"` cuts a long unfinished reply at the end of its last sentence, and keeps it;
            `"safe"` drops all that is unfinished, since SFT would teach an end where there is none.
        least_words (`int`): of a reply; signs of scripts without spaces count half.
    """

    constitution: Constitution
    behaviour: str = "safe"
    least_words: int = 1
    _leaks: dict[str, set[tuple[str, ...]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"You set behaviour={self.behaviour!r}. It has to be one of {list(BEHAVIOURS)}.")
        texts = {
            LEAKED_EXEMPLAR: [t for e in self.constitution.exemplars for t in (e.request, e.note, e.reply)],
            LEAKED_PRINCIPLE: [t for p in self.constitution.principles for t in (p.text, p.short, p.negated)],
        }
        self._leaks = {reason: {run for text in given for run in _runs(text)} for reason, given in texts.items()}

    def read(self, text: str, request: str, finished: bool, with_note: bool = True) -> Answer | str:
        """Reads what the model wrote after the mark of the note, or of the reply.

        Args:
            text (`str`): as it wrote it.
            request (`str`): that it answers.
            finished (`bool`): whether it came to an end by itself, be it by beginning another request; that a line
                begins with another note or reply is seen here.
            with_note (`bool`): whether it was to write a note first.

        Returns:
            the answer, or the reason for which it is dropped.
        """
        body, another, _ = text.partition(REQUEST)
        finished = finished or bool(another)
        note, reply = "", body
        if with_note:
            note, mark, reply = body.partition(REPLY)
            if not mark:
                return NO_REPLY
            if not note.strip():
                return NO_NOTE
        again = _ANOTHER.search(reply)
        if again:
            reply, finished = reply[: again.start()], True
        reply = reply.strip()
        if not reply:
            return NO_REPLY
        if any(mark in reply for mark in (NOTE, REPLY)):
            return LEAKED_MARK
        changes = []
        cut = cut_repetition(reply)
        if cut != reply:
            changes.append("cut_repetition")
            # what stands before a loop is whole, if it ends a sentence
            reply, finished = cut, _is_whole(cut)
            if not finished:
                return REPETITION
        if not finished:
            shorter = cut_unfinished(reply)
            if self.behaviour == "safe" or count_words(reply) < _SHORT_WORDS or not shorter:
                return UNFINISHED
            changes.append("cut_unfinished")
            reply = shorter
        if count_words(reply) < self.least_words:
            return LEAST_LENGTH
        reason = self._fault(reply, note.strip(), request)
        if reason is not None:
            return reason
        return Answer(reply, note.strip(), self._named(note), tuple(changes))

    def _fault(self, reply: str, note: str, request: str) -> str | None:
        shown, asked = set(_runs(reply)), set(_runs(request))
        for reason, runs in self._leaks.items():
            if (shown & runs) - asked:
                return reason
        if self._named(reply):
            return LEAKED_PRINCIPLE
        if (shown & set(_runs(note))) - asked:
            return LEAKED_NOTE
        if note and refusal([request], [reply], [""])[0] >= 0.5 and not self._may_decline(note):
            return REFUSAL
        return None

    def _named(self, text: str) -> tuple[str, ...]:
        """Principles that a text names by number and name."""
        told = {(int(number), name.strip().casefold()) for number, name in _NAMED.findall(text)}
        return tuple(
            p.name for i, p in enumerate(self.constitution.principles, start=1) if (i, p.name.casefold()) in told
        )

    def _may_decline(self, note: str) -> bool:
        named = self._named(note)
        return any(p.may_decline for p in self.constitution.principles if p.name in named)


def cut_repetition(text: str) -> str:
    """A text up to where it begins to say once more what it has just said: a sentence, or a line, of at least six words
    that stood before. Code and lists whose lines begin alike are left alone."""
    seen: set[tuple[str, ...]] = set()
    start = 0
    for end in [*(match.end() for match in re.finditer(r"[.!?。！？]+['\"”’»)\]]*\s+|\n+", text)), len(text)]:
        words = tuple(tokens(text[start:end]))
        if len(words) >= _REPEATED_WORDS and words in seen:
            return text[:start].rstrip()
        seen.add(words)
        start = end
    return text


def cut_unfinished(text: str) -> str:
    """A text up to the end of its last whole sentence; empty if it has none."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""


def _is_whole(text: str) -> bool:
    return bool(text) and cut_unfinished(text) == text


def _runs(text: str) -> Sequence[tuple[str, ...]]:
    """All runs of eight words."""
    words = tokens(text)
    return [tuple(words[i : i + _LEAKED_WORDS]) for i in range(len(words) - _LEAKED_WORDS + 1)]
