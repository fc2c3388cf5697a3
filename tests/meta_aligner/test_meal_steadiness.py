"""What must not depend on circumstances: scales, ratings on disk, dropout, adapters that are switched off and on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from meal_helpers import everything, lora, prompts_only, same, short, text_of, trainer_of, vowels, watched
from peft import get_peft_model
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MiniLMBradleyTerryReward, load_meta_aligned
from hf_lifealign.meta_aligner import rounds
from hf_lifealign.meta_aligner.identity import identity_of
from hf_lifealign.meta_aligner.optimizer import PairedOptimizer
from hf_lifealign.meta_aligner.rating import Rater
from hf_lifealign.meta_aligner.schedule import INNER


def test_an_answer_that_is_cut_is_rated_as_it_is_learnt(tmp_path: Path) -> None:
    given: list[str] = []

    def noted(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        given.extend(map(text_of, completions))
        return short(prompts, completions)

    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in preference_rows(4)]
    rows[0]["completion"] = [{"role": "assistant", "content": "a long answer that goes on and on and on"}]
    trainer = trainer_of(tmp_path, rewards=(noted, vowels), offline=Dataset.from_list(rows), rows=prompts_only(4))
    buffer = trainer.offline_buffer()
    assert given[:4] == ["a long a", "yes 1.", "yes 2.", "yes 3."]
    assert trainer._tokenizer.decode(buffer.answers[0].completion_ids) == "a long a"
    assert trainer.policy.statistics is not None
    assert trainer.policy.statistics.mean[0] == pytest.approx(-(8 + 6 * 3) / 4)


def test_the_offline_set_gives_the_scale_though_nothing_is_pretrained(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, pretrain_epochs=0)
    trainer.train()
    fresh = trainer_of(tmp_path / "other")
    fresh.offline_buffer()
    assert trainer.policy.statistics is not None
    assert fresh.policy.statistics is not None
    assert torch.equal(trainer.policy.statistics.mean, fresh.policy.statistics.mean)


def test_the_first_evaluation_is_on_the_scale_of_the_later_ones(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_rows=prompts_only(4), per_device_eval_batch_size=4)
    found = trainer.evaluate()
    statistics = trainer.policy.statistics
    assert statistics is not None
    means = torch.tensor([found["eval_rewards/short/mean"], found["eval_rewards/vowels/mean"]])
    # the untrained net weighs both alike
    assert found["eval_loss"] == pytest.approx(-statistics.normalise(means).mean().item(), abs=1e-4)
    without = trainer_of(tmp_path / "w", rows=prompts_only(4), eval_rows=prompts_only(4), per_device_eval_batch_size=4)
    assert without.evaluate()["eval_loss"] is not None
    assert without.policy.statistics is not None, "of the first round, which training will find in its cache"


def test_dropout_is_off_in_what_does_not_learn(tmp_path: Path) -> None:
    """So that states read once, states read anew, and those of a resumed training are the same."""
    settings: dict[str, Any] = {"peft_config": lora(lora_dropout=0.5), "num_train_epochs": 2}
    once = trainer_of(tmp_path / "once", save_strategy="steps", save_steps=1, **settings)
    once.train()
    anew = trainer_of(tmp_path / "anew", state_cache_gb=0, **settings)
    anew.train()
    theirs = everything(anew)
    for name, tensor in everything(once).items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4), name
    for step in (5, 6):
        resumed = trainer_of(tmp_path / f"resumed-{step}", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "once" / f"checkpoint-{step}"))
        assert same(everything(resumed), everything(once)), step


@pytest.mark.parametrize("source", ["random", "learned"])
def test_reading_prompts_does_not_wake_a_frozen_adapter(tmp_path: Path, source: str) -> None:
    trainer, watch = watched(
        tmp_path, peft_config=lora(), weight_source=source, rows=prompts_only(6), state_cache_gb=0
    )  # fmt: skip
    before = {name: tensor.detach().clone() for name, tensor in trainer.adapter_tensors().items()}
    trainer.train()
    assert INNER in watch.kinds
    assert all(grad is None for grads in watch.grads for grad in grads["adapter"])
    assert same(before, dict(trainer.adapter_tensors()))


def test_a_step_that_was_left_out_is_forgotten() -> None:
    """As a gradient scaler does after an overflow: it skips the step, and the next one has to be whole again."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = PairedOptimizer(*(torch.optim.SGD([p], lr=1.0) for p in parameters))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, moved in ((float("inf"), 1.0), (1.0, 0.0)):
        optimizer.zero_grad()  # as the trainer does at the first batch of each update
        scaler.scale((parameters[0] * factor).sum() + (parameters[1] * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert [p.tolist() for p in parameters] == [[moved] * 2] * 2


def test_the_trainer_forgets_gradients_that_a_skipped_step_left(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    whole = PairedOptimizer.step
    seen: list[float] = []

    def skipped(self: PairedOptimizer, closure: Any = None) -> None:
        seen.append(sum(float(p.grad.abs().sum()) for p in self.parameters("weights") if p.grad is not None))
        if len(seen) > 1:
            whole(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairedOptimizer, "step", skipped)
        trainer.train()
    plain = trainer_of(tmp_path / "plain", max_steps=2)
    norms: list[float] = []

    def counted(self: PairedOptimizer, closure: Any = None) -> None:
        norms.append(sum(float(p.grad.abs().sum()) for p in self.parameters("weights") if p.grad is not None))
        # the first step leaves the parameters as they are here too
        self.zero_grad() if len(norms) == 1 else whole(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairedOptimizer, "step", counted)
        plain.train()
    assert seen == pytest.approx(norms)


def test_a_refitted_reward_is_another_one(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "bert")
    rows = preference_rows(12)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    fit = MiniLMBradleyTerryReward.fit
    one, other = (fit(data, name="yes", embedding=encoder, progress=False) for data in (rows, swapped))
    assert identity_of(one) != identity_of(other)
    rater = Rater([one, short], ["yes", "short"])
    before = rater.identity()
    rater([{"prompt": "a"}], ["b"], [[1]])
    assert rater.identity() == before, "it is the same after it was used"
    assert identity_of(torch.nn.Linear(2, 1)) != identity_of(torch.nn.Linear(2, 1)), "other weights"


def test_ratings_of_another_number_of_processes_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OpenedError(Exception):
        pass

    def opened(folder: Path, fingerprint: str, rank: int, is_main: bool) -> None:
        prints.append(fingerprint)
        raise OpenedError

    prints: list[str] = []
    monkeypatch.setattr(rounds, "AnswerCache", opened)
    trainer = trainer_of(tmp_path)
    for processes in (1, 2, 1):
        trainer.accelerator = SimpleNamespace(num_processes=processes, process_index=0, is_main_process=True)  # type: ignore[assignment]
        with pytest.raises(OpenedError):
            trainer.offline_buffer()
    assert prints[0] == prints[2] != prints[1], "a part holds other rows then"


def test_a_frozen_adapter_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), lora())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="is_trainable=True"):
        trainer_of(tmp_path, model=model)


