"""What is read once instead of again and again gives the same: answers' hidden states, and prompts of a sweep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support.tiny import preference_rows, tiny_model, tiny_tokenizer
from support.tiny_rewards import short, vowels
from transformers import Cohere2Config, Cohere2ForCausalLM

from hf_lifealign import MetaAlignedPolicy, MetaAlignerConfig, MetaAlignerTrainer
from hf_lifealign.meta_aligner.front import sweep_front
from hf_lifealign.meta_aligner.preferences import RewardStatistics
from hf_lifealign.meta_aligner.prefix import PrefixCache
from hf_lifealign.meta_aligner.states import AnswerStates, head_is_plain

ROWS = [{"prompt": row["prompt"]} for row in preference_rows(5)] + [
    {"prompt": [{"role": "user", "content": "a much longer question than the others, with more to say?"}]}
]


def trained(folder: Path, gigabytes: float, **settings: Any) -> MetaAlignerTrainer:
    args: dict[str, Any] = {
        "num_rounds": 1, "num_train_epochs": 2, "max_completion_length": 8, "learning_rate": 1e-2,
        "pretrain_learning_rate": 1e-2, "weight_learning_rate": 1e-2, "use_cpu": True, "bf16": False, "report_to": [],
        "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    peft_config = settings.pop("peft_config", None)
    trainer = MetaAlignerTrainer(
        model=tiny_model(),
        reward_funcs=[short, vowels],
        args=MetaAlignerConfig(str(folder), **{**args, "state_cache_gb": gigabytes, **settings}),
        train_dataset=Dataset.from_list(preference_rows(8)),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("loss_per_token", [False, True])
def test_states_read_once_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_per_token: bool) -> None:
    reads = []
    read = AnswerStates.read.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(AnswerStates, "read", classmethod(lambda cls, *a: reads.append(1) or read(cls, *a)))
    anew = trained(tmp_path / "anew", 0, loss_per_token=loss_per_token)
    assert not reads
    once = trained(tmp_path / "once", 4, loss_per_token=loss_per_token)
    assert len(reads) == 2, "for the offline set, and for the round"
    for name, tensor in once.policy.tensors().items():
        assert torch.allclose(tensor.float(), anew.policy.tensors()[name].float(), atol=2e-5), name
    told = [[e["entropy"] for e in t.state.log_history if "entropy" in e] for t in (anew, once)]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_an_adapter_that_learns_is_read_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = AnswerStates.read.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(AnswerStates, "read", classmethod(lambda cls, *a: reads.append(1) or read(cls, *a)))
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained(tmp_path / "bias", 4, peft_config=lora)
    assert len(reads) == 1, "for the round, in which the adapter stands still"
    trained(tmp_path / "lora", 4, peft_config=lora, conditioning="lora")
    assert len(reads) == 1


def test_a_head_that_does_more_is_left_to_the_model() -> None:
    assert head_is_plain(tiny_model())
    config = Cohere2Config(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, logit_scale=0.5
    )
    assert not head_is_plain(Cohere2ForCausalLM(config))


def policy_of(model: Any) -> MetaAlignedPolicy:
    policy = MetaAlignedPolicy(model, tiny_tokenizer(), ["short", "vowels"])
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.conditioning.output.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    policy.statistics = RewardStatistics(torch.zeros(2), torch.ones(2))
    policy.generation = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.7, "eos_token_id": 1}
    return policy


@pytest.mark.parametrize("adapted", [False, True])
def test_prompts_read_once_give_the_same_front(tmp_path: Path, adapted: bool) -> None:
    model: Any = tiny_model()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    policy = policy_of(model)
    fronts = [
        sweep_front(
            policy, ROWS, [short, vowels], [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], include_base=True, batch_size=4,
            prefix_cache_gb=gigabytes, progress=False,
        )
        for gigabytes in (0.0, 4.0)
    ]  # fmt: skip
    anew, once = fronts
    for a, b in zip([*anew.points, anew.own, anew.base], [*once.points, once.own, once.base], strict=True):
        assert a is not None
        assert b is not None
        assert (a.rewards == b.rewards).all()
        assert a.lengths == b.lengths
        assert a.nll == pytest.approx(b.nll, abs=1e-3)
    assert len({point.rewards.tobytes() for point in once.points}) == 3, "the preference is heard"


def test_prompts_past_the_memory_are_read_anew() -> None:
    policy = policy_of(tiny_model())
    inputs = policy.tokenizer(["some text", "more"], return_tensors="pt", padding=True)
    assert PrefixCache(policy, 1e-9).of(0, inputs) is None
    kept = PrefixCache(policy, 1.0)
    assert kept.of(0, inputs) is not kept.of(0, inputs), "each use has a copy, which generation extends"
