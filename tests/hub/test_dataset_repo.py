"""Tasks as datasets of the Hub: the rows come back as they were, the card shows none of them and nothing private."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml
from datasets import Dataset
from support.hub_server import Fault, HubServer, client_environment

from hf_lifealign.hub import patience, whole_commit
from hf_lifealign.hub.dataset_repo import dataset_card, push_task_dataset
from hf_lifealign.hub.errors import HubError, NotPublishableError
from hf_lifealign.stream import StreamError, Task, fingerprint

TOKEN = "hf_test_write_me"
PARQUET = {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}
SECRET = "hf_" + "Ab1" * 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` caches into a folder of the test, and the working directory is an empty one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf-cache"))
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def hub(monkeypatch):
    """A Hub, and a huggingface_hub in this process that may speak to it; waits take no time."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None))
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=TOKEN)


def texts(count, start=0):
    numbers = range(start, start + count)
    return [{"prompt": f"Question {n}?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in numbers]


def dialogues(count, start=0):
    return [
        {name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()}
        for row in texts(count, start)
    ]


def calls(count, start=0):
    """Dialogues in which some messages have keys that others lack, and tools."""
    rows = dialogues(count, start)
    for number, row in enumerate(rows):
        if number % 2:
            call = {"type": "function", "function": {"name": "add", "arguments": {"a": number}}}
            row["chosen"] = [{"role": "assistant", "tool_calls": [call]}]
        parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
        row["tools"] = [{"type": "function", "function": {"name": "add", "description": "-", "parameters": parameters}}]
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parts(card):
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, flags=re.DOTALL).groups()
    return yaml.safe_load(front), body


# The card


class TestCard:
    def test_front_matter(self):
        task = Task("helpful", Dataset.from_list(texts(5)), Dataset.from_list(texts(2, 50)))
        front, body = parts(dataset_card(task, "me/pairs", "cc-by-4.0"))
        assert front == {
            "pretty_name": "helpful: preference pairs",
            "license": "cc-by-4.0",
            "task_categories": ["text-generation"],
            "tags": ["preference", "dpo", "trl", "hf-lifealign"],
            "size_categories": ["n<1K"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [
                        {"split": "train", "path": "data/train-00000-of-00001.parquet"},
                        {"split": "test", "path": "data/test-00000-of-00001.parquet"},
                    ],
                }
            ],
            "hf_lifealign_task": "helpful",
        }
        assert "`cc-by-4.0`, as given" in body
        assert fingerprint(task) in body
        assert re.search(r"^\| train +\| +5 \| +11 \| +7 \| +6 \|$", body, flags=re.MULTILINE)
        assert re.search(r"^\| `prompt` +\| text +\| what is asked +\|$", body, flags=re.MULTILINE)
        assert "\n\n\n" not in body

    def test_no_licence_is_said(self):
        task = Task("helpful", Dataset.from_list(texts(5)), Dataset.from_list(texts(2, 50)))
        front, body = parts(dataset_card(task, "me/pairs"))
        assert "license" not in front
        assert "## Licence\n\nNo licence was given." in body

    @pytest.mark.parametrize(("rows", "label"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K")])
    def test_size(self, rows, label):
        task = Task("big", Dataset.from_list(texts(rows - 1)), Dataset.from_list(texts(1, rows)))
        assert parts(dataset_card(task, "me/pairs"))[0]["size_categories"] == [label]

    def test_no_row_and_no_path_is_shown(self, tmp_path):
        rows = [
            {"prompt": f"Wie heißt {n}?", "chosen": f"Zebra-{n}", "rejected": f"Yak-{n}", "annotator": "Jane Doe"}
            for n in range(8)
        ]
        train, test = write(tmp_path / "secret-train.jsonl", rows[:6]), write(tmp_path / "secret-test.jsonl", rows[6:])
        described = f"say it like {tmp_path}/voices/jane.txt,\n\n---\n with {SECRET} | and more"
        card = dataset_card(Task("zoo", train, str(test), description=described), "me/pairs")
        for private in (
            str(tmp_path),
            tmp_path.name,
            "secret-",
            "Zebra",
            "Yak",
            "Wie hei",
            "Jane",
            "annotator",
            SECRET,
        ):
            assert private not in card
        _, body = parts(card)
        assert "\nThe task: say it like jane.txt, --- with (hidden) | and more\n" in body
        assert body.count("local files") == 2

    def test_where_the_rows_come_from(self, monkeypatch):
        from hf_lifealign.stream import task as task_module

        rows = {"train": texts(10), "test": texts(4, 50)}
        monkeypatch.setattr(
            task_module, "read_source", lambda source, wanted: Dataset.from_list(rows[source.split[:5].strip("[")])
        )
        source = {"path": "org/name", "name": "clean", "split": "train[:10]", "revision": "v1"}
        task = Task("helpful", source, "org/other", max_train=3, seed=7)
        _, body = parts(dataset_card(task, "me/pairs"))
        assert (
            "- train: a random subset (seed 7) of 3 of the 10 rows of [org/name]"
            "(https://huggingface.co/datasets/org/name), split `train[:10]`, configuration `clean`, revision `v1`."
        ) in body
        other = "[org/other](https://huggingface.co/datasets/org/other)"
        assert f"- test: all 4 rows of {other}, split `test`.\n" in body

    def test_a_folder_that_looks_like_an_id_is_not_named(self, monkeypatch):
        from hf_lifealign.stream import task as task_module

        monkeypatch.setattr(task_module, "read_source", lambda source, wanted: Dataset.from_list(texts(2)))
        Path("janes_rows").mkdir()
        card = dataset_card(Task("helpful", {"path": "janes_rows"}, {"path": "janes_rows"}), "me/pairs")
        assert "janes_rows" not in card

    def test_what_was_done_to_the_rows_and_what_is_doubtful(self):
        whole = [{name: row["prompt"] + " " + row[name] for name in ("chosen", "rejected")} for row in texts(6)]
        train = [*whole, {"chosen": "Same? Yes.", "rejected": "Same? Yes."}]
        task = Task("x", Dataset.from_list(train), Dataset.from_list(whole[:2]), drop_overlap=True)
        _, body = parts(dataset_card(task, "me/pairs"))
        assert "train: 5 of the 7 rows of a dataset in memory; the prompt was told apart" in body
        assert "- 2 train rows were left out, since test has their prompts." in body
        assert "- In 1 train rows chosen and rejected are the same; they teach nothing." in body

    @pytest.mark.parametrize("name", ["on", "1", "1.5", "helpful_2"])
    def test_the_recipe_on_the_card_is_one(self, name):
        task = Task(name, Dataset.from_list(dialogues(2)), Dataset.from_list(dialogues(1, 9)))
        front, body = parts(dataset_card(task, "me/pairs"))
        recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, flags=re.DOTALL)[1])
        assert recipe == {"tasks": [{"name": name, "train": "me/pairs", "test": "me/pairs"}]}
        assert front["hf_lifealign_task"] == name
        assert "conversational, with" in " ".join(body.split())
        assert "list of messages" in body


