"""SLMCConfig: its limits, what it refuses, and the plain LoRA configuration it saves."""

import argparse
import copy
import dataclasses
import json

import pytest
from peft import LoraConfig, PeftConfig, get_peft_model
from slmc_helpers import slmc_config, tiny_base, tiny_model
from torch import nn

from hf_lifealign.slmc import SLMCConfig
from hf_lifealign.slmc.config import SLMC_FIELDS


@pytest.mark.parametrize(
    "wrong",
    [
        {"denoising_threshold": 0.0},
        {"denoising_threshold": 1.1},
        {"projection_weight": -0.1},
        {"projection_weight": 1.5},
        {"space": "weights"},
        {"memory_rank": 0},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"layer_replication": [(0, 2), (1, 2)]},
        {"target_parameters": ["mlp.weight"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "lora_ga"},
        {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
        {"megatron_config": {"a": 1}},
        {"use_qalora": True},
        {"ensure_weight_tying": True},
    ],
)
def test_refuses_what_makes_no_sense_and_says_what_was_set(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        SLMCConfig(**wrong)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_accepts_initialisations_that_leave_the_base_alone(init):
    assert SLMCConfig(init_lora_weights=init).init_lora_weights == init


def test_every_field_has_help_that_argparse_can_print():
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(SLMCConfig):
        if field.name in SLMC_FIELDS:
            parser.add_argument(f"--{field.name}", help=field.metadata["help"])
    assert "90% of the energy" in " ".join(parser.format_help().split())


def test_delta_refuses_convolutions_when_the_model_is_made():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(ValueError, match="convolution"):
        get_peft_model(Net(), SLMCConfig(r=2, target_modules=["conv"], space="delta"))
    model = get_peft_model(Net(), SLMCConfig(r=2, target_modules=["conv"]))
    model.begin_task("a")
    assert len(model.consolidate().modules) == 2


def test_delta_refuses_a_zero_scaling():
    with pytest.raises(ValueError, match="lora_alpha"):
        tiny_model(space="delta", lora_alpha=0)


def test_saves_plain_lora_with_sorted_targets(tmp_path):
    slmc_config(target_modules=["v_proj", "q_proj", "o_proj"], space="delta").save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert saved["target_modules"] == ["o_proj", "q_proj", "v_proj"]
    assert not set(SLMC_FIELDS) & set(saved)
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is LoraConfig
    assert loaded.r == 4


def test_a_copy_belongs_to_nobody():
    model = tiny_model()
    config = model.peft_config["default"]
    assert config.owner is model.base_model
    for other in (copy.copy(config), copy.deepcopy(config), dataclasses.replace(config)):
        assert other.owner is None
        assert other.slmc_settings() == config.slmc_settings()
    assert "_owner" not in config.to_dict()


def test_one_config_object_for_two_models_keeps_their_memories_apart():
    config = slmc_config()
    one, two = get_peft_model(tiny_base(), config), get_peft_model(tiny_base(), config)
    assert one.peft_config["default"].owner is one.base_model
    assert two.peft_config["default"].owner is two.base_model
