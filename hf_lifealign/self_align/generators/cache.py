"""Calls that were made are kept on disk, so that a run that is killed makes none of them twice."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from hf_lifealign._files import write_json
from hf_lifealign.self_align.generators.protocol import Call, Generation, Generator, Sampling, plan_calls

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CallCache:
    """A generator whose calls are kept, each in a file of its own that is written whole or not at all.

    Args:
        generator ([`Generator`]): that makes the calls.
        folder (`Path`): of the kept ones.
    """

    def __init__(self, generator: Generator, folder: Path):
        self.generator, self.folder = generator, folder
        self._identity = generator.identity()
        self.made = 0
        """Calls that were made, and not found."""

    def run(self, calls: Sequence[Call]) -> Iterator[list[Generation]]:
        """The texts of each call, in the order of the calls, as soon as they are there.

        As many calls are under way at a time as the generator allows; those that nobody waits for any more, since the
        caller has gone or one has failed, are not begun.
        """
        ahead = max(1, self.generator.concurrency)
        if ahead == 1:
            for call in calls:
                yield self._one(call)
            return
        with ThreadPoolExecutor(ahead) as pool:
            waiting: list[Future[list[Generation]]] = []
            try:
                for call in calls:
                    waiting.append(pool.submit(self._one, call))
                    if len(waiting) >= 2 * ahead:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def texts(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Iterator[Generation]:
        """A text for each prompt, in their order, in calls as large as the generator takes them; see
        [`plan_calls`]."""
        for made in self.run(plan_calls(prompts, sampling, seed, self.generator.batch_size)):
            yield from made

    def find(self, call: Call) -> list[Generation] | None:
        """The kept texts of a call; `None` if it was not made, or if its file is damaged, which is told."""

        def read(content: Any) -> list[Generation]:
            found = [
                Generation(str(row["text"]), bool(row["finished"]), int(row["tokens"]))
                for row in content["generations"]
            ]
            if len(found) != len(call.prompts):
                raise ValueError(f"{len(found)} texts for {len(call.prompts)} prompts")
            return found

        return read_kept(self._file(call), read)

    def _one(self, call: Call) -> list[Generation]:
        found = self.find(call)
        if found is None:
            found = self.generator.generate(call)
            if len(found) != len(call.prompts):
                raise ValueError(
                    f"The generator gave {len(found)} texts for {len(call.prompts)} prompts. It has to give one each."
                )
            # half of a surrogate pair, as a server may send it, can be written nowhere
            found = [replace(each, text=each.text.encode("utf-8", "replace").decode()) for each in found]
            write_json(self._file(call), {"call": asdict(call), "generations": [asdict(each) for each in found]})
            self.made += 1
        return found

    def _file(self, call: Call) -> Path:
        return kept_file(self.folder, call.digest(self._identity))


def kept_file(folder: Path, digest: str) -> Path:
    """Where something is kept under a digest; not all in one folder, which would hold too many."""
    return folder / digest[:2] / f"{digest}.json"


def read_kept(file: Path, read: Callable[[Any], T]) -> T | None:
    """What is kept in a JSON file; `None` if there is nothing, or if it is damaged, which is told.

    Args:
        file (`Path`): of [`kept_file`].
        read (`Callable`): makes it of the JSON content, or raises `ValueError`, `TypeError` or `KeyError`.
    """
    if not file.is_file():
        return None
    try:
        return read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning(f"What is kept in {file} is damaged ({error}); it is made again.")
        return None
