"""Interrupted trainings end like undisturbed ones, and what a trainer leaves on disk can be published."""

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects
from meal_helpers import Watch, everything, lora, prompts_only, same, short, text_of, trainer_of, vowels, watched
from peft import PeftModel, get_peft_model
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from hf_lifealign import MetaAlignerTrainer, load_meta_aligned
from hf_lifealign.meta_aligner.schedule import INNER, OUTER, PRETRAIN
from hf_lifealign.meta_aligner.storage import read_policy

TIMES = ("time", "runtime", "per_second", "flos")


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if not any(word in k for word in TIMES)} for entry in history]


def tensors_of(value: Any) -> Any:
    """Nested state with tensors as lists, to compare bit by bit."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {k: tensors_of(v) for k, v in value.items()}
    return [tensors_of(v) for v in value] if isinstance(value, (list, tuple)) else value


def saved_state(folder: Path) -> Any:
    names = ("optimizer.pt", "scheduler.pt")
    return {name: tensors_of(torch.load(folder / name, weights_only=True)) for name in names} | {
        "policy": read_policy(folder / "meta_aligner").settings,
        "answers": json.loads((folder / "meta_aligner_rounds.json").read_text()),
    }


RESUMED: dict[str, dict[str, Any]] = {
    "logit_bias": {},
    "lora": {"conditioning": "lora", "peft_config": lora(lora_dropout=0.2)},
    "no_offline": {"rows": prompts_only(8)},
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_anywhere_ends_bit_equal(kind: str, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "num_rounds": 2, "lr_scheduler_type": "cosine"}
    watch = Watch()
    whole = watch.trainer = trainer_of(tmp_path / "whole", callbacks=[watch], **settings, **RESUMED[kind])
    whole.train()
    steps = whole.state.global_step
    first = [PRETRAIN] * 4 if kind != "no_offline" else []
    assert watch.kinds == first + [INNER, OUTER] * 6
    expected, history = everything(whole), timeless(whole.state.log_history)
    last = saved_state(tmp_path / "whole" / f"checkpoint-{steps}")
    assert not (tmp_path / "whole" / "_rounds").exists()
    rounds = len(first) + 6  # the last update of the first round
    for step in sorted({1, 4, 5, 6, rounds, steps - 1} if kind == "lora" else {4, 5, rounds}):
        run = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", run / f"checkpoint-{step}")
        torch.manual_seed(step)
        again = trainer_of(run, **(settings | {"save_steps": steps}), **RESUMED[kind])
        again.train(resume_from_checkpoint=str(run / f"checkpoint-{step}"))
        assert same(everything(again), expected), step
        # trainer writes a summary at the end, whose loss is that of the steps since it was resumed
        assert timeless(again.state.log_history)[:-1] == history[:-1], step
        assert saved_state(run / f"checkpoint-{steps}") == last, step


# A round that was interrupted

DEADLY: list[int] = []


class Rating:
    """A reward that dies at the calls in `DEADLY`."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.calls = scale, 0

    def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        self.calls += 1
        if self.calls in DEADLY:
            raise RuntimeError("the reward server is down")
        kwargs["log_metric"]("told/size", float(len(prompts)))
        return [self.scale * len(text_of(c)) for c in completions]


def rated(folder: Path, deadly: list[int], reward: Any = None, **kwargs: Any) -> tuple[Rating, MetaAlignerTrainer]:
    DEADLY[:] = deadly
    reward = reward or Rating()
    trainer = trainer_of(folder, rewards=(reward, vowels), **kwargs)
    if deadly:
        with pytest.raises(RuntimeError, match="the reward server is down"):
            trainer.train()
    else:
        trainer.train()
    return reward, trainer


