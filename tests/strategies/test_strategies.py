"""Replay, general data, third-party strategies: what they add to a run, and how they are found."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from support.life import swapped, tiny_life, tiny_stream
from support.tiny import preference_dataset, preference_rows, write_jsonl
from trl import DPOTrainer

from hf_lifealign import Strategy
from hf_lifealign.strategies import Phase, resolve_strategies
from hf_lifealign.strategies.replay import ReplayStrategy
from hf_lifealign.strategies.sampling import mix, reservoir, seeded_generator, share

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_reservoir_is_a_sample_without_repetition(rows: int, quota: int, seed: int) -> None:
    kept = reservoir(rows, quota, seeded_generator(seed, "x"))
    assert len(kept) == min(rows, quota) == len(set(kept))
    assert set(kept) <= set(range(rows))
    assert kept == reservoir(rows, quota, seeded_generator(seed, "x"))


def test_reservoir_is_uniform_and_so_is_every_prefix() -> None:
    counts: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for seed in range(4000):
        kept = reservoir(10, 4, seeded_generator(seed, "uniform"))
        counts.update(kept)
        first[kept[0]] += 1
    assert np.abs(np.array([counts[i] for i in range(10)]) / 4000 - 0.4).max() < 0.03
    assert np.abs(np.array([first[i] for i in range(10)]) / 4000 - 0.1).max() < 0.02


def test_share_rounds_up_but_not_for_float_noise() -> None:
    assert [share(10, 0.2), share(11, 0.2), share(3, 0.1), share(30, 0.1)] == [2, 3, 1, 3]


def test_mix_keeps_what_only_one_side_has_and_refuses_other_formats() -> None:
    rows = preference_dataset(2).add_column("ref_chosen_logps", [-1.0, -2.0])
    named = preference_rows(1, start=9)[0] | {"ref_chosen_logps": -3.0}
    assert list(mix(rows, [named], "somewhere")["ref_chosen_logps"]) == [-1.0, -2.0, -3.0]
    named["prompt"] = [named["prompt"][0] | {"name": "ann"}]
    named |= {"tools": "[1]", "chat_template_kwargs": {"thinking": True}}
    mixed = mix(rows, [named], "somewhere")
    assert [row["prompt"][0].get("name") for row in mixed] == [None, None, "ann"]
    assert [row["tools"] for row in mixed] == [None, None, "[1]"]
    assert [bool(row["chat_template_kwargs"]["thinking"]) for row in mixed] == [False, False, True]
    with pytest.raises(ValueError, match="Only one of"):
        mix(rows, preference_rows(1), "somewhere")
    with pytest.raises(ValueError, match="standard and those of the task conversational"):
        mix(rows, [{"prompt": "a", "chosen": "b", "rejected": "c"}], "somewhere")


def test_capacity_is_shared_by_the_finished_tasks(tmp_path: Path) -> None:
    strategies = [{"name": "replay", "fraction": 0.5, "capacity": 5}, "consolidation"]
    trainer = tiny_life(tmp_path / "run", strategies=strategies, warm_start=False)
    trainer.train()
    replay = trainer.strategies[0]
    assert isinstance(replay, ReplayStrategy)
    rows = [trainer.training_rows("three")] * 3
    sizes = [len(replay.training_rows(trainer, Phase(t, i, "preference"), r)) - 12
             for i, (t, r) in enumerate(zip(trainer.stream.names, rows, strict=True))]  # fmt: skip
    assert sizes == [0, 5, 5]


def test_replay_mixes_old_rows_into_what_is_trained(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    class Watch(Strategy):
        name = "watch"

        def before_phase(self, run: Any, phase: Phase, trainer: Any) -> None:
            texts = [trainer.processing_class.decode(row["prompt_ids"]) for row in trainer.train_dataset]
            seen[phase.task] = sum(any(f"item {i}?" in text for i in range(12)) for text in texts)

    strategies = [{"name": "replay", "fraction": 0.25}, "consolidation", Watch()]
    tiny_life(tmp_path / "run", warm_start=False, strategies=strategies).train()
    assert seen == {"one": 12, "two": 3, "three": 3}


def test_general_data_is_added_to_every_task(tmp_path: Path) -> None:
    general = write_jsonl(tmp_path / "general.jsonl", preference_rows(20, start=500))
    spec = {"name": "general_data", "path": str(general), "fraction": 0.25}
    trainer = tiny_life(tmp_path / "run", strategies=[spec, "consolidation"], stream=tiny_stream()[:2])
    trainer.train()
    phases = [p for i in range(2) for p in trainer.state.task(i)["record"]["phases"]]
    assert [p["general_rows"] for p in phases] == [3, 3, 3, 3]


class Recorder(Strategy):
    """Notes every call, and pulls the adapter towards zero."""

    name = "recorder"

    def __init__(self) -> None:
        self._calls: list[str] = []
        self._losses = 0

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare_stream(self, run: Any, stream: Any) -> Any:
        self._calls.append("prepare_stream")
        return stream

    def before_task(self, run: Any, task: str) -> None:
        self._calls.append(f"before_task {task}")

    def training_rows(self, run: Any, phase: Phase, rows: Dataset) -> Dataset:
        self._calls.append(f"training_rows {phase.name}")
        return rows

    def before_phase(self, run: Any, phase: Phase, trainer: Any) -> None:
        self._calls.append(f"before_phase {phase.name} {type(trainer).__name__}")

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._losses += 1
        assert "input_ids" in inputs
        return 1e-3 * sum(p.square().sum() for n, p in model.named_parameters() if "lora_B" in n)  # type: ignore[return-value]

    def after_phase(self, run: Any, phase: Phase, trainer: Any) -> None:
        self._calls.append(f"after_phase {phase.name}")

    def before_evaluation(self, run: Any, task: str) -> None:
        self._calls.append(f"before_evaluation {task}")

    def after_evaluation(self, run: Any, task: str, results: dict[str, float]) -> None:
        assert set(results) == {"preference_accuracy", "margin"}
        self._calls.append(f"after_evaluation {task}")

    def after_task(self, run: Any, task: str) -> None:
        self._calls.append(f"after_task {task}")


def test_the_phases_of_a_strategy_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    stream = tiny_stream()[:2]
    tiny_life(
        tmp_path / "run", stream=stream, strategies=[recorder], peft_config=LORA, trainer_class=DPOTrainer
    ).train()
    per_phase = [
        ("warm_start", "SFTTrainer"),
        ("preference", "DPOTrainer"),
    ]
    expected = ["prepare_stream"]
    for task, seen in (("one", ["one"]), ("two", ["one", "two"])):
        expected.append(f"before_task {task}")
        for name, cls in per_phase:
            expected += [f"training_rows {name}", f"before_phase {name} {cls}", f"after_phase {name}"]
        for other in seen:
            expected += [f"before_evaluation {other}", f"after_evaluation {other}"]
        expected.append(f"after_task {task}")
    assert recorder._calls == expected
    # 12 rows, batches of 4: 3 steps of warm start and 6 of preference training, for two tasks
    assert recorder._losses == 2 * (3 + 6)


def test_an_extra_loss_changes_what_is_learnt(tmp_path: Path) -> None:
    class Heavy(Strategy):
        name = "heavy"

        def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            return 1e3 * sum(p.square().sum() for n, p in model.named_parameters() if "lora_B" in n)  # type: ignore[return-value]

    norms = []
    for strategies in ([], [Heavy()]):
        trainer = tiny_life(
            tmp_path / str(len(norms)), stream=tiny_stream()[:1], strategies=strategies, peft_config=LORA
        )
        trainer.train()
        norms.append(sum(p.norm().item() for n, p in trainer.model.named_parameters() if "lora_B" in n))
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize(
    ("specs", "error", "text"),
    [
        (["replai"], ValueError, "Did you mean 'replay'"),
        ([{"name": "replay", "share": 1}], ValueError, "It takes"),
        ([{"name": "replay", "fraction": 0}], ValueError, r"\(0, 1\]"),
        ([{"name": "replay", "phases": ["sft"]}], ValueError, "warm_start"),
        (["replay", "replay"], ValueError, "stands 2 times"),
        ([3], ValueError, "Give its name"),
        ([{"name": "consolidation", "phases": []}], ValueError, "at least one"),
    ],
)
def test_wrong_strategies_are_refused(specs: list[Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        resolve_strategies(specs)


PLUGIN = """
from hf_lifealign import Strategy

