"""Who sees whom in packed rows, as the attention backends want it."""

from typing import Any

import torch

from hf_lifealign.packing.layout import PROMPT, PackedRows

# Attention implementations of transformers that take a mask of our own.
DENSE = ("sdpa", "eager")
FLEX = "flex_attention"


def sees(rows: PackedRows) -> torch.Tensor:
    """Whether a token sees another: one before it, or itself, of the same block, in its prompt or its own branch.

    What only fills a row sees what filled it before, so that no token sees nothing.

    Returns:
        `torch.Tensor` of shape `(rows, width, width)`, boolean, queries before keys.
    """
    blocks, branches = rows.blocks, rows.branches
    same = blocks[:, :, None] == blocks[:, None, :]
    reached = (branches[:, None, :] == PROMPT) | (branches[:, :, None] == branches[:, None, :])
    width = blocks.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=blocks.device).tril()
    return same & reached & causal


def attention_mask(rows: PackedRows, implementation: str, dtype: torch.dtype) -> Any:
    """What to give a transformers model as `attention_mask`.

    Args:
        rows ([`PackedRows`]): on the model's device.
        implementation (`str`): `"sdpa"`, `"eager"` or `"flex_attention"`.
        dtype (`torch.dtype`): in which `"eager"` adds its mask to the scores.

    Returns:
        `torch.Tensor` of shape `(rows, 1, width, width)`, boolean, or to be added for `"eager"`; a `BlockMask` for
        `"flex_attention"`.
    """
    if implementation == FLEX:
        return _block_mask(rows)
    mask = sees(rows)[:, None]
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def _block_mask(rows: PackedRows) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    blocks, branches = rows.blocks, rows.branches

    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same = blocks[row, query] == blocks[row, key]
        branch = branches[row, key]
        return same & ((branch == PROMPT) | (branch == branches[row, query])) & (key <= query)

    count, width = blocks.shape
    return create_block_mask(seen, count, None, width, width, device=str(blocks.device))
