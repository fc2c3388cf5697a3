"""Features of prompts under the untouched base."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny import tiny_model

from hf_lifealign.routing import features
from hf_lifealign.routing.features import feature_count, prompt_features

PROMPTS = [[5, 6, 7, 8, 9], [10], [], [11, 12, 5], [7, 7, 7, 7]]


def test_they_are_the_mean_and_the_last_state_of_the_middle_layer() -> None:
    model = tiny_model().double()
    found = prompt_features(model, PROMPTS, 0, batch_size=2)
    assert found.shape == (5, feature_count(model)) == (5, 64)
    for prompt, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            states = model.model(torch.tensor([prompt or [0]]), output_hidden_states=True).hidden_states
        assert len(states) == 3
        expected = torch.cat([states[1][0].mean(dim=0), states[1][0, -1]])
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-9, atol=1e-12)


def test_adapters_modes_and_batches_make_no_difference() -> None:
    base = tiny_model().double()
    plain = prompt_features(base, PROMPTS, 0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False))
    model.train()
    np.testing.assert_allclose(prompt_features(model, PROMPTS, 3, batch_size=1)[[0, 1, 3, 4]], plain[[0, 1, 3, 4]],
                               rtol=1e-9, atol=1e-12)  # fmt: skip
    assert model.training
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters


def test_wide_bases_are_projected_and_distances_nearly_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(hidden_size=256)
    whole = prompt_features(model, PROMPTS, 0)
    monkeypatch.setattr(features, "WIDEST", 400)
    found = prompt_features(model, PROMPTS, 0)
    assert found.shape == (5, feature_count(model)) == (5, 400)
    # the directions are the same wherever a gate is read
    given = features._projected(np.eye(512)[:1])[0]
    assert given[:3] * 20 == pytest.approx([-0.19178686, -0.26145488, -1.57389213], abs=1e-8)
    ratio = np.linalg.norm(found[0] - found[3]) / np.linalg.norm(whole[0] - whole[3])
    assert 0.7 < ratio < 1.3


def test_experts_are_not_taken_for_layers() -> None:
    """A list that is longer than that of the layers lies inside each of them."""
    model = tiny_model()
    plain = prompt_features(model, PROMPTS, 0)
    for layer in model.model.layers:
        layer.experts = torch.nn.ModuleList([torch.nn.Identity() for _ in range(9)])
    np.testing.assert_array_equal(prompt_features(model, PROMPTS, 0), plain)
    model.model.layers = torch.nn.ModuleList([*model.model.layers, torch.nn.Identity()])
    with pytest.raises(ValueError, match="no list of its 2 layers"):
        prompt_features(model, PROMPTS, 0)
