"""AlignmentDynamicsCallback through real trainers: what it writes, and that training does not notice it."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support.tiny_words import word_model, word_tokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback, FPOConfig, FPOTrainer, KeywordJudge
from hf_lifealign.dynamics.findings import RELIABLE, TOO_FEW, UNRELIABLE, Findings, find
from hf_lifealign.dynamics.measuring import AlignmentMeter
from hf_lifealign.dynamics.samples import read_probes
from hf_lifealign.dynamics.series import FILE, Series, read_series
from hf_lifealign.fpo.extra_loss import ExtraLossMixin

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
    peft_config, eval_dataset = settings.pop("peft_config", None), settings.pop("eval_dataset", None)
    options: dict[str, Any] = {
        "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True, "report_to": [],
        "logging_steps": 3, "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "lr_scheduler_type": "constant", "seed": 3,
    }  # fmt: skip
    return cls(
        model=word_model(), args=config(str(folder), **(options | settings)), train_dataset=rows(kind[-3:]),
        processing_class=word_tokenizer(), callbacks=list(callbacks), peft_config=peft_config,
        eval_dataset=eval_dataset,
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


@pytest.mark.parametrize("kind", ["transformers", "grpo"])
def test_neither_do_other_trainers(tmp_path: Path, kind: str) -> None:
    """transformers' own trainer, whose loss is split; and one that generates what it learns from."""
    tokenizer = word_tokenizer()
    common: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True, "report_to": [],
        "logging_steps": 2, "save_strategy": "no", "seed": 3, "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip

    def build(name: str, callbacks: Sequence[Any]) -> Any:
        if kind == "grpo":
            args: Any = GRPOConfig(
                str(tmp_path / name), num_generations=4, max_completion_length=3, bf16=False,
                gradient_checkpointing=False, **common,
            )  # fmt: skip
            return GRPOTrainer(
                model=word_model(), reward_funcs=lambda completions, **_: [float(len(c)) for c in completions],
                args=args, train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
                processing_class=tokenizer, callbacks=list(callbacks),
            )  # fmt: skip
        data = [tokenizer(text=f"{row['prompt']}{row['completion']} <end>") for row in rows()]
        return Trainer(
            model=word_model(), args=TrainingArguments(str(tmp_path / name), **common), train_dataset=data,
            processing_class=tokenizer, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=list(callbacks),
        )  # fmt: skip

    plain = build("plain", [])
    plain.train()
    seen = watch()
    watched = build("watched", [seen])
    seen.trainer = watched
    watched.train()
    theirs = watched.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in plain.model.state_dict().items())
    assert losses(plain) == losses(watched)
    assert read_series(tmp_path / "watched") == seen.entries
    anchors = [entry for entry in seen.entries if "forces" in entry or "not_estimable" in entry]
    if kind == "transformers":
        assert all({"drive", "rebound"} <= set(entry["forces"]) for entry in anchors if "forces" in entry)
        assert "forces" in anchors[0]
    else:
        assert "generates what it learns from" in anchors[0]["not_estimable"]["forces"]


def test_probes_are_read_with_the_template_that_was_set(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "ask"}], [{"role": "user", "content": "no"}]]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if short %} yes{% else %} about bad{% endif %}"
    lengths = []
    for short in (True, False):
        tokenizer = word_tokenizer()
        tokenizer.chat_template = template
        meter = AlignmentMeter(read_probes(turns), fine, tokenizer, chat_template_kwargs={"short": short})
        lengths.append([len(ids) for ids in meter.prompt_ids])
    assert lengths == [[2, 2], [3, 3]]
    assert watch(chat_template_kwargs={"short": True}).chat_template_kwargs == {"short": True}


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
    assert all(set(f) == {"total", "net", "loss", "rows", "updates"} and f["net"] == f["total"] for f in forces)
    assert forces[-1]["net"] > 0, "'bad no' is what is rejected"


def checked(folder: Path, judge: Any, **settings: Any) -> Findings:
    """A training with as many intervals as a verdict needs, whose score moves fast at first, and hardly at the end."""
    seen = watch(judge=judge, every=2, anchor_every=2, max_new_tokens=2, **settings)
    trainer_of(folder, callbacks=[seen], max_steps=24, learning_rate=1e-3, lr_scheduler_type="cosine").train()
    return find(seen.entries)


@pytest.mark.parametrize("seed", range(3))
def test_a_judge_that_tosses_coins_has_no_reliable_forces(tmp_path: Path, seed: int) -> None:
    coins = random.Random(seed)
    found = checked(tmp_path, lambda p, answers, r: [float(coins.random() < 0.5) for _ in answers], samples=24)
    same, cross = found.prediction["linearisation"], found.prediction["cross"]
    assert cross.clusters >= 8, "it was checked"
    assert found.verdict == UNRELIABLE
    # on the same samples even coins seem to be foretold
    assert same.correlation is not None
    assert cross.correlation is not None
    assert cross.correlation < 0.7 < same.correlation


def test_a_real_effect_is_foretold_on_other_samples(tmp_path: Path) -> None:
    found = checked(tmp_path, fine, samples=128)
    assert found.verdict == RELIABLE
    cross = found.prediction["cross"]
    assert cross.correlation is not None
    assert cross.correlation > 0.8
    assert cross.slope == pytest.approx(1.0, abs=0.3)


def test_few_samples_have_no_cross_check(tmp_path: Path) -> None:
    seen = watch(samples=3)
    trainer_of(tmp_path, callbacks=[seen]).train()
    told = [entry for entry in seen.entries if "forces" in entry]
    assert told
    assert all("samples=3" in entry["not_estimable"]["cross"] for entry in told)
    assert all("cross" not in entry.get("attribution", {}) for entry in seen.entries)
    found = find(seen.entries)
    assert found.verdict == TOO_FEW
    assert "samples=3" in found.reasons[0]


