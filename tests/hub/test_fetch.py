"""What comes from a stranger's repository is believed in nothing: names, sizes, hashes, JSON, pickles."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hub_server import Fault, HubServer
from support.tiny import tiny_model

from hf_lifealign import load_adapter
from hf_lifealign.hub.contents import LARGEST, Content, content_digest, is_allowed, json_digest
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.fetch import fetch_revision, split_revision
from hf_lifealign.hub.history import verify
from hf_lifealign.hub.lineage import Entry, Lineage, file_facts, free_tag
from hf_lifealign.hub.publish import push_run
from hf_lifealign.hub.record import RunRecord

FACTS = {"sha256": "1" * 64, "git_oid": "1" * 40, "size": 1}


@pytest.fixture
def published(hub: HubServer, remote, life: Path, options) -> HubServer:
    push_run(life, remote(), options)
    return hub


@given(st.text(max_size=40))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    if is_allowed(name):
        parts = Path(name).parts
        assert ".." not in parts
        assert not Path(name).is_absolute()
        assert Path(name).suffix in LARGEST
        assert "\\" not in name


@pytest.mark.parametrize(
    "name",
    ["../x.json", "slmc/../../x.json", "/etc/passwd", "slmc/..json", "slmc/a/b.json", "adapter_model.bin",
     "slmc/strategies/../x.json", "slmc/strategies/a/../../b.json", "optimizer.pt", "slmc/x.pkl", "slmc\\x.json",
     "ref/adapter_model.safetensors", "checkpoint-3/adapter_model.safetensors", "README.md\n", ""],
)  # fmt: skip
def test_names_that_are_never_fetched(name: str) -> None:
    assert not is_allowed(name)


def forged(hub: HubServer, change: Any, files: dict[str, bytes] | None = None) -> None:
    """Commits a lineage that someone changed, checksum and all."""
    body = json.loads(hub.repo("me/life").files("main")["slmc/lineage.json"])
    change(body)
    body.pop("checksum")
    body["checksum"] = json_digest(body)
    hub.elsewhere("me/life", {"slmc/lineage.json": json.dumps(body).encode()} | (files or {}))


def test_a_lineage_cannot_name_files_outside(published: HubServer, tmp_path: Path) -> None:
    forged(published, lambda body: body["files"].update({"../../evil.json": FACTS}))
    with pytest.raises(DamagedRevisionError, match=r"evil\.json"):
        fetch_revision("me/life", "main")
    assert not list(tmp_path.rglob("evil.json"))


def test_a_lineage_cannot_name_endless_files(published: HubServer) -> None:
    forged(published, lambda body: body["files"].update({"slmc/huge.json": FACTS | {"size": 2**60}}))
    with pytest.raises(DamagedRevisionError, match=r"huge\.json has \d+ bytes"):
        fetch_revision("me/life", "main")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body.update(log=[]), "its log is empty"),
        (lambda body: body["log"][-1].update(tag="../x"), "cannot be one"),
        (lambda body: body["log"][-1].update(content="0"), "cannot be one"),
        (lambda body: body["log"][-1].update(parent={"repo": "a"}), "parent"),
        (lambda body: body["log"][-1].update(kind="other"), "known kind"),
        (lambda body: body["log"][-1].pop("date"), "lacks or adds keys"),
        (lambda body: body["log"][-1].update(task="a\x1b[31m"), "a task that cannot be one"),
        (lambda body: body["log"][-1].update(label="03-other"), "a task that cannot be one"),
        (lambda body: body["log"][-1].update(date="<b>now</b>"), "a date or a licence"),
        (lambda body: body["log"][-1].update(license=3), "a date or a licence"),
        (lambda body: body["log"][-1]["sizes"].update(total="x"), "no numbers"),
        (lambda body: body["log"][-1]["metrics"].update(metric="\x1b[31m"), "no numbers"),
        (lambda body: body.update(extra=1), "lacks or adds keys"),
        (lambda body: body.update(format_version=9), "Install a newer one"),
        (lambda body: body.update(format="x"), "its format is not"),
        (lambda body: body["files"].update({"matrix.json": 1}), "is not a hash and a size"),
        (lambda body: body["files"]["matrix.json"].update(size=True), "is not a hash and a size"),
        (lambda body: body["files"]["matrix.json"].update(size=3), "bytes"),
        (lambda body: body["files"]["matrix.json"].update(sha256="1" * 64), "does not match the lineage"),
        (lambda body: body["files"].update({"slmc/more.json": FACTS}), "lacks"),
    ],
)  # fmt: skip
def test_a_lineage_that_lies_is_named(published: HubServer, change: Any, words: str) -> None:
    forged(published, change)
    with pytest.raises(DamagedRevisionError, match=words):
        fetch_revision("me/life", "main")


def test_a_lineage_that_is_no_lineage(published: HubServer) -> None:
    for content, words in (
        (b"{", "not valid JSON"),
        (b"[]", "format"),
        (b'{"format": "lifealign-lineage"}', "version"),
    ):
        published.elsewhere("me/life", {"slmc/lineage.json": content})
        with pytest.raises(DamagedRevisionError, match=words):
            fetch_revision("me/life", "main")
    body = json.loads(published.repo("me/life").files("task-01-one")["slmc/lineage.json"])
    body["log"][0]["task"] = "other"
    published.elsewhere("me/life", {"slmc/lineage.json": json.dumps(body).encode()})
    with pytest.raises(DamagedRevisionError, match="its own checksum"):
        fetch_revision("me/life", "main")


def test_a_model_takes_what_it_needs(published: HubServer) -> None:
    model = load_adapter(tiny_model(), "me/life", revision="task-02-two")
    assert model.memory.length == 2
    fetched = [request.path.partition("/resolve/")[2].partition("/")[2] for request in published.requests
               if request.step == "resolve_get"]  # fmt: skip
    assert "matrix.png" not in fetched
    assert "slmc/run.json" not in fetched


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "slmc/memory.json", "matrix.png", "README.md"])
@pytest.mark.parametrize("damage", ["corrupt", "truncate"])
def test_damaged_files_are_named_and_not_kept(published: HubServer, tmp_path: Path, path: str, damage: str) -> None:
    getattr(published, damage)("me/life", "task-02-two", path)
    with pytest.raises(HubError, match=path.replace(".", r"\.")):
        fetch_revision("me/life", "task-02-two")
    if path in ("adapter_model.safetensors", "slmc/memory.json"):
        with pytest.raises(HubError, match=path.replace(".", r"\.")):
            load_adapter(tiny_model(), "me/life", revision="task-02-two")
    # once the Hub has mended it, nothing of the damage is left here
    published.repo("me/life").damaged.clear()
    assert fetch_revision("me/life", "task-02-two").lineage is not None


def test_bytes_damaged_once_on_the_way_are_fetched_again(published: HubServer) -> None:
    published.fail(fault := Fault(step="resolve_get", kind="corrupt", times=1, path="adapter_model"))
    fetched = fetch_revision("me/life", "task-02-two")
    assert fault.fired == 1
    assert fetched.lineage is not None
    assert fetched.lineage.entry.tag == "task-02-two"


def test_pickles_are_not_fetched(hub: HubServer, remote, life: Path, tmp_path: Path) -> None:
    """From a repository without a lineage, too."""
    remote("me/plain").create(private=False)
    folder = life / "adapters" / "01-one"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub.elsewhere("me/plain", files | {"adapter_model.bin": b"evil", "slmc/x.pkl": b"evil", "train.py": b"evil"})
    model = load_adapter(tiny_model(), "me/plain")
    assert model.memory.length == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pkl", ".py")]
    asked = [request.path for request in hub.requests if request.step.startswith("resolve")]
    assert not [path for path in asked if "evil" in path or path.endswith((".bin", ".pkl", ".py"))]


def test_verify_finds_what_was_changed_by_hand(published: HubServer, remote) -> None:
    assert [item.fault for item in verify(remote())] == [None] * 4
    # weights of another task under a lineage that was forged to fit them
    other = published.repo("me/life").files("task-01-one")["adapter_model.safetensors"]
    facts = file_facts({"adapter_model.safetensors": Content(other)})
    forged(published, lambda body: body["files"].update(facts), {"adapter_model.safetensors": other})
    found = verify(remote(), "main")[0]
    assert found.fault is not None
    assert "its content is not the one that its lineage names" in found.fault
    assert verify(remote(), "task-03-three")[0].fault is None


def test_verify_sees_a_tag_that_is_gone_or_moved(published: HubServer, remote) -> None:
    api = remote().api
    api.delete_tag("me/life", tag="task-01-one")
    api.delete_tag("me/life", tag="task-02-two")
    api.create_tag("me/life", tag="task-02-two", revision="main")
    faults = {item.name: item.fault for item in verify(remote())}
    assert "its tag is missing" in str(faults["task-01-one"])
    assert "not that which the log of main names" in str(faults["task-02-two"])
    assert faults["task-03-three"] is None


def test_a_record_from_outside_is_checked(life: Path) -> None:
    folder = life / "adapters" / "02-two"
    path = folder / "slmc" / "run.json"
    body = json.loads(path.read_text())
    for change, words in (
        ({"lived": ["one", "../two"]}, "cannot be used"),
        ({"lived": ["one", "one"]}, "doubled"),
        ({"lived": []}, "names no tasks"),
        ({"measured": ["three"]}, "cannot be used"),
        ({"settings": []}, "not a JSON object"),
        ({"evaluation": {"../x": {}}}, "unknown task"),
        ({"evaluation": {"one": {"../../x": {}}}}, "cannot be one"),
        ({"base_evaluation": {"one": 3}}, "not numbers"),
        ({"more": 1}, "lacks or adds keys"),
        ({"settings": {"tasks": [1]}}, "are no tasks"),
        ({"records": {"one": 1}}, "are no records"),
        ({"notes": [1]}, "no texts"),
        ({"origin": 1}, "its origin"),
        ({"format": "x"}, "its format"),
    ):
        path.write_text(json.dumps(body | change))
        with pytest.raises(DamagedRevisionError, match=words):
            RunRecord.read(folder)
    for text in ("{", "[" * 200_000):
        path.write_text(text)
        with pytest.raises(DamagedRevisionError, match="no valid JSON"):
            RunRecord.read(folder)


def test_identity_is_that_of_the_state(tmp_path: Path) -> None:
    """Dates, durations, cards and pictures are not part of it; weights, settings and measures are."""
    files = {
        "adapter_model.safetensors": Content(b"w"),
        "matrix.json": Content(b'{"a": 1, "b": 2}'),
        "slmc/run.json": Content(b'{"date": "x", "seconds": 3, "settings": {"lr": 1}}'),
    }
    digest = content_digest(files)
    same = files | {
        "matrix.json": Content(b'{"b": 2,\n "a": 1}'),
        "slmc/run.json": Content(b'{"date": "y", "seconds": 4, "versions": {}, "settings": {"lr": 1}}'),
        "README.md": Content(b"x"), "matrix.png": Content(b"y"), "slmc/lineage.json": Content(b"z"),
    }  # fmt: skip
    assert content_digest(same) == digest
    for path, content in (("adapter_model.safetensors", b"v"), ("matrix.json", b'{"a": 1, "b": 3}')):
        assert content_digest(files | {path: Content(content)}) != digest
    path = tmp_path / "w"
    path.write_bytes(b"w")
    on_disk, in_memory = Content(path), Content(b"w")
    assert (on_disk.sha256, on_disk.git_oid, on_disk.size) == (in_memory.sha256, in_memory.git_oid, in_memory.size)


def test_git_names_blobs_as_we_do(tmp_path: Path) -> None:
    import subprocess

    data = b"some bytes\n\0\xff"
    done = subprocess.run(["git", "hash-object", "--stdin"], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == Content(data).git_oid


def test_a_lineage_survives_its_file() -> None:
    entry = Entry("task", "a", "01-a", "task-01-a", "0" * 64, "2026-01-01T00:00:00+00:00", None, {"metric": "m"}, {})
    facts = {"matrix.json": {"sha256": "1" * 64, "git_oid": "2" * 40, "size": 3}}
    lineage = Lineage((entry,), facts)
    assert Lineage.from_bytes(lineage.to_bytes(), "here") == lineage


def test_tags_are_never_given_twice() -> None:
    taken: list[str] = []
    for _ in range(4):
        taken.append(free_tag("01-a", taken))
    assert taken == ["task-01-a", "task-01-a.2", "task-01-a.3", "task-01-a.4"]


def test_names_with_a_revision() -> None:
    assert split_revision("me/x@task-01-a") == ("me/x", "task-01-a")
    assert split_revision("me/x") == ("me/x", None)
