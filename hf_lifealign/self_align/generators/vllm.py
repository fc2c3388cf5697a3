"""A causal language model on GPUs of this machine, through vLLM, which is installed apart.

Written by vLLM's documentation of `LLM`, `SamplingParams`, `TokensPrompt` and `RequestOutput` (versions 0.22 to 0.31,
those that TRL supports), and tested with a stand-in of the same signatures; it has not been run on vLLM itself.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_lifealign.self_align.generators.protocol import (
    Call,
    Generation,
    GeneratorError,
    Sampling,
    derived_seed,
    prompt_ids,
    refuse_longer,
    refuse_no_template,
    until_stop,
)

# vLLM raises what lies between 0 and this to this, so that a text would be drawn otherwise than was asked for.
_LEAST_TEMPERATURE = 0.01
# Files by which a folder's model is told from another one.
_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt")


class VLLMGenerator:
    """Generates with vLLM, which puts the prompts of a call into batches by itself.

    Prompts are turned into tokens here, as for [`TransformersGenerator`], and vLLM is sent tokens. The model is loaded
    when the first text is needed: a run whose stages are finished needs none. Each prompt of a call has a seed of its
    own, from the call's seed and its place. By vLLM's documentation the same seeds are sure to mean the same texts only
    on the same hardware and version, and with the environment variable `VLLM_ENABLE_V1_MULTIPROCESSING=0` or
    `VLLM_BATCH_INVARIANT=1`; kept calls come out the same in any case.

    Args:
        model (`str`): Hub id, folder, or `"embedded:smollm2-135m"`. Only safetensors are read.
        batch_size (`int`): prompts of a call. Large ones keep the GPU busy; a call that is cut short is made again.
        chat (`bool`): whether a prompt is sent as a user's message through the chat template, or read as it is.
        dtype (`str`): of the weights; `"auto"` is what vLLM makes of the model's own.
        revision (`str`, *optional*): of a model on the Hub; the commit that it names now is what is loaded.
        max_model_len (`int`, *optional*): tokens of prompt and answer together; what the model can by default.
        tensor_parallel_size (`int`): GPUs that share the model.
        gpu_memory_utilization (`float`, *optional*): share of a GPU's memory in (0, 1]; vLLM's own default otherwise.

    Raises:
        ValueError: without vLLM, for settings that cannot work, if the model's config or tokenizer cannot be loaded, or
            `chat` is asked of one without a chat template.
    """

    concurrency = 1

    def __init__(
        self,
        model: str,
        batch_size: int = 256,
        chat: bool = False,
        dtype: str = "auto",
        revision: str | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
    ):
        from hf_lifealign.models import resolve_model

        self._vllm = _installed()
        share = gpu_memory_utilization
        if batch_size < 1 or tensor_parallel_size < 1 or (max_model_len is not None and max_model_len < 2):
            raise ValueError(
                f"You set batch_size={batch_size}, tensor_parallel_size={tensor_parallel_size} and max_model_len="
                f"{max_model_len} of vLLM. Set at least 1, at least 1, and at least 2 or nothing."
            )
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"You set gpu_memory_utilization={share} of vLLM. Set a number in (0, 1].")
        self.batch_size, self.chat, self.dtype = batch_size, chat, dtype
        self.path = resolve_model(model)
        self.tokenizer, config, self.commit = _described(self.path, revision)
        refuse_no_template(self.tokenizer, chat)
        own = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.context: int | None = max_model_len or own
        self._options: dict[str, Any] = {"tensor_parallel_size": tensor_parallel_size}
        if max_model_len is not None:
            self._options["max_model_len"] = max_model_len
        if share is not None:
            self._options["gpu_memory_utilization"] = share

    @cached_property
    def _model(self) -> Any:
        """vLLM's `LLM`, with the commit that the identity tells."""
        try:
            return self._vllm.LLM(
                model=self.path, revision=self.commit, tokenizer_revision=self.commit, dtype=self.dtype, seed=0,
                # a pickle from outside is never loaded, and no code of a repository is run
                load_format="safetensors", trust_remote_code=False, **self._options,
            )  # fmt: skip
        except Exception as error:
            raise ValueError(
                f"vLLM cannot load {self.path!r}: {' '.join(str(error).split())[:300]}. Set another model, dtype, "
                "max_model_len or gpu_memory_utilization, or backend: transformers."
            ) from error

    @cached_property
    def _identity(self) -> str:
        from hf_lifealign.models import public_name

        which = self.commit or f"sha256:{_folder_digest(Path(self.path))}"
        told = [f"vllm {self._vllm.__version__}", public_name(self.path), which, self.dtype]
        told += ["chat" if self.chat else "plain", str(self.batch_size), str(self._options["tensor_parallel_size"])]
        if self.chat:
            told.append(hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16])
        return " ".join(told)

    def identity(self) -> str:
        """vLLM's version, the model with its commit (of a folder, a digest of its files), dtype, form, and how its
        prompts share a call."""
        return self._identity

    def refuse_too_long(self, prompts: Sequence[str], sampling: Sampling) -> None:
        _refuse(sampling)
        refuse_longer(prompts, self._ids(prompts), sampling, self.context)

    def generate(self, call: Call) -> list[Generation]:
        sampling = call.sampling
        _refuse(sampling)
        asked = [{"prompt_token_ids": ids} for ids in self._ids(call.prompts)]
        settings = [
            self._vllm.SamplingParams(
                n=1, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_new_tokens,
                stop=list(sampling.stop) or None,
                # 31 bits, which every sampler of vLLM holds
                seed=derived_seed(call.seed, place) % 2**31,
            )
            for place in range(len(asked))
        ]  # fmt: skip
        model = self._model
        try:
            answered = model.generate(asked, settings, use_tqdm=False)
        except Exception as error:
            raise GeneratorError(
                f"vLLM gave no texts: {' '.join(str(error).split())[:300]}. Calls that were answered are kept: start "
                "again, with a smaller batch_size or gpu_memory_utilization if memory ran out."
            ) from error
        if len(answered) != len(asked):
            raise GeneratorError(f"vLLM gave {len(answered)} answers to {len(asked)} prompts. Start again.")
        return [self._read(each, sampling) for each in answered]

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return prompt_ids(self.tokenizer, prompts, self.chat)

    @staticmethod
    def _read(answer: Any, sampling: Sampling) -> Generation:
        (made,) = answer.outputs
        if made.finish_reason not in ("stop", "length"):
            raise GeneratorError(
                f"vLLM broke a text off ({made.finish_reason}). Calls that were answered are kept: start again."
            )
        # ended by its end token or by a stop string, which vLLM has cut off
        told = Generation(made.text, made.finish_reason == "stop", len(made.token_ids))
        return until_stop(told, sampling.stop)


