"""What a new task would do to the earlier ones, foretold from a real finished run, and the command that prints it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.life import tiny_life
from support.tiny import preference_dataset, save_tiny, write_jsonl
from support.vowel_judge import has_vowel

from hf_lifealign import Task, TaskStream
from hf_lifealign.dynamics import preflight as module
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.measuring import AlignmentMeter
from hf_lifealign.dynamics.preflight import Forecast, preflight
from hf_lifealign.dynamics.rehearsal import logit
from hf_lifealign.dynamics.samples import read_probes
from hf_lifealign.dynamics.updates import inner_product, scales_of, snapshot, step_of

TESTS = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {"probes": 16, "samples": 16, "max_new_tokens": 6, "force_rows": 8}


def rows(chosen: str, rejected: str, start: int = 0) -> Any:
    return preference_dataset(16, chosen=chosen, rejected=rejected, start=start)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, and its base beside it."""
    root = tmp_path_factory.mktemp("preflight")
    save_tiny(root / "base")
    pairs = {"one": ("aa", "zz"), "two": ("up", "dn")}
    stream = TaskStream([Task(name, rows(*pair), rows(*pair, 40)) for name, pair in pairs.items()])
    replay = {"name": "replay", "fraction": 1.0}
    tiny_life(root / "run", stream, strategies=[replay, "consolidation"], warm_start=False).train()
    return root


def forecast(life: Path, chosen: str, rejected: str, **settings: Any) -> dict[str, Forecast]:
    task = Task("new", rows(chosen, rejected, 200), rows(chosen, rejected, 240))
    given = {"judges": {"one": has_vowel}, "base": str(life / "base")} | SMALL | settings
    return {one.task: one for one in preflight(life / "run", task, **given)}


def test_what_teaches_the_opposite_is_foretold_to_undo(life: Path) -> None:
    pairs = (("aeaeae", "zxzxzx"), ("zxzxzx", "aeaeae"))
    same, opposite = (forecast(life, *pair, samples=64, tolerance=0.01)["one"].to_json() for pair in pairs)
    assert same["force"] > 0 > opposite["force"]
    assert (same["horizon"], same["share"], same["feasible"]) == ("never", 0.0, True)
    assert 0 < opposite["horizon"] < math.inf
    assert opposite["share"] > 0
    assert same["score"] == opposite["score"], "the same model, the same answers"
    assert opposite["low"] <= opposite["score"] <= opposite["high"]
    expected = logit(opposite["score"]) + opposite["force"] * opposite["steps"]
    assert logit(opposite["predicted"]) == pytest.approx(expected, abs=1e-6)
    assert opposite["steps"] == 8, "2 epochs of 16 rows in batches of 4"


def test_a_small_step_does_what_was_foretold(life: Path, tmp_path: Path) -> None:
    """The forces of a forecast against the measured change of the score, after a hundredth of that step was taken."""
    finished = module.Finished.read(life / "run")
    kept = [finished.kept(name)[:8] for name in finished.tasks]
    marked = module._marked(rows("aeaeae", "zxzxzx", 200), kept)
    trainer = module._build(finished, marked, str(life / "base"), None, str(tmp_path))
    trainer.create_optimizer()
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    meter = AlignmentMeter(read_probes(finished.kept("one")), has_vowel, trainer.processing_class, 32, 6)
    with undisturbed(model):
        drawn = meter.draw(model, 0)
        score = meter.anchored(drawn).score
        gradient = meter.score_gradient(model, parameters, drawn, drawn.logps)
        for mark in (0, 1):
            found = module._gradients(trainer, model, parameters, module._batch(trainer, mark, 8, 0))
            step = step_of(found.parts["total"], scales_of(trainer.optimizer, parameters, found.second) or [])
            told = inner_product(gradient, step)
            before = snapshot(parameters)
            with torch.no_grad():
                for parameter, change in zip(parameters, step, strict=True):
                    parameter += 0.01 * change
                measured = meter.rescored(drawn, meter.logps(model, drawn)).score.score - score
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            assert measured == pytest.approx(0.01 * told, rel=0.2), mark
            assert abs(told) > 1e-4


def test_what_cannot_be_foretold_is_said(life: Path) -> None:
    found = forecast(life, "up", "dn")
    assert found["two"].score is not None, "by its pairs"
    constant = forecast(life, "up", "dn", judges={"one": lambda p, a, r: [1.0] * len(a)})["one"]
    assert "all 256 samples are aligned" in str(constant.reason)
    assert constant.force is None

    def broken(*_: Any) -> list[float]:
        raise ConnectionError("no judge today")

    assert "no judge today" in str(forecast(life, "up", "dn", judges={"one": broken})["one"].reason)
    assert Forecast("x", horizon=math.inf).to_json()["horizon"] == "never"


