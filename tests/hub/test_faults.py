"""Whatever fails at whatever step, no task is lost or doubled, and the next push ends as if nothing had happened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from support.hub_server import Fault, HubServer

from hf_lifealign.hub.errors import HubError
from hf_lifealign.hub.fetch import fetch_revision
from hf_lifealign.hub.outbox import Outbox
from hf_lifealign.hub.publish import PushOptions, push_run
from hf_lifealign.hub.remote import Remote, retry_after

# Every request of a push, in the order of the first task's.
STEPS = [
    "refs", "create_repo", "paths_info", "tree", "validate_yaml", "preupload", "lfs_batch", "lfs_put", "lfs_verify",
    "commit", "tag", "resolve_head", "resolve_get",
]  # fmt: skip
PASSING: dict[str, dict[str, Any]] = {
    "refused": {"kind": "refuse"},
    "dropped": {"kind": "drop"},
    "409": {"kind": "status", "status": 409},
    "412": {"kind": "status", "status": 412},
    "429": {"kind": "status", "status": 429, "retry_after": 2},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503},
    "500 after": {"kind": "status_after", "status": 500},
    "dropped after": {"kind": "drop_after"},
    "skew": {"kind": "skew"},
}
LASTING: dict[str, dict[str, Any]] = {
    "401": {"kind": "status", "status": 401},
    "403": {"kind": "status", "status": 403},
    "404": {"kind": "status", "status": 404},
}
# Steps that only happen where something is read back.
READING = ("resolve_head", "resolve_get")


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LIFEALIGN_HUB_TIMEOUT", "0.5")


@pytest.fixture(scope="module")
def undisturbed(life_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a repository looks like after a push that nothing disturbed."""
    import shutil

    patch = pytest.MonkeyPatch()
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    root = Path(shutil.copytree(life_once, tmp_path_factory.mktemp("undisturbed") / "run"))
    with HubServer() as server:
        push_run(root, Remote("me/life", api=HfApi(endpoint=server.url, token="hf_test_write_me")))
        yield server.repo("me/life").snapshot()
    patch.undo()


def disturbed_push(life: Path, remote: Remote, options: PushOptions) -> str | None:
    """Pushes; returns what the user was told, or `None` if all went well in the end."""
    try:
        push_run(life, remote, options)
    except HubError as error:
        return str(error)
    return None