def test_what_was_generated_before_a_crash_is_not_generated_again(tmp_path: Path) -> None:
    """One call rates the offline set; a round has two batches."""
    reward, whole = rated(tmp_path / "whole", [])
    assert reward.calls == 3
    reward, _ = rated(tmp_path / "run", [3])
    assert reward.calls == 3
    cache = tmp_path / "run" / "_rounds"
    assert {p.name for p in cache.rglob("*.json")} == {"round.json", "part-00000-000000.json"}
    assert {p.name for p in cache.iterdir()} == {"offline", "round-1"}
    reward, again = rated(tmp_path / "run", [])
    assert reward.calls == 1, "the batch that had failed, and nothing else"
    assert same(everything(again), everything(whole))
    assert timeless(again.state.log_history) == timeless(whole.state.log_history)
    assert not cache.exists()


CHANGED: dict[str, tuple[int, dict[str, Any]]] = {
    # calls that are made again of the 3: the offline set does not depend on the seed
    "seed": (2, {"seed": 7}),
    "temperature": (2, {"temperature": 1.3}),
    "prompts": (3, {"rows": Dataset.from_list(preference_rows(8, start=1))}),
    "scale": (3, {}),
    "length": (3, {"max_completion_length": 7}),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_stale_cache_is_discarded(change: str, tmp_path: Path) -> None:
    calls, settings = CHANGED[change]
    rated(tmp_path / "run", [3])
    if change == "scale":
        settings = {"reward": Rating(2.0)}
    reward, again = rated(tmp_path / "run", [], **settings)
    assert reward.calls == calls
    if change == "length":
        _, whole = rated(tmp_path / "whole", [], **settings)
        assert same(everything(again), everything(whole))


class Dying(TrainerCallback):
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise ZeroDivisionError


def test_generating_leaves_the_randomness_of_training_alone(tmp_path: Path) -> None:
    """A training that dies before its first checkpoint reads the whole round from the cache, and drops out the same."""
    settings: dict[str, Any] = {"conditioning": "lora", "peft_config": lora(lora_dropout=0.3)}
    _, whole = rated(tmp_path / "whole", [], **settings)
    with pytest.raises(ZeroDivisionError):
        trainer_of(tmp_path / "run", rewards=(Rating(), vowels), callbacks=[Dying()], **settings).train()
    reward, again = rated(tmp_path / "run", [], **settings)
    assert reward.calls == 0
    assert same(everything(again), everything(whole))


def test_a_torn_batch_is_generated_again(tmp_path: Path) -> None:
    """A gap ends what counts as finished."""
    reward, whole = rated(tmp_path / "whole", [])
    rated(tmp_path / "run", [3])
    part = tmp_path / "run" / "_rounds" / "round-1" / "part-00000-000000.json"
    part.rename(part.with_name("part-00000-000001.json"))
    reward, again = rated(tmp_path / "run", [])
    assert reward.calls == 2
    assert same(everything(again), everything(whole))


# What is saved


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["logit_bias", "lora", "peft_model"])
def test_a_saved_policy_has_no_base_and_loads(kind: str, tmp_path: Path, tiny_dir: str) -> None:
    settings: dict[str, Any] = {"model": tiny_dir}
    if kind == "lora":
        settings |= {"conditioning": "lora", "peft_config": lora()}
    if kind == "peft_model":
        settings = {"model": get_peft_model(tiny_model(), lora()), "conditioning": "lora"}
    trainer = trainer_of(tmp_path / "run", save_strategy="steps", save_steps=9, **settings)
    trainer.train()
    trainer.save_model()
    held = files(tmp_path / "run")
    adapter = {"adapter_config.json", "adapter_model.safetensors"} if kind != "logit_bias" else set()
    assert {"README.md", "meta_aligner/meta_aligner.json", "meta_aligner/meta_aligner.safetensors", *adapter} <= held
    assert not {name for name in held if "/ref/" in f"/{name}" or name.startswith("_") or name == "model.safetensors"}
    for name in held:
        if name.endswith("safetensors"):
            assert (tmp_path / "run" / name).stat().st_size < 60_000, "the tiny base has 170 kB"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "short" in card
    assert "2604.24178" in card
    for private in (str(tmp_path), str(Path(tiny_dir).parent)):
        assert private not in card
        assert private not in (tmp_path / "run" / "meta_aligner" / "meta_aligner.json").read_text()
    loaded = load_meta_aligned(tiny_model(), tmp_path / "run", tokenizer=tiny_tokenizer())
    ask = [row["prompt"] for row in preference_rows(3)]
    for preference in (None, [0.1, 0.9]):
        greedy = {"preference": preference, "do_sample": False, "max_new_tokens": 6}
        assert loaded.generate(ask, **greedy) == trainer.policy.generate(ask, **greedy)
    assert torch.equal(loaded.preference(ask), trainer.policy.preference(ask))
    if kind != "logit_bias":
        plain = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "run"))
        assert set(plain.peft_config) == {"default"}