def test_pairs_tell_without_a_judge(life: Path, tmp_path: Path) -> None:
    """The opposite of the first task undoes it, and the task itself does not; by the run's own margins."""
    found = {pair: forecast(life, *pair, judges=None) for pair in (("aa", "zz"), ("zz", "aa"))}
    same, opposite = (told["one"] for told in found.values())
    assert same.score == opposite.score
    assert same.force is not None
    assert opposite.force is not None
    assert same.force > 0 > opposite.force
    assert same.floor == pytest.approx(same.score - 0.05)
    save_tiny(tmp_path / "base")
    stream = TaskStream([Task("one", preference_dataset(40, chosen="aa", rejected="zz"), rows("aa", "zz", 60))])
    tiny_life(tmp_path / "run", stream, warm_start=False, rehearsal="dynamic").train()
    content = json.loads((tmp_path / "run" / "dynamic_replay" / "01-one-score.json").read_text())
    task = Task("new", rows("zz", "aa", 200), rows("zz", "aa", 240))
    (told,) = preflight(tmp_path / "run", task, base=str(tmp_path / "base"), **SMALL)
    assert len(content["margins"]) == 4, "a tenth of its rows"
    assert told.score == pytest.approx(content["score"]["score"], abs=1e-4), "the same pairs, the same scale"
    assert told.floor == pytest.approx(0.5 + 0.9 * (content["score"]["score"] - 0.5)), "a tenth of the gain may go"
    again = Task("again", rows("aa", "zz", 200), rows("aa", "zz", 240))
    (helped,) = preflight(tmp_path / "run", again, base=str(tmp_path / "base"), **SMALL)
    assert told.force is not None
    assert helped.force is not None
    assert told.force < helped.force / 2
    (judged,) = preflight(tmp_path / "run", task, {"one": has_vowel}, base=str(tmp_path / "base"), **SMALL)
    assert judged.floor == pytest.approx(max(judged.score - 0.05, 0.0)), "the run's floor is of another score"


def test_judges_of_unfinished_tasks_and_functions_do_not_stand_in_the_way(tmp_path: Path) -> None:
    """A run that stopped after its first task, with judges for both, given as functions."""
    save_tiny(tmp_path / "base")
    stream = TaskStream([Task(name, rows("aa", "zz"), rows("aa", "zz", 40)) for name in ("one", "two")])
    options: dict[str, Any] = {"rehearsal": "dynamic", "rehearsal_judges": {"one": has_vowel, "two": has_vowel}}
    tiny_life(tmp_path / "run", stream, warm_start=False, **options).train()
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    state["tasks"][1]["status"] = "pending"
    (tmp_path / "run" / "state.json").write_text(json.dumps(state))
    task = Task("new", rows("up", "dn", 200), rows("up", "dn", 240))
    found = preflight(tmp_path / "run", task, base=str(tmp_path / "base"), **SMALL)
    assert [one.task for one in found] == ["one"]
    assert "Give --judge one=SPEC" in str(found[0].reason)
    named = preflight(tmp_path / "run", task, {"one": has_vowel}, base=str(tmp_path / "base"), **SMALL)
    assert named[0].floor is not None


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"judges": {"three": has_vowel}}, ValueError, r"\['three'\]"),
        ({"base": None}, ValueError, "Give --base"),
        ({"trainer": "nonsense"}, ValueError, "nonsense"),
    ],
)
def test_settings_that_cannot_work(life: Path, settings: dict[str, Any], error: Any, why: str) -> None:
    with pytest.raises(error, match=why):
        forecast(life, "up", "dn", **settings)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lifealign run"):
        preflight(tmp_path, Task("new", rows("a", "b"), rows("a", "b", 50)))


def command(life: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "hf_lifealign.cli.main", "preflight", str(life / "run"), *words]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=life)


def test_the_command(life: Path) -> None:
    write_jsonl(life / "train.jsonl", rows("zxzxzx", "aeaeae", 200).to_list())
    write_jsonl(life / "test.jsonl", rows("zxzxzx", "aeaeae", 240).to_list())
    (life / "new.yaml").write_text("name: new\ntrain: train.jsonl\ntest: test.jsonl\n")
    small = ["--probes", "16", "--samples", "16", "--max-new-tokens", "6", "--force-rows", "8"]
    small += ["--base", str(life / "base")]
    judge = ["--judge", "one=support.vowel_judge:has_vowel"]
    done = command(life, "--task", "new.yaml", *judge, *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 steps on its rows alone" in done.stdout
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line][-2:] == ["one", "two"]
    told = json.loads(command(life, "--task", "new.yaml", *judge, *small, "--json").stdout)
    expected = forecast(life, "zxzxzx", "aeaeae")["one"]
    assert told["forecasts"][0]["force"] == pytest.approx(expected.force, rel=1e-4)
    for words, why in (
        (["--task", "nowhere.yaml"], "There is no nowhere.yaml"),
        (["--task", "new.yaml", "--judge", "one"], "TASK=SPEC"),
        (["--task", "new.yaml", "--samples", "1"], "--samples 1"),
        (["--task", "new.yaml", "--judge", "one=no-such-judge", *small], "no-such-judge"),
    ):
        failed = command(life, *words)
        assert failed.returncode == 2
        assert why in failed.stderr
        assert "Traceback" not in failed.stderr
