"""Reference log-probabilities under the untouched base: found by content, computed once a run, kept, checked."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock

from hf_lifealign._files import write_text
from hf_lifealign.packing import EncodedPair

logger = logging.getLogger(__name__)

# log-probabilities of chosen and rejected, in nats
LogPs = tuple[float, float]


def pair_key(pair: EncodedPair) -> str:
    """SHA-256 over the exact tokens that are scored, as they were cut."""
    content = [pair.chosen, pair.rejected, pair.chosen_start, pair.rejected_start]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class ReferenceStore:
    """Values by the content of their pairs, in a file for each way of computing them.

    `FOLDER/<digest>.jsonl` has a line for each pair, with a sum over what it says. Tasks, epochs, replay, evaluation
    and resumed runs all find their pairs there, and so do other runs that share the folder, at the same time too. A
    line that is damaged counts as missing.

    Args:
        folder (`Path`): of the run, or one that runs share.
        is_main_process (`bool`): whether this process reads and writes; the others are told.
    """

    def __init__(self, folder: Path, is_main_process: bool) -> None:
        self.folder, self.is_main_process = folder, is_main_process
        self._tables: dict[str, dict[str, LogPs]] = {}

    def get(self, pairs: list[EncodedPair], words: tuple[str, ...], compute: Callable[[], list[LogPs]]) -> list[LogPs]:
        """Values of `pairs`, kept or from `compute`. Every process has to call it.

        If one of them is missing all are computed: numbers are rounded by the batch they are computed in, and so a set
        of pairs has the same values wherever it is computed whole.

        Args:
            pairs (`list[EncodedPair]`): as the trainer cuts them.
            words (`tuple[str]`): whatever else decides the values: base, precision, `ld_alpha`, how it is computed.
            compute (`Callable`): gives the values of all pairs.

        Returns:
            `list[tuple[float, float]]`: log-probabilities of chosen and rejected, in nats.
        """
        file = self.folder / f"{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}.jsonl"
        keys = [pair_key(pair) for pair in pairs]
        found: list[LogPs] | None = None
        if self.is_main_process:
            table = self._table(file)
            found = [table[key] for key in keys] if all(key in table for key in keys) else None
        found = broadcast_object_list([found])[0]
        if found is None:
            found = compute()
            if self.is_main_process:
                table = self._keep(file, dict(zip(keys, found, strict=True)))
                found = [table[key] for key in keys]
            found = broadcast_object_list([found])[0]
        return [(float(a), float(b)) for a, b in found]

    def _keep(self, file: Path, values: dict[str, LogPs]) -> dict[str, LogPs]:
        """Adds values to a file, and gives all that it then holds."""
        file.parent.mkdir(parents=True, exist_ok=True)
        # other runs may share the folder
        with FileLock(file.parent / ".lock"):
            # the first value of a pair stays, so that a run that goes on finds what it had
            table = values | (_read(file) if file.is_file() else {})
            write_text(file, "".join(_line(key, told) for key, told in table.items()))
        self._tables[file.name] = table
        return table

    def _table(self, file: Path) -> dict[str, LogPs]:
        if file.name not in self._tables:
            self._tables[file.name] = _read(file) if file.is_file() else {}
        return self._tables[file.name]


def _line(key: str, values: LogPs) -> str:
    told: list[Any] = [key, *values]
    return json.dumps([*told, _sum(told)]) + "\n"


def _sum(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _read(file: Path) -> dict[str, LogPs]:
    found: dict[str, LogPs] = {}
    damaged = 0
    for line in file.read_bytes().splitlines():
        try:
            key, chosen, rejected, kept = json.loads(line)
            if kept != _sum([key, chosen, rejected]):
                raise ValueError("the sum is that of other values")
            found[str(key)] = (float(chosen), float(rejected))
        except (ValueError, TypeError):
            damaged += 1
    if damaged:
        logger.warning(f"{damaged} of the lines of {file} are damaged; what they told is computed again.")
    return found
