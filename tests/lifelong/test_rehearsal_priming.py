"""Rehearsal priming in a whole life: how fast a task that is taken up again is aligned, told wherever it belongs."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from support.life import life_files, swapped, tiny_life
from support.tiny import preference_dataset
from transformers import TrainerCallback
from trl import DPOTrainer

from hf_lifealign import AlignmentDynamicsCallback, LifelongConfig, Task, TaskStream
from hf_lifealign._files import read_json
from hf_lifealign.dynamics.findings import find, find_priming
from hf_lifealign.dynamics.series import read_series
from hf_lifealign.metrics.alignment_dynamics import priming_ratio
from hf_lifealign.report.document import report_text
from hf_lifealign.report.run_data import read_run
from hf_lifealign.slmc.model import find_tuner
from hf_lifealign.strategies.base import PREFERENCE, Phase
from hf_lifealign.strategies.rehearsal_priming import RehearsalPrimingStrategy

FOLDER = "rehearsal_priming"


def says_yes(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """What training on "yes 7." raises from the first steps on."""
    return [float(any(letter in answer for letter in "yes.")) for answer in answers]


def stream() -> TaskStream:
    """Tasks "one", its opposite "two", and "one-again"."""
    return TaskStream(
        [
            Task("one", preference_dataset(12), preference_dataset(6, start=20)),
            Task("two", swapped(preference_dataset(12, start=40)), swapped(preference_dataset(6, start=60))),
            Task("one-again", preference_dataset(12, start=80), preference_dataset(6, start=100)),
        ]
    )


def strategy(**options: Any) -> RehearsalPrimingStrategy:
    given: dict[str, Any] = {"every": 2, "probes": 6, "samples": 4, "max_new_tokens": 6, "share": 0.1}
    given |= {"judges": {"one": says_yes}, "resumes": {"one-again": "one"}}
    return RehearsalPrimingStrategy(**(given | options))


def life(folder: Path, watch: RehearsalPrimingStrategy | None = None, **settings: Any) -> Any:
    given = {"stream": stream(), "strategies": ["consolidation", watch or strategy()], "warm_start": False}
    return tiny_life(folder, **(given | settings))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = life(tmp_path_factory.mktemp("life") / "run", strategy(judges={"one": says_yes, "two": says_yes}))
    run.train()
    return run


def record(run: Any, number: int) -> dict[str, Any]:
    return run.state.task(number)["record"]["phases"][-1]


def test_the_curves_are_those_of_the_series(lived: Any) -> None:
    root = lived.directory.root / FOLDER
    names = ["01-one", "02-two", "03-one-again"]
    files = {name: read_json(root / f"{name}.json") for name in names}
    found = {name: find(read_series(root / f"{name}-score.jsonl")) for name in names}
    for number, name in enumerate(names):
        content, points = files[name], found[name].scores
        assert content["task"] == name[3:]
        assert content["of"] == ("two" if number == 1 else "one")
        assert content["judge"] == "says_yes"
        assert content["steps"] == [point.step for point in points] == [0, 2, 4, 6]
        for key, values in (("scores", "score"), ("low", "low"), ("high", "high")):
            assert content[key] == [getattr(point, values) for point in points]
        told = record(lived, number)["alignment"]
        assert told == {
            "of": content["of"], "judge": "says_yes", "measurements": 4, "steps": 6,
            "start": content["scores"][0], "end": content["scores"][-1],
        }  # fmt: skip
    assert (
        files["01-one"]["probes_sha256"] == files["03-one-again"]["probes_sha256"] != files["02-two"]["probes_sha256"]
    )
    assert lived.strategies[1].state_files(lived) == [root / f"{name}.json" for name in names]
    both = find_priming(found["01-one"], found["03-one-again"])
    first, again = (([p.step for p in points], [p.score for p in points]) for points in (both.first, both.again))
    expected = priming_ratio(first, again, share=0.1)
    priming = record(lived, 2)["priming"]
    assert priming == files["03-one-again"]["priming"]
    assert priming == expected.to_json() | {
        "resumes": "one", "start_first": files["01-one"]["scores"][0],
        "start_again": files["03-one-again"]["scores"][0],
    }  # fmt: skip
    assert priming["ratio"] is not None
    assert not any("priming" in record(lived, number) for number in (0, 1))
    assert "priming" not in files["02-two"]


def test_memory_and_published_record_carry_it(lived: Any) -> None:
    priming = record(lived, 2)["priming"]
    folder = lived.directory.root / "adapters" / "03-one-again"
    entries = read_json(folder / "slmc" / "memory.json")["entries"]
    assert ["priming" in entry for entry in entries] == [False, False, True]
    assert entries[-1]["priming"] == {
        "resumes": "one", "ratio": priming["ratio"], "steps_first": priming["first_steps"],
        "steps_again": priming["again_steps"], "reason": priming["reason"],
    }  # fmt: skip
    published = read_json(folder / "slmc" / "run.json")["records"]["one-again"]["phases"][-1]
    assert published["priming"] == priming
    assert published["alignment"] == record(lived, 2)["alignment"]
    assert "| priming |" in (folder / "README.md").read_text()
    frozen = lived.directory.root / "strategies" / "03-one-again" / FOLDER
    assert sorted(file.name for file in frozen.iterdir()) == ["01-one.json", "02-two.json", "03-one-again.json"]
    texts = [path.read_text() for path in (*frozen.iterdir(), folder / "slmc" / "run.json")]
    assert not any("item 2" in text for text in texts), "no prompts"


def test_the_report_shows_it(lived: Any) -> None:
    root = lived.directory.root
    text = (root / "report.md").read_text()
    section = text.partition("## Aligned again")[2].partition("\n## ")[0]
    ratio = record(lived, 2)["priming"]["ratio"]
    assert "| 03-one-again | one " in section
    assert f"| {ratio:.2f} " in section
    assert "below 1 the model was primed" in section
    assert "(priming-03-one-again.png)" in section
    assert (root / "priming-03-one-again.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in root.glob("priming-*")] == ["priming-03-one-again.png"]
    assert "`rehearsal_priming/`" in text
    assert "## Aligned again" in report_text(read_run(root), [])


def test_training_is_the_same_without_it(lived: Any, tmp_path: Path) -> None:
    life(tmp_path, stream=stream()[:1], strategies=["consolidation"]).train()
    weights = "adapters/01-one/adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (lived.directory.root / weights).read_bytes()


class KilledError(Exception):
    """The end of a process."""


def test_a_killed_life_ends_as_an_undisturbed_one(lived: Any, tmp_path: Path) -> None:
    """Killed in the first training, in the one that takes it up, at the end of that one, and after its phase."""

    class Killer(TrainerCallback):
        def __init__(self, label: str, step: int):
            self.label, self.step = label, step

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.label in str(args.output_dir) and state.global_step == self.step:
                raise KilledError

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.on_step_begin(args, state, control)

    def go_on(*killers: Any) -> Any:
        return life(tmp_path, strategy(judges={"one": says_yes, "two": says_yes}), callbacks=killers)

    for label, step in (("01-one", 5), ("03-one-again", 3), ("03-one-again", 6)):
        with pytest.raises(KilledError):
            go_on(Killer(label, step)).train()

    def dying(index: int) -> None:
        raise KilledError

    again = go_on()
    again.examiner.examine = dying
    with pytest.raises(KilledError):
        again.train()
    assert (tmp_path / "work" / "03-one-again" / "after-preference").is_dir()
    again = go_on()
    again.train()
    first, second = life_files(lived.directory.root), life_files(tmp_path)
    assert set(first) == set(second)
    for name, content in first.items():
        if name.endswith(".safetensors") or FOLDER in name:
            assert content == second[name], name
    for number in range(3):
        for key in ("alignment", "priming"):
            assert record(again, number).get(key) == record(lived, number).get(key)
    entries = [read_json(root / "adapters/03-one-again/slmc/memory.json") for root in (lived.directory.root, tmp_path)]
    assert entries[0]["entries"][-1]["priming"] == entries[1]["entries"][-1]["priming"]


def test_a_life_continued_elsewhere_compares_with_its_first_curve(lived: Any, tmp_path: Path) -> None:
    folder = str(lived.directory.root / "adapters" / "02-two")
    run = life(tmp_path, strategy(judges={"one": says_yes, "two": says_yes}), continue_from=folder)
    run.train()
    assert not (tmp_path / FOLDER / "01-one-score.jsonl").exists()
    assert record(run, 2)["priming"] == record(lived, 2)["priming"]
    assert record(run, 0)["alignment"] == record(lived, 0)["alignment"]
    assert (tmp_path / "priming-03-one-again.png").is_file()


def test_the_settings_bring_the_strategy(tmp_path: Path) -> None:
    """Through LifelongConfig, with an adapter that has no memory and TRL's own trainer."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    given: dict[str, Any] = {
        "rehearsal_priming": {"two": "one"},
        "rehearsal_judges": {"one": "support.vowel_judge:has_vowel"},
    }
    run = tiny_life(
        tmp_path, stream=stream()[:2], warm_start=False, peft_config=lora, trainer_class=DPOTrainer,
        strategies=[{"name": FOLDER, "every": 2, "max_new_tokens": 4}], training={"num_train_epochs": 1}, **given,
    )  # fmt: skip
    run.train()
    told = run.state.content["settings"]["strategies"]
    assert [(s["name"], s["every"], s["judges"], s["resumes"]) for s in told] == [
        (FOLDER, 2, given["rehearsal_judges"], given["rehearsal_priming"])
    ]
    assert FOLDER not in run.state.content["settings"]["run"]
    assert record(run, 0)["alignment"]["judge"] == "support.vowel_judge:has_vowel"
    assert record(run, 1)["priming"]["resumes"] == "one"
    assert not (tmp_path / "adapters" / "02-two" / "slmc" / "memory.json").exists()
    assert (tmp_path / "priming-02-two.png").is_file()


