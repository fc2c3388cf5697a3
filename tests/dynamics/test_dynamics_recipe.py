"""recipes/dynamics.py as a user starts it, and what it refuses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import preference_rows, save_tiny, write_jsonl
from support.tiny_encoder import save_tiny_encoder
from trl import ModelConfig, ScriptArguments, SFTConfig

from hf_lifealign import MiniLMBradleyTerryReward, RewardJudge
from hf_lifealign.dynamics.series import read_series

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "dynamics.py"


def the_script() -> Any:
    spec = importlib.util.spec_from_file_location("dynamics_recipe", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_recipe_trains_under_watch_and_is_reported(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    settings = yaml.safe_load((ROOT / "recipes" / "dynamics.yaml").read_text())
    for split, start in (("train", 0), ("test", 40)):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", preference_rows(12, start=start))
    for name in ("reward_judge", "fit_reward"):
        del settings[name]
    settings |= {
        "model_name_or_path": base, "train_data": "data", "probes": "data", "max_steps": 6, "every": 2,
        "anchor_every": 4, "probe_tokens": 6, "force_batch": 4, "judge": "support.vowel_judge:has_vowel",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}

    def run(*words: str) -> str:
        line = [sys.executable, *words]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "lifealign dynamics runs/dynamics" in run(str(SCRIPT), "--config", "config.yaml")
    series = read_series(tmp_path / "runs" / "dynamics")
    assert [entry["step"] for entry in series] == [0, 2, 4, 6]
    assert any("forces" in entry for entry in series)
    run("-m", "hf_lifealign.cli.main", "dynamics", "runs/dynamics")
    assert (tmp_path / "runs" / "dynamics" / "dynamics" / "score.png").is_file()


def test_a_fitted_reward_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = the_script()
    encoder = save_tiny_encoder(tmp_path / "bert")
    fit = MiniLMBradleyTerryReward.fit
    monkeypatch.setattr(
        MiniLMBradleyTerryReward, "fit", lambda rows, **given: fit(rows, embedding=encoder, progress=False, **given)
    )
    write_jsonl(tmp_path / "pairs" / "train.jsonl", preference_rows(12))
    watched = recipe.DynamicsArguments(reward_judge=str(tmp_path / "reward"), fit_reward=str(tmp_path / "pairs"))
    judge = recipe.the_judge(watched, "train")
    assert isinstance(judge, RewardJudge)
    rows = preference_rows(12)
    chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
    texts = [[t if isinstance(t, str) else t[-1]["content"] for t in side] for side in (chosen, rejected)]
    liked, disliked = (judge(["p"] * 12, side, [""] * 12) for side in texts)
    assert sum(liked) > sum(disliked)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    recipe = the_script()
    args, model = SFTConfig(str(tmp_path), bf16=False, use_cpu=True), ModelConfig("m")
    for given, watched, why in (
        (ModelConfig(), recipe.DynamicsArguments(), "no model"),
        (model, recipe.DynamicsArguments(train_data="a"), "no data or no probes"),
    ):
        with pytest.raises(ValueError, match=why):
            recipe.main(ScriptArguments(), args, given, watched)
    for watched in (recipe.DynamicsArguments(), recipe.DynamicsArguments(judge="refusal", reward_judge="r")):
        with pytest.raises(ValueError, match="one of --judge"):
            recipe.the_judge(watched, "train")
