"""What train and test may be set to: files of each kind, datasets, Hub ids, mappings; and what is refused unread."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_lifealign.stream import StreamError, Task, TaskStream, fingerprint


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".parquet"])
def test_every_file_kind_gives_the_same_rows(write, texts, suffix):
    task = Task("a", write(f"train{suffix}", texts(5)), str(write(f"test{suffix}", texts(2, 50))))
    loaded = task.load()
    assert loaded.train.to_list() == texts(5)
    assert loaded.test.to_list() == texts(2, 50)
    assert (loaded.train_ids, loaded.test_ids) == ([0, 1, 2, 3, 4], [0, 1])
    in_memory = Task("a", Dataset.from_list(texts(5)), Dataset.from_list(texts(2, 50)))
    assert fingerprint(task) == fingerprint(in_memory)


def test_local_files_need_no_network_and_leave_nothing_beside_the_data(write, texts, tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a local file was loaded through the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    train, test = write("train.jsonl", texts(3)), write("test.parquet", texts(1, 9))
    os.chmod(tmp_path, 0o555)
    try:
        TaskStream([Task("a", train, test)]).validate()
    finally:
        os.chmod(tmp_path, 0o755)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.jsonl"]


def test_a_saved_dataset_folder_gets_no_cache_files(dialogues, tmp_path, task):
    whole = [{k: row["prompt"] + row[k] for k in ("chosen", "rejected")} for row in dialogues(3)]
    Dataset.from_list(whole).save_to_disk(tmp_path / "saved")
    before = sorted(path.name for path in (tmp_path / "saved").iterdir())
    task(train=datasets.load_from_disk(tmp_path / "saved"), max_train=2).load()
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == before


def test_a_file_rewritten_with_its_old_time_is_read_anew(write, texts):
    test = write("test.jsonl", texts(1, 9))
    for start in (0, 1):
        train = write("train.jsonl", texts(3, start))
        os.utime(train, (1_000_000, 1_000_000))
        assert Task("a", train, test).load().train.to_list() == texts(3, start)


def test_texts_that_look_like_dates_stay_texts(write):
    rows = [{"prompt": "When?", "chosen": f"2020-01-0{n}", "rejected": f"1999-01-0{n}"} for n in range(1, 6)]
    train = write("train.jsonl", rows)
    assert Task("a", train, train).load().train.to_list() == rows
    cut = Task("a", {"path": train, "split": "train[1:3]"}, train).load().train.to_list()
    assert cut == rows[1:3]


def test_mappings_slice_and_join_local_files(write, texts):
    one, two = write("one.jsonl", texts(4)), write("two.txt", "".join(json.dumps(r) + "\n" for r in texts(2, 50)))
    sliced = Task("a", {"path": str(one), "split": "train[:50%]"}, {"path": one, "split": "test[3:]"}).load()
    assert sliced.train.to_list() == texts(2)
    assert sliced.test.to_list() == texts(1, 3)
    joined = Task("a", {"data_files": [str(one), str(one)]}, {"path": "json", "data_files": two}).load()
    assert joined.train.to_list() == texts(4) * 2
    assert joined.test.to_list() == texts(2, 50)


def test_odd_characters_in_file_names_are_no_patterns(write, texts):
    train = write("we[i]rd *?#%20.jsonl", texts(2))
    assert Task("a", train, train).load().train.to_list() == texts(2)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", {"path": "org/name", "split": "train"}),
        ("org/name.v2", {"path": "org/name.v2", "split": "train"}),
        ({"path": "org/name"}, {"path": "org/name", "split": "train"}),
        ({"path": "oldname"}, {"path": "oldname", "split": "train"}),
        (
            {"path": "org/name", "name": "en", "split": "train[:200]", "revision": "v1"},
            {"path": "org/name", "name": "en", "split": "train[:200]", "revision": "v1"},
        ),
        (
            {"path": "org/name", "data_files": "a/b.jsonl"},
            {"path": "org/name", "data_files": ["a/b.jsonl"], "split": "train"},
        ),
    ],
)
def test_hub_sources_reach_load_dataset(monkeypatch, task, texts, source, expected):
    calls = []

    def load_dataset(path: str, **options: Any) -> Dataset:
        calls.append({"path": path, **options})
        return Dataset.from_list(texts(3))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    built = TaskStream.from_config([{"name": "a", "train": source, "test": source}])[0]
    assert not built.check()
    assert not calls
    built.load()
    assert calls == [
        expected,
        {**expected, "split": source.get("split", "test") if isinstance(source, dict) else "test"},
    ]


def test_a_hub_failure_is_told_with_what_to_do(monkeypatch, task, refusal):
    def load_dataset(**options: Any) -> None:
        raise ValueError("Unknown split 'test'. Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(task(test="org/name"))
    assert "[safe, test] You set test with 'org/name'. Split 'test' of the Hub dataset 'org/name'" in message
    assert "Should be one of ['train']" in message
    assert '"split": "train[:90%]"' in message


def test_a_missing_file_is_named_with_its_neighbour(write, texts, refusal):
    path = write("train.jsonl", texts(2))
    message = refusal(Task("a", path.with_name("trian.jsonl"), path))
    assert f"The file {path.with_name('trian.jsonl')} does not exist. Did you mean 'train.jsonl'?" in message
    assert "Correct the path, or create the file." in message
    assert "The folder /no/such does not exist" in refusal(Task("a", "/no/such/x.json", path))


@pytest.mark.parametrize("text", ["train.csv", "data/train.csv"])
def test_unreadable_suffixes_are_no_hub_ids(write, tmp_path, monkeypatch, task, refusal, text):
    assert "does not exist" in refusal(task(train=text))
    write(text, "prompt,chosen\n")
    monkeypatch.chdir(tmp_path)
    message = refusal(task(train=text))
    assert "Files ending in .csv are not read. Convert it to one of .json, .jsonl, .ndjson, .parquet" in message


def test_folders_and_empty_files(write, texts, tmp_path, monkeypatch, task, refusal):
    write("org/name/train.jsonl", texts(1))
    assert "is a folder, not a file. Set one of its files: train.jsonl." in refusal(task(train=tmp_path / "org/name"))
    monkeypatch.chdir(tmp_path)
    assert "it hides the Hub id" in refusal(task(train="org/name"))
    assert "is empty. Write the rows to it" in refusal(task(test=write("e.jsonl", "")))


@pytest.mark.parametrize("content", ["[]", " \n\n", "{}"])
def test_files_without_rows(write, task, refusal, content):
    assert "holds no rows. Set a source with at least one row." in refusal(task(test=write("e.json", content)))


def test_other_objects_are_refused(texts, refusal, task):
    rows = Dataset.from_list(texts(2))
    assert "ds['train']" in refusal(task(train=DatasetDict(train=rows)))
    assert "without streaming=True" in refusal(task(train=rows.to_iterable_dataset()))
    assert "datasets.Dataset.from_list(rows)" in refusal(task(train=tuple(texts(2))))
    assert "A int is no source" in refusal(task(train=3))
    assert "Every task needs rows" in refusal(task(train=None))
    assert "holds no rows" in refusal(task(train=rows.select([])))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"path": "org/name", "splti": "train"}, "The key 'splti' is unknown. Did you mean 'split'?"),
        ({"path": "org/name", "split": 3}, "The key 'split' holds 3, not a text."),
        ({"split": "train"}, 'Add "data_files"'),
        ({"path": 3}, "The key 'path' holds 3"),
        ({"data_files": {"train": "x.json"}}, "Set one path or a list of paths"),
        ({"path": "./x.json", "revision": "v1"}, "where revision has no meaning"),
        ("", "An empty text names no source."),
        ("name", "neither a file that is there nor a Hub id"),
        ("https://example.org/x.jsonl", "is an address on the net"),
        ({"data_files": ["https://example.org/x.jsonl"]}, "is an address on the net"),
        ("$NO_SUCH_VARIABLE/x.json", "The environment variable NO_SUCH_VARIABLE is not set."),
    ],
)
def test_faulty_sources_say_what_to_do(task, refusal, source, expected):
    assert expected in refusal(task(train=source))


def test_files_of_two_kinds(write, texts, task, refusal):
    both = [str(write("a.jsonl", texts(1))), str(write("a.parquet", texts(1)))]
    assert "JSON and Parquet files stand in one list." in refusal(task(train={"data_files": both}))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "chosen": "b" "rejected": "c"}', "Expecting ',' delimiter at column"),
        ('{"prompt": "a", "chosen"', "at column"),
        ('"text"', "a str stands there, not an object"),
        ("[1, 2]", "a list stands there"),
        ('{"prompt": "\\ud800"}', "not valid UTF-8 text"),
    ],
)
def test_a_malformed_line_is_named(write, texts, task, refusal, line, reason):
    good = [json.dumps(row) for row in texts(3)]
    path = write("train.jsonl", "\n".join([*good[:2], "", line, good[2]]) + "\n")
    message = refusal(task(train=path))
    assert f"{path}, line 4 is malformed: " in message
    assert reason in message
    assert "Repair or delete that line" in message


def test_a_malformed_list_and_a_broken_parquet_file(write, task, refusal):
    path = write("train.json", '[\n {"chosen": "a"},\n {"chosen": }\n]')
    assert f"{path}, line 3 is malformed" in refusal(task(train=path))
    parquet = write("train.jsonl", "junk").rename(path.with_name("x.parquet"))
    assert f"{parquet} cannot be read" in refusal(task(train=parquet))


def test_a_byte_order_mark_is_skipped(write, texts, task):
    path = write("train.jsonl", "\ufeff" + "".join(json.dumps(row) + "\n" for row in texts(2)))
    assert task(train=path).load().train.to_list() == texts(2)


def test_reading_twice_gives_the_same_fingerprint_elsewhere(write, texts, tmp_path):
    train, test = write("here/train.jsonl", texts(6)), write("here/test.jsonl", texts(2, 90))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = tmp_path / "there"
    first = fingerprint(Task("a", train, test, max_train=3))
    assert first == fingerprint(Task("a", Path(there / "train.jsonl"), there / "test.jsonl", max_train=3))


def test_errors_survive_a_process_boundary(task):
    import pickle

    with pytest.raises(StreamError) as caught:
        task(train="name", max_test=0).load()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems
    assert str(copy) == str(caught.value)
    assert len(copy.problems) == 2