def test_where_the_settings_put_it(tmp_path: Path) -> None:
    given: dict[str, Any] = {"rehearsal_priming": {"three": "one"}, "rehearsal_judges": {"one": "refusal"}}
    run = tiny_life(tmp_path, **given)
    assert [s.name for s in run.strategies] == ["replay", "consolidation", FOLDER]
    assert run.strategies[2].settings()["resumes"] == {"three": "one"}
    given["rehearsal_judges"]["two"] = "compliance"
    run = tiny_life(tmp_path, rehearsal="dynamic", **given)
    assert [s.name for s in run.strategies] == ["dynamic_replay", "consolidation", FOLDER]
    assert run.strategies[2].settings()["judges"] == {"one": "refusal"}, "of the tasks concerned alone"
    own = strategy(judges={"two": says_yes}, resumes={})
    run = tiny_life(tmp_path, rehearsal="dynamic", strategies=["replay", "consolidation", own], **given)
    assert run.strategies[2] is own
    for wrong, why in (
        ({"rehearsal_priming": {"three": "one"}}, r"take up \['one'\], which have no judge"),
        ({"rehearsal_judges": {"one": "refusal"}}, "only rehearsal='dynamic'"),
        (
            {"rehearsal_priming": {"three": "one"}, "rehearsal_judges": {"one": says_yes, "two": says_yes}},
            r"for \['two'\]",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            LifelongConfig("unused", **wrong)


class Stub:
    """What the strategy may use of a run, without one."""

    seed, is_main_process = 0, True

    def __init__(self, folder: Path, tasks: TaskStream, model: Any = None):
        self.folder, self.stream, self.notes, self.model = folder, tasks, [], model
        self.lived = ["one", "two", "one-again"]

    def label(self, task: str) -> str:
        return f"{self.lived.index(task) + 1:02d}-{task}"

    def strategy_file(self, strategy: Any, name: str) -> Path:
        return self.folder / strategy.name / name

    def note(self, text: str) -> None:
        self.notes.append(text)


def curve(scores: list[float], **content: Any) -> dict[str, Any]:
    return {"steps": [2 * i for i in range(len(scores))], "scores": scores, "judge": "j", "probes_sha256": "p",
            "max_new_tokens": 6, "of": "one", **content}  # fmt: skip


def test_only_the_files_are_needed(tmp_path: Path) -> None:
    """As in a life that was continued elsewhere."""
    file = tmp_path / "01-one.json"
    file.write_text(json.dumps(curve([0.2, 0.5, 0.8])))
    told = strategy(share=1.0)._compared(file, curve([0.2, 0.8, 0.8]))
    assert (told["first_steps"], told["again_steps"], told["ratio"], told["reason"]) == (4.0, 2.0, 0.5, None)
    assert strategy(target=0.5)._compared(file, curve([0.2, 0.8, 0.8]))["again_steps"] == pytest.approx(1.0)
    far = strategy(tolerance=0.05)._compared(file, curve([0.3, 0.8, 0.8]))
    assert far["ratio"] is not None
    assert "not matched" in far["reason"]
    other = strategy()._compared(file, curve([0.2, 0.8], judge="k", probes_sha256="q"))
    assert other["reason"].startswith("the first curve may be of another score, by its judge and probes")


def test_what_is_not_estimable_is_told(tmp_path: Path) -> None:
    file, again = tmp_path / "01-one.json", curve([0.2, 0.8])
    keys = set(strategy()._compared(file, again))
    for first, second, why in (
        (None, again, "not measured when it was trained first"),
        (curve([]), again, "first has no score"),
        (curve([0.5]), again, "first has only one score"),
        (again, curve([0.5]), "again has only one score"),
        (curve([0.2, None]), again, "01-one.json does not hold the curve"),
        ({"rows": 1}, again, "does not hold the curve"),
        ([1, 2], again, "does not hold the curve"),
        ({**again, "steps": [2, 0]}, again, "The steps of first go from 2 to 0"),
    ):
        file.unlink(missing_ok=True)
        if first is not None:
            file.write_text(json.dumps(first))
        told = strategy()._compared(file, second)
        assert set(told) == keys
        assert told["ratio"] is None
        assert why in told["reason"]
        assert str(tmp_path) not in told["reason"]


def test_a_judge_that_never_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def dead(*given: Any) -> list[float]:
        raise ConnectionError("gone")

    with caplog.at_level(logging.ERROR):
        run = life(tmp_path, strategy(judges={"one": dead}, resumes={}), stream=stream()[:1])
        run.train()
    assert record(run, 0)["alignment"] == {
        "of": "one", "judge": "dead", "measurements": 0, "steps": None, "start": None, "end": None
    }  # fmt: skip
    assert "## Aligned again" not in (tmp_path / "report.md").read_text(), "it was only followed"


def test_an_earlier_task_without_its_rows_is_noted(tmp_path: Path, lived: Any) -> None:
    run, watch = Stub(tmp_path, stream()[2:], lived.model), strategy()
    phase = Phase("one-again", 2, PREFERENCE)
    assert watch.callbacks(run, phase) == ()
    assert "'one-again' takes up 'one' is not followed" in run.notes[0]
    entry = find_tuner(lived.model).memory.entries[-1]
    before = entry["priming"]
    watch.after_phase(run, phase, None)
    assert set(watch.record(run, phase)) == {"priming"}
    assert "not at hand" in watch.record(run, phase)["priming"]["reason"]
    assert entry["priming"]["ratio"] is None
    assert not list(tmp_path.rglob("*.json"))
    for key, other in (("task", "one"), ("phase", "warm_start")):
        kept, entry[key], entry["priming"] = entry[key], other, before
        watch.after_phase(run, phase, None)
        assert entry["priming"] == before, "the entry of another training"
        entry[key] = kept
    assert watch.callbacks(run, Phase("one", 0, "warm_start")) == (), "only preference phases are followed"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"judges": {}, "resumes": {}}, "without judges"),
        ({"every": 0}, "every=0"),
        ({"probes": 1}, "probes=1"),
        ({"samples": 0}, "samples=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"target": 0.0}, "target=0.0"),
        ({"share": 1.5}, "share=1.5"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"resumes": {"one": "one"}}, "which is itself"),
        ({"resumes": {"one-again": "two"}}, "'two' has no judge"),
        ({"judges": {"one": says_yes, "one-again": says_yes}}, "leave the judge of 'one-again' out"),
        ({"resumes": {"two": "one", "one-again": "two"}}, "Name the one that was trained first"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strategy(**options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"judges": {"one": says_yes, "four": says_yes}}, r"judges of the strategy 'rehearsal_priming' for \['four'\]"),
        ({"resumes": {"four": "one"}}, r"resumes of the strategy 'rehearsal_priming' for \['four'\]"),
        ({"judges": {"two": says_yes}, "resumes": {"one": "two"}}, "comes after it in the life"),
        ({"judges": {"one": "no_such_judge"}}, "no_such_judge"),
        ({"max_new_tokens": 600}, "score of the task 'one' cannot be followed"),
    ],
)
def test_a_life_that_it_does_not_fit(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        life(tmp_path, strategy(**options)).train()


def test_a_second_series_in_the_checkpoints_is_refused(tmp_path: Path) -> None:
    mine = AlignmentDynamicsCallback(["one?"], says_yes, forces="none", output=str(tmp_path / "mine.jsonl"))
    with pytest.raises(ValueError, match="AlignmentDynamicsCallback of your own"):
        life(tmp_path, callbacks=[mine]).train()
