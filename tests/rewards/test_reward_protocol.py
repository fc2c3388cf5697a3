"""Rewards as TRL calls them: plain and conversational, with all that it passes, in a real trainer."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from support.tiny import preference_rows, save_tiny

from hf_lifealign import BrevityReward, MiniLMBradleyTerryReward
from hf_lifealign.rewards.texts import reward_text

USER = [{"role": "user", "content": "item 3?"}]
ANSWERS = ["yes 3.", "no it is 3"]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def what_trl_passes() -> dict:
    """The keyword arguments of `_calculate_rewards`, beside prompts and completions."""
    return {
        "completion_ids": [[1, 2], [3]],
        "source": ["a", "b"],
        "trainer_state": SimpleNamespace(global_step=0),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def test_plain_and_conversational_rows_have_the_same_rewards(fitted: MiniLMBradleyTerryReward) -> None:
    talked = fitted(prompts=[USER, USER], completions=[said(text) for text in ANSWERS], **what_trl_passes())
    plain = fitted(prompts=["item 3?", "item 3?"], completions=ANSWERS, **what_trl_passes())
    assert talked == plain
    assert all(type(reward) is float for reward in plain)
    assert plain[0] > plain[1]
    assert fitted.__name__ == "yes"


def test_brevity_is_its_closed_form() -> None:
    reward = BrevityReward(scale=10)
    assert reward.__name__ == "brevity"
    assert reward(prompts=["a", "b", "c"], completions=["", "12345", "é" * 20]) == [0.0, -0.5, -2.0]
    assert reward(prompts=[USER], completions=[said("12345")], **what_trl_passes()) == [-0.5]
    for scale in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="scale"):
            BrevityReward(scale)


def test_what_the_templates_take() -> None:
    prompt = [*USER, *said("And?"), {"role": "user", "content": "go on"}]
    parts = {name: reward_text(prompt, said("ok"), name) for name in ("completion", "turn", "dialogue")}
    assert parts == {"completion": "ok", "turn": "go on\nok", "dialogue": "item 3?\nAnd?\ngo on\nok"}
    assert reward_text("a\nb", "ok", "turn") == "a\nb\nok"
    listed = [{"role": "assistant", "content": [{"type": "text", "text": "ok"}]}]
    assert reward_text(prompt, listed, "completion") == "ok"


def test_a_reward_does_not_depend_on_its_neighbours(fitted: MiniLMBradleyTerryReward, monkeypatch) -> None:
    from hf_lifealign.rewards import encoder

    together = fitted(prompts=["p"] * 4, completions=["a", "a much longer answer than that", "", "b"])
    monkeypatch.setattr(encoder, "_ENCODERS", {})
    alone = [fitted(prompts=["p"], completions=[text])[0] for text in ("b", "", "a", "a much longer answer than that")]
    assert together == [alone[2], alone[3], alone[1], alone[0]]


def test_no_answers_and_empty_ones(fitted: MiniLMBradleyTerryReward) -> None:
    assert fitted(prompts=[], completions=[]) == []
    (reward,) = fitted(prompts=[""], completions=[""])
    assert reward == reward
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        fitted(prompts=["a", "b"], completions=["c"])


def test_rewards_on_one_encoder_share_its_passes(fitted: MiniLMBradleyTerryReward, encoder_dir: str) -> None:
    contrary = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in preference_rows(40)]
    other = MiniLMBradleyTerryReward.fit(contrary, name="no", embedding=encoder_dir, template="turn", progress=False)
    assert other.encoder is fitted.encoder
    before = fitted.encoder.passes
    first = fitted(prompts=["p"] * 3, completions=["new 1", "new 2", "new 1"])
    assert fitted.encoder.passes == before + 2
    second = other(prompts=["p"] * 3, completions=["new 1", "new 2", "new 1"])
    assert fitted.encoder.passes == before + 2
    assert torch.tensor(first) == pytest.approx(-torch.tensor(second), abs=1e-9)


def test_a_reward_goes_to_other_processes(fitted: MiniLMBradleyTerryReward) -> None:
    copy = pickle.loads(pickle.dumps(fitted))
    assert copy.__name__ == "yes"
    assert copy(prompts=["p"], completions=["c"]) == fitted(prompts=["p"], completions=["c"])


def test_rloo_trains_on_them_and_logs_their_names(fitted: MiniLMBradleyTerryReward, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    rows = Dataset.from_list([{"prompt": row["prompt"], "source": "x"} for row in preference_rows(4)])
    args = RLOOConfig(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, num_generations=2, max_completion_length=4,
        max_steps=1, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=save_tiny(tmp_path / "policy"), reward_funcs=[fitted, BrevityReward()], args=args, train_dataset=rows
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/brevity/mean"] <= 0
    assert logged["rewards/yes/mean"] == logged["rewards/yes/mean"]
