"""A world of seven answers whose best front can be counted: does the loop reach it, and what does the outer step add?

Every prompt asks for the two objectives in a measure of its own, which the offline set shows. An answer is one token
with a known reward; five of the seven lie on a quarter circle. Expected rewards are exact, without sampling.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy

ANSWERS = [f"a{i}" for i in range(7)]
PROMPTS = [f"p{i}" for i in range(8)]
VOCABULARY = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *PROMPTS, *ANSWERS])}
REWARDS = {answer: (math.cos(i * math.pi / 8), math.sin(i * math.pi / 8)) for i, answer in enumerate(ANSWERS[:5])}
REWARDS |= {"a5": (0.2, 0.2), "a6": (0.1, 0.4)}
WANTED = [ANSWERS[i * 5 // 8] for i in range(8)]  # the answer that suits each prompt best
USER_WEIGHTS = [(i / 10, 1 - i / 10) for i in range(11)]


def reward(objective: int) -> Any:
    def rate(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [REWARDS.get((text.split() or [""])[0], (0.0, 0.0))[objective] for text in completions]

    return rate


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **names)


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
            bos_token_id=None, initializer_range=0.2,
        )
    )  # fmt: skip


def offline_rows() -> list[dict[str, str]]:
    rows = []
    for prompt, wanted in zip(PROMPTS, WANTED, strict=True):
        rows += [{"prompt": prompt, "completion": wanted}] * 3
        rows += [{"prompt": prompt, "completion": answer} for answer in ANSWERS]
    return rows


def train(folder: Path, source: str, seed: int, **settings: Any) -> MetaAlignedPolicy:
    args: dict[str, Any] = {
        "num_rounds": 8, "num_train_epochs": 1, "pretrain_epochs": 20, "num_generations": 16, "tau": 0.25, "rho": 0.5,
        "scope": "prompt", "learning_rate": 1e-2, "pretrain_learning_rate": 1e-2, "weight_learning_rate": 1e-3,
        "pretrain_weight_learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16,
        "generation_batch_size": 128, "temperature": 1.0, "top_p": 1.0, "max_completion_length": 1, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "logging_strategy": "no",
        "report_to": [], "disable_tqdm": True, "seed": seed, "weight_source": source,
    }  # fmt: skip
    trainer = MetaAlignerTrainer(
        model=model(seed),
        reward_funcs=[reward(0), reward(1)],
        objective_names=["first", "second"],
        args=MetaAlignerConfig(str(folder / f"{source}-{seed}"), **args | settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 2]),
        offline_dataset=Dataset.from_list(offline_rows()),
        processing_class=tokenizer(),
    )
    trainer.train()
    return trainer.policy


def expected_rewards(policy: MetaAlignedPolicy, weights: Any) -> torch.Tensor:
    """Exact expected rewards of each prompt's answer, of shape `(prompts, 2)`."""
    table = torch.zeros(len(VOCABULARY), 2)
    for answer, values in REWARDS.items():
        table[VOCABULARY[answer]] = torch.tensor(values)
    ids = torch.tensor([[VOCABULARY[prompt]] for prompt in PROMPTS])
    with torch.no_grad(), policy.under(weights, len(PROMPTS)):
        return policy.model(input_ids=ids).logits[:, -1].softmax(-1) @ table


def area(points: list[tuple[float, float]]) -> float:
    """Area dominated by `points` above (0, 0)."""
    best = total = 0.0
    for x, y in sorted(points, reverse=True):
        total += x * max(0.0, y - best)
        best = max(best, y)
    return total


def hypervolume(policy: MetaAlignedPolicy) -> float:
    """As a share of the best that an answer chosen for each of the user's weights can have."""
    best = area([max(REWARDS.values(), key=lambda r: w[0] * r[0] + w[1] * r[1]) for w in USER_WEIGHTS])
    points = [expected_rewards(policy, list(w)).mean(0).tolist() for w in USER_WEIGHTS]
    return area([(x, y) for x, y in points]) / best


def own_choice(policy: MetaAlignedPolicy) -> float:
    """How much of what each prompt asks for it gets under the net's own weights; 1 is all."""
    asked = torch.tensor([REWARDS[answer] for answer in WANTED])
    return float((expected_rewards(policy, policy.preference(PROMPTS)) * asked).sum(-1).mean())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> list[MetaAlignedPolicy]:
    folder = tmp_path_factory.mktemp("learned")
    return [train(folder, "learned", seed) for seed in (0, 1)]


def test_the_loop_reaches_the_best_front(learned: list[MetaAlignedPolicy]) -> None:
    # mixtures of two answers fill the steps between them, so that a little more than 1 can be had
    assert min(hypervolume(policy) for policy in learned) >= 0.95


def test_what_the_outer_step_adds(learned: list[MetaAlignedPolicy], tmp_path: Path) -> None:
    """Here it widens the front, since it sharpens the weights that the policy is trained with; the weights it chooses
    by itself suit the prompts less well than those of pre-training. With ten times the rate it narrows the front."""
    frozen = [train(tmp_path, "frozen", seed) for seed in (0, 1)]
    assert sum(map(hypervolume, learned)) > sum(map(hypervolume, frozen)) + 0.02
    assert sum(map(own_choice, learned)) < sum(map(own_choice, frozen))
    hasty = train(tmp_path, "learned", 0, weight_learning_rate=1e-2)
    assert hypervolume(hasty) < hypervolume(frozen[0])


def test_equal_weights_leave_the_policy_deaf_to_the_user(learned: list[MetaAlignedPolicy], tmp_path: Path) -> None:
    uniform = train(tmp_path, "uniform", 0)
    assert hypervolume(uniform) < hypervolume(learned[0]) - 0.1
    assert own_choice(uniform) < own_choice(learned[0])