# What is refused before anything is asked


@pytest.mark.parametrize("repo_id", ["pairs", "", "me/pairs/x", "me/pa irs", None, "datasets/me/pairs", "/tmp/pairs"])
def test_an_id_that_is_none(repo_id):
    with pytest.raises(ValueError, match=r"You set repo_id with .* takes owner/name.*Set, say, repo_id="):
        push_task_dataset(Task("a", "a/b", "a/b"), repo_id, api=SimpleNamespace())


@pytest.mark.parametrize("license", ["", "Apache 2.0", "mit\nfoo: bar", 3, ["mit"]])
def test_a_licence_that_is_none(license):
    with pytest.raises(ValueError, match=r"You set license with .*identifiers such as 'apache-2.0'"):
        push_task_dataset(Task("a", "a/b", "a/b"), "me/pairs", license=license, api=SimpleNamespace())


def test_what_is_no_task_or_cannot_be_loaded():
    with pytest.raises(ValueError, match=r"You set task with a str\. Set a Task"):
        push_task_dataset("helpful", "me/pairs", api=SimpleNamespace())
    with pytest.raises(StreamError, match="does not exist"):
        push_task_dataset(Task("a", "gone.jsonl", "gone.jsonl"), "me/pairs", api=SimpleNamespace())


@pytest.mark.parametrize(("given", "told"), [(None, "mit"), ("cc-by-4.0", "cc-by-4.0")])
def test_the_licence_is_the_tasks_unless_another_is_given(hub, api, given, told):
    task = Task("a", Dataset.from_list(texts(2)), Dataset.from_list(texts(1, 9)), license="mit")
    push_task_dataset(task, "me/pairs", api=api, license=given)
    front, _ = parts(hub.repo("me/pairs", repo_type="dataset").files()["README.md"].decode())
    assert front["license"] == told


