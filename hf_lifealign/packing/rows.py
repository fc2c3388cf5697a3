"""Which blocks share a row: bin packing whose rows cost a transformer the least."""

from collections.abc import Sequence

# Rows are no longer than that by themselves, for the sake of the dense mask's memory.
LONGEST_ROW = 4096


def fill_rows(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """First-fit decreasing: each item goes into the first row that has room for it, the longest items first.

    Args:
        lengths (`Sequence[int]`): of the items, in tokens.
        limit (`int`): most tokens of a row. An item longer than that has a row of its own.

    Returns:
        `list[list[int]]`: indices of the items of each row. Every item is in exactly one of them.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((i for i, left in enumerate(room) if lengths[item] <= left), None)
        if row is None:
            rows.append([])
            room.append(limit)
            row = len(rows) - 1
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def cheapest_rows(lengths: Sequence[int], even: float, limit: int | None = None) -> list[list[int]]:
    """Rows of the least cost ``rows * width * (1 + width / even)``: filling costs as much as tokens do, and attention
    grows with the width of a row.

    Args:
        lengths (`Sequence[int]`): of the items, in tokens.
        even (`float`): width of a row at which attention over it costs as much as all else.
        limit (`int`, *optional*): most tokens of a row that holds more than one item.

    Returns:
        `list[list[int]]`: as of [`fill_rows`], which is tried with the widths that whole numbers of rows would need.
    """
    if not lengths:
        return []
    longest, total = max(lengths), sum(lengths)
    most = max(longest, limit if limit is not None else LONGEST_ROW)
    widths = {longest, *(-(-total // count) for count in range(1, len(lengths) + 1))}
    best: tuple[float, list[list[int]]] | None = None
    for width in sorted(w for w in widths if longest <= w <= most):
        rows = fill_rows(lengths, width)
        used = max(sum(lengths[i] for i in row) for row in rows)
        cost = len(rows) * used * (1 + used / even)
        if best is None or cost < best[0]:
            best = (cost, rows)
    assert best is not None  # `longest` is always tried
    return best[1]
