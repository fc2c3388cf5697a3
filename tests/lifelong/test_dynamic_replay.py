"""Dynamic rehearsal in a whole life: the share follows the forces, the same after a kill, and all is recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.life import life_files, tiny_life

from hf_lifealign._files import read_json
from hf_lifealign.strategies.dynamic_replay import DynamicReplayStrategy


def has_e(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(any(letter in answer.lower() for letter in "aeiou")) for answer in answers]


def strategy(**options: Any) -> DynamicReplayStrategy:
    given: dict[str, Any] = {"every": 2, "probes": 6, "samples": 4, "max_new_tokens": 6, "force_rows": 4}
    judges = options.pop("judges", {"one": has_e, "two": has_e})
    return DynamicReplayStrategy(judges, **(given | {"fraction": 0.5, "booster_steps": 2} | options))


def life(folder: Path, watch: DynamicReplayStrategy | None = None, **settings: Any) -> Any:
    return tiny_life(folder, strategies=[watch or strategy(), "consolidation"], warm_start=False, **settings)


def test_the_share_follows_the_forces(tmp_path: Path) -> None:
    run = life(tmp_path / "run")
    run.train()
    plain = tiny_life(
        tmp_path / "plain", strategies=[{"name": "replay", "fraction": 0.5}, "consolidation"], warm_start=False
    )
    plain.train()
    for number, task in enumerate(("one", "two", "three")):
        record = run.state.task(number)["record"]["phases"][0]
        assert record["steps"] == plain.state.task(number)["record"]["phases"][0]["steps"], (
            "as many as with fixed replay"
        )
        if not number:
            assert record["replay_rows"] == 0
            continue
        told = record["rehearsal"]
        assert told["new_rows"] + record["replay_rows"] == record["steps"] * 4
        watched = set(told["measurements"][0]["tasks"])
        assert watched == {"one", "two"} - ({"two"} if task == "two" else set())
        shares = [entry["share"] for entry in told["measurements"]]
        assert all(0 <= share <= 1 for share in shares)
        assert told["plan"][-1][1] == shares[-1]
        for entry in told["measurements"]:
            wanted = [t["share"] for t in entry["tasks"].values() if "share" in t]
            if len(wanted) == len(watched) and "booster" not in entry:
                assert entry["share"] == max(wanted), "the task that needs most decides"
            for t in entry["tasks"].values():
                if "share" in t and t["feasible"]:
                    drift = (1 - t["share"]) * t["new"] + t["share"] * t["rehearsal"]
                    assert drift >= -t["tolerated"] - 1e-6
    score = read_json(tmp_path / "run" / "dynamic_replay" / "01-one-score.json")
    assert score["floor"] == pytest.approx(max(score["score"]["score"] - 0.05, 0))


def test_a_killed_life_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    life(tmp_path / "once").train()
    for step in (3, 5):
        again = tmp_path / f"again-{step}"
        from transformers import TrainerCallback

        class Killer(TrainerCallback):
            at = step

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if "02-two" in str(args.output_dir) and state.global_step == self.at:
                    raise KilledError

        with pytest.raises(KilledError):
            life(again, callbacks=[Killer()]).train()
        life(again).train()
        first, second = life_files(tmp_path / "once"), life_files(again)
        assert set(first) == set(second)
        for name, content in first.items():
            if name.endswith(".safetensors") or "dynamic_replay" in name:
                assert content == second[name], (step, name)


def test_boosters_come_when_a_score_has_fallen(tmp_path: Path) -> None:
    """A floor that is out of reach: every measurement finds the score below it."""
    watch = strategy(judges={"one": has_e}, tolerance=1e-6)
    run = life(tmp_path, watch, training={"learning_rate": 5e-2})
    run.train()
    entries = [
        entry
        for number in (1, 2)
        for entry in run.state.task(number)["record"]["phases"][0]["rehearsal"]["measurements"]
    ]
    boosters = [entry for entry in entries if "booster" in entry]
    assert boosters
    assert all(entry["share"] == 1.0 and entry["booster"] == ["one"] for entry in boosters)


def test_a_judge_that_fails_leaves_the_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def dying(*given: Any) -> list[float]:
        calls.append(1)
        if len(calls) > 1:
            raise ConnectionError("gone")
        return has_e(*given)

    run = life(tmp_path, strategy(judges={"one": dying}))
    run.train()
    entry = run.state.task(1)["record"]["phases"][0]["rehearsal"]["measurements"][0]
    assert "gone" in entry["tasks"]["one"]["not_estimable"]
    assert entry["share"] == pytest.approx(6 / 18), "that of fixed replay"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"judges": {}}, "without judges"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"samples": 1}, "samples=1"),
        ({"every": 0}, "every=0"),
        ({"fraction": 0.0}, "fraction=0.0"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strategy(**options)


def test_a_judge_of_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'four'"):
        life(tmp_path, strategy(judges={"four": has_e})).train()


def test_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataloader_num_workers=1"):
        life(tmp_path, training={"dataloader_num_workers": 1}).train()


def test_rehearsal_dynamic_stands_for_the_strategy(tmp_path: Path) -> None:
    run = tiny_life(tmp_path, rehearsal="dynamic", rehearsal_judges={"one": has_e}, warm_start=False)
    assert [s.name for s in run.strategies] == ["dynamic_replay", "consolidation"]
    specs = [{"name": "replay", "fraction": 0.5}, "consolidation"]
    run = tiny_life(tmp_path, strategies=specs, rehearsal="dynamic", rehearsal_judges={"one": "refusal"})
    assert run.strategies[0].settings()["fraction"] == 0.5
    assert run.strategies[0].settings()["judges"] == {"one": "refusal"}
    assert [s.name for s in tiny_life(tmp_path).strategies] == ["replay", "consolidation"]
    with pytest.raises(ValueError, match="'replay' is not among"):
        tiny_life(tmp_path, strategies=["consolidation"], rehearsal="dynamic", rehearsal_judges={"one": has_e})
    with pytest.raises(ValueError, match="without judges"):
        tiny_life(tmp_path, rehearsal="dynamic")
    with pytest.raises(ValueError, match="rehearsal='some'"):
        tiny_life(tmp_path, rehearsal="some")
    with pytest.raises(ValueError, match="only rehearsal='dynamic'"):
        tiny_life(tmp_path, rehearsal_judges={"one": has_e})
