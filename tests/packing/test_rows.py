"""Bin packing of blocks, by its own promises."""

from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.packing import cheapest_rows, fill_rows

LENGTHS = st.lists(st.integers(1, 90), max_size=14)


def cost(rows: list[list[int]], lengths: list[int], even: float) -> float:
    width = max(sum(lengths[i] for i in row) for row in rows)
    return len(rows) * width * (1 + width / even)


@given(LENGTHS, st.integers(1, 200))
def test_each_item_once_and_no_row_too_long(lengths: list[int], limit: int) -> None:
    rows = fill_rows(lengths, limit)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= limit for row in rows)


@given(LENGTHS.filter(bool), st.integers(1, 200))
def test_no_row_could_be_saved_by_joining_two(lengths: list[int], limit: int) -> None:
    filled = [sum(lengths[i] for i in row) for row in fill_rows(lengths, limit)]
    assert all(a + b > limit for k, a in enumerate(filled) for b in filled[:k])


def test_known_fillings() -> None:
    assert fill_rows([30, 70, 20, 60], 100) == [[1, 0], [3, 2]]
    assert fill_rows([5, 5], 4) == [[0], [1]]
    assert fill_rows([], 4) == []


@given(LENGTHS.filter(bool), st.sampled_from([10.0, 1000.0, 1e9]))
def test_the_cheapest_is_no_dearer_than_one_row_or_one_row_each(lengths: list[int], even: float) -> None:
    rows = cheapest_rows(lengths, even)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    everything, apart = [list(range(len(lengths)))], [[i] for i in range(len(lengths))]
    for other in (everything, fill_rows(lengths, max(lengths))):
        assert cost(rows, lengths, even) <= cost(other, lengths, even)
    assert cost(rows, lengths, even) <= cost(apart, lengths, even)


def test_attention_decides_between_wide_and_narrow_rows() -> None:
    lengths = [40, 30, 30]
    assert len(cheapest_rows(lengths, even=1e9)) == 1, "filling costs, attention does not"
    assert len(cheapest_rows(lengths, even=1.0)) > 1, "attention costs nearly all"


@given(LENGTHS.filter(bool), st.integers(1, 200))
def test_the_limit_binds_rows_of_several(lengths: list[int], limit: int) -> None:
    rows = cheapest_rows(lengths, 1e9, limit)
    most = max(limit, max(lengths))
    assert all(sum(lengths[i] for i in row) <= most for row in rows)


def test_long_rows_are_not_made_by_themselves() -> None:
    assert len(cheapest_rows([3000, 2000], even=1e12)) == 2
    assert len(cheapest_rows([3000, 2000], even=1e12, limit=6000)) == 1
    assert cheapest_rows([], even=1.0) == []
