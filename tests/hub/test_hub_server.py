"""The test Hub, through the real client."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.hub_server import Fault, HubServer, client_environment

WEIGHTS = b"weights " * 1000


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads both at every call; the other tests run offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept between its own retries."""
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    api = HfApi(endpoint=hub.url, token="hf_test_write_me")
    api.create_repo("me/x")
    return api


@pytest.fixture
def fetch(hub: HubServer, tmp_path: Path) -> Callable[..., bytes]:
    """Download one file of me/x without a cache to fall back to."""

    def fetch(path: str, revision: str | None = None, token: str = "hf_test_write_me") -> bytes:
        folder = tmp_path / f"cache-{time.monotonic_ns()}"
        found = hf_hub_download(
            "me/x", path, revision=revision, endpoint=hub.url, token=token, cache_dir=folder, etag_timeout=5
        )
        return Path(found).read_bytes()

    return fetch


def push(api: HfApi, title: str = "push", parent: str | None = None, branch: str | None = None, **files: bytes) -> str:
    """One commit; `a__b_json` is a/b.json."""
    operations = [
        CommitOperationAdd(name.replace("__", "/").replace("_", "."), data) for name, data in sorted(files.items())
    ]
    return api.create_commit("me/x", operations, commit_message=title, parent_commit=parent, revision=branch).oid


def failing(status: int) -> pytest.RaisesExc[HfHubHTTPError]:
    """Expect the client to raise for this status."""
    return pytest.raises(HfHubHTTPError, check=lambda error: error.response.status_code == status)


