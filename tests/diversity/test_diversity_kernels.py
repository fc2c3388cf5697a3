"""N-grams, their distinct share and their similarity against counting one by one, in exact or float64 arithmetic."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from hf_lifealign.diversity import distinct_ngrams, mean_similarity, ngram_features
from hf_lifealign.diversity.ngrams import ngrams

rows_of = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=2, max_size=9)


def grams(row, n, short=True):
    found = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return found or ([("short", *row)] if short else [])


def cosine(a, b, n):
    x, y = Counter(grams(a, n)), Counter(grams(b, n))
    lengths = [math.sqrt(sum(c * c for c in counts.values())) for counts in (x, y)]
    return sum(x[g] * y[g] for g in x) / math.prod(lengths)


def similarity(a, b, orders=(1, 2)):
    return sum(cosine(a, b, n) for n in orders) / len(orders)


@given(rows_of, st.sampled_from([(1, 2), (1,), (2, 3), (1, 2, 3, 4)]))
def test_features_multiply_to_the_mean_of_cosines(rows, orders):
    features = ngram_features(rows, orders)
    oracle = np.array([[similarity(a, b, orders) for b in rows] for a in rows])
    np.testing.assert_allclose((features @ features.T).todense(), oracle, atol=1e-12)
    off = [oracle[i, j] for i, j in itertools.permutations(range(len(rows)), 2)]
    assert mean_similarity(features) == pytest.approx(np.mean(off), abs=1e-12)
    assert mean_similarity(features) >= 0


@given(rows_of, st.integers(1, 4), st.booleans())
def test_ngrams_as_counted(rows, n, short):
    found = ngrams(rows, n, whole_short_rows=short)
    expected = [(index, gram) for index, row in enumerate(rows) for gram in grams(row, n, short)]
    assert found.row.tolist() == [index for index, _ in expected]
    assert found.kinds == len({gram for _, gram in expected})
    # one number for each content, and one content for each number
    assert len(set(zip(found.code.tolist(), (gram for _, gram in expected), strict=True))) == found.kinds
    distinct = [gram for _, gram in expected if len(gram) == n and gram[0] != "short"]
    assert distinct_ngrams(rows, n) == (len(set(distinct)) / len(distinct) if distinct else 0.0)


def test_closed_forms():
    assert mean_similarity(ngram_features([["a", "b"]] * 4)) == pytest.approx(1.0, abs=1e-12)
    assert mean_similarity(ngram_features([["a", "b"], ["c", "d"], ["e"]])) == pytest.approx(0.0, abs=1e-12)
    # the same words in another order: cosine 1 for n = 1 and 0 for n = 2
    assert mean_similarity(ngram_features(["ab", "ba"])) == pytest.approx(0.5, abs=1e-12)
    assert distinct_ngrams(["aab", "ab"], 1) == 2 / 5
    assert distinct_ngrams(["aab", "ab"], 2) == 2 / 3
    assert distinct_ngrams(["a", "b"], 2) == 0.0


def test_rows_of_one_token():
    """They have no pair of tokens, and yet each is like itself to degree 1 and unlike longer rows in that order."""
    features = ngram_features(["a", "a", "b", "ab"])
    kernel = np.asarray((features @ features.T).todense())
    np.testing.assert_allclose(np.diagonal(kernel), 1.0, atol=1e-12)
    assert kernel[0, 1] == pytest.approx(1.0)
    assert kernel[0, 2] == 0.0
    assert kernel[0, 3] == pytest.approx(math.sqrt(0.5) / 2)


def test_embeddings_may_disagree():
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert mean_similarity(vectors) == pytest.approx(-1 / 3)
    assert mean_similarity(csr_array(vectors)) == pytest.approx(-1 / 3)


def test_float32_features_are_summed_in_float64():
    """Of many rows a float32 sum would lose what the U-statistic lives on."""
    vectors = np.eye(4, dtype=np.float32)[np.arange(40_000) % 4]
    assert mean_similarity(vectors) == pytest.approx((10_000 - 1) / (40_000 - 1), rel=1e-12)


def test_more_rows_than_a_matrix_of_pairs_would_allow():
    rows = [[template, 10 + template, 20 + template] for template in range(10)] * 10_000
    assert mean_similarity(ngram_features(rows)) == pytest.approx((10_000 - 1) / (100_000 - 1), rel=1e-9)


def test_errors():
    cases = [(lambda: ngram_features([]), "there is no row"), (lambda: ngram_features(["a", ""]), "row 1 is empty"),
             (lambda: ngram_features(["a"], ()), "no orders"), (lambda: ngram_features(["a"], (0,)), "n=0"),
             (lambda: mean_similarity(np.ones((1, 1))), "You gave 1 row."),
             (lambda: distinct_ngrams(["a"], 0), "n=0")]  # fmt: skip
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
