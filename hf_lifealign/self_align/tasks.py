"""What a model wrote when it was asked for tasks, topics or a question: read, and kept or dropped with a reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_lifealign.self_align.near_duplicates import NearDuplicateFilter, count_words, tokens
from hf_lifealign.self_align.rendering import NOTE, REPLY, REQUEST

BEHAVIOURS = ("paper", "safe")

# Reasons for which a task is dropped.
TRUNCATED, OUT_OF_ORDER, EMPTY = "truncated", "out_of_order", "empty"
TOO_SHORT, TOO_LONG, OTHER_MEDIA, BAD_START = "too_short", "too_long", "other_media", "bad_start"
DUPLICATE, NEAR_DUPLICATE, MARK = "duplicate", "near_duplicate", "mark"
TASK_REASONS = (
    TRUNCATED, OUT_OF_ORDER, EMPTY, TOO_SHORT, TOO_LONG, OTHER_MEDIA, BAD_START, DUPLICATE, NEAR_DUPLICATE, MARK,
)  # fmt: skip

_ITEM = re.compile(r"^[ \t]*(\d{1,4})[ \t]*[.)][ \t]*", re.MULTILINE)
_LEAST_WORDS, _MOST_WORDS = 4, 150
# What an assistant that only reads and writes text cannot look at, listen to or hand over.
_MEDIA = (
    "image", "images", "picture", "pictures", "photo", "photos", "photograph", "photographs", "graph", "graphs",
    "chart", "charts", "diagram", "diagrams", "flowchart", "video", "videos", "film clip", "audio", "recording",
    "song", "melody", "map", "maps", "file", "files", "attachment", "screenshot", "website", "link", "url",
)  # fmt: skip
_OTHER_MEDIA = re.compile(rf"\b(?:{'|'.join(map(re.escape, _MEDIA))})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Dropped:
    """A text that is not kept.

    Args:
        text (`str`): as the model wrote it.
        reason (`str`): one of the codes above.
    """

    text: str
    reason: str


def read_list(text: str, first: int, finished: bool, behaviour: str = "safe") -> tuple[list[str], list[Dropped]]:
    """Items of a numbered list that a model went on with.

    Args:
        text (`str`): what it wrote after the number `first` and its point.
        first (`int`): number of its first item.
        finished (`bool`): whether it came to an end by itself.
        behaviour (`str`): `"paper"` drops the last item whether or not it was cut off; `"safe"` only where it was.

    Returns:
        the items, each on one line, and what was dropped: the last one that is `truncated`; from the first number on
        that does not follow, all `out_of_order`.
    """
    pieces = _ITEM.split(text)
    items, expected = [pieces[0]], first + 1
    dropped: list[Dropped] = []
    for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        if int(number) == expected and not dropped:
            items.append(piece)
            expected += 1
        else:
            dropped.append(Dropped(piece.strip(), OUT_OF_ORDER))
    if behaviour == "paper" or not finished:
        # what was cut off is what stands last, be it in order or not
        last = dropped.pop().text if dropped else items.pop()
        dropped.append(Dropped(last.strip(), TRUNCATED))
    kept = []
    for item in items:
        line = " ".join(item.split())
        if line:
            kept.append(line)
        else:
            dropped.append(Dropped("", EMPTY))
    return kept, dropped


def read_line(text: str, finished: bool) -> tuple[str | None, Dropped | None]:
    """The one line that a model was to write, or why there is none."""
    lines = text.strip().split("\n")
    if not lines[0].strip():
        return None, Dropped(text.strip(), EMPTY)
    if len(lines) == 1 and not finished:
        return None, Dropped(lines[0].strip(), TRUNCATED)
    return " ".join(lines[0].split()), None


def fault_of(task: str, behaviour: str = "safe") -> str | None:
    """Why a task cannot be kept, whatever else there is; `None` if it can.

    Args:
        task (`str`): on one line.
        behaviour (`str`): `"paper"` counts words by spaces, and wants an ASCII letter or digit in front; `"safe"`
            counts the signs of scripts that have no spaces, and takes letters of all scripts.
    """
    if any(mark in task for mark in (REQUEST, NOTE, REPLY)):
        return MARK
    words = len(task.split()) if behaviour == "paper" else count_words(task)
    if words < _LEAST_WORDS:
        return TOO_SHORT
    if words > _MOST_WORDS:
        return TOO_LONG
    if _OTHER_MEDIA.search(task):
        return OTHER_MEDIA
    if not task[0].isalnum() or (behaviour == "paper" and not task[0].isascii()):
        return BAD_START
    return None


class TaskPool:
    """Tasks that were accepted, and the ones they began with: no two of them alike.

    Args:
        seeds (`list[str]`): to begin with; they count as accepted, whatever they say.
        threshold (`float`): see [`NearDuplicateFilter`].
        behaviour (`str`): `"paper"` or `"safe"`; see [`fault_of`].

    Raises:
        ValueError: for an unknown behaviour.
    """

    def __init__(self, seeds: Sequence[str] = (), threshold: float = 0.7, behaviour: str = "safe"):
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"You set behaviour={behaviour!r}. It has to be one of {list(BEHAVIOURS)}.")
        self.behaviour = behaviour
        self.accepted: list[str] = []
        self._near = NearDuplicateFilter(threshold)
        self._exact: set[str] = set()
        for seed in seeds:
            self._take(seed)

    def offer(self, task: str) -> str | None:
        """Accepts a task, or says why not."""
        reason = fault_of(task, self.behaviour)
        if reason is not None:
            return reason
        if _normalised(task) in self._exact:
            return DUPLICATE
        if self._near.find(task) is not None:
            return NEAR_DUPLICATE
        self._take(task)
        self.accepted.append(task)
        return None

    def _take(self, task: str) -> None:
        self._near.add(task)
        self._exact.add(_normalised(task))


def _normalised(task: str) -> str:
    words = tokens(task)
    return " ".join(words) if words else " ".join(task.split()).casefold()