class TestContract:
    def test_round_trip_of_commits_tags_and_branches(self, hub, api, fetch):
        first = push(api, "one", a_safetensors=WEIGHTS, slmc__memory_json=b"{}", README_md=b"---\nlicense: mit\n---\n")
        api.create_tag("me/x", tag="task-01-x", revision=first)
        api.create_branch("me/x", branch="side/b", revision=first[:8])
        second = push(api, "two", parent=first, a_safetensors=WEIGHTS[::-1])
        third = push(api, "three", branch="side/b", note_txt=b"note")

        repo = hub.repo("me/x")
        assert (repo.head, repo.branches["side/b"], repo.tags["task-01-x"]) == (second, third, first)
        assert [commit.title for commit in repo.history("main")] == ["initial commit", "one", "two"]
        assert [commit.commit_id for commit in api.list_repo_commits("me/x", revision="side/b")][:2] == [third, first]
        refs = api.list_repo_refs("me/x")
        assert {ref.name: ref.target_commit for ref in refs.branches + refs.tags} == repo.branches | repo.tags
        assert repo.files("task-01-x")["a.safetensors"] == fetch("a.safetensors", "task-01-x") == WEIGHTS
        assert fetch("a.safetensors") == WEIGHTS[::-1]
        assert fetch("note.txt", "side/b") == b"note"
        api.delete_tag("me/x", tag="task-01-x")
        assert hub.repo("me/x").tags == {}
        with pytest.raises(RevisionNotFoundError):
            fetch("a.safetensors", "task-01-x")

    def test_tree_and_paths_info_know_files_folders_and_lfs(self, hub, api):
        oid = push(api, a_safetensors=WEIGHTS, slmc__memory_json=b"{}", slmc__deep__x_txt=b"x")
        hub.page_size = 2
        entries = {item.path: item for item in api.list_repo_tree("me/x", recursive=True, expand=True)}
        assert set(entries) == {
            ".gitattributes", "a.safetensors", "slmc", "slmc/memory.json", "slmc/deep", "slmc/deep/x.txt",
        }  # fmt: skip
        lfs = entries["a.safetensors"].lfs
        assert (lfs.sha256, lfs.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
        assert entries["slmc/deep"].last_commit.oid == oid
        git = subprocess.run(["git", "hash-object", "--stdin"], input=b"{}", capture_output=True, check=True).stdout
        assert entries["slmc/memory.json"].blob_id == git.decode().strip()
        assert [item.path for item in api.list_repo_tree("me/x", "slmc")] == ["slmc/deep", "slmc/memory.json"]
        infos = api.get_paths_info("me/x", ["slmc", "a.safetensors", "absent"])
        assert [info.path for info in infos] == ["slmc", "a.safetensors"]
        info = api.model_info("me/x", revision=oid[:9], files_metadata=True)
        assert info.sha == oid
        assert {item.rfilename: item.size for item in info.siblings}["a.safetensors"] == len(WEIGHTS)
        assert len(api.list_repo_commits("me/x")) == 2

    def test_snapshot_at_a_tag(self, hub, api, tmp_path):
        api.create_tag("me/x", tag="v1", revision=push(api, a_safetensors=WEIGHTS, b__c_txt=b"old"))
        push(api, b__c_txt=b"new")
        folder = snapshot_download(
            "me/x", revision="v1", endpoint=hub.url, token="hf_test_read_me", cache_dir=tmp_path, allow_patterns="*.*"
        )
        assert Path(folder, "b/c.txt").read_bytes() == b"old"
        assert Path(folder, "a.safetensors").read_bytes() == WEIGHTS

    def test_unchanged_files_and_present_objects_are_not_sent_again(self, hub, api):
        push(api, a_safetensors=WEIGHTS, b_txt=b"b")
        head = hub.repo("me/x").head
        hub.requests.clear()
        assert push(api, a_safetensors=WEIGHTS, b_txt=b"b") == head
        assert "commit" not in hub.steps
        push(api, copy_safetensors=WEIGHTS)
        assert "lfs_put" not in hub.steps

    def test_a_stale_parent_is_412_and_what_is_there_409(self, hub, api):
        parent = hub.repo("me/x").head
        hub.elsewhere("me/x", {"other.txt": b"1"})
        with failing(412):
            push(api, parent=parent, a_txt=b"a")
        assert "a.txt" not in hub.repo("me/x").files()
        api.create_tag("me/x", tag="t")
        api.create_branch("me/x", branch="b")
        for again in (
            lambda: api.create_tag("me/x", tag="t", revision=parent),
            lambda: api.create_branch("me/x", branch="b", revision=parent),
            lambda: api.create_repo("me/x"),
        ):
            with failing(409):
                again()
        assert api.create_repo("me/x", exist_ok=True).repo_id == "me/x"
        assert hub.repo("me/x").tags["t"] == hub.repo("me/x").head

    def test_racing_commits_are_serialised(self, hub, api):
        parent = hub.repo("me/x").head

        def race(number: int) -> int:
            try:
                push(api, f"racer {number}", parent=parent, a_txt=str(number).encode())
                return 200
            except HfHubHTTPError as error:
                return error.response.status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(race, range(8))) == [200] + [412] * 7
        assert len(hub.repo("me/x").history()) == 2

    def test_errors_of_names(self, hub, api, fetch):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("me/absent")
        with pytest.raises(RepositoryNotFoundError):
            api.dataset_info("me/x")
        with pytest.raises(RevisionNotFoundError):
            push(api, branch="absent", a_txt=b"a")
        with pytest.raises(RemoteEntryNotFoundError):
            fetch("absent.txt")
        with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
            api.create_commit("me/x", [CommitOperationDelete("absent.txt")], commit_message="delete")
        push(api, f__a_txt=b"a", f__b_txt=b"b")
        api.create_commit("me/x", [CommitOperationDelete("f/")], commit_message="delete")
        assert list(hub.repo("me/x").files()) == [".gitattributes"]

    @pytest.mark.parametrize(
        "line",
        [
            *({"key": "file", "value": {"path": path, "content": ""}} for path in ("../a", "/a", "a\\b", "a//b", "")),
            {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}},
            {"key": "file", "value": {"path": ".gitattributes/a", "content": ""}},
            {"key": "nonsense", "value": {"path": "a"}},
        ],
    )
    def test_bad_operations_change_nothing(self, hub, api, line):
        before = hub.repo("me/x").snapshot()
        answer = httpx2.post(
            f"{hub.url}/api/models/me/x/commit/main",
            headers={"Authorization": "Bearer hf_test_write_me"},
            content="\n".join(json.dumps(item) for item in ({"key": "header", "value": {"summary": "s"}}, line)),
        )
        assert answer.status_code == 400
        assert hub.repo("me/x").snapshot() == before

    def test_scopes_and_strangers(self, hub, api, fetch):
        push(api, a_txt=b"a")
        for token in ("hf_test_read_me", "hf_test_write_you"):
            other = HfApi(endpoint=hub.url, token=token)
            assert other.whoami()["name"] == token.split("_")[-1]
            with failing(403):
                push(other, b_txt=b"b")
            with failing(403):
                other.create_repo("me/y")
            assert fetch("a.txt", token=token) == b"a"
        for token in (False, "hf_unknown"):
            with failing(401):
                HfApi(endpoint=hub.url, token=token).create_tag("me/x", tag="t")

    def test_private_repos_are_unknown_to_strangers(self, hub, api):
        api.create_repo("me/secret", private=True)
        assert api.model_info("me/secret").private
        for token, status in (("hf_test_write_you", 404), (False, 401)):
            with pytest.raises(RepositoryNotFoundError) as error:
                HfApi(endpoint=hub.url, token=token).model_info("me/secret")
            assert error.value.response.status_code == status

    def test_datasets_and_spaces_have_their_own_addresses(self, hub, api, tmp_path):
        for kind, sdk in (("dataset", None), ("space", "static")):
            assert api.create_repo("me/x", repo_type=kind, space_sdk=sdk).repo_type == kind
            api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="a.parquet", repo_id="me/x", repo_type=kind)
            found = hf_hub_download("me/x", "a.parquet", repo_type=kind, endpoint=hub.url, cache_dir=tmp_path)
            assert Path(found).read_bytes() == hub.repo("me/x", kind).files()["a.parquet"] == WEIGHTS
        assert "a.parquet" not in hub.repo("me/x").files()

    @pytest.mark.parametrize(
        "metadata",
        ["a: [", "model-index: {}", "base_model: /tmp/model", "license: [mit]", "base_model_relation: cousin"],
    )
    def test_bad_model_cards_are_refused(self, hub, api, metadata):
        with pytest.raises(ValueError, match="Invalid metadata"):
            push(api, README_md=f"---\n{metadata}\n---\n# Card\n".encode())
        assert "README.md" not in hub.repo("me/x").files()

    def test_the_same_pushes_give_the_same_commits(self, hub, api):
        with HubServer() as other_hub:
            other = HfApi(endpoint=other_hub.url, token="hf_test_write_me")
            other.create_repo("me/x")
            for client in (api, other):
                oid = push(client, a_safetensors=WEIGHTS, b_txt=b"b")
                client.create_branch("me/x", branch="side")
                client.create_tag("me/x", tag="t", revision=oid)
                push(client, "side", branch="side", b_txt=b"c")
            assert hub.repo("me/x").snapshot() == other_hub.repo("me/x").snapshot()
            push(other, a_txt=b"a")
            assert hub.repo("me/x").snapshot() != other_hub.repo("me/x").snapshot()


