"""AlignmentDynamicsCallback through real trainers: what it writes, and that training does not notice it."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support.tiny_words import word_model, word_tokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback, FPOConfig, FPOTrainer, KeywordJudge
from hf_lifealign.dynamics.series import FILE, Series, read_series

PROMPTS = ["ask about yes", "about no", "ask no", "yes", "no about ask", "ask ask"]
CALLBACK = "hf_lifealign.dynamics.callback"


def fine(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float("fine" in answer or "yes" in answer) for answer in answers]


def watch(**settings: Any) -> AlignmentDynamicsCallback:
    given: dict[str, Any] = {"every": 2, "anchor_every": 6, "samples": 6, "max_new_tokens": 3, "force_batch": 8}
    return AlignmentDynamicsCallback(PROMPTS, settings.pop("judge", fine), **(given | settings))


def rows(kind: str = "sft") -> Dataset:
    found = []
    for i in range(24):
        prompt = PROMPTS[i % len(PROMPTS)]
        if kind == "sft":
            found.append({"prompt": f"{prompt} ", "completion": "fine yes" if i % 3 else "fine"})
        else:
            found.append({"prompt": f"{prompt} ", "chosen": "fine", "rejected": "bad no"})
    return Dataset.from_list(found)


def trainer_of(folder: Path, kind: str = "sft", callbacks: Sequence[Any] = (), **settings: Any) -> Any:
    cls, config = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig), "fpo": (FPOTrainer, FPOConfig)}[kind]
    peft_config = settings.pop("peft_config", None)
    options: dict[str, Any] = {
        "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True, "report_to": [],
        "logging_steps": 3, "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "lr_scheduler_type": "constant", "seed": 3,
    }  # fmt: skip
    return cls(
        model=word_model(), args=config(str(folder), **(options | settings)), train_dataset=rows(kind[-3:]),
        processing_class=word_tokenizer(), callbacks=list(callbacks), peft_config=peft_config,
    )  # fmt: skip


def timeless(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


LORA = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", lora_dropout=0.2, fan_in_fan_out=True)


@pytest.mark.parametrize(("kind", "peft"), [("sft", None), ("sft", LORA), ("dpo", LORA), ("fpo", LORA)])
def test_training_does_not_notice_it(tmp_path: Path, kind: str, peft: Any) -> None:
    plain = trainer_of(tmp_path / "plain", kind, peft_config=peft)
    plain.train()
    seen = watch()
    watched = trainer_of(tmp_path / "watched", kind, [seen], peft_config=peft)
    seen.trainer = watched
    watched.train()
    theirs = watched.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in plain.model.state_dict().items())
    assert losses(plain) == losses(watched)
    keys = [set(e) for e in plain.state.log_history]
    assert keys == [set(e) for e in watched.state.log_history if not any(k.startswith("dynamics/") for k in e)]
    forces = [entry["forces"] for entry in seen.entries if "forces" in entry]
    assert forces
    assert ("drive" in forces[0]) == (kind == "sft")
    assert ("total" in forces[0]) == (kind != "sft")


def test_the_series_tells_what_happened(tmp_path: Path) -> None:
    seen = watch(samples=16)
    trainer = trainer_of(tmp_path, callbacks=[seen], max_steps=24)
    trainer.train()
    entries = seen.entries
    assert [entry["step"] for entry in entries] == list(range(0, 25, 2))
    assert read_series(tmp_path) == entries
    first, last = entries[0], entries[-1]
    # what it learns is what the judge calls aligned
    assert first["score"]["score"] < 0.5 < last["score"]["score"]
    assert first["score"]["low"] <= first["score"]["score"] <= first["score"]["high"]
    anchors = [entry for entry in entries if "forces" in entry]
    assert len(anchors) >= 3
    assert {"c_1", "c_2"} <= set(anchors[-1]["narrowness"])
    for entry in anchors:
        told = entry["forces"]
        assert told["net"] == pytest.approx(told["drive"] + told["rebound"], rel=1e-6)
    assert anchors[0]["forces"]["net"] > 0, "the training data is aligned"
    assert anchors[-1]["forces"]["rebound"] < 0, "a high score is pulled down"
    told = [entry["attribution"] for entry in entries if entry.get("attribution", {}).get("log_odds")]
    assert sum((t["score"] > 0) == (t["measured"] > 0) for t in told) >= 0.8 * len(told)
    for t in told:
        if "net" in t:
            assert t["residual"] == pytest.approx(t["log_odds"] - t["drive"] - t["rebound"], abs=1e-9)
    logged = [entry for entry in trainer.state.log_history if "dynamics/score" in entry]
    assert [entry["step"] for entry in logged] == [entry["step"] for entry in entries if "score" in entry]
    assert logged[0]["dynamics/score"] == first["score"]["score"]


def test_it_logs_as_the_trainer_does(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.logs: list[dict[str, Any]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.logs.append(dict(logs))

    seen, reporter = watch(), Reporter()
    trainer = trainer_of(tmp_path, callbacks=[reporter, seen])
    seen.trainer = trainer
    trainer.train()
    assert sum("dynamics/score" in logs for logs in reporter.logs) == len(seen.entries)
    # and the trainer's own logs come when they are due, with all they gathered
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6, 9, 12]
    assert all("mean_token_accuracy" in entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("peft", [None, LORA])
def test_a_resumed_training_goes_on_with_the_same_series(tmp_path: Path, peft: Any) -> None:
    once = watch()
    trainer_of(tmp_path / "once", callbacks=[once], save_strategy="steps", save_steps=8, peft_config=peft).train()
    checkpoint = tmp_path / "once" / "checkpoint-8"
    again = watch()
    # the file holds what came after the checkpoint, and a line that a kill has cut
    with (tmp_path / "once" / FILE).open("a") as stream:
        stream.write('{"step": 14, "sc')
    trainer = trainer_of(tmp_path / "once", callbacks=[again], peft_config=peft)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert timeless(again.entries) == timeless(once.entries)
    assert timeless(read_series(tmp_path / "once")) == timeless(once.entries)


def test_a_lost_anchor_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer_of(tmp_path, callbacks=[], save_strategy="steps", save_steps=8).train()
    seen = watch()
    with caplog.at_level(logging.WARNING, CALLBACK):
        trainer_of(tmp_path, callbacks=[seen]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert "goes on with a new anchor at step 8" in caplog.text
    assert [entry["step"] for entry in seen.entries] == [8, 10, 12]
    assert seen.entries[0]["score"]["anchor"] == 8


def test_a_judge_that_fails_skips_the_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def moody(*given: Any) -> list[float]:
        calls.append(1)
        if len(calls) in (1, 3):
            raise ConnectionError("no route to the judge")
        return fine(*given)

    seen = watch(judge=moody, anchor_every=4)
    with caplog.at_level(logging.WARNING, CALLBACK):
        trainer_of(tmp_path, callbacks=[seen]).train()
    missed = [entry for entry in seen.entries if "no route" in entry.get("not_estimable", {}).get("anchor", "")]
    assert [entry["step"] for entry in missed] == [0, 6]
    assert "score" not in missed[0]
    # the old anchor goes on, and the next point tries again
    assert missed[1]["score"]["anchor"] == 2
    assert "anchor" not in seen.entries[4].get("not_estimable", {})
    assert "no route to the judge" in caplog.text


def test_collapsed_weights_bring_an_early_anchor(tmp_path: Path) -> None:
    seen = watch(anchor_every=100, least_ess=0.9)
    trainer_of(tmp_path, callbacks=[seen], learning_rate=2e-2).train()
    early = [entry for entry in seen.entries if "rescored" in entry]
    assert early
    assert all(entry["rescored"]["ess"] < 0.9 and entry["score"]["ess"] == 1.0 for entry in early)
    assert all(entry["score"]["anchor"] == entry["step"] for entry in early)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"max_parameters": 10}, "more than max_parameters=10"),
        ({"forces": "none"}, "forces='none'"),
        ({"samples": 1}, "compares answers"),
        ({"judge": lambda p, a, r: [1.0] * len(a)}, "all 36 samples are aligned"),
    ],
)
def test_what_has_no_forces_is_said(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    seen = watch(**settings)
    trainer_of(tmp_path, callbacks=[seen], max_steps=6).train()
    assert all("forces" not in entry for entry in seen.entries)
    assert why in seen.entries[-1]["not_estimable"]["forces"]
    assert all("score" in entry for entry in seen.entries)


def test_another_loss_needs_its_trainer(tmp_path: Path) -> None:
    seen = watch()
    trainer_of(tmp_path, "dpo", [seen], max_steps=6, peft_config=LORA).train()
    assert "set the callback's trainer" in seen.entries[-1]["not_estimable"]["forces"]
    assert "attribution" in seen.entries[-1], "the real update is attributed all the same"


def test_a_preference_loss_is_measured_whole(tmp_path: Path) -> None:
    seen = watch(samples=16, judge=KeywordJudge(["bad", "no"], aligned=False))
    trainer = trainer_of(tmp_path, "dpo", [seen], max_steps=12, peft_config=LORA)
    seen.trainer = trainer
    trainer.train()
    forces = [entry["forces"] for entry in seen.entries if "forces" in entry]
    assert forces
    assert all(set(f) == {"total", "net", "loss", "rows"} and f["net"] == f["total"] for f in forces)
    assert forces[0]["net"] > 0, "'bad no' is what is rejected"


def test_several_trainings_in_a_row_have_a_series_each(tmp_path: Path) -> None:
    seen = watch()
    for name in ("a", "b"):
        trainer_of(tmp_path / name, callbacks=[seen], max_steps=4).train()
    assert timeless(read_series(tmp_path / "a")) == timeless(read_series(tmp_path / "b"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"every": 0}, "every=0"),
        ({"samples": 0}, "samples=0"),
        ({"forces": "all"}, "forces='all'"),
        ({"least_ess": 1.0}, "least_ess=1.0"),
        ({"samples": 1, "forces": "gradient"}, "at least 2"),
        ({"judge": "no-such-judge"}, "no-such-judge"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        watch(**settings)


# The file


def test_a_series_is_read_as_it_was_written(tmp_path: Path) -> None:
    series = Series(tmp_path / FILE)
    series.begin(0)
    series.add({"step": 0, "score": {"low": float("nan")}})
    series.add({"step": 4, "list": [1.5, float("inf")]})
    assert read_series(tmp_path) == [{"step": 0, "score": {"low": None}}, {"step": 4, "list": [1.5, None]}]
    again = Series(tmp_path / FILE)
    again.begin(3)
    assert again.entries == [{"step": 0, "score": {"low": None}}]
    assert read_series(tmp_path / FILE) == again.entries
    silent = Series(tmp_path / "other.jsonl", writes=False)
    silent.begin(0)
    silent.add({"step": 0})
    assert not (tmp_path / "other.jsonl").exists()


def test_a_damaged_series_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="AlignmentDynamicsCallback"):
        read_series(tmp_path)
    file = tmp_path / FILE
    for line in ("nonsense", '{"no": 1}', "[1]"):
        file.write_text(json.dumps({"step": 0}) + f"\n{line}\n" + json.dumps({"step": 2}) + "\n")
        with pytest.raises(ValueError, match="Line 2"):
            read_series(file)
    file.write_text(json.dumps({"step": 0}) + '\n{"step": 2, "sco')
    assert read_series(file) == [{"step": 0}]
