"""Log, rollback and diff: what they change, and numbers against dense matrices."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hub_server import Fault, HubServer
from support.life import slmc, tiny_life, tiny_stream

from hf_lifealign.hub.diff import Update, compare_revisions, compare_updates, diff_text, read_updates
from hf_lifealign.hub.errors import HubError
from hf_lifealign.hub.history import log_text, read_log, rollback, verify
from hf_lifealign.hub.publish import push_run

TAGS = ["task-01-one", "task-02-two", "task-03-three"]


@pytest.fixture
def published(hub: HubServer, remote, life: Path, options) -> HubServer:
    push_run(life, remote(), options)
    return hub


def test_the_log_tells_what_each_task_did(published: HubServer, remote, life: Path) -> None:
    log = read_log(remote())
    assert [entry["tag"] for entry in log] == TAGS
    matrix = json.loads((life / "matrix.json").read_text())
    rows = matrix["matrices"]["preference_accuracy"]
    assert [entry["metrics"]["value"] for entry in log] == [rows[0][0], rows[1][1], rows[2][2]]
    assert log[-1]["metrics"]["bwt"] == matrix["summary"]["preference_accuracy"]["bwt"]
    assert log[0]["metrics"]["bwt"] is None
    adapter, memory = ([entry["sizes"][key] for entry in log] for key in ("adapter", "memory"))
    assert len(set(adapter)) == 1
    assert memory[0] < memory[1] < memory[2]
    assert "main is at task-03-three" in log_text(remote())


def test_memory_rank_bounds_what_is_published(hub: HubServer, remote, tmp_path: Path, options) -> None:
    tiny_life(
        tmp_path / "run", warm_start=False, peft_config=slmc(space="delta", memory_rank=1, r=2),
    ).train()  # fmt: skip
    push_run(tmp_path / "run", remote(), options)
    tensors = [len(hub.repo("me/life").files(tag)["slmc/memory.safetensors"]) for tag in TAGS]
    assert tensors[1] == tensors[2]


def test_rollback_is_a_new_commit_and_nothing_is_lost(published: HubServer, remote, life: Path, options) -> None:
    repo = published.repo("me/life")
    tags, commits = dict(repo.tags), [commit.oid for commit in repo.history("main")]
    done = rollback(remote(), TAGS[0], options)
    assert done.fresh
    assert repo.head == done.commit
    assert [commit.oid for commit in repo.history("main")] == [*commits, done.commit]
    assert dict(repo.tags) == tags
    now, then = repo.files("main"), repo.files(TAGS[0])
    assert set(now) == set(then)
    for name in set(now) - {"README.md", "slmc/lineage.json"}:
        assert now[name] == then[name], name
    log = read_log(remote())
    assert [(entry["kind"], entry["tag"]) for entry in log] == [*(("task", t) for t in TAGS), ("rollback", TAGS[0])]
    assert "task-01-one, by a rollback" in log_text(remote())
    assert [item.fault for item in verify(remote())] == [None] * 4
    # once more changes nothing, and a push neither
    assert not rollback(remote(), TAGS[0], options).fresh
    assert [item.fresh for item in push_run(life, remote(), options)] == [False] * 3
    assert repo.head == done.commit


def test_a_life_goes_on_from_a_rollback(published: HubServer, remote, tmp_path: Path, options) -> None:
    rollback(remote(), TAGS[0], options)
    other = tiny_life(
        tmp_path / "other", stream=tiny_stream()[:2], warm_start=False, continue_from="me/life",
        training={"learning_rate": 2e-3},
    )  # fmt: skip
    other.train()
    sent = push_run(tmp_path / "other", remote(), options)
    assert [item.tag for item in sent] == ["task-02-two.2"]
    parent = read_log(remote())[-1]["parent"]
    assert (parent["tag"], parent["repo"]) == (TAGS[0], None)
    assert [item.fault for item in verify(remote())] == [None] * 5


@pytest.mark.parametrize("kind", [{"kind": "status_after", "status": 500}, {"kind": "status", "status": 412}])
def test_a_rollback_whose_answer_was_lost_is_made_once(published: HubServer, remote, options, kind: dict) -> None:
    published.fail(Fault(step="commit", times=1, **kind))
    rollback(remote(), TAGS[1], options)
    assert [commit.title for commit in published.repo("me/life").history("main")].count("Back to task-02-two") == 1


def test_what_cannot_be_restored(published: HubServer, remote, options) -> None:
    initial = published.repo("me/life").history("main")[0].oid
    for revision, words in (("task-09-x", "no such revision"), (initial, "no lineage|holds no adapter")):
        with pytest.raises(HubError, match=words):
            rollback(remote(), revision, options)
    with pytest.raises(HubError, match="There is no repository"):
        rollback(remote("me/none"), TAGS[0], options)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(2, 7), st.integers(2, 7), st.integers(0, 99), st.floats(0.1, 4.0)
)
def test_comparisons_against_dense_updates(r1: int, r2: int, m: int, n: int, seed: int, scaling: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def update(rank: int, factor: float) -> Update:
        A = torch.randn(rank, n, generator=generator, dtype=torch.float64)
        return Update(A, torch.randn(m, rank, generator=generator, dtype=torch.float64), factor)

    one, two = update(r1, scaling), update(r2, 1.0)
    dense = [u.scaling * u.B @ u.A for u in (one, two)]
    found = compare_updates(one, two)
    assert found.first == pytest.approx(float(dense[0].norm()))
    assert found.second == pytest.approx(float(dense[1].norm()))
    assert found.change == pytest.approx(float((dense[0] - dense[1]).norm()), abs=1e-6)
    cosine = float((dense[0] * dense[1]).sum() / (dense[0].norm() * dense[1].norm()))
    assert found.overlap == pytest.approx(cosine, abs=1e-9)
    assert compare_updates(one, one).overlap == pytest.approx(1.0)


def test_an_update_of_nothing_has_no_direction() -> None:
    zero = Update(torch.ones(2, 3), torch.zeros(4, 2), 1.0)
    found = compare_updates(zero, zero)
    assert found.first == found.change == 0.0
    assert math.isnan(found.overlap)


def test_updates_are_those_that_peft_merges(life: Path) -> None:
    from peft import PeftModel
    from support.tiny import tiny_model

    folder = life / "adapters" / "02-two"
    base = tiny_model()
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    updates = read_updates(folder)
    assert updates
    for module, update in updates.items():
        dense = update.scaling * update.B @ update.A
        found = dict(merged.named_parameters())[f"{module}.weight"] - before[f"{module}.weight"]
        torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-6)


def test_the_text_of_a_diff(life: Path) -> None:
    first, second = (life / "adapters" / name for name in ("01-one", "03-three"))
    found = compare_revisions(first, second)
    assert found["metrics"]["tasks"]["three"][0] is None
    text = diff_text("a", "b", found)
    assert "all modules" in text
    assert "bwt" in text
