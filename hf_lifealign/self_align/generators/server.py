"""Any server that speaks OpenAI's protocol: vLLM, TGI, llama.cpp, Ollama, a provider; through the `openai` client."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from hf_lifealign.self_align.generators.protocol import Call, Generation, GeneratorError, Sampling, until_stop

logger = logging.getLogger(__name__)

# Where the client takes its key from, if none is given.
KEY = "OPENAI_API_KEY"


class ServerGenerator:
    """Asks a server, `concurrency` prompts at a time.

    Failures that may pass (no connection, timeouts, 408, 409, 429, 5xx) are tried again by the client, after longer and
    longer waits, or after the wait that the server asks for. Seeds are sent along; whether a server heeds them is its
    own affair, so that only kept calls are sure to come out the same.

    Args:
        model (`str`): its name on the server.
        base_url (`str`, *optional*): e.g. `"http://localhost:8000/v1"`; OpenAI's by default.
        api_key (`str`, *optional*): taken from the environment variable `OPENAI_API_KEY` by default; a server that
            wants none is given a placeholder. It is written nowhere.
        chat (`bool`): chat completions, with the prompt as a user's message; or plain completions, for base models.
        concurrency (`int`): requests at a time.
        timeout (`float`): seconds for a request.
        max_retries (`int`): after the first attempt.
        revision (`str`): by which you tell revisions of the model apart; kept calls of another one are not used.
        tokenizer (`str`, *optional*): Hub id or folder by which prompts are counted before the first request.
        context (`int`, *optional*): tokens that the model reads; the tokenizer's own limit by default.

    Raises:
        ImportError: without the `openai` package.
        ValueError: for settings that cannot work.
    """

    batch_size = 1

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        chat: bool = True,
        concurrency: int = 4,
        timeout: float = 120.0,
        max_retries: int = 5,
        revision: str = "",
        tokenizer: str | None = None,
        context: int | None = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "A server is asked through the package `openai`, which is not installed. "
                "Install it with `pip install hf-lifealign[server]`."
            ) from error
        if concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise ValueError(
                f"You set concurrency={concurrency}, timeout={timeout}, max_retries={max_retries} of a server. Set at "
                "least 1, more than 0 seconds, and 0 or more."
            )
        key = api_key or os.environ.get(KEY)
        if key is None and base_url is None:
            raise ValueError(f"You set neither a base_url nor a key. Set base_url, or the environment variable {KEY}.")
        self.client = openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=max_retries)
        self.model, self.chat, self.concurrency, self.revision = model, chat, concurrency, revision
        self.where = str(self.client.base_url)
        self._tokenizer: Any = None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        self.context = context
        self._warned = False

    def identity(self) -> str:
        """Server, model and the revision that you named: what the server has behind the name is not known."""
        return f"server {self.where} {self.model} {self.revision} {'chat' if self.chat else 'plain'}"

    def refuse_too_long(self, prompts: Sequence[str], sampling: Sampling) -> None:
        room = self.context or getattr(self._tokenizer, "model_max_length", None)
        if self._tokenizer is None or room is None:
            if not self._warned:
                self._warned = True
                logger.warning(
                    f"Whether prompts fit into the context of {self.model!r} is not known before they are sent. Set "
                    "tokenizer, and context, of the server to have them counted."
                )
            return
        for prompt in prompts:
            count = len(self._tokenizer(prompt)["input_ids"])
            if count + sampling.max_new_tokens > room:
                raise ValueError(
                    f"A prompt has {count} tokens, its answer up to {sampling.max_new_tokens}, and {self.model!r} "
                    f"reads {room}. Set preset: compact, fewer max_new_tokens, or a model with a longer context. The "
                    f"prompt ends with {prompt[-80:]!r}."
                )

    def generate(self, call: Call) -> list[Generation]:
        if call.sampling.no_repeat_ngram_size:
            raise ValueError(
                "You set no_repeat_ngram_size, which servers do not know. Set 0, or a model of transformers."
            )
        return [self._one(prompt, call.sampling, call.seed % 2**31 + i) for i, prompt in enumerate(call.prompts)]

    def _one(self, prompt: str, sampling: Sampling, seed: int) -> Generation:
        import openai

        # servers take four stop strings at most; the others are looked for here
        options: dict[str, Any] = {
            "model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed,
            "max_tokens": sampling.max_new_tokens, "stop": list(sampling.stop[:4]) or None,
        }  # fmt: skip
        options = {key: value for key, value in options.items() if value is not None}
        try:
            if self.chat:
                messages: Any = [{"role": "user", "content": prompt}]
                answer: Any = self.client.chat.completions.create(messages=messages, **options)
                choice = answer.choices[0]
                text = choice.message.content or ""
            else:
                answer = self.client.completions.create(prompt=prompt, **options)
                choice = answer.choices[0]
                text = choice.text or ""
        except openai.APIError as error:
            raise GeneratorError(self._told(error)) from error
        except (IndexError, AttributeError, TypeError) as error:
            raise GeneratorError(
                f"The server {self.where} answered for {self.model!r} in a form that is not OpenAI's. Check base_url."
            ) from error
        tokens = getattr(getattr(answer, "usage", None), "completion_tokens", None)
        finished = choice.finish_reason == "stop"
        return until_stop(Generation(text, finished, int(tokens or len(text.split()))), sampling.stop)

    def _told(self, error: Exception) -> str:
        import openai

        asked = f"The server {self.where} gave no answer for {self.model!r}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, openai.APIConnectionError):
            return f"{asked} Check base_url, and whether the server runs; calls that were answered are kept."
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{asked}. Set the key in {KEY}."
        if isinstance(error, openai.NotFoundError):
            return f"{asked}. Check the name of the model, and chat: base models take plain completions."
        return f"{asked}. Calls that were answered are kept: start again later."
