"""The stream as a sequence, its YAML form, lazy loading, and subsets that are the same in every process."""

import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.stream import StreamError, Task, TaskStream
from hf_lifealign.stream.subset import subset_ids

GOLDEN_IDS = "[296, 193, 747, 599, 562, 996, 66, 605] [333, 297, 545, 744, 165, 919, 964, 747]"


def test_the_stream_is_a_sequence(task):
    tasks = [task(name) for name in ("a", "b", "c")]
    stream = TaskStream(tasks)
    assert (len(stream), stream.names, list(stream)) == (3, ["a", "b", "c"], tasks)
    assert stream[0] is tasks[0]
    assert stream[-1] is stream["c"] is tasks[2]
    assert isinstance(stream[1:], TaskStream)
    assert stream[1:].names == ["b", "c"]
    assert "b" in stream
    assert tasks[1] in stream
    assert "x" not in stream
    assert repr(stream) == "TaskStream(['a', 'b', 'c'])"
    with pytest.raises(KeyError, match=r"No task is called 'B'\. Did you mean 'b'\? The tasks are a, b, c\."):
        stream["B"]
    with pytest.raises(IndexError):
        stream[3]


def test_reordering(task):
    stream = TaskStream([task("a"), task("b"), task("c")])
    assert stream.reordered(["c", "a", "b"]).names == ["c", "a", "b"]
    assert stream.reordered(["c", "a", "b"])["a"] is stream["a"]
    with pytest.raises(StreamError) as caught:
        stream.reordered(["a", "a", "d"])
    text = str(caught.value)
    for part in ("'d' is no task.", "'a' stands 2 times.", "'b' is left out.", "Name each of a, b, c once"):
        assert part in text


def test_only_tasks_make_a_stream(task):
    with pytest.raises(StreamError, match=r"A dict is no Task\. Set Task"):
        TaskStream([task(), {"name": "b"}])  # type: ignore[list-item]


def test_loading_is_lazy_and_happens_once(write, texts):
    path = write("train.jsonl", texts(2))
    task = Task("a", path, path)
    stream = TaskStream([task])
    assert task.load() is task.load() is stream["a"].load()
    path.write_text("")
    assert len(stream[:1][0].load().train) == 2


CONFIG = """
- name: first
  train: data/train.jsonl
  test: {path: data/test.parquet, split: "train[:1]"}
  max_train: 2
  description: The first task.
- name: second
  train: {data_files: [data/renamed.jsonl]}
  test: ${STREAM_DATA}/renamed.jsonl
  columns: {question: prompt}
- {name: third, train: ~/data/train.jsonl, test: org/name}
"""


def test_the_yaml_form(write, texts, tmp_path, monkeypatch):
    write("data/train.jsonl", texts(4))
    write("data/test.parquet", texts(3, 50))
    write("data/renamed.jsonl", [{"question": r.pop("prompt"), **r} for r in texts(2)])
    monkeypatch.setenv("STREAM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    stream = TaskStream.from_config(yaml.safe_load(CONFIG), tmp_path)
    assert stream.names == ["first", "second", "third"]
    assert (stream[0].max_train, stream[0].description) == (2, "The first task.")
    assert stream["third"].train == str(tmp_path / "data" / "train.jsonl")
    assert stream["third"].test == "org/name"
    report = stream[:2].validate()
    assert report.tasks["first"].splits["train"].rows == 2
    assert stream["first"].load().test.to_list() == texts(1, 50)
    assert stream["second"].load().test.to_list() == texts(2)


def test_relative_paths_look_in_the_base_folder_first_and_in_the_working_directory_then(
    write, texts, tmp_path, monkeypatch
):
    write("base/both.jsonl", texts(1))
    write("here/both.jsonl", texts(2))
    write("here/only.jsonl", texts(3))
    monkeypatch.chdir(tmp_path / "here")
    stream = TaskStream.from_config([{"name": "a", "train": "both.jsonl", "test": "only.jsonl"}], "../base")
    assert stream[0].train == str(tmp_path / "base" / "both.jsonl")
    assert stream[0].test == str(tmp_path / "here" / "only.jsonl")
    lost = TaskStream.from_config([{"name": "a", "train": "lost.jsonl", "test": "only.jsonl"}], tmp_path / "base")
    with pytest.raises(StreamError, match=r"base.lost\.jsonl does not exist"):
        lost.validate()


def test_faulty_configs_are_told_together():
    config = [{"name": "a", "train": "x", "tests": "y", "max_trian": 3}, "b", {"train": "x", "test": "y"}]
    with pytest.raises(StreamError) as caught:
        TaskStream.from_config(config)  # type: ignore[list-item]
    text = str(caught.value)
    assert "[a] You set the key 'tests'. It is unknown. Did you mean 'test'? Known keys are name, train, test" in text
    assert "[a] You set the key 'max_trian'. It is unknown. Did you mean 'max_train'?" in text
    assert "The key 'test' is missing. Add test: ... to the task." in text
    assert "[task 1] You set it with 'b'. A str is no task." in text
    assert "[task 2] You set the keys train, test. The key 'name' is missing." in text
    assert len(caught.value.problems) == 5
    with pytest.raises(StreamError, match=r"A dict is no list of tasks\. Set a list with one mapping a task"):
        TaskStream.from_config({"name": "a"})  # type: ignore[arg-type]


def test_subsets_are_the_same_in_every_process():
    code = (
        "from datasets import Dataset\n"
        "from hf_lifealign.stream import Task\n"
        "rows = Dataset.from_list([{'prompt': f'q{n}', 'chosen': f'a{n}', 'rejected': f'b{n}'} for n in range(1000)])\n"
        "loaded = Task('safe', rows, rows, max_train=8, max_test=8).load()\n"
        "assert loaded.train['prompt'][:] == [f'q{n}' for n in loaded.train_ids]\n"
        "print(loaded.train_ids, loaded.test_ids)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == GOLDEN_IDS


def test_seed_name_and_split_change_the_subset():
    base = subset_ids(1000, 8, 0, "safe", "train")
    others = [(1, "safe", "train"), (0, "safer", "train"), (0, "safe", "test")]
    assert all(subset_ids(1000, 8, *other) != base for other in others)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(-5, 2**70))
def test_subsets_are_nested_and_without_repeats(count, most, seed):
    ids = subset_ids(count, most, seed, "a", "train")
    assert len(set(ids)) == len(ids) == min(count, most)
    assert set(ids) <= set(range(count))
    if most >= count:
        assert ids == list(range(count))
    elif most > 1:
        assert subset_ids(count, most - 1, seed, "a", "train") == ids[:-1]


def test_importing_the_room_is_quick():
    code = "import sys, hf_lifealign.stream as s; print([m for m in ('datasets', 'trl', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
