"""The stream room's error: all problems of a stream at once, each with what was set, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MAX_SHOWN = 160


def show(value: Any) -> str:
    """`repr` of what a user set, cut to a length that still fits a terminal line or two."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def show_rows(rows: Sequence[int], most: int = 5) -> str:
    """`"rows 3, 17"` or `"rows 3, 17, 20, 21, 22 and 4 more"`."""
    word = "row" if len(rows) == 1 else "rows"
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"{word} {', '.join(str(row) for row in rows[:most])}{more}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a stream.

    Attributes:
        task (`str`): name of the task, or `"stream"` where the stream as a whole is meant.
        split (`str` or `None`): `"train"`, `"test"` or `None` where the problem is not one split's.
        given (`str`): what the user set, e.g. `"train with 'data/safe.jsonl'"`.
        wrong (`str`): what is wrong, as a sentence.
        do (`str`): what to do about it, as a sentence.
    """

    task: str
    split: str | None
    given: str
    wrong: str
    do: str

    def __str__(self) -> str:
        where = self.task if self.split is None else f"{self.task}, {self.split}"
        return f"[{where}] You set {self.given}. {self.wrong} {self.do}"


class StreamError(ValueError):
    """Raised with every problem that was found, not only with the first one.

    Attributes:
        problems (`tuple[Problem, ...]`): the problems in the order of the stream.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "The task stream has 1 problem:" if count == 1 else f"The task stream has {count} problems:"
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        super().__init__("\n".join([head, *lines]))

    def __reduce__(self) -> tuple[type[StreamError], tuple[tuple[Problem, ...]]]:
        # An exception is rebuilt from its message by default; worker processes need the problems back.
        return type(self), (self.problems,)


class RefusedError(Exception):
    """Internal: a check that failed and does not know yet which task and split it was made for.

    `given` is left out where the caller knows better what the user set.
    """

    def __init__(self, wrong: str, do: str, given: str | None = None) -> None:
        super().__init__(f"{wrong} {do}")
        self.wrong, self.do, self.given = wrong, do, given

    def problem(self, task: str, split: str | None, given: str) -> Problem:
        """This refusal as a `Problem` of the given task and split."""
        return Problem(task, split, self.given or given, self.wrong, self.do)
