"""The published baselines: their mathematics against closed forms, and each of them through a whole tiny life."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file
from support.life import Stop, life_files, tiny_life
from trl import DPOTrainer

from hf_lifealign import LifelongTrainer
from hf_lifealign.strategies import resolve_strategies
from hf_lifealign.strategies.cppo import sample_weights
from hf_lifealign.strategies.dark_experience import distillation_loss
from hf_lifealign.strategies.ewc import merged_quadratics, preference_fisher
from hf_lifealign.strategies.gem import GEMStrategy, averaged_projection, clipped, constrained_projection
from hf_lifealign.strategies.o_lora import overlap_penalty

SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(r: int = 4) -> LoraConfig:
    return LoraConfig(r=r, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def life(folder: Path, *strategies: Any, **options: Any) -> LifelongTrainer:
    options = {"peft_config": lora(), "warm_start": False} | options
    return tiny_life(folder, strategies=list(strategies), **options)


def adapter(folder: Path, task: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapters" / task / "adapter_model.safetensors")


# Mathematics


@given(SEEDS)
def test_fisher_is_the_expected_square_of_the_score(seed: int) -> None:
    """Over both answers, each with its probability under the model, by autograd."""
    weights, features = normal(seed, 5).requires_grad_(), normal(seed + 1, 5)
    margin = (weights * features).sum()
    expected = torch.zeros(5, dtype=torch.float64)
    for sign in (1.0, -1.0):
        log_p = torch.nn.functional.logsigmoid(sign * margin)
        (score,) = torch.autograd.grad(log_p, weights, retain_graph=True)
        expected += log_p.exp().detach() * score**2
    torch.testing.assert_close(preference_fisher(margin.detach(), features), expected)


@given(SEEDS)
def test_two_quadratics_as_one_differ_by_a_constant(seed: int) -> None:
    fisher, anchor, new_fisher, new_anchor = normal(seed, 4, 6)
    fisher, new_fisher = fisher.abs(), new_fisher.abs()
    total, centre = merged_quadratics(fisher, anchor, new_fisher, new_anchor)

    def apart(x: torch.Tensor) -> torch.Tensor:
        return (fisher * (x - anchor) ** 2 + new_fisher * (x - new_anchor) ** 2).sum()

    def together(x: torch.Tensor) -> torch.Tensor:
        return (total * (x - centre) ** 2).sum()

    x, y = normal(seed + 1, 2, 6)
    torch.testing.assert_close(apart(x) - apart(y), together(x) - together(y))


def test_what_no_task_depends_on_is_centred_at_the_newest_value() -> None:
    zero = torch.zeros(2)
    total, centre = merged_quadratics(zero, torch.ones(2), zero, torch.full((2,), 3.0))
    assert total.tolist() == [0, 0]
    assert centre.tolist() == [3, 3]


@given(SEEDS)
def test_a_gem_takes_away_what_is_against_the_memory(seed: int) -> None:
    gradient, memory = normal(seed, 2, 8)
    projected = averaged_projection(gradient, memory)
    if torch.dot(gradient, memory) >= 0:
        assert projected is gradient
    else:
        assert abs(torch.dot(projected, memory)) < 1e-12
        # what was taken away lies along the memory alone
        rest = gradient - projected
        torch.testing.assert_close(rest, torch.dot(rest, memory) / torch.dot(memory, memory) * memory)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 4))
def test_gem_solves_its_quadratic_programme(seed: int, tasks: int) -> None:
    """The conditions of Karush, Kuhn and Tucker, which have one solution."""
    gradient, memories = normal(seed, 8), normal(seed + 1, tasks, 8)
    projected = constrained_projection(gradient, memories)
    products = memories @ projected
    assert bool((products >= -1e-9).all())
    dual = torch.linalg.lstsq(memories.T, (projected - gradient)[:, None]).solution[:, 0]
    torch.testing.assert_close(memories.T @ dual, projected - gradient)
    assert bool((dual >= -1e-9).all())
    assert float((dual * products).abs().max()) < 1e-8


@given(SEEDS)
def test_gem_with_one_task_is_a_gem(seed: int) -> None:
    gradient, memory = normal(seed, 2, 8)
    torch.testing.assert_close(constrained_projection(gradient, memory[None]), averaged_projection(gradient, memory))


@given(SEEDS, st.sampled_from([None, 0.0, 0.3, 100.0]))
def test_memories_are_clipped_as_trainers_clip(seed: int, norm: float | None) -> None:
    gradient = normal(seed, 6)
    parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    parameter.grad = gradient.clone()
    if norm:
        torch.nn.utils.clip_grad_norm_([parameter], norm)
    torch.testing.assert_close(clipped(gradient, norm), parameter.grad, rtol=1e-4, atol=0)


def test_gem_survives_memories_that_are_the_same() -> None:
    memory = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    projected = constrained_projection(torch.tensor([-2.0, 1.0]), memory)
    torch.testing.assert_close(projected, torch.tensor([0.0, 1.0]))
    pushed = constrained_projection(torch.tensor([-0.25, 1.0]), memory[:1], strength=0.5)
    torch.testing.assert_close(pushed, torch.tensor([0.25, 1.0]), msg="a dual of 0.25 is raised to 0.5")


def test_overlap_is_zero_between_orthogonal_directions_alone() -> None:
    eye = torch.eye(4)
    assert overlap_penalty(eye[:2], eye[2:]) == 0
    assert overlap_penalty(eye[:2], -2 * eye[1:3]) == 2


def test_distillation_is_the_mean_square_of_moved_rewards() -> None:
    chosen, rejected, told = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), torch.tensor([1.0, 3.0])
    assert distillation_loss(chosen, rejected, chosen, rejected, 0.1) == 0
    assert distillation_loss(chosen, rejected, told, rejected, 0.5).item() == pytest.approx(0.25 * (0 + 1) / 2 / 2)


def test_cppo_weighs_what_lies_a_deviation_from_the_mean() -> None:
    values = torch.tensor([0.0, 0.0, 2.0, 2.0])
    torch.testing.assert_close(sample_weights(values), torch.tensor([0.5, 0.5, 1.5, 1.5]))
    assert sample_weights(torch.ones(3)).tolist() == [1, 1, 1]
    assert sample_weights(torch.tensor([0.0, 0, 0, 0, 100])).max() == 1.5


# Through a life


def test_ewc_that_weighs_everything_keeps_the_parameters(tmp_path: Path) -> None:
    """Directions that the first task depends on do not move; without it they do."""
    life(tmp_path / "held", {"name": "ewc", "weight": 1e9}).train()
    life(tmp_path / "free").train()
    tensors = load_file(tmp_path / "held" / "ewc" / "01-one.safetensors")
    moved: dict[str, float] = {}
    for run in ("held", "free"):
        first, second = (adapter(tmp_path / run, task) for task in ("01-one", "02-two"))
        total = 0.0
        for name in first:
            key = "fisher/" + name.replace(".weight", ".default.weight")
            total += float((tensors[key] * (second[name] - first[name]) ** 2).sum())
        moved[run] = total
    assert moved["held"] < 0.1 * moved["free"], "what is left is the swinging of Adam around a steep valley"


def test_ewc_keeps_one_quadratic_for_the_whole_life(tmp_path: Path) -> None:
    run = life(tmp_path, {"name": "ewc", "weight": 1.0, "samples": 3})
    run.train()
    first, last = (load_file(tmp_path / "ewc" / f"{name}.safetensors") for name in ("01-one", "03-three"))
    assert set(first) == set(last)
    fisher = [name for name in first if name.startswith("fisher/")]
    assert all(bool((first[name] >= 0).all()) for name in fisher)
    assert sum(last[name].sum() for name in fisher) > sum(first[name].sum() for name in fisher)
    assert [file.name for file in run.strategies[0].state_files(run)] == ["03-three.safetensors"]


@pytest.mark.parametrize("name", ["gem", "a_gem"])
def test_gem_forgets_less_than_nothing_at_all(name: str, tmp_path: Path) -> None:
    """The tiny stream's second task is the opposite of its first: each of its steps is against the memory."""
    held, free = life(tmp_path / "held", {"name": name, "fraction": 0.5}), life(tmp_path / "free")
    margins = {run: run.train()["matrices"]["margin"] for run in (held, free)}
    assert margins[held][0] == margins[free][0], "the first task has nothing to keep"
    assert margins[held][1][0] > margins[free][1][0]
    phases = held.state.task(1)["record"]["phases"]
    assert (phases[0]["memory_pairs"], phases[0]["replay_rows"]) == (6, 0)
    assert 0 < phases[0]["projected_steps"] <= phases[0]["watched_steps"] == phases[0]["steps"]


