"""Dynamic rehearsal in a whole life: the share follows the forces, the same after a kill, and all is recorded."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from support.life import life_files, tiny_life
from support.tiny import preference_dataset, preference_rows, tiny_tokenizer

from hf_lifealign._files import read_json
from hf_lifealign.dynamics.control import RehearsalControl, Watched, highest_rates, relative_rates
from hf_lifealign.dynamics.force_batch import Gradients, NotEstimableError
from hf_lifealign.dynamics.mixture import Mixture
from hf_lifealign.dynamics.preference import PairMargins, preferences
from hf_lifealign.dynamics.rehearsal import Reach
from hf_lifealign.dynamics.samples import Samples
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.lifelong.scoring import encode_pairs
from hf_lifealign.metrics.alignment_dynamics import alignment_score
from hf_lifealign.strategies.dynamic_replay import DynamicReplayStrategy
from hf_lifealign.strategies.watching import PairWatch, UnwatchableError


def has_e(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(any(letter in answer.lower() for letter in "aeiou")) for answer in answers]


JUDGED = {"one": has_e, "two": has_e}
MIXED = pytest.param({"one": has_e, "two": "preference"}, marks=pytest.mark.slow)
WATCHES = pytest.mark.parametrize("judges", [JUDGED, None, MIXED])


def strategy(**options: Any) -> DynamicReplayStrategy:
    given: dict[str, Any] = {"every": 2, "pairs": 2, "probes": 6, "samples": 4, "max_new_tokens": 6, "force_rows": 4}
    judges = options.pop("judges", JUDGED)
    return DynamicReplayStrategy(judges, **(given | {"fraction": 0.5, "booster_steps": 2} | options))


def life(folder: Path, watch: DynamicReplayStrategy | None = None, **settings: Any) -> Any:
    return tiny_life(folder, strategies=[watch or strategy(), "consolidation"], warm_start=False, **settings)


@WATCHES
def test_the_share_follows_the_forces(tmp_path: Path, judges: Any) -> None:
    run = life(tmp_path / "run", strategy(judges=judges))
    run.train()
    plain = tiny_life(
        tmp_path / "plain", strategies=[{"name": "replay", "fraction": 0.5}, "consolidation"], warm_start=False
    )
    plain.train()
    for number, task in enumerate(("one", "two", "three")):
        record = run.state.task(number)["record"]["phases"][0]
        fixed = plain.state.task(number)["record"]["phases"][0]
        # a row by which a task is watched is none that it is trained on
        by_pairs = [judges is None or judges.get(name) == "preference" for name in ("one", "two", "three")]
        assert record["train_rows"] == fixed["train_rows"] - 2 * by_pairs[number]
        rows = record["train_rows"] + record["replay_rows"]
        assert record["steps"] == 2 * -(-rows // 4), "two epochs of what there is"
        assert judges is not JUDGED or record["steps"] == fixed["steps"]
        assert record["replay_rows"] == fixed["replay_rows"], "watched rows come on top"
        if not number:
            assert record["replay_rows"] == 0
            continue
        told = record["rehearsal"]
        assert record["replay_rows"] == fixed["replay_rows"], "watched rows come on top"
        assert told["drawn_new"] + told["drawn_rehearsed"] == record["steps"] * 4
        entries = read_json(tmp_path / "run" / "dynamic_replay" / f"{number + 1:02d}-{task}-forces.json")
        assert told["measurements"] == len(entries)
        watched = {"one", "two"} - ({"two"} if task == "two" else set())
        assert [set(entry["tasks"]) for entry in entries] == [watched] * len(entries)
        assert told["plan"][-1][1] == entries[-1]["share"]
        kept = record["replay_rows"] / rows
        for entry in entries:
            bounds = [(t["share_low"], t["share_high"]) for t in entry["tasks"].values() if "share" in t]
            least = max([0.0, *(low for low, _ in bounds)])
            enough = max(high for _, high in bounds) if len(bounds) == len(watched) else 1.0
            kept = min(max(least, min(kept, enough)), 0.8)
            assert entry["share"] in (pytest.approx(kept), 1.0), "the task that needs most decides"
            for t in entry["tasks"].values():
                if "share" not in t:
                    continue
                assert min(t["new_error"], t["rehearsal_error"]) > 0
                assert t["share_low"] <= t["share"] <= t["share_high"]
                if t["feasible"]:
                    drift = (1 - t["share"]) * t["new"] + t["share"] * t["rehearsal"]
                    assert drift >= -t["tolerated"] - 1e-6
        carried = [t["carried"] for entry in entries for t in entry["tasks"].values() if "carried" in t]
        assert [c == 0.0 for c in carried] == [True] * len(watched) + [False] * (len(carried) - len(watched))
    score = read_json(tmp_path / "run" / "dynamic_replay" / "01-one-score.json")["score"]["score"]
    floor = score - 0.05 if judges else 0.5 + 0.9 * (score - 0.5)
    assert [entry["tasks"]["one"]["floor"] for entry in entries] == pytest.approx([floor] * len(entries))


def test_a_killed_life_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    judges = {"one": has_e, "two": "preference"}

    class KilledError(Exception):
        pass

    life(tmp_path / "once", strategy(judges=judges)).train()
    for step in (3, 5):
        again = tmp_path / f"again-{step}"
        from transformers import TrainerCallback

        class Killer(TrainerCallback):
            at = step

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if "02-two" in str(args.output_dir) and state.global_step == self.at:
                    raise KilledError

        with pytest.raises(KilledError):
            life(again, strategy(judges=judges), callbacks=[Killer()]).train()
        life(again, strategy(judges=judges)).train()
        first, second = life_files(tmp_path / "once"), life_files(again)
        assert set(first) == set(second)
        for name, content in first.items():
            if name.endswith(".safetensors") or "dynamic_replay" in name:
                assert content == second[name], (step, name)


def controlled(floor: float = 0.5, **options: Any) -> RehearsalControl:
    """A control of one task whose score is told by the test."""
    task = Watched("one", None, floor)  # type: ignore[arg-type]
    return RehearsalControl([task], Mixture(0.2), lambda trainer: None, booster_steps=4, **options)  # type: ignore[arg-type, return-value]


def entry_of(low: bool, helps: bool = True) -> dict[str, Any]:
    return {"tasks": {"one": {"low": low, "helps": helps}}}


def test_a_booster_is_whole_and_rests_afterwards() -> None:
    control = controlled()
    plan = [(0, False), (2, True), (4, True), (6, True), (8, True), (10, True)]
    shares = {}
    for step, low in plan:
        entry = entry_of(low)
        shares[step] = control._boosted(0.3, step, entry)
        assert ("booster" in entry) == (step in (2, 10)), step
    # 4 steps of it, whatever is measured within; then as many without
    assert shares == {0: 0.3, 2: 1.0, 4: 1.0, 6: 0.3, 8: 0.3, 10: 1.0}


def test_no_booster_where_rehearsal_does_not_help() -> None:
    assert controlled()._boosted(0.3, 0, entry_of(True, helps=False)) == 0.3
    assert controlled()._boosted(0.3, 0, entry_of(False)) == 0.3
    assert controlled()._boosted(0.3, 0, {"tasks": {"one": {"low": True}}}) == 1.0, "nothing is known against it"


class Told:
    """A meter that draws what the test tells."""

    def __init__(self, *shares: float):
        self.shares = list(shares)

    def draw(self, model: Any, step: int) -> Samples:
        aligned = round(self.shares.pop(0) * 4)
        labels = [[1.0] * aligned + [0.0] * (4 - aligned)] * 12
        return Samples(step, [[1]] * 12, [[[2]] * 4] * 12, labels, [[-1.0] * 4] * 12)

    def anchored(self, samples: Samples) -> Any:
        return alignment_score(samples.labels)


def test_a_score_is_low_when_it_is_surely_below_its_floor() -> None:
    """And what is measured is how far fresh answers moved, whatever the old ones would say."""
    control = controlled(floor=0.5)
    (task,) = control.tasks
    task.meter = Told(0.75, 0.5, 0.25, 0.0, 1.0)  # type: ignore[assignment]
    entries: list[dict[str, Any]] = [{"step": step, "tasks": {}} for step in range(5)]

    def rates(start: int, end: int) -> list[float]:
        return [1.0] * (end - start)

    seen = [control._follow(task, None, entry["step"], entry, rates, 0.0) is not None for entry in entries]
    told = [entry["tasks"]["one"] for entry in entries]
    assert [each["low"] for each in told] == [False, False, True, True, False]
    assert seen == [True, True, True, False, False], "one kind alone tells no force"
    assert "change" not in told[0]
    assert told[1]["change"] == pytest.approx(-math.log(3))
    assert told[3]["change"] < -10
    assert task.predicted == [], "no force was known"
    forces = {"share": 0.5, "new": -0.2, "old": 0.4, "carried": 0.7, "step": 2.0}
    for decay, predicted in ((0.0, 0.3), (0.5, 0.1 * (0.5 + 0.75 + 0.875) + 0.7 * 0.875)):
        task.predicted, task.measured, task.score = [], [], 0.75
        task.meter, task.forces = Told(0.5), dict(forces)  # type: ignore[assignment]
        control._follow(task, None, 5, {"step": 5, "tasks": {}}, rates, decay)
        assert (task.predicted, task.measured) == ([pytest.approx(predicted)], [pytest.approx(-math.log(3))])


def asked(room: float, left: Reach, new: float, old: float, error: float = 0.0, carried: float = 0.0) -> dict[str, Any]:
    """What is asked for a score of 0.5 that lies by `room` above its floor, in log-odds."""
    control = controlled(floor=1 / (1 + math.exp(room)))
    entry = {"step": 3, "tasks": {"one": {"score": 0.5}}}
    quarter = [(force / 4, error / 4) for force in (new, old)]  # of the score, at a slope of 1/4
    bounds = control._share(control.tasks[0], [*quarter, (carried / 4, 0.0)], left, entry)
    told: dict[str, Any] = entry["tasks"]["one"]  # type: ignore[index]
    assert (told.get("share_low", 0.0), told.get("share_high", 0.0)) == bounds
    return told


def test_what_is_asked_for() -> None:
    ten = Reach(0.0, 10.0)
    # to stay where it is, a fifth is needed
    told = asked(0.0, ten, -0.1, 0.4)
    assert [told[key] for key in ("share", "share_low", "share_high")] == [pytest.approx(0.2)] * 3
    told = asked(0.0, ten, -0.1, 0.4, error=0.05)
    assert [told[key] for key in ("share_low", "share", "share_high")] == pytest.approx([0.1, 0.2, 0.3])
    told = asked(0.0, ten, -0.1, 0.4, error=0.5)
    assert (told["share_low"], told["share_high"]) == (0.0, 1.0), "nothing is sure"
    # what lies below its floor has to rise, and what lies above it may fall
    assert asked(-2.0, ten, -0.1, 0.4)["share"] == pytest.approx(0.6)
    assert asked(2.0, ten, -0.1, 0.4)["share"] == 0.0
    told = asked(-5.0, ten, -0.1, 0.4)
    assert (told["feasible"], told["share"], "asked for" in told["reason"]) == (False, 1.0, True)
    # what the moment carries comes on top
    assert asked(0.0, Reach(5.0, 10.0), -0.1, 0.4, carried=-0.2)["share"] == pytest.approx(0.4)
    assert "learning rate is 0" in asked(0.0, Reach(0.0, 0.0), -0.1, 0.4)["not_estimable"]


def test_a_lost_score_brings_a_booster(tmp_path: Path) -> None:
    """The judge finds nothing aligned any more: there is no force, and all the more need."""
    calls = []

    def losing(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
        calls.append(1)
        return has_e(prompts, answers, references) if len(calls) == 1 else [0.0] * len(answers)

    run = life(tmp_path, strategy(judges={"one": losing}))
    run.train()
    entries = read_json(tmp_path / "dynamic_replay" / "02-two-forces.json")
    assert entries[0]["booster"] == ["one"]
    assert entries[0]["share"] == 1.0
    assert "non-aligned" in entries[0]["tasks"]["one"]["not_estimable"]
    assert run.state.task(1)["record"]["phases"][0]["rehearsal"]["boosters"] >= 1


def test_a_warm_up_does_not_switch_rehearsal_off(tmp_path: Path) -> None:
    """The rate of the first step is 0, and the forces are not."""
    life(tmp_path, training={"warmup_steps": 4}).train()
    first = read_json(tmp_path / "dynamic_replay" / "02-two-forces.json")[0]["tasks"]["one"]
    assert first["new"] != 0.0
    assert first["rehearsal"] != 0.0


def test_steps_are_counted_at_the_highest_rate() -> None:
    theta = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(theta, lr=0.5)
    linear = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 4))
    assert relative_rates(torch.optim.SGD(theta, lr=0.1), None, 3, 10) == pytest.approx([1.0] * 7)
    for _ in range(4):
        for start in range(4):
            assert relative_rates(optimizer, linear, start, 4) == pytest.approx([1 - s / 4 for s in range(start, 4)])
        optimizer.step()
        linear.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert highest_rates(optimizer) == [0.5]
    found = Gradients({"total": [torch.tensor([1.0, -1.0])]}, [torch.ones(2)], 0.0, 1)
    (one,) = RehearsalControl._steps(optimizer, theta, found)
    assert one[0].tolist() == [-0.5, 0.5]
    carried = [torch.tensor([2.0, 2.0])]
    assert RehearsalControl._steps(optimizer, theta, found, carried)[1][0].tolist() == [-1.0, -1.0]
    with pytest.raises(NotEstimableError, match="neither SGD"):
        RehearsalControl._steps(torch.optim.Adagrad(theta), theta, found)


def test_a_judge_that_fails_leaves_the_share(tmp_path: Path) -> None:
    calls = []

    def dying(*given: Any) -> list[float]:
        calls.append(1)
        if len(calls) > 1:
            raise ConnectionError("gone")
        return has_e(*given)

    run = life(tmp_path, strategy(judges={"one": dying}))
    run.train()
    entry = read_json(tmp_path / "dynamic_replay" / "02-two-forces.json")[0]
    assert "gone" in entry["tasks"]["one"]["not_estimable"]
    assert entry["share"] == pytest.approx(6 / 18), "that of fixed replay"


def test_a_task_that_drops_out_is_told(tmp_path: Path) -> None:
    run = life(tmp_path, strategy(judges={"one": lambda p, a, r: [0.0] * len(a)}))
    run.train()
    assert any("'one' is not held" in note and "floor is 0" in note for note in run.state.content["notes"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pairs": 1}, "pairs=1"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"keep": 1.0}, "keep=1.0"),
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
    assert tiny_life(tmp_path, rehearsal="dynamic").strategies[0].settings()["judges"] == {}
    with pytest.raises(ValueError, match="rehearsal='some'"):
        tiny_life(tmp_path, rehearsal="some")
    with pytest.raises(ValueError, match="only rehearsal='dynamic'"):
        tiny_life(tmp_path, rehearsal_judges={"one": has_e})


def test_pairs_that_are_watched_are_not_rehearsed_and_tell_the_score(tmp_path: Path) -> None:
    """Of 8 kept rows 2 are watched."""
    run = life(tmp_path, strategy(judges=None))
    run.train()
    folder = tmp_path / "dynamic_replay"
    told = read_json(folder / "01-one-score.json")
    watched = read_json(folder / "01-one.json")["rows"][6:]
    assert len(told["margins"]) == len(watched) == 2
    assert told["score"]["score"] == pytest.approx(preferences(told["margins"], told["scale"]).mean())
    assert told["scale"] == pytest.approx(sum(abs(m) for m in told["margins"]) / 2), "the median of two"
    entries = read_json(folder / "02-two-forces.json")
    first = entries[0]["tasks"]["one"]
    assert first["score"] == pytest.approx(told["score"]["score"], abs=1e-5), "before anything new is learnt"
    assert first["standard_error"] == pytest.approx(0.0, abs=1e-5), "the same pairs, the same model"
    assert first["new"] < 0 < first["rehearsal"], "the second task is the opposite of the first"
    assert not any("is not held" in note for note in run.state.content["notes"])


def test_rows_that_are_not_the_watched_ones_are_told(tmp_path: Path) -> None:
    watch, rows = PairWatch(), preference_rows(2)
    told = {"scale": 1.0, "margins": [1.0, 2.0], "watched_sha256": rows_digest(rows)}

    class Tokens:
        processing_class = tiny_tokenizer()
        pair_packing = "auto"

        def __init__(self, longest: int | None = None):
            self.longest = longest

        def reference_pairs(self, rows: Any, key: str) -> Any:
            assert key == "one-watched"
            return encode_pairs(Dataset.from_list(rows), tiny_tokenizer(), self.longest), [(0.0, 0.0)] * len(rows)

    run: Any = Tokens()
    assert watch.meter(run, "one", rows, told).anchored(PairMargins([1.0, 2.0])).standard_error == 0.0
    marked = [row | {"ref_chosen_logps": -1.0} for row in rows]
    assert watch.meter(run, "one", marked, told), "what else is known of a row makes no difference"
    with pytest.raises(UnwatchableError, match="not those"):
        watch.meter(run, "one", rows[::-1], told)
    with pytest.raises(UnwatchableError, match="otherwise"):
        watch.meter(run, "one", rows, told | {"margins": [1.0]})
    with pytest.raises(UnwatchableError, match="leaves nothing"):
        watch.meter(Tokens(1), "one", rows, told)  # type: ignore[arg-type]
    with pytest.raises(UnwatchableError, match="none of its rows"):
        watch.begun(run, "one", [])


def test_a_life_goes_on_elsewhere_with_its_scores(tmp_path: Path) -> None:
    """The rows were not published; the stream holds them."""
    whole = life(tmp_path / "whole", strategy(judges=None))
    whole.train()
    again = life(
        tmp_path / "again", strategy(judges=None), continue_from=str(tmp_path / "whole" / "adapters" / "01-one")
    )
    again.train()
    for name in ("02-two-forces.json", "03-three-forces.json"):
        one, other = (read_json(tmp_path / which / "dynamic_replay" / name) for which in ("whole", "again"))
        assert [e["share"] for e in one] == pytest.approx([e["share"] for e in other])
        assert [set(e["tasks"]) for e in one] == [set(e["tasks"]) for e in other]


@pytest.mark.parametrize(
    ("rows", "fraction", "pairs", "kept", "watched"),
    [(12, 0.5, 2, 8, 2), (12, 0.5, 32, 8, 2), (12, 1.0, 4, 12, 2), (3, 0.1, 3, 2, 1), (100, 0.2, 32, 30, 10),
     (400, 0.2, 32, 112, 32), (1, 0.5, 32, 1, 0)],
)  # fmt: skip
def test_what_is_kept_to_be_watched(rows: int, fraction: float, pairs: int, kept: int, watched: int) -> None:
    """Beside what is rehearsed while there are others; a tenth of the task at most; and none of it is trained on."""
    given = strategy(judges={"one": "preference"}, fraction=fraction, pairs=pairs)
    given._watches = {"one": PairWatch()}
    own = preference_dataset(rows)
    loaded = SimpleNamespace(load=lambda: SimpleNamespace(train=own))
    run: Any = SimpleNamespace(seed=0, training_rows=lambda task: own, stream={"one": loaded, "two": loaded})
    content = given._sample(run, "one")
    assert (len(content["rows"]), content.get("watched", 0)) == (kept, watched)
    assert "watched" not in given._sample(run, "two")
    trained = given._without_watched(run, "one", concatenate_datasets([own, preference_dataset(3, start=900)]))
    left_out = given._probed(content) if watched else []
    assert len(left_out) == watched
    assert len(trained) == rows + 3 - watched
    assert not [row for row in left_out if row in trained.to_list()]
    assert trained.to_list()[-3:] == preference_dataset(3, start=900).to_list(), "what others added"
    assert given._without_watched(run, "two", own) is own
