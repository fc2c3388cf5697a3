"""Shared by the stream tests: a cache folder of their own, rows, and a writer of real files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from hf_lifealign.stream import StreamError, Task, TaskStream

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`datasets` caches into a folder of the test, and the working directory is an empty one."""
    cache = tmp_path_factory.mktemp("hf-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    datasets.disable_progress_bars()
    yield cache
    datasets.enable_progress_bars()


@pytest.fixture
def texts() -> Callable[..., list[Row]]:
    """`texts(3)`: standard rows, all different; `texts(3, start=10)`: others."""

    def make(count: int, start: int = 0) -> list[Row]:
        numbers = range(start, start + count)
        return [{"prompt": f"Question {n}?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in numbers]

    return make


@pytest.fixture
def dialogues() -> Callable[..., list[Row]]:
    """Conversational rows, all different."""

    def make(count: int, start: int = 0) -> list[Row]:
        return [
            {
                "prompt": [{"role": "user", "content": f"Question {n}?"}],
                "chosen": [{"role": "assistant", "content": f"Good {n}."}],
                "rejected": [{"role": "assistant", "content": f"Bad {n}."}],
            }
            for n in range(start, start + count)
        ]

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes rows to a file of the kind its suffix says (or a text as it is) and returns the path."""

    def to_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".parquet":
            Dataset.from_list(content).to_parquet(path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def task(texts: Callable[..., list[Row]]) -> Callable[..., Task]:
    """A sound task of two in-memory splits; keyword arguments replace its fields, lists of rows become datasets."""

    def make(name: str = "safe", **fields: Any) -> Task:
        given = {"train": texts(4), "test": texts(2, start=100), **fields}
        return Task(name, **{k: Dataset.from_list(v) if isinstance(v, list) else v for k, v in given.items()})

    return make


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The message of the `StreamError` that validating the given tasks raises."""

    def of(*tasks: Task, **options: Any) -> str:
        with pytest.raises(StreamError) as caught:
            TaskStream(tasks).validate(**options)
        return str(caught.value)

    return of
