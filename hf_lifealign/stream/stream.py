"""The stream: tasks in the order in which a model meets them, and the validation of all of them before the first."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from hf_lifealign.stream.errors import Problem, StreamError, show
from hf_lifealign.stream.report import StreamReport, build_report
from hf_lifealign.stream.sources import close_match, resolve_source
from hf_lifealign.stream.task import SPLITS, Task

_CONFIG_KEYS = tuple(field.name for field in dataclasses.fields(Task) if field.init)
_REQUIRED_KEYS = ("name", *SPLITS)


class TaskStream:
    """An ordered sequence of preference tasks.

    Args:
        tasks (`Iterable[Task]`): the tasks in the order in which the model meets them.

    Raises:
        StreamError: something that is no `Task` stands among them. All other checks wait for `validate`.

    Example:

    ```python
    >>> safe = {"name": "safe", "train": "safe/train.jsonl", "test": "safe/test.jsonl"}
    >>> stream = TaskStream.from_config([safe], base_dir="data")
    >>> print(stream.validate())
    >>> for task in stream:
    ...     rows = task.load()
    ```
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = tuple(tasks)
        form = "Set Task(name=..., train=..., test=...), or use TaskStream.from_config for mappings."
        problems = [
            Problem("stream", None, f"task {number} with {show(task)}", f"A {type(task).__name__} is no Task.", form)
            for number, task in enumerate(self._tasks)
            if not isinstance(task, Task)
        ]
        if problems:
            raise StreamError(problems)

    @classmethod
    def from_config(
        cls, config: Sequence[Mapping[str, Any]], base_dir: str | os.PathLike[str] | None = None
    ) -> TaskStream:
        """Builds a stream from mappings, as a YAML recipe holds them.

        Args:
            config (`Sequence[Mapping]`): one mapping a task with the keys name, train, test and, optionally, columns,
                description, max_train, max_test, seed, drop_overlap. In the place of train and test may stand
                self_align, the folder of a run of `lifealign self-align`, whose pairs are the task.
            base_dir (`str` or `os.PathLike`, *optional*): folder that relative paths are looked up in before the
                working directory, usually the recipe's; `~` and environment variables are expanded.

        Raises:
            StreamError: the list, an entry, a key or a required key is not as it should be.
        """
        if isinstance(config, (str, bytes, Mapping)) or not isinstance(config, Sequence):
            do = "Set a list with one mapping a task: [{name: ..., train: ..., test: ...}]."
            given = f"the tasks with {show(config)}"
            raise StreamError([Problem("stream", None, given, f"A {type(config).__name__} is no list of tasks.", do)])
        base = os.getcwd() if base_dir is None else base_dir
        entries = [_expand(number, entry, base) for number, entry in enumerate(config)]
        problems = [problem for number, entry in enumerate(entries) for problem in _check_entry(number, entry)]
        if problems:
            raise StreamError(problems)
        resolved = [{**entry, **{split: resolve_source(entry[split], base) for split in SPLITS}} for entry in entries]
        return cls(Task(**entry) for entry in resolved)

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [task.name for task in self._tasks]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __contains__(self, item: object) -> bool:
        return item in self.names if isinstance(item, str) else any(task is item for task in self._tasks)

    @overload
    def __getitem__(self, key: int | str) -> Task: ...
    @overload
    def __getitem__(self, key: slice) -> TaskStream: ...
    def __getitem__(self, key: int | str | slice) -> Task | TaskStream:
        if isinstance(key, slice):
            return TaskStream(self._tasks[key])
        if not isinstance(key, str):
            return self._tasks[key]
        for task in self._tasks:
            if task.name == key:
                return task
        raise KeyError(
            f"No task is called {key!r}.{close_match(key, self.names)} The tasks are {', '.join(self.names)}."
        )

    def __repr__(self) -> str:
        return f"TaskStream({self.names})"

    def reordered(self, names: Sequence[str]) -> TaskStream:
        """The same tasks in another order; what is loaded already stays loaded.

        Raises:
            StreamError: `names` does not name every task exactly once.
        """
        listed = list(names)
        wrong = [
            f"{name!r} is no task.{close_match(str(name), self.names)}" for name in listed if name not in self.names
        ]
        wrong += [f"{name!r} stands {listed.count(name)} times." for name in self.names if listed.count(name) > 1]
        wrong += [f"{name!r} is left out." for name in self.names if name not in listed]
        if wrong or len(listed) != len(self):
            do = f"Name each of {', '.join(self.names)} once; take a slice to leave tasks out."
            raise StreamError([Problem("stream", None, f"the order {show(listed)}", " ".join(wrong), do)])
        return TaskStream(self[name] for name in listed)

    def validate(self, *, on_overlap: Literal["warn", "error"] = "warn") -> StreamReport:
        """Checks the whole stream: first what needs no data, then, where that is fine, every row of every task.

        Args:
            on_overlap (`str`, *optional*, defaults to `"warn"`): whether test rows that stand in a train split, be it
                the task's own or another's, are warnings in the report or errors.

        Returns:
            `StreamReport`: counts, formats, lengths, equal pairs, overlaps.

        Raises:
            StreamError: with all problems of all tasks.
            ValueError: `on_overlap` is neither of the two.
        """
        if on_overlap not in ("warn", "error"):
            raise ValueError(
                f"You set on_overlap with {show(on_overlap)}. It is unknown. "
                "Set 'warn' to report overlaps or 'error' to refuse them."
            )
        problems = [*self._check_names(), *(problem for task in self._tasks for problem in task.check())]
        if problems:
            raise StreamError(problems)
        loaded = []
        for task in self._tasks:
            try:
                loaded.append((task, task.load()))
            except StreamError as error:
                problems.extend(error.problems)
        if problems:
            raise StreamError(problems)
        report = build_report(loaded)
        if on_overlap == "error" and report.overlaps:
            raise StreamError([overlap.problem() for overlap in report.overlaps])
        return report

    def _check_names(self) -> list[Problem]:
        if not self._tasks:
            return [Problem("stream", None, "no task", "There is nothing to learn.", "Set at least one task.")]
        problems: list[Problem] = []
        seen: dict[str, int] = {}
        for number, name in enumerate(self.names):
            # Case-insensitive file systems would give "Safe" and "safe" one folder.
            key = str(name).lower()
            if key in seen:
                first = seen[key]
                same = "the same name" if self.names[first] == name else "the same folder on Windows and macOS"
                wrong = f"Task {first} is called {self.names[first]!r}: {same}."
                given = f"the name of task {number} with {show(name)}"
                problems.append(Problem(str(name), None, given, wrong, f"Call one of them {f'{name}-2'!r}, say."))
            else:
                seen[key] = number
        return problems