def uploads(trainer: MetaAlignerTrainer, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What each upload would send."""
    sent: list[set[str]] = []

    class Hub:
        def upload_folder(self, folder_path: Any, ignore_patterns: Any = None, **kwargs: Any) -> Future[None]:
            held = sorted(files(Path(folder_path)))
            sent.append(set(filter_repo_objects(held, ignore_patterns=ignore_patterns)))
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr(type(trainer), "init_hf_repo", lambda self, token=None: None)
    trainer.hub_model_id, trainer.push_in_progress = "me/policy", None
    trainer.args.hub_always_push = True
    return sent


def test_an_upload_has_the_policy_and_nothing_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, conditioning="lora", peft_config=lora(), save_strategy="steps", save_steps=6)
    sent = uploads(trainer, monkeypatch)
    trainer.args.push_to_hub = True
    caches: list[bool] = []
    push = trainer._push_from_checkpoint
    trainer._push_from_checkpoint = (  # type: ignore[method-assign]
        lambda folder: caches.append((tmp_path / "_rounds" / "round-1").is_dir()) or push(folder)
    )
    trainer.train()
    trainer.push_to_hub()
    assert caches[0], "the cache is there while the round is trained on"
    assert len(sent) >= 3
    for names in sent:
        assert {"meta_aligner/meta_aligner.json", "meta_aligner/meta_aligner.safetensors", "README.md"} <= names
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert not [name for name in names if name.startswith(("_", "checkpoint-")) or "/_" in name]
        assert not [name for name in names if name.endswith(("optimizer.pt", "rounds.json"))]


def test_the_best_policy_is_loaded_at_the_end(tmp_path: Path) -> None:
    for kind in ("logit_bias", "lora"):
        settings: dict[str, Any] = {"conditioning": "lora", "peft_config": lora()} if kind == "lora" else {}
        run = tmp_path / kind
        trainer, watch = watched(
            run, eval_rows=prompts_only(4), eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", **settings,
        )  # fmt: skip
        losses = iter([3.0, 1.0])
        trainer.evaluate = lambda *a, losses=losses, **k: {"eval_loss": next(losses, 2.0)}  # type: ignore[method-assign]
        trainer.train()
        assert trainer.state.best_model_checkpoint == str(run / "checkpoint-6")
        assert same(everything(trainer), watch.after[5])
        assert not same(watch.after[5], watch.after[-1])


def test_a_diverged_policy_leaves_nothing_half_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", conditioning="lora", peft_config=lora())
    with torch.no_grad():
        trainer.policy.weight_net.output.bias[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        trainer.save_model()
    assert files(tmp_path / "run") == set()

    def poison(**kwargs: Any) -> None:
        with torch.no_grad():
            next(iter(trainer.policy.conditioning.parameters())).fill_(float("inf"))

    trainer, watch = watched(tmp_path / "other", save_strategy="steps", save_steps=2)
    watch.on_step_end = lambda *a, **k: poison()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="not finite"):
        trainer.train()
    assert not list((tmp_path / "other").glob("checkpoint-*")), "an empty checkpoint would be resumed from"


def test_the_card_tells_settings_data_and_tags(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, rho=0.4, tau=0.9, selection="any_quantile", rewards=(short, vowels))
    trainer.create_model_card(dataset_name="me/data", tags="mine")
    card = (tmp_path / "README.md").read_text()
    for told in ("any_quantile", "0.4", "0.9", "me/data", "mine"):
        assert told in card
