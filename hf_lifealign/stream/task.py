"""One task of a stream: where its preference rows come from, how they are loaded, what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hf_lifealign.stream.columns import apply_columns, check_columns, looks_like_prompt
from hf_lifealign.stream.errors import Problem, RefusedError, StreamError, show, show_rows
from hf_lifealign.stream.inspection import SplitFacts, inspect_split
from hf_lifealign.stream.loading import read_source
from hf_lifealign.stream.rows import KNOWN_COLUMNS, make_explicit, row_keys, rows_digest
from hf_lifealign.stream.sources import parse_source
from hf_lifealign.stream.subset import subset_ids

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}


def name_fault(name: Any) -> str | None:
    """Why a task name cannot serve as a folder name and a git tag on every system, or `None` where it can."""
    if not isinstance(name, str):
        return f"A {type(name).__name__} is no name."
    if not name:
        return "The name is empty."
    if not _SAFE_NAME.fullmatch(name):
        return "It becomes a folder name: up to 64 of a-z, A-Z, 0-9, '.', '_', '-', the first one a letter or a digit."
    if ".." in name or name.endswith((".", ".lock")):
        return "It becomes a folder name and a tag, which may neither hold '..' nor end in '.' or '.lock'."
    if name.split(".")[0].lower() in _DEVICES:
        return "Windows keeps that name for a device, so no folder can have it."
    return None


@dataclass(frozen=True)
class LoadedTask:
    """The rows of a task, ready for TRL's trainers.

    Attributes:
        train, test (`datasets.Dataset`): rows with the columns prompt, chosen, rejected and, where the source has
            them, tools, chat_template_kwargs, images and image.
        train_ids, test_ids (`list[int]`): index in the source of each row.
        facts (`dict`): `"train"` and `"test"` to what was found in the rows.
        source_rows (`dict`): `"train"` and `"test"` to the rows the source has.
        dropped_columns (`dict`): `"train"` and `"test"` to the source columns that were left out.
        implicit_prompt (`dict`): `"train"` and `"test"` to whether the source has no prompt column.
        dropped_overlap (`int`): train rows taken out by `drop_overlap`.
    """

    train: Dataset
    test: Dataset
    train_ids: list[int]
    test_ids: list[int]
    facts: dict[Split, SplitFacts]
    source_rows: dict[Split, int]
    dropped_columns: dict[Split, tuple[str, ...]]
    implicit_prompt: dict[Split, bool]
    dropped_overlap: int = 0

    def warnings(self) -> list[str]:
        """What a person should look at though it can be trained on."""
        found = []
        for split, facts in self.facts.items():
            if facts.equal_pairs:
                found.append(
                    f"{split}: in {len(facts.equal_pairs)} of {facts.rows} rows chosen and rejected are the same "
                    f"({show_rows(facts.equal_pairs)}); they teach nothing. Remove them."
                )
            if facts.repeated_prompts:
                found.append(
                    f"{split}: in {len(facts.repeated_prompts)} of {facts.rows} rows both completions begin with the "
                    f"prompt again ({show_rows(facts.repeated_prompts)}). Drop the prompt column to have it told apart."
                )
            question = looks_like_prompt(self.dropped_columns[split])
            if self.implicit_prompt[split] and facts.format == "standard" and question:
                found.append(
                    f"{split}: the prompt was taken from what chosen and rejected share, but a column {question!r} is "
                    f"there. If it holds the prompt, set columns: {{{question}: prompt}}."
                )
        formats = {facts.format for facts in self.facts.values()}
        if len(formats) > 1:
            found.append(f"train is {self.facts['train'].format}, test is {self.facts['test'].format}.")
        return found


@dataclass(frozen=True, eq=False)
class Task:
    """A preference task of a stream. Nothing is read or checked before `check`, `load` or `TaskStream.validate`.

    Args:
        name (`str`): name of the task; it becomes a folder name and a tag.
        train, test (`datasets.Dataset`, `str`, `os.PathLike` or `dict`): the rows: a dataset, a .json, .jsonl or
            .parquet file, a Hub id (`"org/name"` stands for its split of the same name), or a mapping with the keys
            path, name, split, revision, data_files, data_dir. Rows are in TRL's preference format, standard or
            conversational, with an explicit or an implicit prompt.
        columns (`dict`, *optional*): the source's column name to TRL's, e.g. `{"question": "prompt"}`.
        description (`str`, *optional*): what the task teaches, for cards and reports.
        max_train, max_test (`int`, *optional*): at most that many rows: a random subset, the same one everywhere.
        seed (`int`, *optional*, defaults to 0): seed of the subsets.
        drop_overlap (`bool`, *optional*, defaults to `False`): leave out the train rows whose prompt stands in the
            task's whole test split, before `max_train` is applied.
        license (`str`, *optional*): licence of the rows, for cards.
    """

    name: str
    train: Any
    test: Any
    columns: Mapping[str, str] | None = None
    description: str | None = None
    max_train: int | None = None
    max_test: int | None = None
    seed: int = 0
    drop_overlap: bool = False
    license: str | None = None
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> list[Problem]:
        """Every problem that can be seen without loading data, as a list that is empty where there is none."""
        problems: list[Problem] = []
        label = str(self.name)
        fault = name_fault(self.name)
        if fault is not None:
            better = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-._")[:64]
            example = better if better and name_fault(better) is None else "task-1"
            problems.append(Problem(label, None, f"name with {show(self.name)}", fault, f"Call it {example!r}, say."))
        for split in SPLITS:
            try:
                parse_source(getattr(self, split), split)
            except RefusedError as refused:
                problems.append(refused.problem(label, split, self._given(split)))
        problems.extend(
            r.problem(label, None, f"columns with {show(self.columns)}") for r in check_columns(self.columns)
        )
        problems.extend(self._check_scalars(label))
        return problems

    def _check_scalars(self, label: str) -> list[Problem]:
        problems = []
        for key in ("max_train", "max_test"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                do = "Set a whole number of at least 1, or leave it out to keep all rows."
                problems.append(Problem(label, None, f"{key} with {show(value)}", "No split has that many rows.", do))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            do = "Set e.g. seed: 0."
            problems.append(Problem(label, None, f"seed with {show(self.seed)}", "A seed is a whole number.", do))
        if not isinstance(self.drop_overlap, bool):
            do = "Set true or false."
            given = f"drop_overlap with {show(self.drop_overlap)}"
            problems.append(Problem(label, None, given, "It is either on or off.", do))
        for key in ("description", "license"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, str):
                given = f"{key} with {show(value)}"
                problems.append(Problem(label, None, given, f"A {key} is a text.", "Put it in quotes."))
        return problems

    def provenance(self) -> dict[str, str | None]:
        """What may be told to others of where the rows come from: `source` (a Hub id, or `None` for what is not on the
        Hub), `license` and `description` as they were given."""
        try:
            source = parse_source(self.train, "train").hub.get("path")
        except RefusedError:
            source = None
        if source and os.path.exists(source):
            source = None  # `datasets` takes a folder of that name before it asks the Hub
        return {"source": source, "license": self.license, "description": self.description}

    def load(self) -> LoadedTask:
        """Loads both splits; a second call returns the same object.

        Raises:
            StreamError: with every problem of both splits.
        """
        if "loaded" not in self._cache:
            problems = self.check()
            if problems:
                raise StreamError(problems)
            self._cache["loaded"] = self._load()
        return self._cache["loaded"]

    def _load(self) -> LoadedTask:
        problems: list[Problem] = []
        sources: dict[Split, Dataset] = {}
        dropped_columns: dict[Split, tuple[str, ...]] = {}
        wanted = {*KNOWN_COLUMNS, *(self.columns or {})}
        for split in SPLITS:
            try:
                read = read_source(parse_source(getattr(self, split), split), wanted)
                sources[split], dropped_columns[split] = apply_columns(read, self.columns)
            except RefusedError as refused:
                problems.append(refused.problem(self.name, split, self._given(split)))
        if problems:
            raise StreamError(problems)
        ids, overlap = self._choose(sources)
        rows: dict[Split, Dataset] = {}
        facts: dict[Split, SplitFacts] = {}
        for split in SPLITS:
            kept = sources[split]
            rows[split] = make_explicit(kept if len(ids[split]) == len(kept) else kept.select(ids[split]))
            facts[split], refusals = inspect_split(rows[split], ids[split])
            problems.extend(refused.problem(self.name, split, self._given(split)) for refused in refusals)
        if problems:
            raise StreamError(problems)
        return LoadedTask(
            train=rows["train"],
            test=rows["test"],
            train_ids=ids["train"],
            test_ids=ids["test"],
            facts=facts,
            source_rows={split: len(sources[split]) for split in SPLITS},
            dropped_columns=dropped_columns,
            implicit_prompt={split: "prompt" not in sources[split].column_names for split in SPLITS},
            dropped_overlap=overlap,
        )

    def _choose(self, sources: Mapping[Split, Dataset]) -> tuple[dict[Split, list[int]], int]:
        """Source indices of the rows to keep of each split, and the number of train rows dropped as overlapping."""
        pool = list(range(len(sources["train"])))
        if self.drop_overlap:
            tested = set(row_keys(sources["test"])[0])
            pool = [index for index, key in enumerate(row_keys(sources["train"])[0]) if key not in tested]
        dropped = len(sources["train"]) - len(pool)
        if not pool:
            wrong = f"Every one of the {dropped} train rows has a prompt that stands in test, so none is left."
            do = "Set another train or test source, or drop_overlap: false."
            raise StreamError([Problem(self.name, "train", "drop_overlap with True", wrong, do)])
        chosen = subset_ids(len(pool), self.max_train, self.seed, self.name, "train")
        tested_ids = subset_ids(len(sources["test"]), self.max_test, self.seed, self.name, "test")
        return {"train": [pool[index] for index in chosen], "test": tested_ids}, dropped

    def _given(self, split: Split) -> str:
        return f"{split} with {show(getattr(self, split))}"


def fingerprint(task: Task, split: Split | None = None) -> str:
    """sha256 over the canonical JSON of the rows a task loads, which tells whether a run goes on with the same data.

    The same rows have the same fingerprint whether they come from JSON, Parquet or a `Dataset`, in any column order.

    Args:
        task (`Task`): the task; it is loaded where it is not yet.
        split (`str`, *optional*): `"train"` or `"test"`; both together by default.

    Raises:
        StreamError: the task cannot be loaded.
        ValueError: `split` is neither of the two.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"You set split with {show(split)}. A task has no such split. Set 'train', 'test' or None.")
    if split is None:
        both = "\n".join(f"{part}:{fingerprint(task, part)}" for part in SPLITS)
        return hashlib.sha256(both.encode()).hexdigest()
    key = f"fingerprint-{split}"
    if key not in task._cache:
        task._cache[key] = rows_digest(getattr(task.load(), split))
    return task._cache[key]