def test_a_card_with_the_token_in_use_is_not_sent(hub, api):
    task = Task("a", Dataset.from_list(texts(2)), Dataset.from_list(texts(1, 9)), description=f"log in with {TOKEN}")
    with pytest.raises(NotPublishableError, match="card of the task 'a' holds the access token in use"):
        push_task_dataset(task, "me/pairs", api=api)
    assert not hub.requests


# Through HTTP


@pytest.mark.parametrize("rows", [texts, dialogues, calls])
def test_the_rows_come_back_as_they_were(hub, api, tmp_path, rows):
    task = Task("helpful", write(tmp_path / "a.jsonl", rows(5)), write(tmp_path / "b.jsonl", rows(2, 50)))
    assert push_task_dataset(task, "me/pairs", api=api, license="mit") == f"{hub.url}/datasets/me/pairs"
    files = hub.repo("me/pairs", repo_type="dataset").files()
    assert set(files) - {".gitattributes"} == {"README.md", *PARQUET}
    for path, data in files.items():
        assert str(tmp_path).encode() not in data, path
        if path in PARQUET:
            (tmp_path / Path(path).name).write_bytes(data)
    stored = {split: tmp_path / f"{split}-00000-of-00001.parquet" for split in ("train", "test")}
    again = Task("other", stored["train"], stored["test"])
    assert fingerprint(again) == fingerprint(task)
    assert again.load().train.column_names == task.load().train.column_names


def test_the_same_rows_are_committed_once_and_others_once_more(hub, api, tmp_path):
    train, test = write(tmp_path / "a.jsonl", dialogues(5)), write(tmp_path / "b.jsonl", dialogues(2, 50))
    push_task_dataset(Task("helpful", train, test), "me/pairs", api=api)
    repo = hub.repo("me/pairs", repo_type="dataset")
    made = len(repo.history())
    push_task_dataset(Task("helpful", train, test), "me/pairs", api=api)
    push_task_dataset(Task("helpful", str(train), str(test)), "me/pairs", api=api)
    assert len(repo.history()) == made
    write(train, dialogues(6))
    push_task_dataset(Task("helpful", train, test), "me/pairs", api=api)
    assert len(repo.history()) == made + 1
    assert repo.history()[-1].title == "Publish the task helpful"


def test_a_subset_is_published_and_nothing_else(hub, api, tmp_path):
    rows = [{**row, "annotator": "Jane"} for row in texts(30)]
    task = Task("helpful", write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", texts(4, 50)), max_train=3)
    push_task_dataset(task, "me/pairs", api=api)
    for path, data in hub.repo("me/pairs", repo_type="dataset").files().items():
        (tmp_path / Path(path).name).write_bytes(data)
    stored = Dataset.from_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    assert stored.to_list() == task.load().train.to_list()
    assert len(stored) == 3
    assert all(b"Jane" not in data for data in hub.repo("me/pairs", repo_type="dataset").files().values())


def test_images_travel_inside_and_their_folders_do_not(hub, api, tmp_path):
    from PIL import Image as Picture

    (tmp_path / "janes-album").mkdir()
    rows = texts(3)
    for number, row in enumerate(rows):
        path = tmp_path / "janes-album" / f"{number}.png"
        Picture.new("RGB", (2, 2), (number, 0, 0)).save(path)
        row["images"] = [str(path)]
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("prompt", "chosen", "rejected")},
            "images": datasets.List(datasets.Image()),
        }
    )
    whole = Dataset.from_list(rows, features=features)
    task = Task("look", whole.select(range(2)), whole.select([2]))
    push_task_dataset(task, "me/pairs", api=api)
    for path, data in hub.repo("me/pairs", repo_type="dataset").files().items():
        assert b"janes-album" not in data
        (tmp_path / Path(path).name).write_bytes(data)
    stored = Dataset.from_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    assert stored[0]["images"][0].getpixel((0, 0)) == (2, 0, 0)
    front, _ = parts(hub.repo("me/pairs", repo_type="dataset").files()["README.md"].decode())
    assert front["task_categories"] == ["image-text-to-text"]
    paths = Task("look", Dataset.from_list(rows[:2]), Dataset.from_list(rows[2:]))
    with pytest.raises(NotPublishableError, match=r"The column images holds .* and no images"):
        push_task_dataset(paths, "me/paths", api=api)