def test_gem_weighs_its_memories_as_the_trainer_weighs_a_step(tmp_path: Path) -> None:
    """A memory's gradient is long at a high beta, and the trainer's own is clipped before it can be projected."""
    longest: list[tuple[float, float]] = []

    class Watched(GEMStrategy):
        def _projected(self, gradient: torch.Tensor, memories: torch.Tensor) -> torch.Tensor:
            longest.append((float(gradient.norm()), float(memories.norm(dim=1).max())))
            return super()._projected(gradient, memories)

    life(tmp_path, Watched(fraction=0.5), training={"max_grad_norm": 1e-3, "beta": 5.0}).train()
    assert longest
    assert max(max(pair) for pair in longest) == pytest.approx(1e-3, rel=1e-3)


def test_o_lora_gives_each_task_its_own_ranks(tmp_path: Path) -> None:
    life(tmp_path, "o_lora", peft_config=lora(6), training={"weight_decay": 0.1}).train()
    states = [adapter(tmp_path, f"0{i + 1}-{name}") for i, name in enumerate(("one", "two", "three"))]
    for task, (before, after) in enumerate(itertools.pairwise(states), start=1):
        own = slice(2 * task, 2 * task + 2)
        for name in after:
            rows = "lora_A" in name
            parts = [tensor if rows else tensor.T for tensor in (before[name], after[name])]
            changed = [i for i in range(6) if not torch.equal(parts[0][i], parts[1][i])]
            assert changed == list(range(6))[own], (name, task)


