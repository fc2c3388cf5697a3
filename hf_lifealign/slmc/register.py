"""Makes SLMC a PEFT method: the one place that touches PEFT's closed enum of adapter types and its three mappings."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

SLMC_NAME = "SLMC"
# SLMC trains LoRA's own parameters, so PEFT must look for LoRA's prefix when it saves and loads them.
SLMC_PREFIX = "lora_"


def ensure_peft_type() -> PeftType:
    """The member ``PeftType.SLMC``, added on the first call.

    ``peft.register_peft_method`` refuses names that are not members of ``PeftType``, and transformers reads
    ``peft_type.value``, so a plain string key is not enough.

    Raises:
        RuntimeError: if PEFT's enum is no longer built the way this function relies on.
    """
    known = PeftType.__members__.get(SLMC_NAME)
    if known is not None:
        return known
    try:
        member = str.__new__(PeftType, SLMC_NAME)
        member._name_ = SLMC_NAME
        member._value_ = SLMC_NAME
        # Python 3.13 keeps the definition order of members in this slot as well.
        member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
        PeftType._member_names_.append(SLMC_NAME)
        PeftType._member_map_[SLMC_NAME] = member
        PeftType._value2member_map_[SLMC_NAME] = member
        type.__setattr__(PeftType, SLMC_NAME, member)
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            "hf_lifealign adds the adapter type SLMC to peft.PeftType, and the installed PEFT does not let it: "
            f"{error}. Install the PEFT version that hf_lifealign's requirements name."
        ) from error
    if PeftType("SLMC") is not member or SLMC_NAME not in list(PeftType):
        raise RuntimeError(
            "peft.PeftType does not recognise the member SLMC after it was added. "
            "Install the PEFT version that hf_lifealign's requirements name."
        )
    return member


def register(config_cls: type[Any], model_cls: type[Any]) -> PeftType:
    """Enter the configuration and tuner class under ``PeftType.SLMC``. Calling it again changes nothing."""
    peft_type = ensure_peft_type()
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = SLMC_PREFIX
    return peft_type
