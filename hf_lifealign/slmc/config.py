"""SLMCConfig: LoRA's configuration plus the four settings of Short-to-Long Memory Consolidation."""

import dataclasses
import weakref
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from peft import LoraConfig

from hf_lifealign._peft_types import ensure_peft_type

# Initialisations that leave the base model's weights alone and train both factors.
_ALLOWED_INITS = (True, False, "gaussian", "orthogonal", "eva")
SLMC_FIELDS = ("denoising_threshold", "projection_weight", "space", "memory_rank")


class MemoryOwner(Protocol):
    """What a configuration needs of the tuner it belongs to: whether it is the owner's, and a way to save the rest."""

    def save_memory(self, config: "SLMCConfig", directory: str) -> None: ...


@dataclass
class SLMCConfig(LoraConfig):
    """Configuration of an SLMC adapter (Short-to-Long Memory Consolidation, LifeAlign, arXiv 2509.17183).

    While a task trains, an SLMC adapter is a LoRA adapter. At the end of a task the change of the task is denoised
    (``denoising_threshold``), its part along earlier tasks is scaled by ``projection_weight``, and the result becomes
    long-term memory. `rank_pattern`, `alpha_pattern`, `use_rslora`, `modules_to_save` and quantised base models work as
    with LoRA; `modules_to_save` and trainable tokens are trained and saved but never consolidated, and each
    consolidation report lists them.

    Args:
        denoising_threshold (`float`): share of the squared singular values of a task's change that is kept, theta in
            (0, 1].
        projection_weight (`float`): weight of the part that lies along earlier tasks, lambda in [0, 1]; 0 removes it, 1
            leaves it.
        space (`"factors"` or `"delta"`): consolidate A and B apart (as published) or their product.
        memory_rank (`int`, *optional*): most history vectors kept per parameter ("factors") or module ("delta").

    Raises:
        ValueError: if a value is out of range or a LoRA option is set that consolidation has no meaning for.
    """

    denoising_threshold: float = field(
        default=0.9,
        metadata={
            "help": "Share of the squared singular values of a task's change that is kept, in (0, 1]. 0.9 keeps the "
            "leading directions that hold 90%% of the energy."
        },
    )
    projection_weight: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the part of a task's change that lies along earlier tasks, in [0, 1]: 0 removes it, "
            "1 keeps 100%% of it."
        },
    )
    space: Literal["factors", "delta"] = field(
        default="factors",
        metadata={"help": "'factors' consolidates A and B apart, as published; 'delta' consolidates their product."},
    )
    memory_rank: int | None = field(
        default=None,
        metadata={
            "help": "Most history vectors kept per parameter (factors) or module (delta): the leading singular "
            "directions. None keeps one vector for each consolidation."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ensure_peft_type("SLMC")
        self._owner: weakref.ref[MemoryOwner] | None = None
        self._check_slmc_values()
        self._check_lora_options()

    def _check_slmc_values(self) -> None:
        if not 0 < self.denoising_threshold <= 1:
            raise ValueError(
                f"You set denoising_threshold={self.denoising_threshold}. It is a share of energy and must lie in "
                "(0, 1]. Set 0.9 (the paper's value), or 1.0 to keep everything."
            )
        if not 0 <= self.projection_weight <= 1:
            raise ValueError(
                f"You set projection_weight={self.projection_weight}. It must lie in [0, 1]: 0 removes what lies along "
                "earlier tasks, 1 leaves it. Set 0.5 (the paper's value)."
            )
        if self.space not in ("factors", "delta"):
            raise ValueError(f"You set space={self.space!r}. Set 'factors' (as published) or 'delta'.")
        if self.memory_rank is not None and (isinstance(self.memory_rank, bool) or self.memory_rank < 1):
            raise ValueError(
                f"You set memory_rank={self.memory_rank}. At least one history vector must be kept. Set an integer "
                ">= 1, or None to keep one for each consolidation."
            )

    def _check_lora_options(self) -> None:
        if self.bias != "none":
            raise ValueError(
                f"You set bias={self.bias!r}. Trained biases of the base model are not part of a task's low-rank "
                "change and would drift without consolidation. Set bias='none'."
            )
        if not any(self.init_lora_weights is init or self.init_lora_weights == init for init in _ALLOWED_INITS):
            raise ValueError(
                f"You set init_lora_weights={self.init_lora_weights!r}. It rewrites the base model's weights or "
                "freezes a factor, so a task's change would not be that of plain LoRA on the untouched base. Set "
                f"one of {_ALLOWED_INITS}."
            )
        # Whatever PEFT marks as a variant computes something other than s * B @ A, including variants added later.
        variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
        others = ["use_dora", "lora_bias", "layer_replication", "target_parameters", "megatron_config"]
        others += ["ensure_weight_tying", "use_qalora", "lora_ga_config", "corda_config"]
        for name in dict.fromkeys([*variants, *others]):
            if getattr(self, name, None):
                raise ValueError(
                    f"You set {name}={getattr(self, name)!r}. SLMC consolidates plain LoRA factors, one A and one B "
                    f"for each adapted module, and {name} changes what they mean. Leave {name} at its default."
                )

    def bind(self, owner: MemoryOwner) -> None:
        """Remember (weakly) the tuner whose memory is saved beside this configuration."""
        self._owner = weakref.ref(owner)

    @property
    def owner(self) -> MemoryOwner | None:
        """The living tuner this configuration was bound to, if there is one."""
        return self._owner() if self._owner is not None else None

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to nobody: were the reference copied, saving the copy would write the original's memory.
        return {**self.__dict__, "_owner": None}

    def slmc_settings(self) -> dict[str, Any]:
        """The settings that are SLMC's own, as they are kept in ``slmc/memory.json``."""
        return {name: getattr(self, name) for name in SLMC_FIELDS}

    def to_lora_config(self) -> LoraConfig:
        """The same adapter as a plain `LoraConfig`, with module sets sorted so that saved bytes are deterministic."""
        names = [f.name for f in dataclasses.fields(LoraConfig) if f.init and f.name != "peft_type"]
        plain = LoraConfig(**{name: getattr(self, name) for name in names})
        for name in ("target_modules", "exclude_modules"):
            value = getattr(plain, name)
            if isinstance(value, set):
                setattr(plain, name, sorted(value))
        return plain

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write a plain LoRA ``adapter_config.json`` and let the tuner write ``slmc/`` beside it.

        What lies at the root loads anywhere as LoRA; the memory is only written for the adapter that owns it.

        Raises:
            SLMCMemoryError: if the adapter's tensors beside it are not in safetensors format.
        """
        self.to_lora_config().save_pretrained(save_directory, **kwargs)
        owner = self.owner
        if owner is not None:
            owner.save_memory(self, save_directory)
