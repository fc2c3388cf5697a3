"""What happens at which update of a training: pre-training, then rounds of alternating inner and outer steps."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

PRETRAIN, INNER, OUTER = "pretrain", "inner", "outer"


@dataclass(frozen=True)
class Place:
    """Where in the training a row of a batch stands.

    Args:
        kind (`str`): `"pretrain"`, `"inner"` or `"outer"`.
        round (`int`): 0 in pre-training, else the round, from 1.
        epoch (`int`): epoch over the buffer, from 0.
        row (`int`): position in the order of that epoch.
    """

    kind: str
    round: int
    epoch: int
    row: int


@dataclass(frozen=True)
class Schedule:
    """The plan of a training, known before it starts.

    Args:
        rows_per_update (`int`): rows of one optimizer step on all processes, accumulation included.
        offline_rows (`int`): rows of the offline set; 0 for no pre-training.
        pretrain_epochs (`int`): epochs over them.
        rounds (`int`): T of arXiv 2604.24178.
        kept_rows (`int`): rows that a round keeps.
        epochs (`int`): epochs over the kept rows of a round.
        outer (`bool`): whether each inner step is followed by an outer one on the same rows.
    """

    rows_per_update: int
    offline_rows: int
    pretrain_epochs: int
    rounds: int
    kept_rows: int
    epochs: int
    outer: bool = True

    @cached_property
    def pretrain_updates_per_epoch(self) -> int:
        return math.ceil(self.offline_rows / self.rows_per_update)

    @cached_property
    def pretrain_updates(self) -> int:
        return self.pretrain_updates_per_epoch * self.pretrain_epochs

    @cached_property
    def pairs_per_epoch(self) -> int:
        """Inner steps of an epoch; a last, incomplete batch is filled with rows of the same epoch."""
        return math.ceil(self.kept_rows / self.rows_per_update)

    @property
    def steps_per_pair(self) -> int:
        return 2 if self.outer else 1

    @cached_property
    def updates_per_round(self) -> int:
        return self.pairs_per_epoch * self.epochs * self.steps_per_pair

    @cached_property
    def updates(self) -> int:
        return self.pretrain_updates + self.rounds * self.updates_per_round

    @property
    def rows(self) -> int:
        """Length of the data loader's dataset: one number for each row of each update."""
        return self.updates * self.rows_per_update

    def place(self, number: int) -> Place:
        """What the row `number` of the training is."""
        update, offset = divmod(number, self.rows_per_update)
        if update < self.pretrain_updates:
            epoch, batch = divmod(update, self.pretrain_updates_per_epoch)
            return Place(PRETRAIN, 0, epoch, batch * self.rows_per_update + offset)
        index, step = divmod(update - self.pretrain_updates, self.updates_per_round)
        pair, side = divmod(step, self.steps_per_pair)
        epoch, batch = divmod(pair, self.pairs_per_epoch)
        return Place(OUTER if side else INNER, index + 1, epoch, batch * self.rows_per_update + offset)

    def inner_updates(self) -> int:
        """Inner steps of the whole training."""
        return self.rounds * self.pairs_per_epoch * self.epochs


def epoch_order(rows: int, seed: int, round: int, epoch: int) -> list[int]:
    """The order in which an epoch visits `rows` rows: a permutation that the arguments alone decide."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round * 1_009 + epoch)
    return torch.randperm(rows, generator=generator).tolist()