# Losses


def smooth(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=0.3)


class Own(SFTTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


@pytest.mark.filterwarnings("ignore:.*(label_smoothing_factor|compute_loss_func):FutureWarning")
@pytest.mark.parametrize("kind", ["dft", "smoothing", "function", "own", "extra", "plain", "seam"])
def test_only_a_plain_likelihood_is_split(tmp_path: Path, kind: str) -> None:
    options: dict[str, dict[str, Any]] = {"dft": {"loss_type": "dft"}, "smoothing": {"label_smoothing_factor": 0.2}}
    settings = options.get(kind, {})
    seen, alone = watch(), watch(output=tmp_path / "alone.jsonl")
    trainer = trainer_of(tmp_path, callbacks=[seen, alone], max_steps=2, **settings)
    if kind == "function":
        trainer.compute_loss_func = smooth
    elif kind in ("own", "extra", "seam"):
        trainer.__class__ = Own if kind == "own" else type("Seam", (ExtraLossMixin, SFTTrainer), {})
        trainer.extra_losses = (lambda model, inputs: None,) if kind == "extra" else ()
    seen.trainer = trainer
    trainer.train()
    forces = next(entry["forces"] for entry in seen.entries if "forces" in entry)
    plain = kind in ("plain", "seam")
    assert ("drive" in forces, "total" in forces) == (plain, not plain)
    # its arguments are all that is known of a loss without the trainer
    blind = alone.entries[0]
    if kind in ("dft", "smoothing"):
        assert "set the callback's trainer" in blind["not_estimable"]["forces"]
    else:
        assert "drive" in blind["forces"]


# Steps


@pytest.mark.parametrize("kind", ["constant_with_warmup", "linear"])
def test_forces_do_not_vanish_with_the_learning_rate(tmp_path: Path, kind: str) -> None:
    seen = watch(samples=16, least_ess=0.0)
    schedule: dict[str, Any] = {
        "lr_scheduler_type": kind,
        "warmup_steps": 6 * (kind != "linear"),
        "learning_rate": 1e-3,
    }
    trainer_of(tmp_path, callbacks=[seen], **schedule).train()
    first, last = seen.entries[0], seen.entries[-1]
    assert first["forces"]["net"] != 0
    plain = watch(samples=16)
    trainer_of(tmp_path / "plain", callbacks=[plain], max_steps=2, learning_rate=1e-3).train()
    # mean over the six steps of the interval, of the full rate
    mean = sum(range(6)) / 36 if kind != "linear" else sum(1 - step / 12 for step in range(6)) / 6
    assert first["forces"]["net"] == pytest.approx(mean * plain.entries[0]["forces"]["net"], rel=1e-4)
    if kind == "linear":
        assert "the learning rate is 0" in last["not_estimable"]["forces"]
        assert "forces" not in last
    else:
        assert last["forces"]["net"] != 0


def test_the_last_step_is_that_of_the_model_that_was_trained(tmp_path: Path) -> None:
    """Not of the best one, which the trainer loads before it says that the training is over."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    settings: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps",
                                "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss",
                                "greater_is_better": True}  # fmt: skip
    plain, best, stopped = watch(), watch(), watch()
    settings["eval_dataset"] = rows().select(range(4))
    trainer_of(tmp_path / "plain", callbacks=[plain], **(settings | {"load_best_model_at_end": False})).train()
    trainer = trainer_of(tmp_path / "best", callbacks=[best], **settings)
    trainer.train()
    # the first checkpoint, since by these settings the highest loss is the best
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert [entry["step"] for entry in best.entries] == [0, 2, 4, 5]
    assert timeless(best.entries) == timeless(plain.entries)
    trainer_of(tmp_path / "stopped", callbacks=[Stop(), stopped]).train()
    assert [entry["step"] for entry in stopped.entries] == [0, 2, 3]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints", "every_save", "end"])
def test_checkpoints_that_are_uploaded_whole_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    args = TrainingArguments(str(tmp_path), push_to_hub=True, hub_strategy=strategy, use_cpu=True)
    seen = watch()
    with caplog.at_level(logging.WARNING, CALLBACK):
        for _ in range(2):
            seen._warn_of_uploads(args)
    assert caplog.text.count("uploads checkpoints whole") == (1 if "checkpoint" in strategy else 0)


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


def test_a_model_that_turns_to_other_answers_is_asked_anew(tmp_path: Path) -> None:
    """Fast training towards an answer that was hardly drawn: the old samples miss it, which is said and brings a new
    anchor, and is no ground for the verdict."""
    seen = watch(every=1, anchor_every=50, samples=24, least_ess=0.0)
    trainer_of(tmp_path, callbacks=[seen], learning_rate=3e-2, max_steps=6).train()
    found = read_series(tmp_path)
    missed = [entry for entry in found if "miss" in str(entry.get("log_odds_change", {}).get("reason"))]
    assert missed
    for entry in missed:
        assert entry["rescored"]["coverage"] < 0.9
        assert "the samples miss" in entry["rescored"]["reason"]
        assert entry["score"]["anchor"] == entry["step"], "a new anchor"
    changes = {change.step: change.doubt for change in find(found).changes}
    assert all("miss" in str(changes[entry["step"]]) for entry in missed)
    kept = [entry for entry in found if "coverage" in entry["score"]]
    assert all("miss" not in str(entry["score"].get("reason")) for entry in kept)
