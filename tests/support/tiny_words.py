"""A tiny GPT over a handful of words, short enough that all its answers can be enumerated."""

import itertools
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ["<pad>", "<end>", "ask", "about", "yes", "no", "fine", "bad"]
END = 1


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, split at spaces."""
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", padding_side="left")


def word_model(seed: int = 0, **overrides: Any) -> GPT2LMHeadModel:
    """GPT-2 of 2 layers, width 16, over those words; dropout is on in training."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.4,
        "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0,
    }  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**(settings | overrides)))


def all_answers(length: int) -> list[list[int]]:
    """Every answer of at most `length` tokens: it ends with the end, or has that many."""
    found = []
    for row in itertools.product(range(len(WORDS)), repeat=length):
        end = row.index(END) + 1 if END in row else length
        if all(token == 0 for token in row[end:]):
            found.append(list(row[:end]))
    return found
