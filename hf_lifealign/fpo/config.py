"""Settings of `FPOTrainer`: DPOConfig plus the gate and the choice of the reference."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from trl import DPOConfig

Reference = Literal["base", "previous"]
PairPacking = Literal["auto", "off"]


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
        pair_packing (`str`, *optional*, defaults to `"auto"`):
            `"auto"` lays pairs as `[prompt | chosen | rejected]` blocks, several to a row, wherever that is known to
            give the same log-probabilities, and says in one line where it does not and why; the first batch is
            checked. `"off"` pads both sequences of each pair to the longest of the batch, as DPOTrainer does.
        max_row_length (`int`, *optional*):
            Most tokens of a packed row that holds more than one pair. By default rows are as wide as costs the
            least, and no wider than 4096 tokens.

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

    pair_packing: str = field(
        default="auto",
        metadata={
            "help": "'auto': pairs are laid as [prompt | chosen | rejected] blocks, several to a row, so that prompts "
            "are computed once and little is padded, wherever that is known to give the same log-probabilities. "
            "'off': padded, as DPOTrainer does.",
            "choices": list(get_args(PairPacking)),
        },
    )
    max_row_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a packed row that holds more than one pair. None: what costs the least."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pair_packing is False:
            self.pair_packing = "off"  # YAML reads a bare `off` as False
        if self.pair_packing not in get_args(PairPacking):
            raise ValueError(
                f"You set pair_packing={self.pair_packing!r}. It has to be 'auto' (packed rows where they are known to "
                "give the same) or 'off' (padded, as DPOTrainer does)."
            )
        if self.max_row_length is not None and self.max_row_length < 1:
            raise ValueError(
                f"You set max_row_length={self.max_row_length}. It is a number of tokens and has to be at least 1, or "
                "None for what costs the least."
            )
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
