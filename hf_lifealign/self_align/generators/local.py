"""A causal language model on this machine, in batches, by transformers."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_lifealign._modes import evaluating, generating_with
from hf_lifealign.self_align.generators.protocol import (
    Call,
    Generation,
    Sampling,
    prompt_ids,
    refuse_longer,
    refuse_no_template,
    until_stop,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersGenerator:
    """Generates with a model of transformers, padded on the left.

    Nothing of the model's own generation settings is used. Drawing follows the seed of a call alone, and the randomness
    of the process is left as it was.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): Hub id, folder, `"embedded:smollm2-135m"`, or a model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the model's own by default.
        batch_size (`int`): prompts of a call.
        chat (`bool`): whether a prompt is sent as a user's message through the chat template, or read as it is.
        dtype (`str`): of the weights that are loaded.
        device (`str`, *optional*): a GPU if there is one.
        revision (`str`, *optional*): of a model on the Hub.

    Raises:
        ValueError: if the model cannot be loaded, or `chat` is asked of one without a chat template.
    """

    concurrency = 1

    def __init__(
        self,
        model: "str | PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 16,
        chat: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_lifealign.judges.inference import default_device, load_pretrained
        from hf_lifealign.models import resolve_model

        if batch_size < 1:
            raise ValueError(f"You set batch_size={batch_size} of a generator. Set at least 1.")
        if isinstance(model, str):
            self.model, own = load_pretrained(
                AutoModelForCausalLM, resolve_model(model), revision, dtype, default_device(device), "generator"
            )
        else:
            self.model, own = model, None
        self.tokenizer: Any = tokenizer or own or AutoTokenizer.from_pretrained(self.model.config.name_or_path)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        refuse_no_template(self.tokenizer, chat)
        self.batch_size, self.chat = batch_size, chat

    @cached_property
    def _identity(self) -> str:
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        template = str(self.tokenizer.chat_template) if self.chat else ""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest.update(repr((template, vocabulary)).encode("utf-8", "surrogatepass"))
        return f"transformers-{digest.hexdigest()}-{self.batch_size}"

    def identity(self) -> str:
        """A digest of weights, vocabulary and chat template."""
        return self._identity

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return prompt_ids(self.tokenizer, prompts, self.chat)

    def refuse_too_long(self, prompts: Sequence[str], sampling: Sampling) -> None:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        refuse_longer(prompts, self._ids(prompts), sampling, room)

    def generate(self, call: Call) -> list[Generation]:
        import torch
        from transformers import GenerationConfig

        sampling = call.sampling
        rows = self._ids(call.prompts)
        width = max(map(len, rows))
        device = next(self.model.parameters()).device
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        ends = self._ends()
        drawn = sampling.temperature > 0
        chosen: dict[str, Any] = (
            {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if drawn
            else {"do_sample": False}
        )
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, pad_token_id=pad, eos_token_id=sorted(ends) or None, use_cache=True,
            no_repeat_ngram_size=sampling.no_repeat_ngram_size or None, stop_strings=list(sampling.stop) or None,
            **chosen,
        )  # fmt: skip
        gpus = [device.index or 0] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=gpus), evaluating(self.model):
            torch.manual_seed(call.seed)
            with generating_with(self.model, settings):
                output = self.model.generate(
                    input_ids=ids, attention_mask=mask, **({"tokenizer": self.tokenizer} if sampling.stop else {})
                )
        return [self._read(row, ends, sampling) for row in output[:, width:].tolist()]

    def _ends(self) -> set[int]:
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return {int(token) for token in [*listed, self.tokenizer.eos_token_id] if token is not None}

    def _read(self, row: list[int], ends: set[int], sampling: Sampling) -> Generation:
        """A row up to its end token or stop string; what follows is padding."""
        end = next((i for i, token in enumerate(row) if token in ends), None)
        kept = row if end is None else row[:end]
        # rows that met a stop string are filled up, too
        while kept and end is None and kept[-1] == self.tokenizer.pad_token_id:
            kept = kept[:-1]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return until_stop(Generation(text, end is not None, len(kept) + (end is not None)), sampling.stop)
