"""The answers a phase trains on, and their cache on disk, by which a killed round is not generated twice."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_lifealign._files import read_json, remove_folder, write_json
from hf_lifealign.meta_aligner.preferences import RewardStatistics, realised_preference
from hf_lifealign.meta_aligner.schedule import epoch_order


@dataclass(frozen=True)
class Answer:
    """One answer with its ratings.

    Args:
        prompt (`int`): row of the dataset.
        prompt_ids, completion_ids (`list[int]`): tokens.
        rewards (`list[float]`): one for each objective; NaN where a reward function returned None.
        weights (`list[float]`): preference under which it was generated; empty for an offline answer.
    """

    prompt: int
    prompt_ids: list[int]
    completion_ids: list[int]
    rewards: list[float]
    weights: list[float]


@dataclass
class Buffer:
    """Rated answers and which of them are trained on.

    Args:
        answers (`list[Answer]`): all of them.
        scores (`torch.Tensor` of shape `(answers, objectives)`): z-scored rewards; NaN rows are never kept.
        targets (`torch.Tensor` of shape `(answers, objectives)`): realised preferences.
        kept (`list[int]`): which are trained on.
    """

    answers: list[Answer]
    scores: torch.Tensor
    targets: torch.Tensor
    kept: list[int]

    @classmethod
    def of(cls, answers: list[Answer], statistics: RewardStatistics, tau: float) -> "Buffer":
        """A buffer that keeps every answer that all reward functions have rated."""
        scores = statistics.normalise(rewards_of(answers))
        kept = torch.isfinite(scores).all(-1).nonzero().flatten().tolist()
        return cls(answers, scores, realised_preference(scores, tau), kept)

    def row(self, position: int, seed: int, round: int, epoch: int) -> int:
        """Which answer stands at a position of an epoch; positions past the end begin the same epoch again."""
        key = (seed, round, epoch, len(self.kept))
        if getattr(self, "_order_key", None) != key:
            self._order_key, self._order = key, epoch_order(len(self.kept), seed, round, epoch)
        return self.kept[self._order[position % len(self.kept)]]


def rewards_of(answers: Sequence[Answer]) -> torch.Tensor:
    """Rewards of answers, `torch.Tensor` of shape `(answers, objectives)`."""
    return torch.tensor([answer.rewards for answer in answers], dtype=torch.float32)


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers for a JSON file; a missing reward is null."""
    return [asdict(a) | {"rewards": [None if r != r else r for r in a.rewards]} for a in answers]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Answer]:
    """Answers from what [`as_json`] made of them."""
    missing = float("nan")
    return [Answer(**{**row, "rewards": [missing if r is None else r for r in row["rewards"]]}) for row in rows]


class AnswerCache:
    """The finished batches of a round in a folder, for one process.

    Args:
        folder (`Path`): of the round.
        fingerprint (`str`): of everything that decides its answers; other answers in the folder are removed.
        rank (`int`): number of the process.
        is_main (`bool`): whether this process removes what does not belong.
    """

    def __init__(self, folder: Path, fingerprint: str, rank: int, is_main: bool):
        self.folder, self.rank = folder, rank
        meta = folder / "round.json"
        if is_main and not (meta.is_file() and read_json(meta).get("fingerprint") == fingerprint):
            remove_folder(folder)
            write_json(meta, {"fingerprint": fingerprint})

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{self.rank:05d}-{index:06d}.json"

    def finished(self) -> int:
        """How many of this process's batches are there, without a gap."""
        count = 0
        while self._part(count).is_file():
            count += 1
        return count

    def read(self, index: int) -> tuple[list[Answer], dict[str, list[float]]]:
        """The answers of a finished batch, and the metrics that reward functions logged of it."""
        content = read_json(self._part(index))
        return from_json(content["answers"]), content["metrics"]

    def write(self, index: int, answers: Sequence[Answer], metrics: dict[str, list[float]]) -> None:
        """Keeps a batch; the file is there wholly or not at all."""
        write_json(self._part(index), {"answers": as_json(answers), "metrics": metrics})


def shares(items: int, batch: int, processes: int, rank: int) -> list[tuple[list[int], int]]:
    """What a process does of `items` things, batch by batch; all processes have the same number of equal batches.

    Returns:
        `list` of `(indices, own)`: only the first `own` of the indices are this process's; the rest repeat others so
        that every process has as much to do, since they work in step.
    """
    rounds = -(-items // (batch * processes))
    batch = min(batch, -(-items // processes))
    plan = []
    for number in range(rounds):
        start = (number * processes + rank) * batch
        own = max(0, min(items, start + batch) - start)
        plan.append(([index % items for index in range(start, start + batch)], own))
    return plan
