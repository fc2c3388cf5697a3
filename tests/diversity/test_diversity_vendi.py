"""The Vendi score against closed forms, singular values as an independent oracle, and what holds for any features."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

from hf_lifealign.diversity import vendi_score, vendi_score_of_features

ORDERS = [0.5, 1.0, 2.0, 7.0, math.inf]
shapes = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def unit_rows(draw):
    """Rows of length 1; some alike, since their entries are few."""
    raw = draw(hnp.arrays(np.float64, draw(shapes), elements=st.integers(-3, 3).map(float)))
    raw[:, 0] += (np.abs(raw).sum(axis=1) == 0) * 1.0
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def by_singular_values(features, q):
    """The entropy of the squared singular values of X / sqrt(n), written out."""
    p = np.linalg.svd(features / math.sqrt(len(features)), compute_uv=False) ** 2
    p = p[p > 1e-12]
    if q == math.inf:
        return 1 / p.max()
    if q == 1:
        return math.prod(x**-x for x in p)
    return sum(x**q for x in p) ** (1 / (1 - q))


@pytest.mark.parametrize("q", [0.0, *ORDERS])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_identical_and_orthogonal_rows(n, q):
    assert vendi_score(np.ones((n, n)), q) == pytest.approx(1.0, abs=1e-9)
    assert vendi_score(np.eye(n), q) == pytest.approx(n, rel=1e-9)
    assert vendi_score_of_features(np.eye(n), q) == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("q", [0.0, *ORDERS])
@pytest.mark.parametrize("m", [1, 3, 10])
def test_equal_groups_count_once_each(m, q):
    groups = np.repeat(np.eye(m), 6, axis=0)
    assert vendi_score(groups @ groups.T, q) == pytest.approx(m, rel=1e-9)
    assert vendi_score_of_features(groups, q) == pytest.approx(m, rel=1e-9)


def test_two_rows_of_a_given_similarity():
    """Eigenvalues (1 + s) / 2 and (1 - s) / 2."""
    for s in (0.0, 0.3, 0.9):
        p = np.array([(1 + s) / 2, (1 - s) / 2])
        kernel = np.array([[1, s], [s, 1]])
        assert vendi_score(kernel) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
        assert vendi_score(kernel, 2) == pytest.approx(1 / (p**2).sum())
        assert vendi_score(kernel, math.inf) == pytest.approx(2 / (1 + s))


def test_unequal_groups():
    """Three, two and one row of a kind: the probabilities are the shares."""
    rows = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    p = np.array([3, 2, 1]) / 6
    assert vendi_score_of_features(rows) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


@given(unit_rows(), st.sampled_from(ORDERS))
def test_as_by_singular_values(features, q):
    expected = by_singular_values(features, q)
    assert vendi_score(features @ features.T, q) == pytest.approx(expected, rel=1e-6)
    assert vendi_score_of_features(features, q) == pytest.approx(expected, rel=1e-6)
    assert vendi_score_of_features(csr_array(features), q) == pytest.approx(expected, rel=1e-6)


@given(unit_rows(), st.sampled_from(ORDERS), st.randoms(use_true_random=False))
def test_bounds_permutation_and_duplication(features, q, random):
    value = vendi_score_of_features(features, q)
    assert 1 - 1e-9 <= value <= min(features.shape) + 1e-9
    order = random.sample(range(len(features)), len(features))
    assert vendi_score_of_features(features[order], q) == pytest.approx(value, rel=1e-7)
    for times in (2, 3):  # also where that makes n greater than d, and the other product the smaller
        assert vendi_score_of_features(np.tile(features, (times, 1)), q) == pytest.approx(value, rel=1e-7)


@given(unit_rows())
def test_the_score_falls_with_the_order(features):
    values = [vendi_score_of_features(features, q) for q in ORDERS]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))


def test_orders_near_one_pass_into_shannon():
    p = np.array([0.7, 0.2, 0.1])
    kernel_rows = np.repeat(np.eye(3), [7, 2, 1], axis=0)
    shannon = math.exp(-(p * np.log(p)).sum())
    for step in (0.0, 1e-9, 1e-7, -1e-7, 1e-6):
        assert vendi_score_of_features(kernel_rows, 1 + step) == pytest.approx(shannon, abs=1e-5)


def test_a_low_order_does_not_count_rounding_as_rows():
    rng = np.random.default_rng(0)
    thin = rng.standard_normal((40, 3))
    thin /= np.linalg.norm(thin, axis=1, keepdims=True)
    assert vendi_score(thin @ thin.T, 0.0) == pytest.approx(3.0)
    assert vendi_score(thin @ thin.T, 0.05) < 3.0


def test_float32_features_pass():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert vendi_score_of_features(rows) == pytest.approx(by_singular_values(rows.astype(np.float64), 1), rel=1e-5)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (np.ones((2, 3)), "shape"),
        (np.ones((0, 0)), "shape"),
        (np.eye(2) * 2, "1 on its diagonal"),
        (np.array([[1, 0.5], [0.1, 1]]), "not symmetric"),
        (np.array([[1, np.nan], [np.nan, 1]]), "finite"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue -1"),
    ],
)
def test_kernels_that_are_none(kernel, words):
    with pytest.raises(ValueError, match=words):
        vendi_score(kernel)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.ones((0, 3)), "shape"),
        (np.ones(3), "shape"),
        (np.array([[1.0, 0.0], [3.0, 4.0]]), "Row 1 of the features has the length 5"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), "Row 1 of the features has the length 0"),
        (np.array([[np.nan, 0.0]]), "Row 0"),
    ],
)
def test_features_that_are_none(features, words):
    with pytest.raises(ValueError, match=words):
        vendi_score_of_features(features)


@pytest.mark.parametrize("q", [-1.0, math.nan])
def test_orders_that_are_none(q):
    with pytest.raises(ValueError, match="You set q="):
        vendi_score(np.eye(2), q)
