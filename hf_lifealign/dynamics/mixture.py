"""Batches of new and rehearsed rows whose share changes while training goes on, the same after a resume."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from hf_lifealign.strategies.sampling import seeded_generator


class Mixture:
    """Which share of a batch is rehearsal, from which batch on.

    Args:
        share (`float`): at the beginning, in [0, 1].
    """

    def __init__(self, share: float):
        self.plan: list[tuple[int, float]] = [(0, share)]

    @property
    def share(self) -> float:
        """The present share."""
        return self.plan[-1][1]

    def at(self, batch: int) -> float:
        """The share of a batch, counted from 0 over all processes."""
        return next(share for start, share in reversed(self.plan) if start <= batch)

    def change(self, share: float, first_batch: int) -> None:
        """Sets the share from a batch on; those before it stay as they were.

        Raises:
            ValueError: if the share is not in [0, 1], or the batch lies before an earlier change.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"You set a share of {share}. It has to lie in [0, 1].")
        if first_batch < self.plan[-1][0]:
            raise ValueError(f"The share was changed from batch {self.plan[-1][0]} on; {first_batch} lies before it.")
        if first_batch == self.plan[-1][0]:
            self.plan.pop()
        self.plan.append((first_batch, share))

    def to_json(self) -> list[list[float]]:
        """The changes so far."""
        return [[start, share] for start, share in self.plan]

    def load(self, plan: Sequence[Sequence[float]]) -> None:
        """Takes over changes that [`to_json`] told."""
        self.plan = [(int(start), float(share)) for start, share in plan]


class MixtureSampler(Sampler[int]):
    r"""
    Draws batches of which a share is rehearsal.

    A batch of `B` rows has ``floor(B r + u)`` rehearsed ones, with `u` uniform in [0, 1), so that the share is `r` on
    average. New and rehearsed rows are each taken in a seeded order that starts anew, in another one, when all were
    taken. What a batch holds depends on the seed, its number and the shares up to it alone, so that a resumed training
    sees the same rows.

    Args:
        rehearsed (`list[bool]`): for each row of the training set whether it is rehearsal; both kinds have to occur.
        batch_size (`int`): rows of a batch.
        length (`int`): rows that are drawn in all.
        mixture ([`Mixture`]): the shares.
        seed (`int`): of the order.

    Raises:
        ValueError: if there are no new rows, or none to rehearse.
    """

    def __init__(self, rehearsed: Sequence[bool], batch_size: int, length: int, mixture: Mixture, seed: int):
        flags = np.asarray(rehearsed, dtype=bool)
        self.rows = {kind: np.flatnonzero(flags == kind) for kind in (False, True)}
        if not len(self.rows[False]) or not len(self.rows[True]):
            new, old = len(self.rows[False]), len(self.rows[True])
            raise ValueError(f"There are {new} new and {old} rehearsed rows. A mixture needs both.")
        self.batch_size, self.length, self.mixture, self.seed = batch_size, length, mixture, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        sources = {kind: self._endless(kind) for kind in (False, True)}
        draws = seeded_generator(self.seed, "mixture")
        left, batch = self.length, 0
        while left:
            size = min(self.batch_size, left)
            count = min(size, int(np.floor(size * self.mixture.at(batch) + draws.random())))
            kinds = draws.permutation([True] * count + [False] * (size - count))
            for kind in kinds:
                yield int(next(sources[bool(kind)]))
            left, batch = left - size, batch + 1

    def _endless(self, kind: bool) -> Iterator[Any]:
        turn = 0
        while True:
            order = seeded_generator(self.seed, "mixture", str(kind), str(turn))
            yield from order.permutation(self.rows[kind])
            turn += 1

    def counts(self, batches: int) -> tuple[int, int]:
        """How many new and how many rehearsed rows the first `batches` batches hold."""
        wanted = min(self.length, batches * self.batch_size)
        old = set(self.rows[True].tolist())
        taken = [index in old for index, _ in zip(self, range(wanted), strict=False)]
        return wanted - sum(taken), sum(taken)