def assert_next_push_mends_it(hub: HubServer, life: Path, remote: Any, options: PushOptions, undisturbed: Any) -> None:
    """Nothing was half done that a tag points at, and what is missing is sent once."""
    hub.faults.clear()
    try:
        tags = dict(hub.repo("me/life").tags)
    except KeyError:
        tags = {}
    for tag, oid in tags.items():
        assert oid == undisturbed["tags"][tag]
    push_run(life, remote(), options)
    assert hub.repo("me/life").snapshot() == undisturbed
    assert Outbox(life).waiting() == {}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(hub, remote, life, options, undisturbed, step: str, name: str) -> None:
    """Each request fails once, for the first task; the push ends well by itself."""
    hub.fail(fault := Fault(step=step, times=1, **PASSING[name]))
    told = disturbed_push(life, remote(), options)
    assert fault.fired == 1
    assert told is None
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_told_and_kept(hub, remote, life, options, undisturbed, step: str, name: str, waits) -> None:
    """A refused token ends the push at once; the task waits in the outbox with the reason."""
    hub.fail(Fault(step=step, times=None, after=0, **LASTING[name]))
    told = disturbed_push(life, remote(), options)
    if step == "refs" and name == "404":
        assert told is not None  # taken for a missing repository, which cannot be made visible
    if told is None:
        # reading a lineage that is not there yet is not needed for the first task
        assert step in ("create_repo", "paths_info")
    else:
        waiting = Outbox(life).waiting()
        assert list(waiting) in (["01-one"], ["02-two"])
        assert next(iter(waiting.values()))["error"] == told
        assert {"401": "does not accept the token", "403": "may not do that", "404": "404"}[name] in told
        assert "hf_test_write_me" not in told
        if name != "404":
            assert waits == []
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in READING])
def test_a_stall_ends_by_itself(hub, remote, life, options, undisturbed, step: str) -> None:
    hub.fail(Fault(step=step, kind="stall", times=1, seconds=30))
    assert disturbed_push(life, remote(), options) is None
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [*PASSING, *LASTING])
def test_later_requests(hub, remote, life, options, undisturbed, step: str, name: str, after: int) -> None:
    """The same for later tasks, and for a failure that lasts until the push gives up."""
    kind = PASSING.get(name) or LASTING[name]
    hub.fail(Fault(step=step, times=None, after=after, **kind))
    told = disturbed_push(life, remote(), options)
    assert told is None or told == next(iter(Outbox(life).waiting().values()))["error"]
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("step", READING)
def test_a_stall_while_reading_ends_by_itself(hub, remote, life, options, undisturbed, step: str) -> None:
    hub.fail(Fault(step=step, kind="stall", times=1, seconds=60))
    assert disturbed_push(life, remote(), options) is None
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
def test_bytes_that_are_damaged_on_the_way_up(hub, remote, life, options, undisturbed, kind: str) -> None:
    """The server compares an upload with its hash; the damaged one is sent again."""
    hub.fail(fault := Fault(step="lfs_put", kind=kind, times=1))
    assert disturbed_push(life, remote(), options) is None
    assert fault.fired == 1
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
def test_a_lineage_that_is_damaged_on_the_way_down(hub, remote, life, options, undisturbed, kind: str) -> None:
    """The push stops rather than append to a log that it cannot trust."""
    hub.fail(Fault(step="resolve_get", kind=kind, times=1))
    told = disturbed_push(life, remote(), options)
    assert told is None or "lineage.json" in told
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


def test_no_server_at_all(hub, remote, life, options, undisturbed, waits) -> None:
    hub.stop_listening()
    told = disturbed_push(life, remote(), options)
    assert told is not None
    assert "did not answer" in told
    assert waits == [1.0, 2.0, 4.0, 8.0]
    waiting = Outbox(life).waiting()
    assert waiting["01-one"]["attempts"] == 1
    hub.listen_again()
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


def test_the_servers_wait_is_kept(hub, remote, life, options, waits) -> None:
    hub.fail(Fault(step="commit", kind="status", status=429, retry_after=7, times=2))
    assert disturbed_push(life, remote(), options) is None
    assert waits == [7.0, 7.0]


def test_a_wait_is_read_from_numbers_and_dates() -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    assert retry_after("12") == 12.0
    assert retry_after("99999") == 300.0
    assert retry_after("soon") is None
    assert retry_after(None) is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after(later) == pytest.approx(60, abs=3)
    # a clock that is wrong makes no negative wait
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=400), usegmt=True)) == 0.0


FETCHING = ["info", "tree", "paths_info", "resolve_head", "resolve_get"]
FETCH_FAULTS = {name: kind for name, kind in PASSING.items() if not name.endswith("after")} | LASTING
FETCH_FAULTS |= {"corrupt": {"kind": "corrupt"}, "truncate": {"kind": "truncate"}, "stall": {"kind": "stall"}}


