"""Our adapter types are members of PEFT's closed enum; these tests fail when PEFT's construction changes."""

import pickle

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hf_lifealign._peft_types import ensure_peft_type, register
from hf_lifealign.slmc import SLMCConfig, SLMCModel


def test_peft_knows_the_type_in_every_way_it_looks_types_up():
    member = PeftType.SLMC
    assert member == "SLMC"
    assert member.value == "SLMC"
    assert member.name == "SLMC"
    assert PeftType("SLMC") is member
    assert PeftType["SLMC"] is member
    assert member in list(PeftType)
    assert isinstance(member, PeftType)
    assert pickle.loads(pickle.dumps(member)) is member
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SLMC"] is SLMCConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is SLMCModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == SLMCModel.prefix == "lora_"


def test_registering_again_changes_nothing():
    before = list(PeftType)
    assert register("SLMC", SLMCConfig, SLMCModel) is ensure_peft_type("SLMC") is PeftType.SLMC
    assert list(PeftType) == before


def test_lora_keeps_its_own_type():
    assert PeftType.LORA.value == "LORA"
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] is not SLMCModel
