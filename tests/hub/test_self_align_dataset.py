"""What SELF-ALIGN made as a dataset of the Hub: the card tells of what and how, and shows no row, path or address."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml
from support.hub_server import HubServer, client_environment
from support.openai_server import OpenAIServer
from support.self_align import obedient
from support.tiny import save_tiny, write_jsonl

from hf_lifealign import SelfAlign, SelfAlignConfig, TaskStream, push_task_dataset
from hf_lifealign.cli.main import main
from hf_lifealign.hub.dataset_repo import dataset_card
from hf_lifealign.hub.errors import NotPublishableError
from hf_lifealign.hub.remote import Remote
from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.generators import Generation, ScriptedGenerator, TransformersGenerator, VLLMGenerator
from hf_lifealign.self_align.provenance import RECORD, _writer, keep_record, read_provenance, run_of_task
from hf_lifealign.self_align.stages.prompts import PromptSettings
from hf_lifealign.stream import Task, fingerprint

Hub = Callable[..., Remote]
PRINCIPLES = [
    {"name": "plain", "text": "Say it in\n  plain words."},
    {"name": "kind", "text": "Be kind to whoever asks, and to others.", "short": "Be kind."},
]
EXEMPLARS = [{"request": "Hi", "thoughts": "A greeting.", "reply": "Hello.", "principles": ["kind"], "compact": True}]


def writer(prompt: str, seed: int = 0, place: int = 0) -> Generation | str:
    """One of four answers by principles has no end."""
    told = obedient(prompt, seed, place)
    if "notes for itself" in prompt and place == 3:
        return Generation(f"{told} and", False, 5)
    return told.replace("2 (informative)", "2 (kind)") if place % 2 else told.replace("2 (informative)", "none")


def self_aligned(folder: Path, base: str, generator: Any = None, **given: Any) -> SelfAlign:
    files = {"principles": PRINCIPLES, "exemplars": EXEMPLARS}
    folder.parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder.parent / f"{name}.yaml").write_text(yaml.safe_dump(content))
    settings: dict[str, Any] = {
        "prompts": PromptSettings(self_instruct=12, red_team=4), "engrave": None, "preset": "compact", "seed": 41,
        "constitution": {name: str(folder.parent / f"{name}.yaml") for name in files},
    }  # fmt: skip
    config = SelfAlignConfig(str(folder), base, **(settings | given))
    run = SelfAlign(config, generator or ScriptedGenerator(writer, batch_size=4), disable_tqdm=True)
    run.run()
    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    """A finished run, with its record."""
    root = tmp_path_factory.mktemp("secret-home") / "janes-run"
    keep_record(self_aligned(root, base))
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(made, tmp_path / "janes-run"))


def task_of(run: Path, **given: Any) -> Task:
    return TaskStream.from_config([{"name": "principled", "self_align": str(run), **given}])[0]


def table(card: str, head: str) -> dict[str, list[str]]:
    """A table of the card: its first column to the others."""
    lines = card[card.index(f"| {head} ") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return {row[0]: row[1:] for row in rows[2:end]}


def test_the_card_tells_what_was_made_and_how(run: Path) -> None:
    card = dataset_card(task_of(run, max_train=5), "me/pairs")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"][-2:] == ["self-align", "synthetic"]
    assert "\n1. **plain**: Say it in plain words.\n" in card
    assert "2. **kind**: Be kind to whoever asks, and to others. *Shown as:* Be kind.\n" in card
    settings = table(card, "setting")
    assert settings["who wrote"] == ["ScriptedGenerator (backend of its own)"]
    assert settings["preset"] == ["compact"]
    assert settings["answers: temperature"] == ["0.5"]
    assert settings["answers: behaviour"] == ["safe"]
    assert (settings["tasks: self_instruct"], settings["tasks: threshold"]) == (["12"], ["0.7"])
    assert settings["tasks: seed"] == settings["answers: seed"] == ["41"]
    told = json.loads((run / "responses" / "manifest.json").read_text())["told"]
    assert (told["asked"], told["kept"]) == (16, 12)
    counts = table(card, "count")
    assert counts["tasks that were asked"] == ["16"]
    assert counts["answers by principles that were kept"] == ["12"]
    assert counts["keep rate"] == ["75.0 %"]
    assert counts["pairs with an answer without principles"] == [str(told["pairs"])]
    assert "| answers with principles | `unfinished`" in " ".join(card.split())
    usage = table(card, "principle named in the note")
    kind = told["principles"]["kind"]
    assert usage["2 kind"] == [str(kind), f"{100 * kind / 12:.1f} %"]
    assert usage["1 plain"] == ["0", "0.0 %"]
    assert usage["none"] == [str(12 - kind), f"{100 * (12 - kind) / 12:.1f} %"]
    digests = [json.loads((run / stage / "manifest.json").read_text()) for stage in ("prompts", "responses")]
    for digest in (digests[0]["made_of"]["constitution"], *(each["rows_sha256"] for each in digests)):
        assert f"`{digest}`" in card
    words = " ".join(card.split())
    assert "those of models of 65 and 70 billion parameters. Nothing at small scale shows that it works" in words
    assert "Nobody compared the two." in words
    assert table(card, "column")["`chosen`"] == ["list of messages", "the answer by the principles"]
    assert "train: a random subset (seed 0) of 5 of the " in words
    assert "rows of what was made by principles" in words
    assert "\n\n\n" not in card


def test_the_card_shows_no_row_and_no_path(run: Path) -> None:
    card = dataset_card(task_of(run), "me/pairs")
    rows = [json.loads(line) for line in (run / "responses" / "rows.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (run / "responses" / "dropped.jsonl").read_text().splitlines()]
    texts = {text for row in [*rows, *dropped] for text in row.values() if isinstance(text, str) and " " in text}
    assert len(texts) > 30
    assert not [text for text in texts if text.strip() in card]
    for private in (str(run), "janes-run", "secret-home", str(Path.home())):
        assert private not in card


def test_other_tasks_have_the_card_they_had(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(3)]
    files = [str(write_jsonl(tmp_path / "responses" / "preference" / f"{s}.jsonl", rows)) for s in ("train", "test")]
    task = Task("like", *files)
    assert run_of_task(task) is None, "there is no manifest"
    card = dataset_card(task, "me/pairs")
    assert "SELF-ALIGN" not in card
    assert "A preference is somebody's judgement" in card


def test_how_tasks_are_drawn(run: Path) -> None:
    """What the card tells of it is no setting, and has to be what the calls were made with."""
    told = [json.loads(file.read_text())["call"]["sampling"] for file in (run / "calls").rglob("*.json")]
    settings = table(dataset_card(task_of(run), "me/pairs"), "setting")
    drawn = {(each["temperature"], each["top_p"]) for each in told} - {(0.5, 0.95)}
    assert drawn == {(1.0, 0.98), (1.0, 0.95)}
    assert settings["tasks: drawn with"] == ["temperature 1.0, top-p 0.98; of topics and questions 1.0 and 0.95"]


def test_who_wrote_is_told_without_address_and_key(tmp_path: Path, base: str) -> None:
    with OpenAIServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.answer = lambda prompt: str(obedient(prompt, len(server.asked)))
        generator = {"backend": "server", "model": "/srv/weights/big-model", "base_url": server.url, "chat": False,
                     "revision": "v2", "api_key": "very-secret"}  # fmt: skip
        content = {"model": base, "generator": generator, "prompts": {"self_instruct": 6, "red_team": 0},
                   "engrave": None, "preset": "compact"}  # fmt: skip
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
        assert main(["self-align", str(tmp_path / "r.yaml"), "--output-dir", str(tmp_path / "run")]) == 0
        server.shutdown()
    card = dataset_card(task_of(tmp_path / "run"), "me/pairs")
    assert table(card, "setting")["who wrote"] == ["big-model (backend server, batch_size 1, chat false, revision v2)"]
    assert "very-secret" not in (tmp_path / "run" / RECORD).read_text()
    for private in ("very-secret", "127.0.0.1", "/srv"):
        assert private not in card, private


def test_who_wrote_on_this_machine(base: str) -> None:
    assert _writer(TransformersGenerator(base, batch_size=3)) == {
        "model": "tiny-llama", "backend": "transformers", "dtype": "float32", "chat": False, "batch_size": 3,
    }  # fmt: skip
    vllm = object.__new__(VLLMGenerator)
    vllm.path, vllm.dtype, vllm.commit, vllm.chat, vllm.batch_size = "me/big", "auto", "c0ffee", True, 64
    assert _writer(vllm) == {
        "model": "me/big", "backend": "vllm", "dtype": "auto", "revision": "c0ffee", "chat": True, "batch_size": 64,
    }  # fmt: skip


def test_principles_that_were_not_kept(run: Path, tmp_path: Path, base: str) -> None:
    (run / RECORD).unlink()
    with pytest.raises(ValueError, match=r"not the shipped ones\. Give the command `lifealign self-align RECIPE"):
        dataset_card(task_of(run), "me/pairs")
    shipped = self_aligned(tmp_path / "shipped", base, ScriptedGenerator(obedient), constitution={})
    (tmp_path / "shipped" / RECORD).unlink()
    found = read_provenance(tmp_path / "shipped")
    assert found.principles == load_constitution().principles
    assert found.writer == {}
    card = dataset_card(task_of(tmp_path / "shipped"), "me/pairs")
    assert table(card, "setting")["who wrote"] == ["not kept; its digest is told below"]
    assert all(f"**{each.name}**: {' '.join(each.text.split())}" in card for each in found.principles)
    strange = SimpleNamespace(store=shipped.store, constitution=SimpleNamespace(digest=lambda: "other"))
    with pytest.raises(ValueError, match="made by other principles"):
        keep_record(strange)


def test_a_record_of_another_run_is_not_believed(run: Path) -> None:
    record = json.loads((run / RECORD).read_text())
    (run / RECORD).write_text(json.dumps(record | {"generator": "another"}))
    assert read_provenance(run).writer == {}
    (run / RECORD).write_text(json.dumps(record | {"constitution": "another"}))
    with pytest.raises(ValueError, match="are not known"):
        read_provenance(run)


def test_damaged_records(run: Path) -> None:
    record = json.loads((run / RECORD).read_text())
    for damage in ({"principles": [{"name": "x"}]}, {"principles": None}, {"writer": {}}):
        (run / RECORD).write_text(json.dumps(record | damage))
        with pytest.raises(ValueError, match=r"The record .* is damaged .* once more"):
            read_provenance(run)
    file = run / "responses" / "manifest.json"
    manifest = json.loads(file.read_text())
    for damage, lacking in (({"told": {}}, "asked, kept, keep_rate"), ({"made_of": None}, "made_of")):
        file.write_text(json.dumps(manifest | damage))
        with pytest.raises(ValueError, match=rf"manifest .* lacks {lacking}\. Make the stage anew"):
            read_provenance(run)
    (run / "prompts" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"The stage 'prompts' of the run .* is not there"):
        read_provenance(run)


@pytest.mark.parametrize("what", ["responses/preference/train.jsonl", "responses/rows.jsonl", "prompts/rows.jsonl"])
def test_rows_that_were_changed_are_not_what_the_run_tells_of(run: Path, what: str) -> None:
    lines = (run / what).read_text().splitlines()
    (run / what).write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ValueError, match=r"were changed since they were made.*copy the files of pairs"):
        dataset_card(task_of(run), "me/pairs")


def test_plain_rows(tmp_path: Path, base: str) -> None:
    run = self_aligned(tmp_path / "plain", base, conversational=False)
    keep_record(run)
    assert "1. **plain**" in dataset_card(task_of(tmp_path / "plain"), "me/pairs")
    file = tmp_path / "plain" / "responses" / "preference" / "test.jsonl"
    file.write_text(file.read_text().replace('"chosen": " ', '"chosen": " Well, '))
    with pytest.raises(ValueError, match=r"The pairs in .* were changed"):
        dataset_card(task_of(tmp_path / "plain"), "me/pairs")


def test_a_principle_with_a_secret_is_not_sent(hub: HubServer, remote: Hub, run: Path) -> None:
    record = json.loads((run / RECORD).read_text())
    record["principles"][0]["text"] = "Log in with hf_test_write_me."
    (run / RECORD).write_text(json.dumps(record))
    with pytest.raises(NotPublishableError, match=r"access token in use.*or of the principles"):
        push_task_dataset(task_of(run), "me/pairs", api=remote().api)
    assert not hub.requests


# The command


READER = r"""
import json
from datasets import load_dataset
from hf_lifealign.stream import TaskStream, fingerprint

