"""Meta-aligned tasks in a life: FPO first, then two objectives, then a third one beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.life import life_files, tiny_life
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign import LifelongTrainer, MetaAlignedPolicy, MetaAlignerStrategy, load_adapter, load_meta_aligned

ARGS: dict[str, Any] = {
    "num_rounds": 1, "num_train_epochs": 1, "max_completion_length": 6, "learning_rate": 1e-2,
    "weight_learning_rate": 1e-2, "pretrain_learning_rate": 1e-2, "pretrain_weight_learning_rate": 1e-2,
    "per_device_train_batch_size": 4, "gradient_checkpointing": False, "bf16": False, "use_cpu": True,
    "logging_steps": 1, "disable_tqdm": True,
}  # fmt: skip
TIMES = ("date", "seconds", "time", "per_second", "peak_memory")
PROMPTS = ["item 3?", "item 41?", "something else"]


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def short(completions: list[Any], **kwargs: Any) -> list[float]:
    return [-float(len(text_of(completion))) for completion in completions]


def vowels(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text_of(completion))) for completion in completions]


def digits(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(sum(letter.isdigit() for letter in text_of(completion))) for completion in completions]


REWARDS = {"short": short, "vowels": vowels, "digits": digits}


def meta_life(root: Path, **options: Any) -> LifelongTrainer:
    strategy = MetaAlignerStrategy(
        tasks={"two": ["short", "vowels"], "three": ["short", "vowels", "digits"]}, rewards=REWARDS, args=ARGS
    )
    strategies = ["replay", "consolidation", strategy]
    return tiny_life(root, strategies=strategies, warm_start=False, **options)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("meta") / "run"
    return root, meta_life(root).train()


def life_content(root: Path) -> dict[str, Any]:
    """Result files of a run without dates and durations."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            told = {key: item for key, item in value.items() if not any(word in key for word in TIMES)}
            return {key: timeless(item) for key, item in told.items()}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    files = life_files(root)
    return {name: timeless(json.loads(b)) if name.endswith(".json") else b for name, b in files.items()}


def load(root: Path, label: str) -> MetaAlignedPolicy:
    return load_meta_aligned(tiny_model(), root / "adapters" / label, tokenizer=tiny_tokenizer())


def logits(policy: MetaAlignedPolicy, preference: Any) -> torch.Tensor:
    ids = policy.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad(), policy.under(preference, len(PROMPTS)):
        return policy.model(**ids).logits


def test_the_life_is_whole(life: tuple[Path, dict[str, Any]]) -> None:
    root, matrix = life
    assert [len(row) for row in matrix["matrices"]["preference_accuracy"]] == [1, 2, 3]
    assert matrix["matrices"]["preference_accuracy"][0][0] == 1.0
    logs = json.loads((root / "logs" / "03-three-preference.json").read_text())
    assert any("rewards/digits/mean" in entry for entry in logs)
    state = json.loads((root / "state.json").read_text())
    consolidated = [task["record"]["phases"][0]["consolidation"] for task in state["tasks"]]
    assert all(report and report["totals"] for report in consolidated), "a meta-aligned task is consolidated as well"


def test_objectives_grow_and_the_earlier_adapter_keeps_its_policy(life: tuple[Path, dict[str, Any]]) -> None:
    root, _ = life
    two, three = load(root, "02-two"), load(root, "03-three")
    assert two.objective_names == ["short", "vowels"]
    assert three.objective_names == ["short", "vowels", "digits"]
    assert torch.allclose(three.preference(PROMPTS).sum(-1), torch.ones(3))
    assert (three.preference(PROMPTS) > 0).all(), "the new objective has been woken"
    assert not torch.equal(logits(two, [0.9, 0.1]), logits(two, [0.1, 0.9])), "the preference reaches the policy"
    # the third objective's statistics were taken when it came, those of the others were kept
    assert two.statistics is not None
    assert three.statistics is not None
    assert torch.equal(three.statistics.mean[:2], two.statistics.mean)


def test_earlier_fronts_stay_until_training_resumes(life: tuple[Path, dict[str, Any]]) -> None:
    root, _ = life
    before = load(root, "02-two")
    weights = [[i / 10, 1 - i / 10] for i in range(11)]
    front = [logits(before, pair) for pair in weights]
    own = before.preference(PROMPTS)
    before.grow(["short", "vowels", "digits"])
    assert all(torch.equal(logits(before, [*w, 0.0]), old) for w, old in zip(weights, front, strict=True))
    assert torch.equal(before.preference(PROMPTS), torch.cat([own, torch.zeros(3, 1)], dim=1))


def test_the_adapter_of_a_meta_aligned_task_goes_on_as_any_other(life: tuple[Path, dict[str, Any]]) -> None:
    model = load_adapter(tiny_model(), life[0] / "adapters" / "02-two")
    assert model.peft_config["default"].peft_type == "SLMC"


def test_a_killed_life_ends_the_same(life: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    calls = 0

    def dying(completions: list[Any], **kwargs: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:  # while the last task generates, after checkpoints of its pre-training
            raise Killed
        return vowels(completions)

    dying.__name__ = "vowels"
    REWARDS["vowels"] = dying
    try:
        with pytest.raises(Killed):
            meta_life(tmp_path / "run").train()
    finally:
        REWARDS["vowels"] = vowels
    meta_life(tmp_path / "run").train()
    assert life_content(tmp_path / "run") == life_content(life[0])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    elsewhere = MetaAlignerStrategy({"elsewhere": ["short", "vowels"]}, REWARDS)
    trainer = tiny_life(tmp_path / "a", strategies=["consolidation", elsewhere], warm_start=False)
    with pytest.raises(ValueError, match="not in the stream"):
        trainer.train()
    swapped = MetaAlignerStrategy({"one": ["short", "vowels"], "two": ["vowels", "short"]}, REWARDS)
    trainer = tiny_life(tmp_path / "b", strategies=["consolidation", swapped], warm_start=False)
    with pytest.raises(ValueError, match="keeps its objectives in their order"):
        trainer.train()
    with pytest.raises(ValueError, match="at least two, each with a reward"):
        MetaAlignerStrategy({"one": ["short"]}, REWARDS)
    with pytest.raises(ValueError, match="at least two, each with a reward"):
        MetaAlignerStrategy({"one": ["short", "unheard"]}, REWARDS)
