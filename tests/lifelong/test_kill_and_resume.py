"""A run that is killed again and again ends like one that never was."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.life import life_files, tiny_life
from transformers import TrainerCallback

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "mortal_life.py"
TIMES = ("date", "seconds", "time", "runtime", "per_second", "peak_memory")


def live(root: Path, fatal: int) -> tuple[int, str]:
    """Starts the life; it dies at the `fatal`-th event of this start."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(root), str(fatal)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-4000:]
    return done.returncode, done.stdout


def timeless(content: Any) -> Any:
    """JSON without dates and durations."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if not any(word in k for word in TIMES)}
    return [timeless(v) for v in content] if isinstance(content, list) else content


def assert_same(killed: Path, undisturbed: Path) -> None:
    ours, theirs = life_files(killed), life_files(undisturbed)
    assert set(ours) == set(theirs)
    for name, content in theirs.items():
        if name.endswith(".safetensors"):
            assert ours[name] == content, name
        else:
            assert timeless(json.loads(ours[name])) == timeless(json.loads(content)), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    code, out = live(root, 0)
    assert code == 0
    return root, int(out.rsplit("events ", 1)[1])


def test_killed_at_seeded_points(undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    """One life with three deaths, at points drawn over what is left of it."""
    root, events = undisturbed
    draw = random.Random(7)
    deaths, code = 0, -1
    while code != 0:
        fatal = draw.randint(1, max(2, events // 3)) if deaths < 3 else 0
        code, _ = live(tmp_path / "run", fatal)
        deaths += code != 0
    assert deaths >= 2
    assert_same(tmp_path / "run", root)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_once_anywhere(undisturbed: tuple[Path, int], tmp_path: Path, seed: int) -> None:
    root, events = undisturbed
    code, _ = live(tmp_path / "run", random.Random(seed).randint(1, events))
    assert code == -signal.SIGKILL
    assert live(tmp_path / "run", 0)[0] == 0
    assert_same(tmp_path / "run", root)


def test_a_finished_run_is_left_as_it_is(undisturbed: tuple[Path, int]) -> None:
    root, _ = undisturbed
    before = life_files(root)
    assert live(root, 0)[0] == 0
    after = life_files(root)
    assert {k: v for k, v in before.items() if "state" not in k} == {k: v for k, v in after.items() if "state" not in k}


def test_a_kill_after_the_last_step_takes_no_step_more(tmp_path: Path) -> None:
    """Of a phase that ends within an epoch. Trainer looks whether it is done after a step alone."""

    class KilledError(Exception):
        pass

    class Killer(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "02-two" in str(args.output_dir):
                raise KilledError

    given: dict[str, Any] = {
        "training": {"max_steps": 3, "logging_steps": 1},
        "warm_start": False,
        "checkpoint_steps": 1,
    }
    tiny_life(tmp_path / "once", **given).train()
    with pytest.raises(KilledError):
        tiny_life(tmp_path / "again", callbacks=[Killer()], **given).train()
    seals = list((tmp_path / "again" / "work").rglob("sealed.json"))
    assert seals
    for seal in seals:
        content = json.loads(seal.read_text())
        assert 0 < content["seconds"] < 500
        seal.write_text(json.dumps(content | {"seconds": 500.0}))
    again = tiny_life(tmp_path / "again", **given)
    again.train()
    assert again.state.task(1)["record"]["phases"][0]["steps"] == 3
    assert again.state.task(0)["record"]["phases"][0]["seconds"] < 500
    assert 500 < again.state.task(1)["record"]["phases"][0]["seconds"] < 1000, "what was trained before the kill counts"
    assert_same(tmp_path / "again", tmp_path / "once")
