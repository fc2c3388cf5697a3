"""PEFT's orthogonal subspace fine-tuning: its projections reach the parameters that are trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import OSFConfig, get_peft_model
from peft.tuners.osf.layer import OSFLayer
from support.tiny import preference_rows, tiny_model, tiny_tokenizer

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign._osf import keep_projections
from hf_lifealign.lifelong.adapters import create_adapter, restore_adapter, save_adapter

CONFIG = OSFConfig(task_type="CAUSAL_LM", target_modules="all-linear", effective_rank=4)
# of the kept directions, in half precision; without the projections it is .6
WHERE_ROUNDED = 1e-2


def share_in_kept_directions(model: Any) -> float:
    """Largest part of a gradient's norm, over layers, that lies in the directions of the base that are kept."""
    ids = torch.arange(5, 21).view(2, 8)
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    shares = []
    for layer in (module for module in model.modules() if isinstance(module, OSFLayer)):
        weight = layer.get_base_layer().weight.float()
        u, _, v = torch.linalg.svd(weight, full_matrices=False)
        trained: Any = layer.osf_svd_params["default"]
        across, along = trained["U_low"].grad, trained["V_low"].grad
        shares.append((u[:, :4].T @ across).norm() / across.norm())
        shares.append((along @ v[:4].T).norm() / along.norm())
    return float(max(shares))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_lifes_adapter_leave_what_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    made = create_adapter(tiny_model().to(dtype), CONFIG, seed=0)
    assert share_in_kept_directions(made) < WHERE_ROUNDED
    save_adapter(made, tmp_path)
    restored = restore_adapter(tiny_model().to(dtype), tmp_path, CONFIG)
    assert share_in_kept_directions(restored) < WHERE_ROUNDED


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_gradients_in_a_single_trainer_leave_what_is_kept(reference: Any, tmp_path: Path) -> None:
    """Beside a frozen copy of the adapter too, which is what "previous" is compared with."""
    model: Any = get_peft_model(tiny_model().to(torch.bfloat16), CONFIG)
    trainer = FPOTrainer(
        model=model,
        args=FPOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False, reference=reference
        ),
        train_dataset=Dataset.from_list(preference_rows(4)),
        processing_class=tiny_tokenizer(),
    )
    assert share_in_kept_directions(trainer.model) < WHERE_ROUNDED
    trainer.train()


def test_projections_hang_once() -> None:
    made = create_adapter(tiny_model(), CONFIG, seed=0)
    keep_projections(made)
    layer = next(module for module in made.modules() if isinstance(module, OSFLayer))
    trained: Any = layer.osf_svd_params["default"]
    assert len(trained["U_low"]._backward_hooks) == 1