def test_a_column_that_parquet_cannot_hold_is_named(hub, api):
    rows = [{**row, "chat_template_kwargs": {}} for row in texts(3)]
    task = Task("x", Dataset.from_list(rows[:2]), Dataset.from_list(rows[2:]))
    with pytest.raises(NotPublishableError, match=r"train rows cannot be written as Parquet.*chat_template_kwargs"):
        push_task_dataset(task, "me/pairs", api=api)
    assert not hub.requests


def test_rows_of_others_are_not_replaced(hub, api):
    from huggingface_hub import CommitOperationAdd

    task = Task("helpful", Dataset.from_list(texts(3)), Dataset.from_list(texts(1, 9)))
    api.create_repo("me/pairs", repo_type="dataset")
    operations = [CommitOperationAdd("data/train-00000-of-00002.parquet", b"PAR1")]
    api.create_commit("me/pairs", operations, commit_message="theirs", repo_type="dataset")
    with pytest.raises(HubError, match=r"did not write \(data/train-00000-of-00002.parquet\)"):
        push_task_dataset(task, "me/pairs", api=api)
    push_task_dataset(task, "me/helpful", api=api)
    other = Task("harmless", Dataset.from_list(texts(3)), Dataset.from_list(texts(1, 9)))
    with pytest.raises(HubError, match=r"for the task 'harmless'.*holds the task 'helpful'"):
        push_task_dataset(other, "me/helpful", api=api)


def test_private_stays_private_and_is_never_sent_to_a_public_dataset(hub, api):
    task = Task("helpful", Dataset.from_list(texts(3)), Dataset.from_list(texts(1, 9)))
    push_task_dataset(task, "me/pairs", private=True, api=api)
    assert hub.repo("me/pairs", repo_type="dataset").private
    api.create_repo("me/open", repo_type="dataset")
    with pytest.raises(HubError, match="already and public, so nothing was sent"):
        push_task_dataset(task, "me/open", private=True, api=api)
    assert not PARQUET & set(hub.repo("me/open", repo_type="dataset").files())


@pytest.mark.parametrize(
    "fault",
    [Fault(step="commit", kind="status", status=412), Fault(step="commit", kind="status_after", status=502)],
    ids=["conflict", "lost answer"],
)
def test_one_commit_through_a_fault(hub, api, fault):
    hub.fail(fault)
    push_task_dataset(Task("helpful", Dataset.from_list(texts(3)), Dataset.from_list(texts(1, 9))), "me/pairs", api=api)
    titles = [commit.title for commit in hub.repo("me/pairs", repo_type="dataset").history()]
    assert titles.count("Publish the task helpful") == 1


READER = r"""
import json, re, sys
from huggingface_hub import hf_hub_download
from datasets import load_dataset

train, test = load_dataset("me/pairs", split="train"), load_dataset("me/pairs", split="test")
whole = load_dataset("me/pairs")
assert {name: len(rows) for name, rows in whole.items()} == {"train": len(train), "test": len(test)}

from hf_lifealign.stream import TaskStream, fingerprint

stream = TaskStream.from_config([{"name": "again", "train": "me/pairs", "test": "me/pairs"}])
report = stream.validate()
card = open(hf_hub_download("me/pairs", "README.md", repo_type="dataset"), encoding="utf-8").read()
blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
for block in blocks:
    exec(compile(block, "card", "exec"), {"print": lambda *args: None})
facts = {"train": train.to_list(), "columns": test.column_names, "fingerprint": fingerprint(stream["again"])}
print(json.dumps(facts | {"blocks": len(blocks)}))
"""


def test_datasets_and_a_stream_read_it_by_its_id(hub, api, tmp_path):
    task = Task("helpful", write(tmp_path / "a.jsonl", dialogues(5)), write(tmp_path / "b.jsonl", dialogues(2, 50)))
    push_task_dataset(task, "me/pairs", api=api)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", READER],
        cwd=tmp_path / "elsewhere",
        env=client_environment(hub, tmp_path / "home", token=None)
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(whole_commit.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == {
        "train": task.load().train.to_list(),
        "columns": ["prompt", "chosen", "rejected"],
        "fingerprint": fingerprint(task),
        "blocks": 2,
    }
