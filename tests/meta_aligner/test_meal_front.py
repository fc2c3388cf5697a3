"""The sweep over user weights on the tiny model: its lattice, its pairing, its resumption, what it measures."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_rewards
from support.tiny import preference_rows
from support.tiny_rewards import save_tiny_policy, short, vowels

from hf_lifealign import load_meta_aligned
from hf_lifealign.meta_aligner.front import label_of, sweep_front, user_weights
from hf_lifealign.meta_aligner.rating import Rater

ROWS = [{"prompt": row["prompt"]} for row in preference_rows(5)]
WEIGHTS = user_weights(2, 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_dir: str) -> str:
    return save_tiny_policy(tmp_path_factory.mktemp("policies") / "tiny", tiny_dir)


def sweep(saved: str, tiny_dir: str, rewards: Any = (short, vowels), **kwargs: Any) -> Any:
    kwargs = {"weights": WEIGHTS, "batch_size": 2, "progress": False} | kwargs
    return sweep_front(load_meta_aligned(tiny_dir, saved), ROWS, list(rewards), **kwargs)


def test_user_weights() -> None:
    eleven = user_weights(2)
    assert [row[0] for row in eleven] == pytest.approx([i / 10 for i in range(11)])
    for objectives, steps in ((2, 11), (3, 5), (4, 5), (5, 3)):
        lattice = user_weights(objectives, steps)
        assert len(lattice) == math.comb(steps + objectives - 2, objectives - 1)
        assert all(sum(row) == pytest.approx(1) and min(row) >= 0 for row in lattice)
        assert all(first < second for first, second in pairwise(lattice))
    assert len(user_weights(3)) == 15
    for wrong in ((1, 11), (2, 1)):
        with pytest.raises(ValueError, match="at least 2"):
            user_weights(*wrong)
    assert label_of([0.3, 0.7]) == "0.3-0.7"


def test_what_is_measured(saved: str, tiny_dir: str, tmp_path: Path) -> None:
    front = sweep(saved, tiny_dir, store=tmp_path, keep_answers=True, include_base=True)
    policy = load_meta_aligned(tiny_dir, saved)
    for point in (*front.points, front.own, front.base):
        kept = json.loads((tmp_path / f"{point.label}.json").read_text())
        texts = kept["answers"]
        assert point.rewards[:, 0].tolist() == [-float(len(text)) for text in texts]
        assert point.rewards[:, 1].tolist() == [sum(c in "aeiou" for c in text) for text in texts]
        assert max(point.lengths) <= 6
    assert len({json.dumps(point.rewards.tolist()) for point in front.points}) == 3
    own = policy.preference([row["prompt"] for row in ROWS]).mean(0)
    assert front.own.weights == pytest.approx(own.tolist(), abs=1e-5)
    assert front.base.weights is None
    assert front.scale.reference == [-3.0, -3.0]
    assert front.to_json()["reference_point"] == pytest.approx([-22.0, -2.5])
    text = json.dumps(front.to_json())
    assert "item" not in text
    assert set(front.figures()) >= {"hypervolume", "inner_product", "controllability"}


def test_likelihood_is_that_of_the_base(saved: str, tiny_dir: str) -> None:
    """Greedy answers of the base itself: each token is the likeliest, and the sum is that of a plain forward."""
    policy = load_meta_aligned(tiny_dir, saved)
    rows = [{"prompt": "abc"}, {"prompt": "a longer one"}]
    greedy = {"do_sample": False, "temperature": None, "max_new_tokens": 4}
    front = sweep_front(policy, rows, [short, vowels], WEIGHTS, include_base=True, generation=greedy, progress=False)
    assert front.base is not None
    policy.conditioning.detach()
    for row, length, nll in zip(rows, front.base.lengths, front.base.nll, strict=True):
        ids = torch.tensor(policy.tokenizer([row["prompt"]])["input_ids"])
        total = 0.0
        for _ in range(length):
            best = torch.log_softmax(policy.model(ids).logits[0, -1], -1).max(-1)
            total -= best.values.item()
            ids = torch.cat([ids, best.indices.view(1, 1)], dim=1)
        assert nll == pytest.approx(total, rel=1e-4)


def test_arms_are_paired(tmp_path: Path, tiny_dir: str) -> None:
    """A preference without effect gives the base's answers under every weight, though they are sampled."""
    still = save_tiny_policy(tmp_path / "still", tiny_dir, effect=0.0)
    front = sweep(still, tiny_dir, include_base=True)
    for point in (*front.points, front.own):
        assert np.array_equal(point.rewards, front.base.rewards)
        assert point.nll == pytest.approx(front.base.nll)
    assert front.figures()["controllability"] is None
    other = sweep(still, tiny_dir, seed=1)
    assert not np.array_equal(other.points[0].rewards, front.points[0].rewards)


