"""The weighed memory: its weights and sums against closed forms, and a life with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file
from support.life import Stop, life_files, slmc, tiny_life, tiny_stream

from hf_lifealign import LifelongTrainer, TaskStream
from hf_lifealign.slmc.lowrank import Factors
from hf_lifealign.strategies import resolve_strategies
from hf_lifealign.strategies.merging import weighed_sum
from hf_lifealign.strategies.weighed_memory import memory_weights


def life(folder: Path, stream: TaskStream | None = None, **options: Any) -> LifelongTrainer:
    strategy = {"name": "weighed_memory", "fraction": 0.5}
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return tiny_life(folder, stream, strategies=[strategy], **({"peft_config": adapter, "warm_start": False} | options))


# Weights


def test_one_update_has_all_the_weight() -> None:
    assert memory_weights([np.array([[1.0], [-2.0]])]).tolist() == [1.0]


def test_updates_that_serve_alike_have_the_same_weight() -> None:
    first = np.random.default_rng(0).normal(1, 1, (200, 2))
    weights = memory_weights([first, first[:, ::-1]])
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=1e-4)


def test_what_harms_every_task_has_no_weight() -> None:
    margins = np.array([[2.0, -1.0], [1.0, -3.0], [1.5, -2.0]])
    np.testing.assert_allclose(memory_weights([margins, margins]), [1, 0], atol=1e-6)


def test_nothing_to_tell_leaves_the_mean() -> None:
    assert memory_weights([np.zeros((3, 4))]).tolist() == [0.25] * 4


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 4), st.floats(0.3, 3))
def test_weights_are_the_best_of_their_directions(seed: int, updates: int, sharpness: float) -> None:
    """No mixture on a grid around them has a lower loss, at the best length of each."""
    generator = np.random.default_rng(seed)
    margins = [generator.normal(0.2, 1, (15, updates)) + 2 * np.eye(updates)[j] for j in range(updates)]
    weights = memory_weights(margins, sharpness)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    scale = np.mean([each.std() for each in margins])

    def loss(direction: np.ndarray) -> float:
        lengths = np.geomspace(1e-2, 1e3, 400)
        z = [sharpness * (each @ direction) / scale for each in margins]
        values = sum(np.logaddexp(0, -np.outer(lengths, each)).mean(axis=1) for each in z) / len(z)
        return float((values + 1e-4 * lengths**2 * (direction @ direction)).min())

    for other in generator.dirichlet(np.ones(updates), 30):
        assert loss(weights) <= loss(0.8 * weights + 0.2 * other) + 1e-4


# Sums


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 8))
def test_the_sum_is_the_best_of_its_rank(seed: int, count: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [Factors(*(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 2), (2, 6))))
             for _ in range(count)]  # fmt: skip
    weights = [0.5 + i for i in range(count)]
    dense = sum(w * part.left @ part.right for w, part in zip(weights, parts, strict=True))
    summed, lost = weighed_sum(parts, weights, rank)
    assert summed.left.shape == (7, rank)
    assert summed.right.shape == (rank, 6)
    U, S, Vh = torch.linalg.svd(dense)
    best = (U[:, :6] * torch.where(torch.arange(6) < rank, S, 0)) @ Vh
    torch.testing.assert_close(summed.left @ summed.right, best, atol=1e-9, rtol=1e-9)
    assert lost == pytest.approx(float((S[rank:] ** 2).sum() / (S**2).sum()), abs=1e-12)


def test_updates_that_cancel_leave_nothing() -> None:
    part = Factors(torch.ones(3, 1), torch.ones(1, 2))
    summed, lost = weighed_sum([part, part], [1.0, -1.0], 2)
    assert not (summed.left @ summed.right).abs().max() > 1e-12
    assert lost == 0


# Through a life


def test_the_memory_is_the_sum_of_the_updates(tmp_path: Path) -> None:
    run = life(tmp_path)
    run.train()
    told = [run.state.task(i)["record"]["phases"][0]["weighed_memory"] for i in range(3)]
    assert [set(each["weights"]) for each in told] == [{"one"}, {"one", "two"}, {"one", "two", "three"}]
    assert sum(told[2]["weights"].values()) == pytest.approx(1, abs=1e-5)
    updates = [load_file(tmp_path / "weighed_memory" / f"0{i + 1}-{name}.safetensors")
               for i, name in enumerate(run.stream.names)]  # fmt: skip
    final = load_file(tmp_path / "adapters" / "03-three" / "adapter_model.safetensors")
    weights = [told[2]["weights"][name] for name in run.stream.names]
    for name in (name for name in final if "lora_A" in name):
        a, b = (key.replace(".weight", ".default.weight") for key in (name, name.replace("lora_A", "lora_B")))
        dense = sum(w * u[b] @ u[a] for w, u in zip(weights, updates, strict=True))
        left_out = float(torch.linalg.svdvals(dense)[4:].square().sum() / dense.square().sum())
        product = final[name.replace("lora_A", "lora_B")] @ final[name]
        assert float((product - dense).square().sum() / dense.square().sum()) == pytest.approx(left_out, abs=1e-5)
        assert left_out <= told[2]["left_out_by_rank"] + 1e-6


def test_the_order_of_the_tasks_makes_no_difference_at_the_end(tmp_path: Path) -> None:
    there, back = tiny_stream(), TaskStream([tiny_stream()[name] for name in ("three", "one", "two")])
    matrices = [life(tmp_path / name, stream).train() for name, stream in (("there", there), ("back", back))]
    first, second = (dict(zip(m["tasks"], m["matrices"]["margin"][2], strict=True)) for m in matrices)
    for task, margin in first.items():
        assert second[task] == pytest.approx(margin, rel=1e-3, abs=1e-3)


def test_tasks_that_agree_are_kept(tmp_path: Path) -> None:
    """The second task of the tiny stream is the opposite of the first; the third is about other words."""
    stream = TaskStream([tiny_stream()[name] for name in ("one", "three")])
    matrix = life(tmp_path, stream).train()["matrices"]["preference_accuracy"]
    assert matrix[1] == [1.0, 1.0]


@pytest.mark.parametrize("warm_start", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_life_ends_as_one_that_was_not(warm_start: bool, tmp_path: Path) -> None:
    life(tmp_path / "whole", warm_start=warm_start).train()
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path / "broken", warm_start=warm_start, callbacks=[Stop()]).train()
    life(tmp_path / "broken", warm_start=warm_start).train()
    whole, broken = (life_files(tmp_path / run) for run in ("whole", "broken"))
    assert set(whole) == set(broken)
    assert not [file for file in whole if file.endswith(".safetensors") and whole[file] != broken[file]]


def test_a_life_goes_on_elsewhere(tmp_path: Path) -> None:
    """From the folder of a task, with the stream at hand."""
    names = tiny_stream().names
    life(tmp_path / "whole").train()
    life(tmp_path / "first", TaskStream([tiny_stream()[name] for name in names[:2]])).train()
    folder = tmp_path / "first" / "adapters" / "02-two"
    life(tmp_path / "second", continue_from=str(folder)).train()
    final = [load_file(tmp_path / run / "adapters" / "03-three" / "adapter_model.safetensors")
             for run in ("whole", "second")]  # fmt: skip
    for name in final[0]:
        torch.testing.assert_close(final[1][name], final[0][name], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="what the task itself has left there"):
        tiny_life(tmp_path, strategies=["weighed_memory", "consolidation"], peft_config=slmc()).train()
    for option in ("sharpness", "scale", "fraction"):
        with pytest.raises(ValueError, match=f"{option}=0"):
            resolve_strategies([{"name": "weighed_memory", option: 0}])
