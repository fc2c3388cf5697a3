"""What a published revision consists of: names that may occur, sizes and hashes, and the digest that identifies it.

A revision is self-contained: plain LoRA at the root, memory, lineage and the record of the run in ``slmc/``, the matrix
with its picture, and a card.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_lifealign.hub.errors import DamagedRevisionError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "README.md"
MATRIX = "matrix.json"
PICTURE = "matrix.png"
RECORD = "slmc/run.json"
LINEAGE = "slmc/lineage.json"
STRATEGIES = "slmc/strategies"

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}"
_ALLOWED = re.compile(
    rf"README\.md|adapter_config\.json|adapter_model\.safetensors|matrix\.json|matrix\.png"
    rf"|slmc/{_NAME}\.(?:json|safetensors)|slmc/strategies/[A-Za-z0-9_-]{{1,60}}/{_NAME}\.(?:json|safetensors)"
)
_GIGABYTE = 1024**3
# Bounds on what is fetched from a stranger's repository.
LARGEST = {".json": _GIGABYTE // 4, ".safetensors": 64 * _GIGABYTE, ".png": 64 * 1024**2, ".md": 16 * 1024**2,
           ".jinja": 1024**2}  # fmt: skip
LARGEST_TOTAL = 128 * _GIGABYTE
MOST_FILES = 2000

# What only tells when, where and how fast something was done; two lives that differ in nothing else are the same.
_CIRCUMSTANCES = ("date", "versions", "peak_memory_mb", "origin")
# Renderings of the rest, and the lineage, which holds this very digest.
_DERIVED = (CARD, PICTURE, LINEAGE)


def is_allowed(path: str) -> bool:
    """Whether a revision may hold a file of that name; nothing else is ever published or fetched."""
    return _ALLOWED.fullmatch(path) is not None and ".." not in path


def check_listing(sizes: Mapping[str, int], where: str, allowed: Callable[[str], bool] = is_allowed) -> None:
    """Checks the names and sizes that a repository states, before anything is fetched.

    Args:
        sizes (`Mapping[str, int]`): size in bytes of each file.
        where (`str`): the repository and revision, for errors.
        allowed (`Callable`): names that may occur.

    Raises:
        DamagedRevisionError: naming the file.
    """
    if len(sizes) > MOST_FILES:
        raise DamagedRevisionError(f"{where} lists {len(sizes)} files; a revision has at most {MOST_FILES}.")
    for path, size in sizes.items():
        if not allowed(path):
            raise DamagedRevisionError(
                f"{where} names a file {path!r}, which no revision holds. It was not made by this project, or was "
                "tampered with; nothing was fetched."
            )
        largest = LARGEST[Path(path).suffix]
        if not 0 <= size <= largest:
            raise DamagedRevisionError(
                f"{where} says that {path} has {size} bytes. At most {largest} are fetched; nothing was."
            )
    total = sum(sizes.values())
    if total > LARGEST_TOTAL:
        raise DamagedRevisionError(
            f"{where} has {total} bytes in all. At most {LARGEST_TOTAL} are fetched; nothing was."
        )


@dataclass(frozen=True)
class Content:
    """One file of a revision, on disk or in memory.

    Args:
        source (`Path` or `bytes`): where its bytes are.
    """

    source: Path | bytes

    def read(self) -> bytes:
        """All bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        # a file's hash in git covers its length as well
        plain, git = hashlib.sha256(), hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if isinstance(self.source, bytes):
            plain.update(self.source)
            git.update(self.source)
        else:
            with self.source.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    plain.update(chunk)
                    git.update(chunk)
        return plain.hexdigest(), git.hexdigest()

    @property
    def sha256(self) -> str:
        """Its SHA-256, which is also its name in LFS."""
        return self._hashes[0]

    @property
    def git_oid(self) -> str:
        """Its name as a git blob."""
        return self._hashes[1]


def timeless(value: Any) -> Any:
    """JSON without dates, durations and versions."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _CIRCUMSTANCES and not k.endswith("seconds")}
        return {key: timeless(item) for key, item in kept.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def json_digest(value: Any) -> str:
    """SHA-256 of JSON, whatever its order of keys and its layout."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def rows_digest(rows: Any) -> str:
    """SHA-256 of rows, by which others see whether theirs are the same."""
    return json_digest(json.loads(json.dumps(rows)))


def content_digest(files: Mapping[str, Content]) -> str:
    """What identifies a revision: SHA-256 over the names and hashes of its state.

    Two runs that were asked for the same and came to the same weights, memory and measures have the same digest,
    whenever they ran and wherever they are published. JSON counts by its values without dates and durations; the card
    and the picture, which are made from the rest, do not count.

    Args:
        files (`Mapping[str, Content]`): the files by their path in the repository.
    """
    parts = {}
    for path, content in files.items():
        if path in _DERIVED:
            continue
        if path.endswith(".json"):
            try:
                parts[path] = json_digest(timeless(json.loads(content.read())))
            except (ValueError, RecursionError) as error:
                raise DamagedRevisionError(f"{path} is not valid JSON: {error}.") from error
        else:
            parts[path] = content.sha256
    return json_digest(parts)