def test_a_killed_sweep_goes_on(saved: str, tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(saved, tiny_dir)
    tiny_rewards.CALLS.clear()
    monkeypatch.setattr(tiny_rewards, "KILLED_AT", [5])  # in the middle of the second weight; each has three batches
    with pytest.raises(KeyboardInterrupt):
        sweep(saved, tiny_dir, store=tmp_path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.glob("*.json")] == ["0-1.json"]
    tiny_rewards.CALLS.clear()
    resumed = sweep(saved, tiny_dir, store=tmp_path)
    assert len(tiny_rewards.CALLS) == 9  # two weights and the policy's own, three batches each
    assert resumed.to_json() == whole.to_json()
    tiny_rewards.CALLS.clear()
    more = sweep(saved, tiny_dir, store=tmp_path, weights=user_weights(2, 5))
    assert len(tiny_rewards.CALLS) == 6
    assert more.points[2].to_json(more.scale) == whole.points[1].to_json(whole.scale)


def test_what_was_measured_otherwise_is_not_used(saved: str, tiny_dir: str, tmp_path: Path) -> None:
    weights = WEIGHTS[:1]
    sweep(saved, tiny_dir, store=tmp_path, weights=weights)
    other = save_tiny_policy(tmp_path / "other", tiny_dir, seed=1)

    def doubled(**columns: Any) -> list[float]:
        return [2 * reward for reward in short(**columns)]

    for changed in ({"seed": 1}, {"saved": other}, {"rewards": (doubled, vowels)}, {"generation": {"top_k": 3}},
                    {"batch_size": 5}):  # fmt: skip
        sweep(saved, tiny_dir, store=tmp_path, weights=weights)
        tiny_rewards.CALLS.clear()
        arguments: dict[str, Any] = {"saved": saved, "tiny_dir": tiny_dir, "store": tmp_path, "weights": weights}
        sweep(**(arguments | changed))
        assert tiny_rewards.CALLS, changed


def test_refusals(saved: str, tiny_dir: str) -> None:
    policy = load_meta_aligned(tiny_dir, saved)
    with pytest.raises(ValueError, match="no prompts"):
        sweep_front(policy, [], [short, vowels])
    with pytest.raises(ValueError, match="1 rewards"):
        sweep_front(policy, ROWS, [short])
    with pytest.raises(ValueError, match="texts and some are conversations"):
        sweep_front(policy, [*ROWS, {"prompt": "x"}], [short, vowels])
    with pytest.raises(ValueError, match="the model reads 512"):
        sweep_front(policy, [{"prompt": "x" * 510}], [short, vowels])
    policy.statistics = None
    with pytest.raises(ValueError, match="no reward statistics"):
        sweep_front(policy, ROWS, [short, vowels])


def test_rater() -> None:
    seen: dict[str, Any] = {}

    def partial(prompts: Any, completions: Any, completion_ids: Any, topic: Any, **rest: Any) -> list[float | None]:
        seen.update(rest, topic=topic, completions=completions)
        return [None, 1.0]

    rows = [{"prompt": [{"role": "user", "content": "a"}], "topic": 1, "completion": "not passed"}] * 2
    found = Rater([partial, vowels], ["p", "v"])(rows, ["xa", "ea"], [[1], [2]])
    assert found[0].isnan().tolist() == [True, False]
    assert found[1].tolist() == [1.0, 2.0]
    assert seen["topic"] == [1, 1]
    assert seen["completions"][0] == [{"role": "assistant", "content": "xa"}]
    assert "completion" not in seen
    for wrong, words in ((lambda **_: [1.0], "returned 1 rewards for 2"), (lambda **_: [1.0, math.inf], "infinite")):
        with pytest.raises(ValueError, match=words):
            Rater([wrong, vowels], ["p", "v"])(rows, ["a", "b"], [[1], [2]])
