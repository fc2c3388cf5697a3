"""A stand-in for vLLM: the signatures, checks and outputs that its documentation tells, over a model of transformers.

Each request is drawn from a random generator of its own, as vLLM does with seeded requests.
"""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams:
    """What can be set, what is refused, and what is silently made of it."""

    def __init__(
        self, *, n: int = 1, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int | None = None,
        stop: str | list[str] | None = None, max_tokens: int | None = 16,
    ):  # fmt: skip
        if not 0 <= temperature <= 2 or not 0 < top_p <= 1 or n < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError("out of range")
        self.temperature = max(temperature, 0.01) if temperature else 0.0
        self.n, self.top_p, self.top_k, self.max_tokens = n, top_p, top_k, max_tokens
        self.seed = None if seed == -1 else seed
        self.stop = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
        if any(not each for each in self.stop):
            raise ValueError("stop cannot contain an empty string.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True


class LLM:
    """One model at a time; `made` holds what each was made with."""

    made: list[dict[str, Any]] = []
    asked: list[tuple[list[dict[str, Any]], list[SamplingParams]]] = []
    ends_as: str | None = None
    breaks: BaseException | None = None

    def __init__(
        self, model: str, *, tokenizer: str | None = None, trust_remote_code: bool = False,
        tensor_parallel_size: int = 1, dtype: str = "auto", revision: str | None = None,
        tokenizer_revision: str | None = None, seed: int = 0, gpu_memory_utilization: float = 0.92,
        load_format: str = "auto", max_model_len: int | None = None,
    ):  # fmt: skip
        given = dict(locals())
        self.made.append({key: value for key, value in given.items() if key != "self"})
        if tensor_parallel_size > 1:
            raise RuntimeError("not so many GPUs")
        self.model = AutoModelForCausalLM.from_pretrained(model, revision=revision).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=tokenizer_revision)
        own = self.model.config.max_position_embeddings
        self.room = max_model_len or own

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[RequestOutput]:
        if isinstance(prompts, str | dict):
            prompts = [prompts]
        given = sampling_params or SamplingParams()
        params = list(given) if isinstance(given, list | tuple) else [given] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        self.asked.append((list(prompts), params))
        if self.breaks is not None:
            raise self.breaks
        return [self._one(str(i), *each) for i, each in enumerate(zip(prompts, params, strict=True))]

    @torch.no_grad()
    def _one(self, number: str, prompt: Any, params: SamplingParams) -> RequestOutput:
        ids = list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt["prompt_token_ids"])
        if len(ids) >= self.room:
            raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than the maximum {self.room}")
        draws = torch.Generator().manual_seed(params.seed if params.seed is not None else torch.seed())
        found: list[int] = []
        text, reason, met = "", "length", None
        while len(found) < min(params.max_tokens or self.room, self.room - len(ids)):
            logits = self.model(torch.tensor([ids + found])).logits[0, -1]
            found.append(self._drawn(logits, params, draws))
            if found[-1] == self.tokenizer.eos_token_id:
                reason = "stop"
                break
            text = self.tokenizer.decode(found, skip_special_tokens=True)
            met = next((stop for stop in params.stop if stop in text), None)
            if met is not None:
                text, reason = text[: text.index(met)], "stop"
                break
        return RequestOutput(number, ids, [CompletionOutput(0, text, found, self.ends_as or reason, met)])

    @staticmethod
    def _drawn(logits: torch.Tensor, params: SamplingParams, draws: torch.Generator) -> int:
        if params.temperature == 0:
            return int(logits.argmax())
        ordered, places = torch.sort(torch.softmax(logits / params.temperature, -1), descending=True)
        kept = ordered * (ordered.cumsum(0) - ordered < params.top_p)
        return int(places[torch.multinomial(kept, 1, generator=draws)])


def fake_vllm(version: str = "0.31.0") -> ModuleType:
    """The module, with a class of its own for each test."""
    module: Any = ModuleType("vllm")
    module.__version__, module.SamplingParams = version, SamplingParams
    module.LLM = type("LLM", (LLM,), {"made": [], "asked": []})
    return module
