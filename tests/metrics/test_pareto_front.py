"""The pure functions for steered policies against closed forms, independent oracles, properties and their errors."""

import ast
import itertools
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from hf_lifealign.metrics import pareto_front as pf

NAN = math.nan
GRID = [[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]
whole = st.integers(0, 6)
reals = st.floats(-1e3, 1e3, allow_subnormal=False)


def rows(values, k, min_size=1, max_size=6):
    return st.lists(st.lists(values, min_size=k, max_size=k), min_size=min_size, max_size=max_size)


def fronts(values=whole, max_size=6):
    """Points of 2 to 5 objectives, with many ties."""
    return st.integers(2, 5).flatmap(lambda k: rows(values, k, max_size=max_size))


def with_weights(values=reals, max_size=8):
    """Rewards, and weights that sum to 1 for each row."""

    def pair(k):
        one = st.lists(st.integers(0, 5), min_size=k, max_size=k).filter(sum)
        row = st.tuples(one.map(lambda w: [x / sum(w) for x in w]), st.lists(values, min_size=k, max_size=k))
        return st.lists(row, min_size=2, max_size=max_size).map(
            lambda both: [list(side) for side in zip(*both, strict=True)]
        )

    return st.integers(2, 4).flatmap(pair)


def by_inclusion_and_exclusion(points, reference):
    """The volume of a union of boxes, in exact arithmetic; an intersection has the smallest of each side."""
    sides = [[max(Fraction(x) - Fraction(r), Fraction(0)) for x, r in zip(p, reference, strict=True)] for p in points]
    total = Fraction(0)
    for size in range(1, len(sides) + 1):
        for chosen in itertools.combinations(sides, size):
            total += (-1) ** (size + 1) * math.prod(map(min, zip(*chosen, strict=True)))
    return float(total)


def by_counting_cells(points, reference):
    """The volume for whole numbers: the unit cells of the grid that lie below a point."""
    top = [max(column) for column in zip(*points, strict=True)]
    cells = itertools.product(*(range(r, t) for r, t in zip(reference, top, strict=True)))
    return sum(any(all(c < x for c, x in zip(cell, p, strict=True)) for p in points) for cell in cells)


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


class TestHypervolume:
    @pytest.mark.parametrize(
        ("points", "reference", "volume"),
        [
            ([[3, 2]], [0, 0], 6.0),
            ([[3, 2]], [1, 1], 2.0),
            ([[-1, -2]], [-3, -3], 2.0),
            ([[3, 1], [2, 2]], [0, 0], 5.0),
            ([[4, 1], [3, 3], [1, 4]], [0, 0], 11.0),
            ([[1, 4], [4, 1]], [0, 0], 7.0),
            ([[2, 3, 4]], [0, 0, 0], 24.0),
            ([[2, 3, 4]], [1, 1, 1], 6.0),
            ([[2, 1, 1], [1, 2, 1], [1, 1, 2]], [0, 0, 0], 4.0),
            ([[2, 2, 1], [1, 1, 2]], [0, 0, 0], 5.0),
            ([[1] * 6], [-1] * 6, 64.0),
            # of moocore's documentation
            ([[5, 5], [4, 6], [2, 7], [7, 4]], [0, 0], 39.0),
        ],
    )
    def test_known_boxes(self, points, reference, volume):
        assert pf.hypervolume(points, reference) == pytest.approx(volume, rel=1e-12)
        assert pf.hypervolume(np.array(points, dtype=float), np.array(reference)) == pytest.approx(volume, rel=1e-12)

    def test_a_staircase(self):
        # n steps of the unit square: 1/n * sum_i i/n = (n + 1) / 2n
        for n in (1, 10, 1000):
            points = [[i / n, (n + 1 - i) / n] for i in range(1, n + 1)]
            assert pf.hypervolume(points, [0, 0]) == pytest.approx((n + 1) / (2 * n))

    @pytest.mark.parametrize("point", [[0, 5], [5, 0], [0, 0], [-1, 5], [-1, -1]])
    def test_a_point_that_is_not_better_in_every_objective_contributes_nothing(self, point):
        assert pf.hypervolume([point], [0, 0]) == 0.0
        assert pf.hypervolume([point, [2, 2]], [0, 0]) == 4.0
        assert pf.hypervolume([[2, 2], point], [0, 0]) == 4.0

    @given(fronts(), st.data())
    def test_against_counted_cells_and_exact_inclusion_and_exclusion(self, points, data):
        k = len(points[0])
        reference = data.draw(st.lists(st.integers(-1, 4), min_size=k, max_size=k))
        counted = by_counting_cells(points, reference) if k < 4 else by_inclusion_and_exclusion(points, reference)
        assert pf.hypervolume(points, reference) == pytest.approx(counted, abs=1e-9)

    @given(fronts(reals), st.data())
    def test_against_inclusion_and_exclusion_of_reals(self, points, data):
        k = len(points[0])
        reference = data.draw(st.lists(reals, min_size=k, max_size=k))
        exact = by_inclusion_and_exclusion(points, reference)
        assert pf.hypervolume(points, reference) == pytest.approx(exact, rel=1e-9, abs=1e-9 * 2e3**k)

    def test_many_points_of_many_objectives_against_inclusion_and_exclusion(self):
        # More points than moocore takes by inclusion and exclusion itself, most of them inside a few.
        rng = np.random.default_rng(0)
        outer = rng.random((8, 5)) + 1
        inner = np.concatenate([point * rng.random((10, 5)) for point in outer])
        exact = by_inclusion_and_exclusion(outer.tolist(), [0] * 5)
        assert pf.hypervolume(np.concatenate([inner, outer]), [0] * 5) == pytest.approx(exact, rel=1e-9)

    @given(fronts(reals), st.data())
    def test_a_further_point_never_takes_anything_away(self, points, data):
        k = len(points[0])
        more = data.draw(st.lists(reals, min_size=k, max_size=k))
        before = pf.hypervolume(points, [-1e3] * k)
        assert pf.hypervolume([*points, more], [-1e3] * k) >= before * (1 - 1e-9)

    @given(fronts(reals), st.randoms(use_true_random=False))
    def test_the_order_of_points_and_of_objectives_does_not_matter(self, points, random):
        k = len(points[0])
        reference = [float(-1000 - j) for j in range(k)]
        before = pf.hypervolume(points, reference)
        shuffled = random.sample(points, len(points))
        assert pf.hypervolume(shuffled, reference) == pytest.approx(before, rel=1e-9)
        axes = random.sample(range(k), k)
        turned = [[p[j] for j in axes] for p in points]
        assert pf.hypervolume(turned, [reference[j] for j in axes]) == pytest.approx(before, rel=1e-9)

    @given(fronts(), st.data())
    def test_a_dominated_point_adds_nothing(self, points, data):
        below = [x - data.draw(st.integers(0, 3)) for x in data.draw(st.sampled_from(points))]
        reference = [-4] * len(below)
        assert pf.hypervolume([*points, below], reference) == pytest.approx(pf.hypervolume(points, reference))
        assert pf.nondominated([*points, below]).sum() == pf.nondominated(points).sum()

    @given(fronts(), st.data())
    def test_a_shift_of_everything_changes_nothing_and_a_scale_multiplies(self, points, data):
        k = len(points[0])
        shift = data.draw(st.lists(st.integers(-50, 50), min_size=k, max_size=k))
        scale = data.draw(st.lists(st.integers(1, 9), min_size=k, max_size=k))
        before = pf.hypervolume(points, [0] * k)
        assert pf.hypervolume((np.array(points) + shift).tolist(), shift) == pytest.approx(before)
        assert pf.hypervolume(np.array(points) * scale, [0] * k) == pytest.approx(before * math.prod(scale))

    def test_nothing_is_mutated(self):
        points, reference = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0.5, 0.5])
        pf.hypervolume(points, reference)
        pf.nondominated(points)
        np.testing.assert_array_equal(points, [[1.0, 2.0], [2.0, 1.0]])
        np.testing.assert_array_equal(reference, [0.5, 0.5])

    @pytest.mark.parametrize(
        ("reference", "text"),
        [
            (None, "given no reference_point.*the worst value of each of the 2 objectives, fixed before the runs"),
            (0.0, "reference_point is 0.0 .float., not a sequence.*Give lists"),
            ([0.0], "reference_point has length 1 for points of 2 objectives. Give one per objective"),
            ([0.0, 0.0, 0.0], "reference_point has length 3 for points of 2 objectives"),
            ([0.0, NAN], r"reference_point\[1\] is missing .None or NaN.. Give a finite number"),
            ([None, 0.0], r"reference_point\[0\] is missing"),
            ([0.0, -math.inf], r"reference_point\[1\] is infinite"),
            ([0.0, False], r"reference_point\[1\] is False .bool., not a number"),
            ([[0.0, 0.0]], "reference_point has length 1"),
        ],
    )
    def test_a_bad_reference_point(self, reference, text):
        with pytest.raises(ValueError, match=text):
            pf.hypervolume([[1.0, 2.0]], reference)

    @pytest.mark.parametrize(("high", "low"), [(1e200, 0.0), (1.7e308, -1.7e308)])
    def test_a_volume_beyond_the_range_of_a_float(self, high, low):
        with pytest.raises(ValueError, match=r"hypervolume came out as inf.*Rescale each objective"):
            pf.hypervolume([[high, high]], [low, low])

    def test_more_objectives_than_the_library_takes(self):
        with pytest.raises(ValueError, match=r"given points of 32 objectives.*up to 31.*Merge objectives"):
            pf.hypervolume([[1.0] * 32], [0.0] * 32)