@pytest.mark.parametrize("step", FETCHING)
@pytest.mark.parametrize("name", FETCH_FAULTS)
def test_fetching(hub, remote, life, options, step: str, name: str) -> None:
    """One failure is survived where it may pass, and told where it lasts; nothing damaged is ever handed out."""
    if name == "stall" and step in READING:
        pytest.skip("the client waits ten seconds there by itself")
    push_run(life, remote(), options)
    hub.fail(Fault(step=step, times=1, **FETCH_FAULTS[name]))
    told, found = None, None
    try:
        found = fetch_revision("me/life", "task-02-two").lineage
    except HubError as error:
        told = str(error)
    if told is None:
        assert found is not None
        assert found.entry.tag == "task-02-two"
    else:
        assert name in (*LASTING, "corrupt", "truncate"), told
        assert "me/life" in told
    hub.faults.clear()
    folder = fetch_revision("me/life", "task-02-two").folder
    weights = (life / "adapters" / "02-two" / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter_model.safetensors").read_bytes() == weights


def test_a_tag_that_cannot_be_set_keeps_its_commit(hub, remote, life, options, undisturbed) -> None:
    hub.fail(Fault(step="tag", kind="status", status=500, times=None))
    told = disturbed_push(life, remote(), options)
    assert told is not None
    assert "set the tag task-01-one" in told
    repo = hub.repo("me/life")
    assert repo.tags == {}
    assert len(repo.history("main")) == 2
    assert_next_push_mends_it(hub, life, remote, options, undisturbed)


def test_a_tag_set_by_hand_is_never_moved(hub, remote, life, options) -> None:
    remote().create(private=False)
    api = HfApi(endpoint=hub.url, token="hf_test_write_me")
    api.create_tag("me/life", tag="task-01-one", revision="main")
    before = hub.repo("me/life").tags["task-01-one"]
    push_run(life, remote(), options)
    repo = hub.repo("me/life")
    assert repo.tags["task-01-one"] == before
    assert set(repo.tags) == {"task-01-one", "task-01-one.2", "task-02-two", "task-03-three"}


def test_two_runs_at_once_lose_no_task(hub, remote, life, tmp_path, options) -> None:
    """Another run publishes between the head that was read and the commit on it: 412, and it is appended."""
    import shutil

    from support.life import tiny_life, tiny_stream

    tiny_life(tmp_path / "other", stream=tiny_stream()[:2], warm_start=False, seed=9).train()
    mine, fired = remote(), []
    commit = mine.commit

    def late(*args: Any, **kwargs: Any) -> str:
        if not fired:
            fired.append(True)
            push_run(tmp_path / "other", remote(), options)
        return commit(*args, **kwargs)

    mine.commit = late  # type: ignore[method-assign]
    push_run(life, mine, options)
    assert 412 in [request.status for request in hub.requests]
    log = read_log(hub)
    assert sorted(log) == sorted(
        ["task-01-one", "task-02-two", "task-01-one.2", "task-02-two.2", "task-03-three"]
    )  # fmt: skip
    assert set(hub.repo("me/life").tags) == set(log)
    shutil.rmtree(tmp_path / "other")


def read_log(hub: HubServer) -> list[str]:
    import json

    return [e["tag"] for e in json.loads(hub.repo("me/life").files("main")["slmc/lineage.json"])["log"]]


def test_two_threads_at_once_lose_no_task(hub, remote, life, tmp_path, options) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from support.life import tiny_life, tiny_stream

    tiny_life(tmp_path / "other", stream=tiny_stream()[:2], warm_start=False, seed=9).train()
    patient = PushOptions(attempts=30, sleep=lambda seconds: None)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(push_run, folder, remote(), patient) for folder in (life, tmp_path / "other")]
        done = [job.result() for job in jobs]
    tags = {item.tag for sent in done for item in sent}
    assert len(tags) == 5
    assert set(hub.repo("me/life").tags) == tags == set(read_log(hub))


def test_a_second_push_of_the_same_run_is_kept_away(hub, remote, life, options, monkeypatch) -> None:
    short = Outbox(life).lock
    with short():
        monkeypatch.setattr(Outbox, "lock", lambda self: short(wait=0.1))
        with pytest.raises(HubError, match="Another push of this run is under way"):
            push_run(life, remote(), options)
    with pytest.raises(KeyError):
        hub.repo("me/life")


@pytest.mark.parametrize(
    ("token", "words"),
    [("hf_test_read_me", "may not do that"), ("hf_test_write_you", "may not do that"), ("hf_unknown", "401")],
)
def test_tokens_that_may_not_write(hub, remote, life, options, token: str, words: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    told = disturbed_push(life, remote(token=token), options)
    assert told is not None
    assert words in told
    assert token not in told
    with pytest.raises(KeyError):
        hub.repo("me/life")