def _expand(number: int, entry: Any, base: str | os.PathLike[str]) -> Any:
    """A mapping whose task was made by `lifealign self-align`, with the files of its pairs.

    Raises:
        StreamError: there are none, or it names files beside.
    """
    if not isinstance(entry, Mapping) or "self_align" not in entry:
        return entry
    label, run = str(entry.get("name") or f"task {number}"), entry["self_align"]
    beside = [split for split in SPLITS if split in entry]
    if beside:
        do = "Set one or the other."
        given = f"self_align and {' and '.join(beside)}"
        raise StreamError([Problem(label, None, given, "The rows of a task come from one place.", do)])
    found = {split: resolve_source(f"{run}/responses/preference/{split}.jsonl", base) for split in SPLITS}
    if not all(os.path.isfile(path) for path in found.values()):
        do = "Name the folder of a run of `lifealign self-align` with pairs, and let its stage responses end first."
        raise StreamError([Problem(label, None, f"self_align with {show(run)}", "It holds no pairs.", do)])
    return {key: value for key, value in entry.items() if key != "self_align"} | found


def _check_entry(number: int, entry: Any) -> list[Problem]:
    """Problems of one mapping of a config: its form, its keys and the keys it needs."""
    if not isinstance(entry, Mapping):
        do = "Set a mapping: {name: ..., train: ..., test: ...}."
        return [Problem(f"task {number}", None, f"it with {show(entry)}", f"A {type(entry).__name__} is no task.", do)]
    label = str(entry.get("name") or f"task {number}")
    known = f"Known keys are {', '.join(_CONFIG_KEYS)}."
    problems = [
        Problem(label, None, f"the key {show(key)}", f"It is unknown.{close_match(str(key), _CONFIG_KEYS)}", known)
        for key in entry
        if key not in _CONFIG_KEYS
    ]
    for key in _REQUIRED_KEYS:
        if key not in entry:
            given = f"the keys {', '.join(map(str, entry)) or '(none)'}"
            problems.append(Problem(label, None, given, f"The key {key!r} is missing.", f"Add {key}: ... to the task."))
    return problems