class TestNondominated:
    @given(fronts())
    def test_against_the_definition(self, points):
        expected = [
            not any(dominates(q, p) for q in points) and not any(q == p for q in points[:i])
            for i, p in enumerate(points)
        ]
        mask = pf.nondominated(points)
        assert (mask.dtype, mask.shape) == (np.dtype(bool), (len(points),))
        assert mask.tolist() == expected

    def test_of_equal_points_the_first_is_counted(self):
        assert pf.nondominated([[1, 2], [1, 2], [2, 1], [0, 0], [1, 2]]).tolist() == [True, False, True, False, False]

    @given(fronts())
    def test_the_front_alone_has_the_same_volume(self, points):
        reference = [-1] * len(points[0])
        front = np.array(points)[pf.nondominated(points)]
        assert pf.hypervolume(front, reference) == pytest.approx(pf.hypervolume(points, reference))


class TestInnerProduct:
    def test_by_hand(self):
        weights, rewards = [[0.75, 0.25], [0.5, 0.5]], [[4.0, 0.0], [1.0, 2.0]]
        assert pf.inner_products(weights, rewards) == [3.0, 1.5]
        assert pf.mean_inner_product(weights, rewards) == 2.25

    @given(with_weights())
    def test_against_exact_arithmetic(self, both):
        weights, rewards = both
        exact = [
            sum(Fraction(a) * Fraction(b) for a, b in zip(w, r, strict=True))
            for w, r in zip(weights, rewards, strict=True)
        ]
        assert pf.inner_products(weights, rewards) == pytest.approx([float(x) for x in exact], abs=1e-9)
        assert pf.mean_inner_product(weights, rewards) == pytest.approx(float(sum(exact) / len(exact)), abs=1e-9)

    @given(with_weights(), st.floats(-100, 100))
    def test_a_shift_of_all_rewards_moves_it_and_it_stays_between_them(self, both, shift):
        weights, rewards = np.array(both[0]), np.array(both[1])
        before = pf.mean_inner_product(weights, rewards)
        assert pf.mean_inner_product(weights, rewards + shift) == pytest.approx(before + shift, abs=1e-9)
        assert rewards.min() - 1e-9 <= before <= rewards.max() + 1e-9

    def test_beyond_the_range_of_a_float(self):
        with pytest.raises(ValueError, match=r"mean_inner_product came out as inf.*Rescale"):
            pf.mean_inner_product(GRID, [[1.7e308, 1.7e308]] * 5)


