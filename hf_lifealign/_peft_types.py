"""Adapter types of our own in PEFT: the one place that touches its closed enum of types and its three mappings."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType


def ensure_peft_type(name: str) -> PeftType:
    """The member of ``PeftType`` of a name, added on the first call.

    ``peft.register_peft_method`` refuses names that are not members of ``PeftType``, and transformers reads
    ``peft_type.value``, so a plain string key is not enough.

    Raises:
        RuntimeError: if PEFT's enum is no longer built the way this function relies on.
    """
    known = PeftType.__members__.get(name)
    if known is not None:
        return known
    try:
        member = str.__new__(PeftType, name)
        member._name_ = name
        member._value_ = name
        # Python 3.13 keeps the definition order of members in this slot as well.
        member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"hf_lifealign adds the adapter type {name} to peft.PeftType, and the installed PEFT does not let it: "
            f"{error}. Install the PEFT version that hf_lifealign's requirements name."
        ) from error
    if PeftType(name) is not member or name not in list(PeftType):
        raise RuntimeError(
            f"peft.PeftType does not recognise the member {name} after it was added. "
            "Install the PEFT version that hf_lifealign's requirements name."
        )
    return member


def register(name: str, config_cls: type[Any], model_cls: type[Any]) -> PeftType:
    """Enters the configuration and tuner class under a name. Calling it again changes nothing."""
    peft_type = ensure_peft_type(name)
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = model_cls.prefix
    return peft_type