parts = {split: load_dataset("me/by-principles", split=split) for split in ("train", "test")}
stream = TaskStream.from_config([{"name": "again", "train": "me/by-principles", "test": "me/by-principles"}])
stream.validate()
print(json.dumps({"rows": {k: v.to_list() for k, v in parts.items()}, "fingerprint": fingerprint(stream["again"])}))
"""


def test_the_pairs_of_a_run_are_published_and_read_again(
    hub: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push-dataset", str(run), "me/by-principles", "--license", "cc-by-4.0"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/datasets/me/by-principles\n"
    repo = hub.repo("me/by-principles", repo_type="dataset")
    card = repo.files()["README.md"].decode()
    assert "2. **kind**" in card
    assert "janes-run" not in card
    task = task_of(run)
    assert yaml.safe_load(card.split("---\n")[1])["hf_lifealign_task"] == "by-principles"
    made = len(repo.history())
    recipe = tmp_path / "life.yaml"
    recipe.write_text("model: m\ntasks:\n  - {name: by-principles, self_align: janes-run, license: cc-by-4.0}\n")
    assert main(["push-dataset", str(recipe), "by-principles", "me/by-principles"]) == 0
    assert len(repo.history()) == made, "through the recipe it is the same"
    done = subprocess.run(
        [sys.executable, "-c", READER], cwd=tmp_path_of(tmp_path), capture_output=True, text=True, timeout=120,
        env=client_environment(hub, tmp_path / "home", token=None)
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["fingerprint"] == fingerprint(task)
    assert facts["rows"] == {"train": task.load().train.to_list(), "test": task.load().test.to_list()}


def tmp_path_of(folder: Path) -> Path:
    """An empty folder, in which no name hides one of the Hub."""
    (folder / "elsewhere").mkdir()
    return folder / "elsewhere"


def test_what_is_refused(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "life.yaml").write_text("model: m\ntasks:\n  - {name: a, train: x/y, test: x/y}\n")
    for given, told in (
        (["empty", "me/x"], "It holds no pairs"),
        (["life.yaml", "me/x"], "You gave no task. The recipe has a."),
        (["life.yaml", "b", "me/x"], "You gave the task 'b'. The recipe has a."),
    ):
        assert main(["push-dataset", str(tmp_path / given[0]), *given[1:]]) == 2
        assert told in capsys.readouterr().err
    assert not hub.requests


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` caches into a folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf-cache"))
