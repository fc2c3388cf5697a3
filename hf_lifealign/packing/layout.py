"""From pairs to rows of blocks: tokens, positions, who sees whom, and where each scored token is predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

PROMPT, CHOSEN, REJECTED = 0, 1, 2
# The block of what only fills a row.
FILLING = -1


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of one pair, cut as the trainer cuts them.

    Args:
        chosen, rejected (`list[int]`): prompt and completion.
        chosen_start, rejected_start (`int`): index of the first token of the completion.
    """

    chosen: list[int]
    rejected: list[int]
    chosen_start: int
    rejected_start: int

    @property
    def is_empty(self) -> bool:
        """Whether the cut left no token of a completion."""
        return self.chosen_start >= len(self.chosen) or self.rejected_start >= len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer side, prompt included."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def scored(self) -> int:
        """How many tokens of both completions are predicted by something."""
        sides = ((self.chosen, self.chosen_start), (self.rejected, self.rejected_start))
        return sum(max(0, len(ids) - max(start, 1)) for ids, start in sides)

    @property
    def shared(self) -> int:
        """How many tokens both sides begin with before either completion: the prompt, unless a cut at its start has
        left different parts of it."""
        most = min(self.chosen_start, self.rejected_start, len(self.chosen), len(self.rejected))
        if self.chosen[:most] == self.rejected[:most]:
            return most
        return next(i for i in range(most) if self.chosen[i] != self.rejected[i])


@dataclass(frozen=True)
class PackedRows:
    """Blocks of pairs in rows.

    Args:
        input_ids (`torch.Tensor` of shape `(rows, width)`).
        positions (`torch.Tensor` of shape `(rows, width)`): restarted in each block; both branches go on from the
            prompt.
        blocks (`torch.Tensor` of shape `(rows, width)`): number of the pair, -1 where the row is only filled.
        branches (`torch.Tensor` of shape `(rows, width)`): 0 prompt, 1 chosen, 2 rejected.
        sources (`torch.Tensor` of shape `(scored,)`): where in the flattened rows each scored token is predicted. The
            first tokens of both completions are predicted in the same place, at the end of the prompt.
        targets (`torch.Tensor` of shape `(scored,)`): the scored tokens.
        sides (`torch.Tensor` of shape `(scored,)`): the sequence of a scored token, where the chosen ones of all pairs
            come first and the rejected ones follow.
        steps (`torch.Tensor` of shape `(scored,)`): its index in that sequence, from 0.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    branches: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    sides: torch.Tensor
    steps: torch.Tensor

    def to(self, device: torch.device | str) -> "PackedRows":
        """The same on a device."""
        return PackedRows(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


# Which items go into which row, by their lengths.
Choice = Callable[[list[int]], list[list[int]]]


def lay_out(pairs: Sequence[EncodedPair], choose: Choice, pad: int = 0) -> PackedRows:
    """Lays pairs as `[prompt | chosen | rejected]` blocks into rows.

    The last token of a completion predicts nothing and is left out. A completion token at the very start of its
    sequence is predicted by nothing and not scored, as in DPOTrainer.

    Args:
        pairs (`Sequence[EncodedPair]`): of one batch.
        choose (`Callable`): gives the rows for lengths, as [`~hf_lifealign.packing.rows.cheapest_rows`] does.
        pad (`int`): what fills a row; any valid token id.
    """
    blocks = [_block(pair) for pair in pairs]
    held = [i for i, block in enumerate(blocks) if block.ids]
    lengths = [len(blocks[i].ids) for i in held]
    rows = [[held[i] for i in row] for row in choose(lengths)]
    width = max((sum(len(blocks[i].ids) for i in row) for row in rows), default=1)
    cells = max(1, len(rows)) * width
    ids, positions, branches = [pad] * cells, [0] * cells, [PROMPT] * cells
    owners = [FILLING] * cells
    sources: list[int] = []
    targets: list[int] = []
    sides: list[int] = []
    steps: list[int] = []
    for number, row in enumerate(rows):
        at = number * width
        for i in row:
            block = blocks[i]
            end = at + len(block.ids)
            ids[at:end], positions[at:end], branches[at:end] = block.ids, block.positions, block.branches
            owners[at:end] = [i] * len(block.ids)
            sources += [at + place for place in block.sources]
            targets += block.targets
            sides += [i + len(pairs) * side for side in block.sides]
            steps += block.steps
            at = end
    shape = (max(1, len(rows)), width)
    return PackedRows(
        *(torch.tensor(values).view(shape) for values in (ids, positions, owners, branches)),
        *(torch.tensor(values, dtype=torch.long) for values in (sources, targets, sides, steps)),
    )


@dataclass(frozen=True)
class _Block:
    """A pair's part of a row; `sides` are 0 for chosen and 1 for rejected."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    sources: list[int]
    targets: list[int]
    sides: list[int]
    steps: list[int]


def _block(pair: EncodedPair) -> _Block:
    shared = pair.shared
    ids, positions, branches = pair.chosen[:shared], list(range(shared)), [PROMPT] * shared
    sources: list[int] = []
    targets: list[int] = []
    sides: list[int] = []
    steps: list[int] = []
    for side, (tokens, start) in enumerate(
        ((pair.chosen, pair.chosen_start), (pair.rejected, pair.rejected_start)),
    ):
        first = max(start, 1)
        if first >= len(tokens):
            continue  # nothing of it is scored
        begin = len(ids)
        ids = ids + tokens[shared:-1]
        positions = positions + list(range(shared, len(tokens) - 1))
        branches = branches + [CHOSEN + side] * (len(tokens) - 1 - shared)
        for step in range(first, len(tokens)):
            before = step - 1
            sources.append(before if before < shared else begin + before - shared)
            targets.append(tokens[step])
            sides.append(side)
            steps.append(step)
    if not sources:
        return _Block([], [], [], [], [], [], [])
    return _Block(ids, positions, branches, sources, targets, sides, steps)