class TestFaults:
    @pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 500, 503])
    def test_status_has_no_effect(self, hub, api, status):
        hub.fail(Fault("commit", "status", status=status))
        before = hub.repo("me/x").snapshot()
        with failing(status):
            push(api, a_txt=b"a")
        assert hub.repo("me/x").snapshot() == before
        assert (hub.requests[-1].step, hub.requests[-1].status) == ("commit", status)
        push(api, a_txt=b"a")

    def test_retry_after_is_what_the_client_waits_for(self, hub, api, waits):
        hub.fail(Fault("preupload", "status", status=429, retry_after=7))
        push(api, a_txt=b"a")
        assert waits == [8.0]
        assert hub.steps.count("preupload") == 2

    @pytest.mark.parametrize(("kind", "error"), [("status_after", HfHubHTTPError), ("drop_after", httpx2.ReadError)])
    def test_an_answer_is_lost_after_the_effect(self, hub, api, kind, error):
        hub.fail(Fault("commit", kind), Fault("tag", kind))
        with pytest.raises(error):
            push(api, a_txt=b"a")
        assert hub.repo("me/x").files()["a.txt"] == b"a"
        with pytest.raises(error):
            api.create_tag("me/x", tag="t")
        assert hub.repo("me/x").tags == {"t": hub.repo("me/x").head}

    def test_times_and_after(self, hub, api):
        fault = Fault("tag", "status", times=2, after=1)
        hub.fail(fault)
        seen = []
        for number in range(5):
            try:
                api.create_tag("me/x", tag=f"t{number}")
                seen.append(True)
            except HfHubHTTPError:
                seen.append(False)
        assert seen == [True, False, False, True, True]
        assert (fault.seen, fault.fired) == (5, 2)
        hub.fail(Fault("*", "status", times=None, path="/tag/"))
        for _ in range(2):
            with failing(500):
                api.create_tag("me/x", tag="u")
        hub.faults.clear()
        api.create_tag("me/x", tag="u")

    @pytest.mark.parametrize("kind", ["refuse", "drop"])
    def test_a_connection_ends_before_the_effect(self, hub, api, kind):
        hub.fail(Fault("commit", kind))
        # A reset while the client still writes reads as an early end, one that comes later as a reset.
        with pytest.raises((httpx2.NetworkError, httpx2.RemoteProtocolError)):
            push(api, a_txt=b"a" * 100_000)
        assert "a.txt" not in hub.repo("me/x").files()
        assert hub.requests[-1].status is None

    def test_stall_holds_until_its_time_or_release(self, hub, api):
        hub.fail(Fault("commit", "stall", seconds=0.3), Fault("commit", "stall", after=1))
        start = time.monotonic()
        with pytest.raises(httpx2.RemoteProtocolError):
            push(api, a_txt=b"a")
        assert 0.3 <= time.monotonic() - start < 5
        threading.Timer(0.2, hub.release).start()
        with pytest.raises(httpx2.RemoteProtocolError):
            push(api, a_txt=b"a")
        assert time.monotonic() - start < 10

    def test_a_stalled_download_times_out(self, hub, api):
        push(api, a_txt=b"a")
        hub.fail(Fault("resolve_head", "stall"))
        with pytest.raises(httpx2.ReadTimeout):
            api.get_hf_file_metadata(url=f"{hub.url}/me/x/resolve/main/a.txt", timeout=0.3)

    def test_no_server_at_all(self, hub, api, waits):
        push(api, a_txt=b"a")
        hub.stop_listening()
        with pytest.raises(httpx2.ConnectError):
            api.create_tag("me/x", tag="t")
        hub.listen_again()
        api.create_tag("me/x", tag="t")
        assert hub.repo("me/x").files()["a.txt"] == b"a"

    @pytest.mark.parametrize("kind", ["corrupt", "truncate", "drop"])
    def test_a_damaged_upload_is_never_stored(self, hub, api, waits, kind):
        hub.fail(Fault("lfs_put", kind))
        if kind == "drop":
            push(api, a_safetensors=WEIGHTS)  # the client puts again by itself
            assert waits == [1]
            assert hub.repo("me/x").files()["a.safetensors"] == WEIGHTS
        else:
            with pytest.raises(RuntimeError, match="Error while uploading"):
                push(api, a_safetensors=WEIGHTS)
            assert hub.repo("me/x").lfs == {}

    @pytest.mark.parametrize("stored", [False, True])
    def test_corrupt_downloads_pass_the_client_by(self, hub, api, fetch, stored):
        push(api, a_safetensors=WEIGHTS, a_txt=b"text")
        for path in ("a.safetensors", "a.txt"):
            good = hub.repo("me/x").files()[path]
            if stored:
                hub.corrupt("me/x", "main", path)
            else:
                hub.fail(Fault("resolve_get", "corrupt"))
            found = fetch(path)
            assert len(found) == len(good)
            assert found != good
            if not stored:
                assert fetch(path) == good

    @pytest.mark.parametrize("stored", [False, True])
    def test_truncated_downloads_are_noticed_by_their_linked_size(self, hub, api, fetch, stored):
        push(api, a_safetensors=WEIGHTS, a_txt=b"text")
        if stored:
            hub.truncate("me/x", "main", "a.safetensors")
            hub.truncate("me/x", "main", "a.txt")
            assert fetch("a.txt") == b"te"  # nothing but its length tells the client the size of a regular file
        else:
            hub.fail(Fault("resolve_get", "truncate"))
        with pytest.raises(OSError, match="should be of size 8000 but has size 4000"):
            fetch("a.safetensors")

    def test_a_dropped_download_resumes_where_it_ended(self, hub, api, fetch, monkeypatch):
        # The client forgets the chunk it was in; its own chunks are 10 MB.
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
        data = os.urandom(3_000_000)
        push(api, a_safetensors=data)
        hub.fail(Fault("resolve_get", "drop", reset=False))
        assert fetch("a.safetensors") == data
        assert [request.status for request in hub.requests if request.step == "resolve_get"] == [200, 206]

    def test_a_reset_download_fails(self, hub, api, fetch):
        push(api, a_safetensors=WEIGHTS)
        hub.fail(Fault("resolve_get", "drop"))
        with pytest.raises(httpx2.ReadError):
            fetch("a.safetensors")
        assert fetch("a.safetensors") == WEIGHTS

    def test_skew_moves_dates_and_nothing_else(self, hub, api):
        hub.fail(Fault("commit", "skew", seconds=-365 * 24 * 3600))
        oid = push(api, a_txt=b"a")
        dates = {commit.commit_id: commit.created_at.timestamp() for commit in api.list_repo_commits("me/x")}
        assert time.time() - dates[oid] > 364 * 24 * 3600
        assert hub.repo("me/x").head == oid
        hub.fail(Fault("resolve_head", "skew"))
        answer = httpx2.head(f"{hub.url}/me/x/resolve/main/a.txt")
        assert int(answer.headers["Date"].split()[3]) > time.gmtime().tm_year
        assert (answer.headers["Content-Length"], answer.content) == ("1", b"")

    def test_unknown_faults_are_refused(self):
        for step, kind in (("comit", "status"), ("commit", "explode")):
            with pytest.raises(ValueError):
                Fault(step, kind)


def test_a_small_push_is_quick(api):
    start = time.monotonic()
    push(api, a_safetensors=WEIGHTS, b_bin=WEIGHTS, README_md=b"---\nlicense: mit\n---\n", c_json=b"{}")
    assert time.monotonic() - start < 0.3


DATASETS = """
from datasets import Dataset, load_dataset
Dataset.from_dict({"a": [1, 2, 3]}).push_to_hub("me/rows", private=True)
print(load_dataset("me/rows", split="train")["a"][:])
"""


def test_an_unmodified_datasets_library(hub, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DATASETS],
        env=client_environment(hub, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[1, 2, 3]", done.stderr
    assert set(hub.repo("me/rows", "dataset").files()) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
    }
