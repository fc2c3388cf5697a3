"""Preference pairs laid as `[prompt | chosen | rejected]` blocks, several to a row: each prompt is computed once."""

from hf_lifealign.packing.layout import EncodedPair, PackedRows, lay_out
from hf_lifealign.packing.mask import attention_mask, sees
from hf_lifealign.packing.rows import cheapest_rows, fill_rows
from hf_lifealign.packing.support import why_not_packed

__all__ = [
    "EncodedPair",
    "PackedRows",
    "attention_mask",
    "cheapest_rows",
    "fill_rows",
    "lay_out",
    "sees",
    "why_not_packed",
]
