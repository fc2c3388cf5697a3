"""Settings of `MetaAlignerTrainer`: RLOOConfig's generation and training settings plus those of the method."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trl import RLOOConfig

from hf_lifealign.meta_aligner.conditioning import CONDITIONINGS
from hf_lifealign.meta_aligner.selection import SCOPES, SELECTIONS

WeightSource = Literal["learned", "frozen", "reward", "random", "uniform"]
WEIGHT_SOURCES = get_args(WeightSource)
POLICY_ENCODER = "policy"

# Settings of RLOO that mean nothing here, with the values at which they are off.
_FOREIGN: dict[str, tuple[Any, str]] = {
    "beta": (0.0, "there is no KL term to a reference"),
    "num_iterations": (1, "epochs over a round are num_train_epochs"),
    "reward_weights": (None, "the preference weighs the rewards"),
    "normalize_advantages": (False, "there are no advantages"),
    "reward_clip_range": (None, "rewards are z-scored"),
    "epsilon": (0.2, "no ratio is clipped"),
    "epsilon_high": (None, "no ratio is clipped"),
    "sync_ref_model": (False, "there is no reference model"),
    "use_vllm": (False, "vLLM runs a copy of the model, which the preference would not reach"),
    "use_transformers_continuous_batching": (False, "it mixes rows of several prompts, whose preferences differ"),
    "use_liger_kernel": (False, "it replaces the forward into which the preference enters"),
    "mask_truncated_completions": (False, "an answer that was cut is learnt as far as it goes"),
    "shuffle_dataset": (True, "every epoch visits its rows in a seeded order"),
    "router_aux_loss_coef": (None, "experts stay frozen but for an adapter, which has no balancing loss here"),
    "steps_per_generation": (None, "a round generates before it trains; set generation_batch_size"),
}
# What a generation batch has at least, where the user leaves it open.
_GENERATED_TOGETHER = 32


@dataclass
class MetaAlignerConfig(RLOOConfig):
    r"""
    Configuration class for the [`MetaAlignerTrainer`].

    It takes what [`~trl.RLOOConfig`] takes for generation and training. `num_generations` answers are generated for
    each prompt of a round, `num_train_epochs` counts the epochs over the answers a round keeps, and `learning_rate` is
    that of the policy in the meta phase (eta_theta). What only RLOO's loss knows (`beta`, `epsilon`, ...) is refused.

    Defaults are those of the paper (arXiv 2604.24178). They were chosen for models of billions of parameters: a small
    model needs learning rates 10 to 100 times as high.

    Args:
        conditioning (`str`, *optional*, defaults to `"logit_bias"`):
            How the preference enters the policy. `"logit_bias"`: added to the last hidden state before the LM head, as
            in the paper. `"lora"`: scales the ranks of the LoRA adapter of `peft_config` (ours).
        encoder (`str`, *optional*, defaults to `"policy"`):
            Where the preference-weight-net's features come from: `"policy"`, the frozen policy's mean-pooled states, or
            the id of any `AutoModel`.
        encoder_learning_rate (`float`, *optional*, defaults to `0.0`):
            Learning rate of an `AutoModel` encoder; 0 freezes it.
        weight_net_hidden (`int`, *optional*, defaults to `256`):
            Width of the preference-weight-net's hidden layer.
        weight_learning_rate (`float`, *optional*, defaults to `1e-6`):
            Learning rate of the preference-weight-net in the meta phase (eta_psi).
        pretrain_learning_rate (`float`, *optional*, defaults to `1.414e-4`):
            Learning rate of the policy in pre-training.
        pretrain_weight_learning_rate (`float`, *optional*, defaults to `1e-5`):
            Learning rate of the preference-weight-net in pre-training.
        pretrain_epochs (`int`, *optional*, defaults to `1`):
            Epochs over the offline set.
        num_rounds (`int`, *optional*, defaults to `2`):
            Rounds of generating, scoring, rejecting and training (T).
        prompts_per_round (`int`, *optional*):
            Prompts of a round; all by default. Each round goes on where the last one stopped.
        supervision (`float`, *optional*, defaults to `0.5`):
            Weight of the supervised loss in the outer step (lambda).
        tau (`float`, *optional*, defaults to `0.5`):
            Temperature of the realised preference ``softmax(z(r) / tau)``.
        rho (`float`, *optional*, defaults to `0.7`):
            Share of a round's answers that is kept.
        selection (`str`, *optional*, defaults to `"weighted_top"`):
            Which are kept: `"weighted_top"`, the best by ``w . r``; `"any_quantile"`, those that some objective finds
            among its best (the rule of Rewards-in-Context).
        scope (`str`, *optional*, defaults to `"buffer"`):
            Among which answers: `"buffer"`, all of the round; `"prompt"`, those to the same prompt.
        loss_per_token (`bool`, *optional*, defaults to `False`):
            Mean over an answer's tokens instead of the paper's sum.
        weight_source (`str`, *optional*, defaults to `"learned"`):
            Where the weights of the meta phase come from: `"learned"` is the method. For ablations `"frozen"` (the
            preference-weight-net as pre-trained), `"reward"` (the realised preference of each answer), `"random"`
            (uniform on the simplex) and `"uniform"` (equal weights); these have no outer steps. For a front that users
            sweep, `"random"` did better than `"learned"` on a 135M model (benchmarks/meta_aligner.py, five seeds): it
            meets the whole simplex, while learned weights stay near one preference for each prompt.
        state_cache_gb (`float`, *optional*, defaults to `4.0`):
            Memory for the hidden states of the answers that are trained on, in GiB. With `"logit_bias"` and a backbone
            that stands still they are read once for each round instead of at every step. Where they need more, or with
            0, every step reads them anew; the result is the same but for rounding.
        max_prompt_length (`int`, *optional*):
            Prompts with more tokens are left out, and counted in the log.
    """

    num_train_epochs: float = field(
        default=3.0, metadata={"help": "Epochs over the answers that a round keeps; a whole number."}
    )
    learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the policy in the meta phase (eta_theta)."}
    )
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Batch size per device for training."})
    max_completion_length: int | None = field(
        default=128, metadata={"help": "Maximum length of generated answers, and of those of the offline set."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Temperature of generation."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus of generation."})
    beta: float = field(default=0.0, metadata={"help": "Refused: the method has no KL term to a reference."})
    conditioning: str = field(
        default="logit_bias",
        metadata={
            "help": "How the preference enters the policy: 'logit_bias' (the paper's) or 'lora' (ours, needs a LoRA "
            "peft_config).",
            "choices": list(CONDITIONINGS),
        },
    )
    encoder: str = field(
        default=POLICY_ENCODER,
        metadata={"help": "Encoder of prompts: 'policy' (its own frozen states) or the id of an AutoModel."},
    )
    encoder_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate of an AutoModel encoder; 0 freezes it."}
    )
    weight_net_hidden: int = field(default=256, metadata={"help": "Width of the preference-weight-net's hidden layer."})
    weight_learning_rate: float = field(
        default=1e-6, metadata={"help": "Learning rate of the preference-weight-net in the meta phase (eta_psi)."}
    )
    pretrain_learning_rate: float = field(
        default=1.414e-4, metadata={"help": "Learning rate of the policy in pre-training."}
    )
    pretrain_weight_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the preference-weight-net in pre-training."}
    )
    pretrain_epochs: int = field(default=1, metadata={"help": "Epochs over the offline set."})
    num_rounds: int = field(default=2, metadata={"help": "Rounds of generating, scoring, rejecting and training (T)."})
    prompts_per_round: int | None = field(default=None, metadata={"help": "Prompts of a round; all by default."})
    supervision: float = field(
        default=0.5, metadata={"help": "Weight of the supervised loss in the outer step (lambda)."}
    )
    tau: float = field(default=0.5, metadata={"help": "Temperature of the realised preference softmax(z(r) / tau)."})
    rho: float = field(default=0.7, metadata={"help": "Share of a round's answers that is kept, in (0, 1]."})
    selection: str = field(
        default="weighted_top",
        metadata={
            "help": "Which answers are kept: 'weighted_top' (best by w . r) or 'any_quantile' (some objective finds "
            "them among its best).",
            "choices": list(SELECTIONS),
        },
    )
    scope: str = field(
        default="buffer",
        metadata={"help": "Among which answers: all of a round, or those of a prompt.", "choices": list(SCOPES)},
    )
    loss_per_token: bool = field(
        default=False, metadata={"help": "Mean over an answer's tokens instead of the paper's sum."}
    )
    weight_source: str = field(
        default="learned",
        metadata={
            "help": "Where the weights of the meta phase come from; all but 'learned' are ablations without outer "
            "steps.",
            "choices": list(WEIGHT_SOURCES),
        },
    )
    state_cache_gb: float = field(
        default=4.0,
        metadata={
            "help": "Memory for hidden states in GiB, so that each round's answers are read once; 0 reads them at "
            "every step."
        },
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Prompts with more tokens are left out, and counted in the log."}
    )

    def __post_init__(self) -> None:
        if (
            self.steps_per_generation is None
            and self.generation_batch_size is None
            and (self.num_generations or 0) >= 2
        ):
            unit = math.lcm(self.per_device_train_batch_size * _world_size(), self.num_generations or 1)
            self.generation_batch_size = unit * math.ceil(_GENERATED_TOGETHER / unit)
        given_steps = self.steps_per_generation
        super().__post_init__()
        self._check_foreign(given_steps)
        self._check_choices()
        self._check_numbers()

    def _check_foreign(self, given_steps: int | None) -> None:
        for name, (off, why) in _FOREIGN.items():
            value = given_steps if name == "steps_per_generation" else getattr(self, name)
            if value != off:
                raise ValueError(
                    f"You set {name}={value!r}. It has no effect on MetaAlignerTrainer: {why}. Leave it out."
                )

    def _check_choices(self) -> None:
        for name, choices in (
            ("conditioning", CONDITIONINGS),
            ("selection", SELECTIONS),
            ("scope", SCOPES),
            ("weight_source", WEIGHT_SOURCES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"You set {name}={getattr(self, name)!r}. It has to be one of {', '.join(choices)}.")
        if self.encoder == POLICY_ENCODER and self.encoder_learning_rate:
            raise ValueError(
                f"You set encoder_learning_rate={self.encoder_learning_rate} with encoder='policy', whose features are "
                "those of the frozen policy. Set it to 0, or name an AutoModel as encoder."
            )

    def _check_numbers(self) -> None:
        # `not` also catches NaN
        for name in ("tau", "rho"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"You set {name}={value}. It has to be a finite number above 0.")
        if self.rho > 1:
            raise ValueError(f"You set rho={self.rho}. It is the share of answers to keep, at most 1.")
        for name in (
            "supervision", "learning_rate", "weight_learning_rate", "pretrain_learning_rate",
            "pretrain_weight_learning_rate", "encoder_learning_rate", "state_cache_gb",
        ):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"You set {name}={value}. It has to be a finite number of at least 0.")
        for name in ("pretrain_epochs", "num_rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"You set {name}={getattr(self, name)}. It has to be at least 0.")
        for name in ("weight_net_hidden", "prompts_per_round", "max_prompt_length", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"You set {name}={value}. It has to be at least 1.")
        if self.num_train_epochs != int(self.num_train_epochs) or self.num_train_epochs < 1:
            raise ValueError(
                f"You set num_train_epochs={self.num_train_epochs}. It counts whole epochs over the answers of a "
                "round; set it to at least 1. To do without the meta phase, set num_rounds=0."
            )


def _world_size() -> int:
    # as launchers tell it; asking for the device here would fix it before `use_cpu` is read
    return int(os.environ.get("WORLD_SIZE") or 1)
