"""Settings of the stages that train: engraving, and the two methods of refinement; and how tasks are drawn."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

VERBOSE_CLONING, RL = "verbose_cloning", "rl"
METHODS = (VERBOSE_CLONING, RL)
# Temperature and top-p of tasks, and of topics and questions, as published; no settings.
TASKS_DRAWN, TOPICS_DRAWN = (1.0, 0.98), (1.0, 0.95)


@dataclass(frozen=True)
class EngraveSettings:
    """How the answers are engraved into the base, by supervised fine-tuning.

    Args:
        adapter (`dict`): type (lora, slmc, ...) and fields of its PEFT configuration. By default the published LoRA:
            r 16, alpha 16, on the attention's projections.
        training (`dict`): fields of SFTConfig. Published are a rate of 4e-4, batches of 768 rows, one epoch and 100
            steps of warm-up; here the batch is 16 and the warm-up 10 steps, for fewer rows.
        checkpoint_steps (`int`): optimizer steps between the checkpoints from which an interrupted training goes on.
        answers (`int`): held-out prompts that the base and the engraved model answer, at most, for the report.
    """

    adapter: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    checkpoint_steps: int = 20
    answers: int = 16

    def __post_init__(self) -> None:
        _check_training(self.checkpoint_steps, self.answers)


@dataclass(frozen=True)
class CloningSettings(EngraveSettings):
    """Refinement by verbose cloning: the engraved model answers all tasks at length, and the base learns these answers
    instead (SELF-ALIGN, arXiv 2305.03047, section 3.4).

    Args:
        adapter, training, checkpoint_steps, answers: as of [`EngraveSettings`].
        method (`str`): `"verbose_cloning"`.
        temperature, top_p (`float`): of the drawing, as published.
        max_new_tokens (`int`): of an answer, as published.
        no_repeat_ngram_size (`int`): no run of so many tokens comes twice in an answer. Published are penalties on
            n-grams of sizes that are not told.
        behaviour (`str`), least_words (`int`): see [`AnswerReader`].
    """

    method: str = VERBOSE_CLONING
    temperature: float = 0.3
    top_p: float = 0.7
    max_new_tokens: int = 512
    no_repeat_ngram_size: int = 6
    behaviour: str = "safe"
    least_words: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_method(self.method, VERBOSE_CLONING)


@dataclass(frozen=True)
class RLSettings:
    """Refinement by reinforcement (SALMON, arXiv 2310.05910): the engraved model compares pairs of its own answers by
    each principle, a reward model learns to follow whatever principles it is shown, and the engraved model is trained
    against it. Its adapter goes on being trained, so that it has to be a LoRA.

    Args:
        method (`str`): `"rl"`.
        temperature, top_p (`float`), max_new_tokens (`int`): of the two answers that are compared.
        least_order_consistency (`float`): share of the judgements that both orders of the answers have to agree on, in
            [0, 1], or else no reward model is trained; by chance it is 0.5.
        principle_rate (`float`), most_principles (`int`), negation (`float`): of the drawing of principles, see
            [`draw_principles`]; as published. In the reinforcement none is negated.
        reward_adapter (`dict`, *optional*): type and fields of the PEFT configuration of the reward model, by default
            a LoRA of rank 16 on the attention's projections; `None` trains all of its weights.
        reward_training (`dict`): fields of RewardConfig.
        training (`dict`): fields of RLOOConfig; `beta`, the weight of the KL to the engraved model, has to be above 0.
        checkpoint_steps (`int`): optimizer steps between checkpoints, of both trainings.
        answers (`int`): held-out prompts that are answered before and after, at most.

    Raises:
        ValueError: for values out of their ranges.
    """

    # which settings decide what a stage comes to
    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "judgements": ("temperature", "top_p", "max_new_tokens"),
        "reward": (
            "least_order_consistency", "principle_rate", "most_principles", "negation", "reward_adapter",
            "reward_training", "checkpoint_steps",
        ),
        "refine": ("method", "principle_rate", "most_principles", "training", "checkpoint_steps", "answers"),
    }  # fmt: skip

    method: str = RL
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    least_order_consistency: float = 0.6
    principle_rate: float = 0.2
    most_principles: int = 8
    negation: float = 0.5
    reward_adapter: dict[str, Any] | None = field(default_factory=dict)
    reward_training: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    checkpoint_steps: int = 20
    answers: int = 16

    def __post_init__(self) -> None:
        _check_method(self.method, RL)
        _check_training(self.checkpoint_steps, self.answers)
        if not 0 <= self.least_order_consistency <= 1:
            raise ValueError(
                f"You set least_order_consistency={self.least_order_consistency}. It is a share: set 0 to 1."
            )
        if not 0 < self.principle_rate <= 1 or self.most_principles < 1 or not 0 <= self.negation <= 1:
            raise ValueError(
                f"You set principle_rate={self.principle_rate}, most_principles={self.most_principles} and "
                f"negation={self.negation}. Set a rate in (0, 1], at least 1 principle, and a probability."
            )
        beta = self.training.get("beta", 1.0)
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta > 0:
            raise ValueError(
                f"You set beta={beta!r} of the reinforcement. Without a weight on the KL to the engraved model nothing "
                "holds the policy where the reward model knows its way. Set beta above 0, e.g. 0.05."
            )


Refinement = CloningSettings | RLSettings


def refuse_uncopyable(adapter: dict[str, Any]) -> None:
    """Refuses adapters of the stage `engrave` that reinforcement cannot go on with. TRL copies the adapter's parameters
    into a second one on the same base, which stays as it was and is the reference of the KL.

    Args:
        adapter (`dict`): of [`EngraveSettings`].

    Raises:
        ValueError: for adapters that such a copy does not equal.
    """
    kind = str(adapter.get("type", "lora")).lower()
    init, bias = adapter.get("init_lora_weights", True), adapter.get("bias", "none")
    if kind != "lora":
        raise ValueError(
            f"You set the method 'rl' and an engraved adapter of the type {kind!r}. Reinforcement goes on with the "
            "engraved adapter beside a frozen copy of it, which is exact for LoRA alone. Set engrave.adapter.type: "
            "lora, or the method 'verbose_cloning'."
        )
    if init not in (True, False, "gaussian") or bias != "none":
        raise ValueError(
            f"You set the method 'rl', and init_lora_weights={init!r} and bias={bias!r} of the engraved adapter. They "
            "change the base itself, which the policy shares with its reference. Set true, false or 'gaussian', and "
            "bias: none."
        )


def _check_method(method: str, own: str) -> None:
    if method != own:
        raise ValueError(
            f"You set method={method!r} of the stage 'refine'. It has to be one of {list(METHODS)}, and is {own!r} "
            "with these settings."
        )


def _check_training(checkpoint_steps: int, answers: int) -> None:
    if checkpoint_steps < 1 or answers < 0:
        raise ValueError(
            f"You set checkpoint_steps={checkpoint_steps} and answers={answers} of a stage that trains. "
            "Set at least 1, and 0 or more."
        )
