"""L2PConfig: a pool of prompts as a PEFT adapter type."""

from dataclasses import dataclass, field

from peft import PeftConfig

from hf_lifealign._peft_types import ensure_peft_type

L2P_NAME = "L2P"


@dataclass
class L2PConfig(PeftConfig):
    """Configuration of a prompt pool (Learning to Prompt, L2P, arXiv 2112.08654).

    The base stays as it is. What the untouched base makes of a prompt (the mean of its last hidden states) chooses the
    `top_k` prompts of the pool with the nearest keys, and those are put in front of the row. Tasks share the pool and
    part in it by what their prompts look like. [`FPOTrainer`] and every trainer of a life train the keys too; with any
    other trainer they keep their first values, and a whole row counts as its prompt.

    PEFT loads the adapter once `hf_lifealign.prompt_pool` is imported. It cannot be merged into the base, rows get
    longer by `top_k * prompt_length` tokens, and generation has to use its cache, since without it what was generated
    counts as prompt.

    Args:
        pool_size (`int`): prompts of the pool, M.
        prompt_length (`int`): tokens of a prompt, L_p.
        top_k (`int`): prompts for each row, N, at most `pool_size`.
        pull_weight (`float`): weight of the distance between a query and the keys it chose, at least 0.

    Raises:
        ValueError: if a value is out of range.
    """

    pool_size: int = field(default=10, metadata={"help": "Prompts of the pool."})
    prompt_length: int = field(default=5, metadata={"help": "Tokens of a prompt."})
    top_k: int = field(default=5, metadata={"help": "Prompts that are put in front of a row."})
    pull_weight: float = field(
        default=0.5, metadata={"help": "Weight of the distance between a query and the keys it chose."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ensure_peft_type(L2P_NAME)
        for name in ("pool_size", "prompt_length", "top_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"You set {name}={value!r} of an L2P adapter. Set a whole number of at least 1.")
        if self.top_k > self.pool_size:
            raise ValueError(
                f"You set top_k={self.top_k} and pool_size={self.pool_size}. A row cannot have more prompts than the "
                "pool. Set a smaller top_k, or a larger pool_size."
            )
        if not self.pull_weight >= 0:
            raise ValueError(f"You set pull_weight={self.pull_weight} of an L2P adapter. It has to be at least 0.")
