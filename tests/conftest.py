"""Fixtures for all tests: no network, no accelerator, one tiny model on disk."""

import gc
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

# Files that take long with few tests. With `--dist loadfile` they go first, so that no worker ends alone with one.
LONG = (
    "hub/test_clients.py", "lifelong/test_dynamic_replay.py", "lifelong/test_kill_and_resume.py", "test_readme.py",
    "lifelong/test_life.py", "hub/test_moves.py", "lifelong/test_two_processes.py", "lifelong/test_recipe.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    home = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(home).as_posix() not in LONG)


def pytest_collection_finish() -> None:
    """What the imports have left stays to the end. Every training collects garbage, and looking through all of it each
    time took a third of a tiny life."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the tiny model and tokenizer."""
    from support.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")