class TestControllability:
    def test_a_policy_that_follows_and_one_that_does_the_opposite(self):
        rewards = [[1, 50], [2, 40], [4, 30], [8, 20], [16, 10]]
        assert pf.controllability(GRID, rewards) == pytest.approx(1.0)
        assert pf.controllability_per_objective(GRID, rewards[::-1]) == pytest.approx([-1.0, -1.0])

    def test_by_the_formula_without_ties(self):
        # 1 - 6 * sum d^2 / (n * (n^2 - 1)) with one pair exchanged: d^2 = 1 + 1
        rewards = [[1, 5], [2, 4], [3, 3], [5, 2], [4, 1]]
        assert pf.controllability_per_objective(GRID, rewards) == pytest.approx([1 - 12 / 120, 1.0])
        assert pf.controllability(GRID, rewards) == pytest.approx(0.95)

    @given(with_weights(whole))
    def test_ties_against_pearson_of_mean_ranks_and_scipy(self, both):
        weights, rewards = both
        values = pf.controllability_per_objective(weights, rewards)
        for w, r, value in zip(zip(*weights, strict=True), zip(*rewards, strict=True), values, strict=True):
            if len(set(w)) == 1 or len(set(r)) == 1:
                assert value is None
                continue
            ranks = [
                [sum(x < y for x in column) + sum(x == y for x in column) / 2 for y in column] for column in (w, r)
            ]
            assert value == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-9)
            assert value == pytest.approx(stats.spearmanr(w, r).statistic, abs=1e-12)
            assert -1 <= value <= 1
        defined = [value for value in values if value is not None]
        assume(defined)
        assert pf.controllability(weights, rewards) == pytest.approx(np.mean(defined))

    @given(with_weights(whole))
    def test_only_the_order_of_the_rewards_counts(self, both):
        weights, rewards = both
        assert pf.controllability_per_objective(weights, np.exp(rewards)) == pf.controllability_per_objective(*both)

    def test_an_objective_that_is_not_defined_is_left_out(self):
        weights = [[0.2, 0.3, 0.5], [0.2, 0.5, 0.3], [0.2, 0.8, 0.0]]
        rewards = [[1.0, 1.0, 7.0], [2.0, 2.0, 7.0], [3.0, 3.0, 7.0]]
        values = pf.controllability_per_objective(weights, rewards)
        assert values == [None, pytest.approx(1.0), None]
        assert pf.controllability(weights, rewards) == pytest.approx(1.0)

    def test_defined_for_no_objective(self):
        same = r"5 rows of 2 objectives.*\(0: rewards, 1: rewards\).*no rank correlation is defined.*does not follow"
        with pytest.raises(ValueError, match=same):
            pf.controllability(GRID, [[1.0, 2.0]] * 5)
        assert pf.controllability_per_objective(GRID, [[1.0, 2.0]] * 5) == [None, None]
        with pytest.raises(ValueError, match=r"\(0: weights, 1: weights\)"):
            pf.controllability([[0.5, 0.5]] * 2, [[1.0, 2.0], [2.0, 1.0]])
        with pytest.raises(ValueError, match=r"given 1 row.*undefined below 2 rows. Evaluate the policy under more"):
            pf.controllability([[0.5, 0.5]], [[1.0, 2.0]])
        with pytest.raises(ValueError, match=r"7: rewards, \.\.\.\)"):
            pf.controllability(np.eye(9), np.ones((9, 9)))