@pytest.mark.parametrize(
    "setting",
    [{"mask_truncated_completions": True}, {"shuffle_dataset": False}, {"router_aux_loss_coef": 0.1}],
    ids=str,
)
def test_settings_without_effect_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect"):
        trainer_of(tmp_path, **setting)


def test_padding_to_a_multiple(tmp_path: Path) -> None:
    plain, padded = (
        trainer_of(tmp_path / "a", max_steps=2),
        trainer_of(tmp_path / "b", max_steps=2, pad_to_multiple_of=16),
    )
    for trainer in (plain, padded):
        trainer.train()
    assert padded._padded(padded.offline_buffer().answers[:2])["completion_ids"].shape[1] == 16
    theirs = everything(plain)
    assert all(torch.allclose(t, theirs[name], atol=1e-5) for name, t in everything(padded).items())


def test_a_policy_is_served_as_it_was_trained(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, max_steps=1, repetition_penalty=1.3, generation_kwargs={"no_repeat_ngram_size": 2},
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    served = load_meta_aligned(tiny_model(), tmp_path, tokenizer=tiny_tokenizer())
    assert served.chat_template_kwargs == {"enable_thinking": False}
    assert served.generation == trainer.policy.generation
    told = {name: served.generation[name] for name in ("repetition_penalty", "no_repeat_ngram_size", "top_p")}
    assert told == {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "top_p": 0.9}
    assert served.generation["max_new_tokens"] == 8
