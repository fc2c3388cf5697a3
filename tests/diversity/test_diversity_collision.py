"""Collisions against closed forms, exact counting over all pairs, and what holds for any rows."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.diversity import exact_collision, prefix_collision

# few tokens and short rows, so that collisions are frequent and some rows are shorter than the prefix
tokens = st.lists(st.integers(0, 2), max_size=5)
sets = st.lists(tokens, min_size=2, max_size=12)


def over_all_pairs(rows):
    """The share of ordered pairs of different rows that are equal, counted one by one."""
    pairs = list(itertools.permutations(rows, 2))
    return Fraction(sum(a == b for a, b in pairs), len(pairs))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2]] * 5, 1.0),
        ([[1], [2], [3]], 0.0),
        ([[1], [1], [2], [2]], 1 / 3),
        ([[1], [1], [1], [2]], 1 / 2),
        ([[], []], 1.0),
        ([[], [0]], 0.0),
    ],
)
def test_closed_forms(rows, expected):
    assert exact_collision(rows) == expected


def test_ten_templates_of_a_hundred_rows_each():
    rows = [[template, template + 1] for template in range(10)] * 100
    assert exact_collision(rows) == 10 * 100 * 99 / (1000 * 999)


@given(sets, st.integers(1, 6))
def test_as_counted_over_all_pairs(rows, k):
    assert exact_collision(rows) == float(over_all_pairs(rows))
    assert prefix_collision(rows, k) == float(over_all_pairs([row[:k] for row in rows]))


@given(sets, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_longer_prefixes_collide_less(rows, random):
    mixed = random.sample(rows, len(rows))
    values = [prefix_collision(rows, k) for k in (1, 2, 4, 8)]
    assert [prefix_collision(mixed, k) for k in (1, 2, 4, 8)] == values
    assert values == sorted(values, reverse=True)
    assert values[-1] == exact_collision(rows)  # no row is longer than 8


def test_unbiased_over_every_sample():
    """Over all samples of 3 rows from one distribution the mean is sum p^2, which the plug-in estimate exceeds."""
    weights = {"a": Fraction(1, 2), "b": Fraction(1, 3), "c": Fraction(1, 6)}
    mean = sum(
        weights[x] * weights[y] * weights[z] * Fraction(exact_collision([x, y, z])).limit_denominator(6)
        for x, y, z in itertools.product(weights, repeat=3)
    )
    assert mean == sum(p * p for p in weights.values())


def test_a_row_shorter_than_the_prefix_collides_with_its_like_alone():
    assert prefix_collision([[1, 2], [1, 2], [1, 2, 3]], 2) == 1.0
    assert prefix_collision([[1, 2], [1, 2], [1, 2, 3]], 3) == 1 / 3


def test_arrays_tensors_and_texts_are_compared_by_content():
    rows = [[1, 2], [1, 2], [1, 3]]
    for kind in (np.array, torch.tensor, tuple, lambda row: "".join(map(str, row))):
        made = [kind(row) for row in rows]
        assert exact_collision(made) == 1 / 3
        assert prefix_collision(made, 1) == 1.0
    assert exact_collision(torch.tensor(rows)) == 1 / 3
    assert exact_collision(row for row in rows) == 1 / 3


@pytest.mark.parametrize("rows", [[], [[1]]])
def test_fewer_than_two_rows(rows):
    with pytest.raises(ValueError, match=f"You gave {len(rows)} row.*at least 2 rows"):
        exact_collision(rows)


@pytest.mark.parametrize("row", [5, None, {1, 2}, {"a": 1}, [[1], [2]], np.array(3), np.eye(2)])
def test_rows_that_are_no_sequences_of_tokens(row):
    with pytest.raises(ValueError, match=r"Row 1 is a \w+ that cannot be compared"):
        exact_collision([[1], row])


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2"])
def test_a_prefix_that_is_none(k):
    with pytest.raises(ValueError, match="You set k="):
        prefix_collision([[1], [1]], k)