class Shout(Strategy):
    name = "shout"

    def __init__(self, word="hey"):
        self.word = word

    def before_task(self, run, task):
        print(self.word, task)

def length(prompts, answers, references):
    return [float(len(answer)) for answer in answers]
"""

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lifealign-shout"
version = "1.2"

[project.entry-points."hf_lifealign.strategies"]
shout = "lifealign_shout:Shout"
broken = "lifealign_shout.missing:Nothing"

[project.entry-points."hf_lifealign.judges"]
length = "lifealign_shout:length"
"""


@pytest.fixture(scope="module")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed a third party's package."""
    source = tmp_path_factory.mktemp("plugin")
    (source / "lifealign_shout").mkdir()
    (source / "lifealign_shout" / "__init__.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(PYPROJECT)
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(site), str(source)], check=True, capture_output=True)
    return site


def in_process(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    preamble = f"import sys; sys.path[:0] = [{str(site)!r}, {str(Path(__file__).parents[1])!r}]\n"
    return subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True)


def test_a_third_party_adds_a_strategy_and_a_judge(plugin_site: Path, tmp_path: Path) -> None:
    code = f"""
from support.life import tiny_life, tiny_stream
strategies = [{{"name": "shout", "word": "hello"}}, "consolidation"]
trainer = tiny_life({str(tmp_path / "run")!r}, stream=tiny_stream()[:1], warm_start=False, strategies=strategies,
                    judges=None)
trainer.train()
from hf_lifealign.strategies import JUDGES, load
print(load(JUDGES, "length")(["p"], ["four"], ["r"]))
"""
    done = in_process(plugin_site, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "hello one" in done.stdout
    assert "[4.0]" in done.stdout


def test_a_plug_in_that_cannot_be_imported_is_named(plugin_site: Path) -> None:
    done = in_process(plugin_site, "from hf_lifealign.strategies import resolve_strategies as r; r(['broken'])")
    assert done.returncode == 1
    assert "lifealign-shout 1.2" in done.stderr
    assert "cannot be imported" in done.stderr


def test_swapped_helper() -> None:
    row = swapped(preference_dataset(1))[0]
    assert row["chosen"][0]["content"].startswith("no")
