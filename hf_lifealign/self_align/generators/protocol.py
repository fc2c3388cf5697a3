"""What a generator is: a call goes in, as many texts come out, and the same call means the same texts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class GeneratorError(RuntimeError):
    """Why a generator gave no texts, after everything was tried that may help."""


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn.

    Args:
        temperature (`float`): 0 takes the likeliest token each time.
        top_p (`float`): share of the probability that the tokens kept at each step have, in (0, 1].
        max_new_tokens (`int`): longest text.
        stop (`tuple[str]`): a text ends before the first of these.
        no_repeat_ngram_size (`int`): no run of so many tokens comes twice; 0 for no limit. Not every backend can.

    Raises:
        ValueError: for values out of their ranges.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        for name, sound, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("stop", all(self.stop), "texts that are not empty"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 or more"),
        ):
            if not sound:
                raise ValueError(f"You set {name}={getattr(self, name)!r} of a sampling. Set {wanted}.")


@dataclass(frozen=True)
class Call:
    """Prompts that are answered together.

    Which prompts share a call is part of what comes out: in a batch, padding changes the last bits of probabilities,
    and with them a draw now and then. So calls are planned beforehand, and one that was cut short is made again whole.

    Args:
        prompts (`tuple[str]`): as the model is to read them.
        sampling ([`Sampling`]): the same for all.
        seed (`int`): of the drawing.
    """

    prompts: tuple[str, ...]
    sampling: Sampling
    seed: int

    def digest(self, identity: str) -> str:
        """SHA-256 of the call and of who answers it."""
        told = json.dumps([identity, asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Generation:
    """A text.

    Args:
        text (`str`): without what ended it.
        finished (`bool`): whether it came to an end by itself, by its end token or a stop string.
        tokens (`int`): that were drawn.
    """

    text: str
    finished: bool
    tokens: int


class Generator(Protocol):
    """Writes texts.

    Attributes:
        batch_size (`int`): prompts of a call.
        concurrency (`int`): calls at a time.
    """

    batch_size: int
    concurrency: int

    def identity(self) -> str:
        """By which its texts are cached: another model, revision or chat template has another one."""
        ...

    def refuse_too_long(self, prompts: Sequence[str], sampling: Sampling) -> None:
        """Raises `ValueError`, before anything is generated, for a prompt whose answer would not fit into the
        context."""
        ...

    def generate(self, call: Call) -> list[Generation]:
        """A text for each prompt of a call; raises [`GeneratorError`] if there is no way to get them."""
        ...


def plan_calls(prompts: Sequence[str], sampling: Sampling, seed: int, batch_size: int) -> list[Call]:
    """Calls of `batch_size` prompts, in their order, each with a seed of its own."""
    chunks = [tuple(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    return [Call(chunk, sampling, derived_seed(seed, i)) for i, chunk in enumerate(chunks)]


def prompt_ids(tokenizer: Any, prompts: Sequence[str], chat: bool) -> list[list[int]]:
    """Tokens of prompts, read as they are, or as a user's message through the chat template."""
    if not prompts:
        return []
    if not chat:
        return [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return [list(ids) for ids in encoded["input_ids"]]


def refuse_no_template(tokenizer: Any, chat: bool) -> None:
    """Raises `ValueError` where a chat template is to be used and there is none."""
    if chat and not tokenizer.chat_template:
        raise ValueError("You set chat=True, and the model has no chat template. Leave it out: prompts are read plain.")


def refuse_longer(prompts: Sequence[str], ids: Sequence[Sequence[int]], sampling: Sampling, room: int | None) -> None:
    """Raises `ValueError` for a prompt that leaves no room for its answer; `room` is how many tokens the model reads,
    `None` where that is not known."""
    for prompt, told in zip(prompts, ids, strict=True):
        if room is not None and len(told) + sampling.max_new_tokens > room:
            raise ValueError(
                f"A prompt has {len(told)} tokens, its answer up to {sampling.max_new_tokens}, and the model reads "
                f"{room}. Set preset: compact, fewer max_new_tokens, or a model with a longer context. The prompt ends "
                f"with {prompt[-80:]!r}."
            )


def generated(generator: Generator, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[Generation]:
    """A text for each prompt, in their order; nothing is kept."""
    calls = plan_calls(prompts, sampling, seed, generator.batch_size)
    return [each for call in calls for each in generator.generate(call)]


def derived_seed(*parts: Any) -> int:
    """A seed of 63 bits from whatever tells one purpose from another."""
    told = json.dumps(parts, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") >> 1


def until_stop(made: Generation, stop: Sequence[str]) -> Generation:
    """A text up to the first stop string, which ends it."""
    ends = [at for at in (made.text.find(each) for each in stop) if at >= 0]
    return Generation(made.text[: min(ends)], True, made.tokens) if ends else made
