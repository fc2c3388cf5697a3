"""A whole tiny life through the real trainers: what it writes, measures, restores and refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from support.life import life_files, slmc, swapped, tiny_life, tiny_stream
from support.tiny import preference_dataset, preference_rows, tiny_model
from transformers import TrainerCallback
from trl import DPOTrainer

from hf_lifealign import LifelongTrainer, Strategy, Task, TaskStream, load_adapter
from hf_lifealign.compare.runner import _outcome
from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[LifelongTrainer, dict[str, Any]]:
    """One undisturbed life with everything switched on."""
    root = tmp_path_factory.mktemp("life") / "run"
    trainer = tiny_life(
        root,
        evaluate_all_tasks=True,
        general_text="default",
        judges={"shortness": lambda prompts, answers, references: [1 / (1 + len(a)) for a in answers]},
        judge_prompts=2,
        max_new_tokens=3,
        sample_prompts=["hello"],
        report_to=["tensorboard"],
    )
    return trainer, trainer.train()


def test_files_and_matrix(life: tuple[LifelongTrainer, dict[str, Any]]) -> None:
    trainer, matrix = life
    root = trainer.directory.root
    for name in ("matrix.json", "matrix.png", "curves.png", "report.md", "state.json", "samples.json"):
        assert (root / name).stat().st_size > 0, name
    assert sorted(p.name for p in (root / "adapters").iterdir()) == ["01-one", "02-two", "03-three"]
    assert not (root / "work").exists()
    assert matrix == json.loads((root / "matrix.json").read_text())
    assert set(matrix["matrices"]) == {"preference_accuracy", "margin", "shortness"}
    accuracy = matrix["matrices"]["preference_accuracy"]
    assert [len(row) for row in accuracy] == [3, 3, 3]
    assert accuracy[0][0] == 1.0, "a tiny model learns the first task wholly"
    assert accuracy[1][0] < 1.0, "and unlearns some of it when the second teaches the opposite"
    # The untouched base prefers neither side: every margin over itself is exactly zero.
    assert matrix["baseline"]["preference_accuracy"] == [0.5, 0.5, 0.5]
    assert matrix["baseline"]["margin"] == [0.0, 0.0, 0.0]
    assert matrix["summary"]["preference_accuracy"]["forward_transfer"] is not None
    assert len(matrix["perplexity"]["after"]) == 3
    assert matrix["counts"] == [6, 6, 6]


def test_the_matrix_is_what_the_saved_adapters_do(life: tuple[LifelongTrainer, dict[str, Any]]) -> None:
    """Each row again, from the published folder by plain PEFT."""
    trainer, matrix = life
    for index, task in enumerate(trainer.stream.names):
        model = PeftModel.from_pretrained(tiny_model(), trainer.directory.adapter(task))
        for column, name in enumerate(trainer.stream.names):
            pairs = encode_pairs(trainer.stream[name].load().test, trainer.processing_class, 1024)
            now = score_pairs(model, pairs, 0)
            with model.disable_adapter():
                base = score_pairs(model, pairs, 0)
            margins = [(c - bc) - (r - br) for (c, r), (bc, br) in zip(now, base, strict=True)]
            expected = sum(margins) / len(margins)
            assert matrix["matrices"]["margin"][index][column] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_adapters_are_plain_lora_with_one_history_entry_a_phase(life: tuple[LifelongTrainer, dict[str, Any]]) -> None:
    trainer, _ = life
    for index, task in enumerate(trainer.stream.names):
        folder = trainer.directory.adapter(task)
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert sorted(p.name for p in folder.iterdir()) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors", "matrix.json", "matrix.png", "slmc",
        ]  # fmt: skip
        entries = json.loads((folder / "slmc" / "memory.json").read_text())["entries"]
        assert [(e["task"], e["phase"]) for e in entries] == [
            (name, phase) for name in trainer.stream.names[: index + 1] for phase in ("warm_start", "preference")
        ]
        assert str(trainer.directory.root) not in (folder / "README.md").read_text()
    model = load_adapter(tiny_model(), str(trainer.directory.adapter("two")))
    assert not model.base_model.is_task_running


def test_replay_and_references(life: tuple[LifelongTrainer, dict[str, Any]]) -> None:
    trainer, _ = life
    root = trainer.directory.root
    phases = [p for task in json.loads((root / "state.json").read_text())["tasks"] for p in task["record"]["phases"]]
    assert [p["replay_rows"] for p in phases if p["phase"] == "preference"] == [0, 3, 6]
    kept = json.loads((root / "replay" / "01-one.json").read_text())
    rows = trainer.stream["one"].load().train
    for index, row in zip(kept["row_indices"], kept["rows"], strict=True):
        assert row["prompt"] == rows[index]["prompt"]
        assert row["ref_chosen_logps"] < 0
    # three tasks, each with rows to train on and to test; what is computed in the same way lies in the same file
    lines = [line for file in (root / "reference").glob("*.jsonl") for line in file.read_text().splitlines()]
    stream = trainer.stream
    assert len(lines) == sum(len(stream[name].load().train) + len(stream[name].load().test) for name in stream.names)


def test_tracking_is_one_run_with_the_lifes_figures(life: tuple[LifelongTrainer, dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, matrix = life
    events = list((trainer.directory.root / "tracking").iterdir())
    assert len(events) == 1
    log = EventAccumulator(str(trainer.directory.root / "tracking"))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert any("preference/focal/weight" in tag for tag in tags)
    assert any("consolidation/" in tag for tag in tags)
    (bwt,) = [tag for tag in tags if tag.endswith("lifelong/bwt")]
    assert log.Scalars(bwt)[-1].value == pytest.approx(matrix["summary"]["preference_accuracy"]["bwt"], abs=1e-6)
    steps = [event.step for event in log.Scalars(next(t for t in tags if t.endswith("preference/focal/weight")))]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(steps)


def test_the_same_seed_gives_the_same_life(life: tuple[LifelongTrainer, dict[str, Any]], tmp_path: Path) -> None:
    trainer, _ = life
    again = tiny_life(
        tmp_path / "run", evaluate_all_tasks=True, general_text="default", judge_prompts=2, max_new_tokens=3,
        judges={"shortness": lambda prompts, answers, references: [1 / (1 + len(a)) for a in answers]},
    )  # fmt: skip
    again.train()
    ours, theirs = life_files(again.directory.root), life_files(trainer.directory.root)
    tensors = [name for name in theirs if name.endswith(".safetensors")]
    assert len(tensors) == 6
    for name in tensors:
        assert ours[name] == theirs[name], name


def test_naive_sequential_dpo_is_dpo_with_its_own_references(tmp_path: Path) -> None:
    """DPOTrainer + LoraConfig: nothing around it, and each task measured against the previous policy."""
    seen: list[dict[str, float]] = []

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "rewards/margins" in logs and state.global_step == 1:
                seen.append(dict(logs))

    trainer = tiny_life(
        tmp_path / "run", trainer_class=DPOTrainer, warm_start=False, callbacks=[Watch()],
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    assert trainer.strategies == []
    matrix = trainer.train()
    assert [entry["rewards/margins"] for entry in seen] == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)
    assert matrix["summary"]["preference_accuracy"]["bwt"] < 0
    assert list(trainer.model.peft_config) == ["default"]
    # a record from which the run can go on, and no memory
    assert [p.name for p in (trainer.directory.adapter("three") / "slmc").iterdir()] == ["run.json"]
    assert not (trainer.directory.adapter("three") / "ref").exists()


def test_a_run_under_other_settings_or_data_is_not_continued(tmp_path: Path) -> None:
    tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False).train()
    with pytest.raises(ValueError, match=r"learning_rate: was 0\.01, is 0\.02"):
        tiny_life(
            tmp_path / "run", stream=tiny_stream()[:1], warm_start=False, training={"learning_rate": 2e-2}
        ).train()
    other = TaskStream([Task("one", preference_dataset(13), preference_dataset(6, start=20))])
    with pytest.raises(ValueError, match="rows: was"):
        tiny_life(tmp_path / "run", stream=other, warm_start=False).train()


def test_wrong_set_ups_are_refused(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="Add 'consolidation'"):
        tiny_life(tmp_path, strategies=["replay"])
    with pytest.raises(ValueError, match="Leave 'consolidation' out"):
        tiny_life(tmp_path, peft_config=lora, strategies=["consolidation"])
    with pytest.raises(ValueError, match="PeftModel as the base"):
        tiny_life(tmp_path, model=get_peft_model(tiny_model(), lora))
    with pytest.raises(ValueError, match="This run measures"):
        tiny_life(tmp_path, metric="bleu")
    with pytest.raises(ValueError, match="no such file"):
        tiny_life(tmp_path, general_text="nowhere.txt")
    with pytest.raises(ValueError, match="at least 1"):
        tiny_life(tmp_path, checkpoint_steps=0)
    assert list(tmp_path.iterdir()) == [], "nothing may be written by a run that is refused"


def test_a_published_adapter_that_is_gone_is_missed(tmp_path: Path) -> None:
    import shutil

    trainer = tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False)
    trainer.train()
    state = json.loads(trainer.directory.state.read_text())
    shutil.rmtree(trainer.directory.adapter("one"))
    with pytest.raises(FileNotFoundError, match="is gone"):
        tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False).train()
    assert state["status"] == "done"


def test_another_base_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False).train()
    with pytest.raises(ValueError, match="base_digest: was"):
        tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False, model=tiny_model(1)).train()


def test_training_twice_in_one_process_changes_nothing(tmp_path: Path) -> None:
    config = slmc(target_modules="all-linear")
    first = tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False, peft_config=config)
    matrix = first.train()
    assert config.target_modules == "all-linear", "the user's configuration is left alone"
    again = tiny_life(tmp_path / "run", stream=tiny_stream()[:1], warm_start=False, peft_config=config)
    assert again.train() == matrix
    with pytest.raises(ValueError, match="carries an adapter already"):
        tiny_life(tmp_path / "other", model=first.model.get_base_model()).train()


def test_phases_find_the_model_as_a_fresh_process_would(tmp_path: Path) -> None:
    """Dropout, hooks and checkpointing that a trainer leaves behind would make a resumed run differ."""
    seen: list[tuple[Any, ...]] = []

    class Watch(Strategy):
        name = "watch"

        def before_phase(self, run: Any, phase: Any, trainer: Any) -> None:
            base = run.model.get_base_model()
            hooks = len(base.get_input_embeddings()._forward_hooks)
            dropout = {m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)}
            seen.append((phase.name, hooks, dropout))

    training = {"gradient_checkpointing": True}
    trainer = tiny_life(
        tmp_path / "run", stream=tiny_stream()[:2], peft_config=slmc(lora_dropout=0.1), training=training,
        strategies=[Watch(), "consolidation"],
    )  # fmt: skip
    trainer.train()
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert seen[0][2] == {0.1}
    assert seen[1][2] == {0.0}, "DPOTrainer switches dropout off, for its own phase"


def test_only_the_named_phases_consolidate(tmp_path: Path) -> None:
    strategies = [{"name": "consolidation", "phases": ["warm_start"]}]
    trainer = tiny_life(tmp_path / "run", stream=tiny_stream()[:1], strategies=strategies)
    trainer.train()
    entries = trainer.model.base_model.memory.entries
    assert [(entry["task"], entry["phase"]) for entry in entries] == [("one", "warm_start")]


def test_what_strategies_take_beside_a_phase_is_told(tmp_path: Path) -> None:
    """It is no evaluation, and a comparison of methods counts it as training."""

    class Slow(Strategy):
        name = "slow"

        def before_task(self, run: Any, task: str) -> None:
            time.sleep(0.2)

        def after_task(self, run: Any, task: str) -> None:
            time.sleep(0.3)

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = tiny_life(tmp_path / "run", stream=tiny_stream()[:1], strategies=[Slow()], peft_config=lora)
    trainer.train()
    record = trainer.state.task(0)["record"]
    assert 0.5 <= record["strategy_seconds"] < 0.8
    training = sum(phase["seconds"] for phase in record["phases"])
    assert _outcome(tmp_path / "run")["seconds"]["training"] == pytest.approx(training + 0.5, abs=0.2)


def test_a_strategy_may_not_rename_or_reorder_tasks(tmp_path: Path) -> None:
    class Reverse(Strategy):
        name = "reverse"

        def prepare_stream(self, run: Any, stream: Any) -> Any:
            return stream.reordered(list(reversed(stream.names)))

    with pytest.raises(ValueError, match="not their names or order"):
        tiny_life(tmp_path / "run", strategies=[Reverse(), "consolidation"]).train()


def test_pairs_that_the_cut_empties_are_not_counted(tmp_path: Path) -> None:
    long = preference_rows(2, start=70)
    for row in long:
        row["prompt"][0]["content"] = "x" * 200
    test = Dataset.from_list(preference_rows(4, start=20) + long)
    stream = TaskStream([Task("one", preference_dataset(12), test)])
    matrix = tiny_life(tmp_path / "run", stream=stream, warm_start=False, training={"max_length": 150}).train()
    assert matrix["counts"] == [4]


def test_adapters_for_which_off_is_not_the_base_are_refused(tmp_path: Path) -> None:
    for adapter, text in (
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "pissa"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "could not go on"),
    ):
        with pytest.raises(ValueError, match=text):
            tiny_life(tmp_path, trainer_class=DPOTrainer, peft_config=adapter)


def test_a_run_that_diverges_stops_before_publishing(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            next(p for n, p in model.named_parameters() if "lora_A" in n).data.fill_(float("nan"))

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="not finite"):
        tiny_life(tmp_path / "run", peft_config=lora, warm_start=False, callbacks=[Poison()]).train()
    assert not (tmp_path / "run" / "adapters").exists()


def test_sharded_training_is_refused() -> None:
    code = (
        "from hf_lifealign.lifelong.guards import refuse_sharded_training as r\n"
        "from types import SimpleNamespace as N\n"
        "for args in (N(deepspeed_plugin=N(zero_stage=3)), N(deepspeed_plugin=None, fsdp=['full_shard'])):\n"
        "    try: r(args)\n"
        "    except ValueError as e: print(e)\n"
        "r(N(deepspeed_plugin=N(zero_stage=2), fsdp=[]))\n"
        "import os; os.environ['ACCELERATE_USE_FSDP'] = 'true'\n"
        "try: r()\n"
        "except ValueError as e: print('launched', e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ZeRO-3" in done.stdout
    assert "FSDP" in done.stdout
    assert "launched" in done.stdout


def test_bf16_base(tmp_path: Path) -> None:
    trainer = tiny_life(tmp_path / "run", stream=tiny_stream()[:2], warm_start=False, model=tiny_model().bfloat16())
    matrix = trainer.train()
    assert matrix["matrices"]["preference_accuracy"][0] == [1.0]
    assert {p.dtype for n, p in trainer.model.named_parameters() if "lora_" in n} == {torch.float32}


def test_delta_space_life(tmp_path: Path) -> None:
    config = slmc(space="delta", memory_rank=2)
    trainer = tiny_life(tmp_path / "run", peft_config=config, stream=tiny_stream()[:2])
    trainer.train()
    assert len(swapped(preference_dataset(2))) == 2
    entries = json.loads((trainer.directory.adapter("two") / "slmc" / "memory.json").read_text())["entries"]
    assert len(entries) == 4
