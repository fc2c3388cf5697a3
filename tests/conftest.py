"""Fixtures for all tests: no network, no accelerator, one tiny model on disk."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tiny tensors gain nothing from threads, and spinning threads of several processes starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the tiny model and tokenizer."""
    from support.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")
