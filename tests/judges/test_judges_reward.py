"""RewardJudge: rewards in TRL's protocol as judges."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny import preference_rows
from support.tiny_encoder import save_tiny_encoder
from support.tiny_rewards import short, vowels

from hf_lifealign import BrevityReward, MiniLMBradleyTerryReward, RewardJudge
from hf_lifealign.judges import JudgeError, judged
from hf_lifealign.rewards import encoder

TEXTS = ["", "a", "eie"]


def constant(*rewards: Any) -> Any:
    def given(prompts: Any, completions: Any, **columns: Any) -> Any:
        return list(rewards)

    return given


def test_above_the_threshold_and_not_at_it() -> None:
    assert judged(RewardJudge(short, threshold=-1.0), TEXTS, TEXTS, TEXTS) == [1.0, 0.0, 0.0]
    assert judged(RewardJudge(short, threshold=-1.5), TEXTS, TEXTS, TEXTS) == [1.0, 1.0, 0.0]
    assert judged(RewardJudge(constant(0.0, 1e-9, -1e-9)), TEXTS, TEXTS, TEXTS) == [0.0, 1.0, 0.0]
    assert judged(RewardJudge(constant(float("inf"), float("-inf"), True)), TEXTS, TEXTS, TEXTS) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_async_rewards(timeout: float | None) -> None:
    assert judged(RewardJudge(vowels, threshold=0.5), TEXTS, TEXTS, TEXTS, timeout) == [0.0, 1.0, 1.0]


def test_the_reward_sees_prompts_and_answers() -> None:
    def longer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        assert not columns
        return [float(len(c) - len(p)) for p, c in zip(prompts, completions, strict=True)]

    assert RewardJudge(longer)(["aa", "a"], ["b", "bb"], ["", ""]) == [0.0, 1.0]


def test_a_reward_by_its_name_and_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_ENCODERS", {})
    assert judged(RewardJudge("brevity", threshold=-0.02), TEXTS, TEXTS, TEXTS) == [1.0, 1.0, 0.0]
    embedding = save_tiny_encoder(tmp_path / "encoder")
    reward = MiniLMBradleyTerryReward.fit(preference_rows(20), name="yes", embedding=embedding, progress=False)
    reward.save_pretrained(tmp_path / "reward")
    answers = [row[side][0]["content"] for row in preference_rows(6, start=30) for side in ("chosen", "rejected")]
    prompts = ["?"] * len(answers)
    threshold = reward.metadata["mean"]
    expected = [float(value > threshold) for value in reward(prompts=prompts, completions=answers)]
    assert judged(RewardJudge(str(tmp_path / "reward"), threshold), prompts, answers, prompts) == expected
    assert set(expected) == {0.0, 1.0}


@pytest.mark.parametrize(("bad", "told"), [(None, "None"), (float("nan"), "NaN")])
def test_an_answer_without_a_reward_is_named(bad: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"given gave {told} for answer 1"):
        RewardJudge(constant(1.0, bad, bad))(TEXTS, TEXTS, TEXTS)
    with pytest.raises(JudgeError, match=f"RewardJudge.given, threshold=0.0. failed.*{told} for answer 1"):
        judged(RewardJudge(constant(1.0, bad, bad)), TEXTS, TEXTS, TEXTS)


def test_another_number_of_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match="gave 1 rewards for 3 answers"):
        RewardJudge(constant(1.0))(TEXTS, TEXTS, TEXTS)
    assert RewardJudge(constant(1.0))([], [], []) == [], "nothing is asked where there is nothing to judge"


def test_settings_that_cannot_be(tiny_dir: str) -> None:
    for reward in (BrevityReward, None, 3):
        with pytest.raises(ValueError, match="Set a function, an instance"):
            RewardJudge(reward)
    for threshold in (float("nan"), float("inf"), "0", True):
        with pytest.raises(ValueError, match="threshold="):
            RewardJudge(short, threshold)
    with pytest.raises(ValueError, match="Did you mean 'brevity'"):
        RewardJudge("brevty").load()
    with pytest.raises(ValueError, match=r"a sequence classifier\. Use ClassifierJudge\("):
        RewardJudge(tiny_dir).load()
