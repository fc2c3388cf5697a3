"""Reference log-probabilities of a run's fixed rows under the untouched base: computed once, kept, checked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_lifealign._files import read_json, write_json
from hf_lifealign.lifelong.scoring import EncodedPair


def pairs_digest(pairs: list[EncodedPair], *words: str) -> str:
    """SHA-256 over the exact tokens that were scored and whatever else decides the values."""
    content = [[p.chosen, p.rejected, p.chosen_start, p.rejected_start] for p in pairs]
    return hashlib.sha256(json.dumps([list(words), content]).encode()).hexdigest()


# log-probabilities of chosen and rejected, in nats
LogPs = tuple[float, float]


class ReferenceStore:
    """Values in JSON files, each whole or absent, each valid for exactly the tokens and settings it names.

    Args:
        is_main_process (`bool`): whether this process writes.
    """

    def __init__(self, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        self._cache: dict[tuple[Path, str], list[LogPs]] = {}

    def get(
        self,
        path: Path,
        pairs: list[EncodedPair],
        words: tuple[str, ...],
        compute: Callable[[], list[LogPs]],
    ) -> list[LogPs]:
        """Values of `pairs`, from memory, from `path`, or from `compute`.

        A file that does not fit the pairs (changed data or settings) is computed anew, never trusted.

        Returns:
            `list[tuple[float, float]]`: log-probabilities of chosen and rejected, in nats.
        """
        digest = pairs_digest(pairs, *words)
        if (path, digest) in self._cache:
            return self._cache[path, digest]
        values: list[LogPs] | None = None
        if broadcast_object_list([path.is_file()])[0]:
            stored = read_json(path)
            if stored.get("digest") == digest and len(stored["logps"]) == len(pairs):
                values = [(float(a), float(b)) for a, b in stored["logps"]]
        if values is None:
            values = compute()
            if self.is_main_process:
                write_json(path, {"digest": digest, "logps": values})
            PartialState().wait_for_everyone()
        self._cache[path, digest] = values
        return values