class TestWeights:
    @pytest.mark.parametrize(
        ("weights", "text"),
        [
            ([[0.5, 0.4], [0.5, 0.5]], r"weights\[0\] sums to 0.9, not to 1 .within 0.0001.*Divide.*not exchanged"),
            ([[0.5, 0.5], [0.5, 0.5002]], r"weights\[1\] sums to 1.0002"),
            ([[0.5, 0.5], [1.25, -0.25]], r"weights\[1\]\[1\] is -0.25, which is negative.*Divide"),
            ([[0.5, 0.5], [1e308, 1.7e308]], r"weights\[1\] sums to inf"),
            ([[0.5, 0.5]], "weights has 1 rows of 2 numbers, but rewards has 2 of 2. Give one row of rewards for each"),
            ([[0.2, 0.3, 0.5]] * 2, "weights has 2 rows of 3 numbers, but rewards has 2 of 2"),
            (None, "weights is None .NoneType., not a sequence"),
            ([[0.5, 0.5], [0.5, NAN]], r"weights\[1\]\[1\] is missing"),
        ],
    )
    @pytest.mark.parametrize("function", [pf.mean_inner_product, pf.controllability])
    def test_bad_weights(self, function, weights, text):
        with pytest.raises(ValueError, match=text), np.errstate(over="ignore"):
            function(weights, [[1.0, 2.0], [3.0, 4.0]])

    def test_rounded_weights_are_taken(self):
        weights = [[0.3333, 0.3333, 0.3333], [1 - 0.9 - 0.1, 0.9, 0.1]]
        assert weights[1][0] < 0
        assert pf.mean_inner_product(weights, [[1.0, 1.0, 1.0]] * 2) == pytest.approx(1.0, abs=1e-4)

    @pytest.mark.parametrize("function", [pf.mean_inner_product, pf.controllability])
    def test_bad_rewards_are_named(self, function):
        with pytest.raises(ValueError, match=r"rewards\[1\]\[0\] is infinite"):
            function([[0.5, 0.5]] * 2, [[1.0, 2.0], [math.inf, 1.0]])


