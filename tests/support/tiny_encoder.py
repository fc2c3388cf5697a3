"""A tiny random BERT with a byte-level tokenizer, to embed sentences with."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from support.tiny import tiny_tokenizer


def save_tiny_encoder(folder: Path, seed: int = 0) -> str:
    """Writes a random BERT (2 layers, width 32, 128 positions) and its tokenizer to `folder`."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