def test_o_lora_refuses_an_adapter_with_too_few_ranks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"r=2 of the adapter, and the strategy 'o_lora' needs 3"):
        life(tmp_path, "o_lora", peft_config=lora(2)).train()


def test_dark_experience_keeps_the_log_probabilities_of_kept_pairs(tmp_path: Path) -> None:
    strategy = {"name": "dark_experience", "fraction": 0.5, "weight": 30.0}
    held, free = life(tmp_path / "held", strategy), life(tmp_path / "free")
    margins = {run: np.array(run.train()["matrices"]["margin"][1]) for run in (held, free)}
    assert margins[held][0] > margins[free][0] + 1
    kept = (tmp_path / "held" / "dark_experience" / "01-one.json").read_text()
    assert "log_probs" in kept


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_cppo_that_holds_everything_stays_where_it_was(tmp_path: Path, reference: str) -> None:
    """The margins of the new task's own pairs; the first task is learnt as without it."""
    training = {"reference": reference}
    held = life(tmp_path / "held", {"name": "cppo", "weight": 300.0}, training=training)
    free = life(tmp_path / "free", training=training)
    margins = {run: run.train()["matrices"]["margin"] for run in (held, free)}
    assert margins[held][0] == margins[free][0]
    learnt = margins[held][0][0]
    assert 1.5 * learnt > margins[held][1][0] > 0.5 * learnt > margins[free][1][0]


def test_cppo_needs_a_trainer_that_tells_its_margins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'cppo' with DPOTrainer.*Use FPOTrainer"):
        life(tmp_path, "cppo", trainer_class=DPOTrainer).train()


def test_single_task_adapters_neither_share_nor_forget(tmp_path: Path) -> None:
    run = life(tmp_path / "apart", "single_task")
    matrix = run.train()
    accuracy = matrix["matrices"]["margin"]
    assert [accuracy[2][0], accuracy[2][1]] == [accuracy[0][0], accuracy[1][1]]
    assert matrix["summary"]["margin"]["bwt"] == 0
    # the first task of an ordinary life is trained alone as well
    alone = life(tmp_path / "ordinary").train()["matrices"]["margin"]
    assert accuracy[0] == alone[0]
    assert accuracy[1][1] != alone[1][1]


def test_joint_training_begins_anew_with_all_rows(tmp_path: Path) -> None:
    run = life(tmp_path, "joint")
    run.train()
    records = [run.state.task(i)["record"]["phases"][0] for i in range(3)]
    assert [record["joint_rows"] for record in records] == [0, 12, 24]
    assert [record["steps"] for record in records] == [6, 12, 18]


@pytest.mark.parametrize("name", ["single_task", "joint"])
def test_what_begins_anew_has_no_memory_to_consolidate_into(name: str, tmp_path: Path) -> None:
    from support.life import slmc

    with pytest.raises(ValueError, match="what the task itself has left there"):
        life(tmp_path, name, "consolidation", peft_config=slmc()).train()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cppo", "o_lora", "joint")]
# draws a few of many, so that other draws after the restart would be seen
DARK = pytest.param({"name": "dark_experience", "fraction": 0.9, "batch_size": 2}, id="dark_experience")


@pytest.mark.parametrize("name", ["ewc", "gem", "single_task", DARK, *SLOW])
def test_an_interrupted_life_ends_as_one_that_was_not(name: Any, tmp_path: Path) -> None:
    options = {"peft_config": lora(3)}
    life(tmp_path / "whole", name, **options).train()
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path / "broken", name, callbacks=[Stop()], **options).train()
    life(tmp_path / "broken", name, **options).train()
    whole, broken = (life_files(tmp_path / run) for run in ("whole", "broken"))
    assert set(whole) == set(broken)
    differing = [file for file in whole if file.endswith(".safetensors") and whole[file] != broken[file]]
    assert not differing


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"name": "ewc", "weight": 0}, "weight=0"),
        ({"name": "ewc", "samples": 0}, "samples=0"),
        ({"name": "gem", "strength": -1}, "strength=-1"),
        ({"name": "cppo", "weight": 0}, "weight=0"),
        ({"name": "a_gem", "batch_size": 0}, "batch_size=0"),
        ({"name": "dark_experience", "weight": -1}, "weight=-1"),
        ({"name": "o_lora", "rank": 0}, "rank=0"),
        ({"name": "o_lora", "weight": float("nan")}, "weight=nan"),
    ],
)
def test_settings_out_of_range_are_named(spec: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve_strategies([spec])