class TestNumbers:
    def test_types_that_are_numbers(self):
        torch = pytest.importorskip("torch")
        for points in (
            [[Fraction(1, 2), np.float32(3)], (np.int64(1), 2)],
            np.array([[0.5, 3], [1, 2]], dtype=np.float16),
            torch.tensor([[0.5, 3.0], [1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True),
            [np.array([0.5, 3.0]), torch.tensor([1.0, 2.0])],
        ):
            assert pf.hypervolume(points, [0, 0]) == 2.5

    def test_results_are_plain_python(self):
        weights, rewards = np.array(GRID), np.arange(10.0).reshape(5, 2)
        values = [pf.hypervolume(rewards, [-1, -1]), pf.mean_inner_product(weights, rewards)]
        values += [*pf.inner_products(weights, rewards), pf.controllability(weights, rewards)]
        values += pf.controllability_per_objective(weights, rewards)
        assert {type(value) for value in values} == {float}


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (None, "points is None .NoneType., not a sequence"),
        (0.5, "points is 0.5 .float., not a sequence"),
        ("12", "points is '12' .str., not a sequence"),
        ({0: [1.0]}, "points is .* .dict., not a sequence"),
        ([1.0, 2.0], r"points\[0\] is 1.0 .float., not a sequence"),
        ([], "points has no rows. Give one row of K numbers"),
        (np.empty((0, 2)), "points has no rows"),
        ([[]], r"points\[0\] has length 0. A trade-off needs at least 2 objectives: give K >= 2"),
        ([[1.0], [2.0]], r"points\[0\] has length 1. A trade-off"),
        ([[1.0, 2.0], [3.0]], r"points\[1\] has length 1, but points\[0\] has 2. Give the same K objectives"),
        ([[1.0, 2.0], [3.0, 4.0, 5.0]], r"points\[1\] has length 3, but points\[0\] has 2"),
        ([[1.0, None]], r"points\[0\]\[1\] is missing .None or NaN.. Give a finite number.*leave the whole row out"),
        ([[1.0, 2.0], [NAN, 1.0]], r"points\[1\]\[0\] is missing"),
        ([[1.0, -math.inf]], r"points\[0\]\[1\] is infinite"),
        ([[1.0, 10**400]], r"points\[0\]\[1\] is infinite"),
        ([[True, 1.0]], r"points\[0\]\[0\] is True .bool., not a number"),
        (np.ones((2, 2), dtype=bool), r"points\[0\]\[0\] is True .bool., not a number"),
        ([["1", 1.0]], r"points\[0\]\[0\] is '1' .str., not a number"),
        ([[1j, 1.0]], r"points\[0\]\[0\] is 1j .complex., not a number"),
        (np.zeros((2, 2, 2)), r"points\[0\]\[0\] is .* .list., not a number"),
        ("x" * 10_000, "not a sequence"),
    ],
)
@pytest.mark.parametrize("function", [pf.read_points, pf.nondominated, lambda points: pf.hypervolume(points, [0, 0])])
def test_malformed_points(function, points, text):
    with pytest.raises(ValueError, match=text) as caught:
        function(points)
    assert len(str(caught.value)) < 400


def test_the_file_imports_its_libraries_only_where_they_are_used():
    """It is copied beside a metric script on the Hub, without this package and the libraries of other metrics."""
    tree = ast.parse(Path(pf.__file__).read_text(encoding="utf-8"))
    imported, at_once = set(), {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.names[0].name if isinstance(node, ast.Import) else node.module
            imported.add((module.split(".")[0], id(node) in at_once))
    standard = {(name, True) for name in sys.stdlib_module_names}
    assert imported - standard == {("numpy", True), ("moocore", False), ("scipy", False)}
