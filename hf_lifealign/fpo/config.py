"""Settings of `FPOTrainer`: DPOConfig plus the gate and the choice of the reference."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from trl import DPOConfig

Reference = Literal["base", "previous"]


@dataclass
class FPOConfig(DPOConfig):
    r"""
    Configuration class for the [`FPOTrainer`].

    It adds to [`~trl.DPOConfig`]:

    Args:
        focal_gamma (`float`, *optional*, defaults to `2.0`):
            Focusing exponent gamma of the gate ``(1 - p)^gamma`` (LifeAlign, arXiv 2509.17183). `0.0` is DPO's
            sigmoid loss.
        reference (`str`, *optional*, defaults to `"base"`):
            What the gate measures mastery against. `"base"`: the base model with adapters off, for every task, as in
            the LifeAlign paper; a replayed pair that was learnt earlier is then seen as mastered. `"previous"`: the
            policy as it stood when the trainer was built, the usual reference of sequential DPO; every margin then
            starts at 0, and so every weight at `0.5 ** focal_gamma`.

    The gate applies to the `"sigmoid"` entry of `loss_type`, which therefore has to be there exactly once; further
    entries (`"sft"`, say) keep their own form and weight.
    """

    focal_gamma: float = field(
        default=2.0,
        metadata={
            "help": "Focusing exponent gamma of the FPO gate (1 - p)^gamma, where p is the sigmoid of the reward "
            "margin. At least 0; 0 is DPO's sigmoid loss."
        },
    )
    reference: str = field(
        default="base",
        metadata={
            "help": "Reference policy. 'base': the base model with adapters off, for every task (LifeAlign). "
            "'previous': the policy as it stands when the trainer is built (sequential DPO).",
            "choices": list(get_args(Reference)),
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # `not >=` also catches NaN
        if not self.focal_gamma >= 0 or self.focal_gamma == float("inf"):
            raise ValueError(
                f"You set focal_gamma={self.focal_gamma}. It is an exponent of (1 - p) and has to be a finite number "
                "of at least 0. Use 2.0 (the published value), or 0.0 for DPO's sigmoid loss."
            )
        if self.reference not in get_args(Reference):
            raise ValueError(
                f"You set reference={self.reference!r}. It has to be 'base' (the base model with adapters off) or "
                "'previous' (the policy at the start of this training)."
            )
        if self.loss_type.count("sigmoid") != 1:
            raise ValueError(
                f"You set loss_type={self.loss_type}. The focal gate applies to the 'sigmoid' entry, which has to be "
                "there exactly once. Add 'sigmoid' to loss_type, or use trl.DPOTrainer for losses without the gate."
            )
        if self.use_weighting and self.focal_gamma > 0:
            raise ValueError(
                f"You set use_weighting=True with focal_gamma={self.focal_gamma}. WPO's weights multiply DPO's own "
                "loss term, which the focal gate replaces, so that they would be lost. Set use_weighting=False, or "
                "focal_gamma=0."
            )
        if self.sync_ref_model:
            raise ValueError(
                f"You set sync_ref_model=True with reference={self.reference!r}. A reference that follows the policy "
                "is neither the base nor the policy at the start, and the gate would lose sight of what was "
                "mastered. Set sync_ref_model=False, or use trl.DPOTrainer for TR-DPO."
            )