def _installed() -> Any:
    """The package; `ValueError` where it is not there."""
    try:
        import vllm
    except ImportError as error:
        raise ValueError(
            f"You set the backend 'vllm' of the generator, and vLLM cannot be imported ({error}). Install it with "
            "`pip install vllm` on a machine with GPUs that it supports; or start `vllm serve` elsewhere, and set "
            "backend: server with its base_url; or set backend: transformers."
        ) from error
    return vllm


def _described(path: str, revision: str | None) -> tuple[Any, Any, str | None]:
    """Tokenizer and config of a model, and its commit on the Hub; `None` of a folder."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        # where the cache alone is asked, transformers may not tell the commit; the branch or tag is what is known then
        commit = None if Path(path).is_dir() else (getattr(config, "_commit_hash", None) or revision or "main")
        tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=commit, trust_remote_code=False)
    except (OSError, ValueError) as error:
        at = f" at the revision {revision!r}" if revision is not None else ""
        raise ValueError(
            f"You set the generator {path!r}{at}, whose config and tokenizer cannot be loaded: "
            f"{' '.join(str(error).split())} Give a Hub id, or a folder with config, tokenizer and safetensors."
        ) from error
    return tokenizer, config, commit


def _folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in _OF_A_MODEL:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _refuse(sampling: Sampling) -> None:
    """Refuses what vLLM would draw otherwise, or does not know, before anything is generated."""
    if sampling.no_repeat_ngram_size:
        raise ValueError(
            f"You set no_repeat_ngram_size={sampling.no_repeat_ngram_size}, which vLLM does not know. Set 0, or "
            "backend: transformers."
        )
    if sampling.temperature > 2 or 0 < sampling.temperature < _LEAST_TEMPERATURE:
        raise ValueError(
            f"You set temperature={sampling.temperature}. vLLM draws with 0, or {_LEAST_TEMPERATURE} to 2. Set one of "
            "these."
        )
