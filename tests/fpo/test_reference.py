"""What the references "base" and "previous" really are, over several tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import preference_dataset, tiny_model, tiny_tokenizer

from hf_lifealign import FPOConfig, FPOTrainer, focal_weight


def trainer_for(model: Any, rows: Any, tmp_path: Path, **kwargs: Any) -> FPOTrainer:
    settings: dict[str, Any] = {
        "learning_rate": 2e-2, "max_steps": 40, "per_device_train_batch_size": 4, "gradient_checkpointing": False,
        "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "beta": 0.5,
    }  # fmt: skip
    return FPOTrainer(
        model=model,
        args=FPOConfig(str(tmp_path / "out"), **(settings | kwargs)),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )


def fresh() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))


def margins(trainer: FPOTrainer, rows: Any) -> torch.Tensor:
    """Reward margins of rows under the trainer's own reference, through its own loss."""
    prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, "test")
    batch = trainer.data_collator([prepared[i] for i in range(len(prepared))])
    trainer.model.eval()
    seen: list[torch.Tensor] = []
    log_gate, trainer._log_gate = trainer._log_gate, lambda margin: seen.append(margin)  # type: ignore[method-assign]
    saved, trainer.precompute_ref_logps = trainer.precompute_ref_logps, False
    with torch.no_grad():
        trainer._compute_loss(trainer.model, batch, False)
    trainer._log_gate, trainer.precompute_ref_logps = log_gate, saved  # type: ignore[method-assign]
    return seen[0]


def base_margins(model: PeftModel, trainer: FPOTrainer, rows: Any, reference: Any) -> torch.Tensor:
    """The same from plain forward passes: the oracle."""
    prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, "test")

    def logp(net: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            logps = net(ids).logits.float().log_softmax(-1)
        picked = logps[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        return picked[len(prompt) - 1 :].sum()

    values = []
    for row in prepared:
        per_side = [
            logp(model, row["prompt_ids"], row[side]) - logp(reference, row["prompt_ids"], row[side])
            for side in ("chosen_ids", "rejected_ids")
        ]
        values.append(trainer.args.beta * (per_side[0] - per_side[1]))
    return torch.stack(values)


def test_base_is_the_base_for_every_task_and_sees_what_was_mastered(tmp_path: Path) -> None:
    """After task 1, the gate tells replayed, mastered pairs from new ones; under "previous" it cannot."""
    model, base = fresh(), tiny_model()
    old = preference_dataset(8)
    # the opposite of what was learnt, so that nothing carries over
    new = preference_dataset(8, start=50).rename_columns({"chosen": "rejected", "rejected": "chosen"})
    for task, rows in enumerate([old, new, preference_dataset(8, chosen="up", rejected="down", start=90)]):
        trainer = trainer_for(model, rows, tmp_path, max_steps=1 if task else 60)
        assert "ref" not in model.peft_config
        torch.testing.assert_close(
            margins(trainer, rows), base_margins(model, trainer, rows, base), rtol=1e-4, atol=1e-4
        )
        if task == 1:
            replayed, fresh_ones = (focal_weight(margins(trainer, part), 2.0) for part in (old, new))
            assert replayed.max() < 0.1
            assert fresh_ones.min() > 0.1
        trainer.train()

    trainer = trainer_for(model, concatenate_datasets([old, new]), tmp_path, reference="previous")
    assert "ref" in model.peft_config
    torch.testing.assert_close(focal_weight(margins(trainer, old), 2.0), torch.full((8,), 0.25), rtol=1e-4, atol=1e-5)


def test_previous_is_the_policy_at_task_start(tmp_path: Path) -> None:
    model, rows = fresh(), preference_dataset(8)
    trainer_for(model, rows, tmp_path).train()
    start = fresh()
    start.load_state_dict(model.state_dict())
    later = preference_dataset(8, chosen="blue", rejected="red")
    trainer = trainer_for(model, later, tmp_path, reference="previous", max_steps=10)
    trainer.train()
    torch.testing.assert_close(
        margins(trainer, later), base_margins(model, trainer, later, start), rtol=1e-3, atol=1e-3
    )
    # and once more on the same PeftModel, where DPOTrainer would stop at "adapter ref already exists"
    again = trainer_for(model, rows, tmp_path, reference="previous", max_steps=1)
    torch.testing.assert_close(margins(again, rows), torch.zeros(8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_precomputing_inside_the_constructor_uses_the_same_reference(reference: str, tmp_path: Path) -> None:
    model, base, rows = fresh(), tiny_model(), preference_dataset(8)
    trainer_for(model, rows, tmp_path).train()
    start = fresh()
    start.load_state_dict(model.state_dict())
    # saved to disk, so that the trainer's cache of log-probabilities could be mistaken for another reference's
    from datasets import load_from_disk

    rows.save_to_disk(str(tmp_path / "rows"))
    for wanted in (reference, "previous" if reference == "base" else "base", reference):
        trainer = trainer_for(
            model, load_from_disk(str(tmp_path / "rows")), tmp_path, precompute_ref_log_probs=True, reference=wanted
        )
        oracle = base if wanted == "base" else start
        column = trainer.train_dataset
        got = torch.tensor(column["ref_chosen_logps"][:]) - torch.tensor(column["ref_rejected_logps"][:])
        expected = -base_margins(model, trainer, rows, oracle) / trainer.args.beta
        policy = base_margins(model, trainer, rows, _zero) / trainer.args.beta
        torch.testing.assert_close(got, expected + policy, rtol=1e-3, atol=1e-3)


class _Zero:
    """A "model" of uniform log-probabilities, which cancel between chosen and rejected up to length."""

    def __call__(self, ids: torch.Tensor) -> Any:
        class Out:
            logits = torch.zeros(*ids.shape, 260)

        out = Out()
        # log-softmax of this is 0 for every token that is asked for: put all mass on the next token
        for position in range(ids.shape[1] - 1):
            out.logits[0, position, ids[0, position + 1]] = 1e6
        return out


_zero = _Zero()


def test_rows_that_carry_reference_log_probs_are_used_as_they_are(tmp_path: Path) -> None:
    rows = preference_dataset(4).add_column("ref_chosen_logps", [-1.0] * 4).add_column("ref_rejected_logps", [-2.0] * 4)
    trainer = trainer_for(fresh(), rows, tmp_path, precompute_ref_log_probs=True)
    assert list(trainer.train_dataset["ref_chosen_logps"]) == [-1.0] * 4
