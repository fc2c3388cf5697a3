"""The pure functions against the published matrix, closed forms, properties and every error they raise."""

import ast
import copy
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.metrics import performance_matrix as pm

NAN = math.nan
BASELINE = [0.0] * 6
scores = st.floats(-1e6, 1e6, allow_subnormal=False)


def triangles(min_tasks=1, max_tasks=7):
    sizes = st.integers(min_tasks, max_tasks)
    return sizes.flatmap(lambda n: st.tuples(*(st.lists(scores, min_size=i + 1, max_size=i + 1) for i in range(n))))


def squares(min_tasks=1, max_tasks=7):
    sizes = st.integers(min_tasks, max_tasks)
    return sizes.flatmap(lambda n: st.lists(st.lists(scores, min_size=n, max_size=n), min_size=n, max_size=n))


def every_metric(matrix):
    """All numbers that a triangle of at least 2 tasks defines."""
    return {
        "bwt": pm.backward_transfer_per_task(matrix),
        "max": pm.forgetting_per_task(matrix, "max"),
        "first": pm.forgetting_per_task(matrix, "first"),
        "ap": pm.average_performance_per_stage(matrix),
        "last": pm.last_performance_per_task(matrix),
        "means": [
            pm.backward_transfer(matrix),
            pm.forgetting(matrix),
            pm.forgetting(matrix, "first"),
            pm.average_performance(matrix),
            pm.last_performance(matrix),
        ],
    }


class TestPublishedMatrix:
    def test_last_and_ap_are_as_printed_and_bwt_follows_the_formula(self, published):
        assert pm.last_performance(published) == pytest.approx(57.42, abs=0.005)
        assert pm.average_performance(published) == pytest.approx(53.91, abs=0.005)
        assert pm.backward_transfer(published) == pytest.approx(0.37, abs=0.005)

    def test_forgetting_by_hand(self, published):
        losses = [54.17 - 50.63, 59.55 - 54.84, 58.43 - 54.38, 50.74 - 46.54, 69.71 - 64.74]
        assert pm.forgetting_per_task(published) == pytest.approx(losses)
        assert pm.forgetting(published) == pytest.approx(sum(losses) / 5)


class TestClosedForms:
    def test_two_tasks(self):
        matrix = [[0.75], [0.5, 1.0]]
        assert pm.backward_transfer(matrix) == -0.25
        assert pm.forgetting(matrix) == pm.forgetting(matrix, "first") == 0.25
        assert pm.average_performance(matrix) == 0.75
        assert pm.last_performance(matrix) == 0.75

    def test_one_task_has_averages(self):
        assert pm.average_performance([[3]]) == pm.last_performance([[3]]) == 3.0

    def test_forgetting_max_counts_neither_the_last_stage_nor_those_before_the_task(self):
        matrix = [[1.0, 9.0, 0.0], [3.0, 4.0, 0.0], [8.0, 2.0, 5.0]]
        assert pm.forgetting_per_task(matrix) == [3.0 - 8.0, 4.0 - 2.0]

    @pytest.mark.parametrize("n", [2, 3, 8])
    def test_linear_decay(self, n):
        # m[k][i] = 10 - (k - i): each stage costs one point, so task i loses N-1-i in all.
        matrix = [[10.0 - (k - i) for i in range(k + 1)] for k in range(n)]
        assert pm.backward_transfer(matrix) == pytest.approx(-n / 2)
        assert pm.forgetting(matrix) == pytest.approx(n / 2)
        assert pm.last_performance(matrix) == pytest.approx(10 - (n - 1) / 2)
        assert pm.average_performance(matrix) == pytest.approx(10 - (n - 1) / 4)

    def test_forward_transfer(self):
        matrix = [[80.0, 42.0, 31.0], [78.0, 85.0, 35.0], [77.0, 84.0, 90.0]]
        assert pm.forward_transfer_per_task(matrix, [40.0, 40.0, 30.0]) == [2.0, 5.0]
        assert pm.forward_transfer(matrix, (40.0, 40.0, 30.0)) == 3.5
        assert pm.forward_transfer(np.array(matrix), np.array([40.0, 40.0, 30.0])) == 3.5


class TestProperties:
    @given(scores, st.integers(2, 7))
    def test_a_constant_matrix_neither_gains_nor_loses(self, value, n):
        matrix = [[value] * n for _ in range(n)]
        assert pm.backward_transfer(matrix) == 0
        assert pm.forgetting(matrix) == pm.forgetting(matrix, "first") == 0
        assert pm.forward_transfer(matrix, [value] * n) == 0
        assert pm.average_performance(matrix) == pytest.approx(value)
        assert pm.last_performance(matrix) == pytest.approx(value)

    @given(triangles(min_tasks=2))
    def test_every_layout_gives_the_same_numbers(self, triangle):
        n = len(triangle)
        expected = every_metric(triangle)
        for missing in (None, NAN, 7.0):
            square = [list(row) + [missing] * (n - len(row)) for row in triangle]
            assert every_metric(square) == expected
            assert every_metric(np.array(square, dtype=object)) == expected
        assert every_metric(np.array(square)) == expected
        assert every_metric([np.array(row) for row in triangle]) == expected

    @given(triangles(min_tasks=2), scores)
    def test_a_shift_of_all_scores_moves_the_averages_and_no_difference(self, triangle, shift):
        before = every_metric(triangle)
        after = every_metric([[score + shift for score in row] for row in triangle])
        for name in ("bwt", "max", "first"):
            assert after[name] == pytest.approx(before[name], abs=1e-8)
        for name in ("ap", "last"):
            assert after[name] == pytest.approx([value + shift for value in before[name]], abs=1e-8)

    @given(triangles(min_tasks=2))
    def test_forgetting_first_is_minus_bwt_and_max_is_never_below_it(self, triangle):
        assert pm.forgetting(triangle, "first") == -pm.backward_transfer(triangle)
        assert pm.forgetting(triangle, "max") >= pm.forgetting(triangle, "first")

    @given(triangles(min_tasks=2))
    def test_against_exact_arithmetic(self, triangle):
        exact = [[Fraction(score) for score in row] for row in triangle]
        n = len(exact)
        bwt = sum(exact[-1][i] - exact[i][i] for i in range(n - 1)) / (n - 1)
        ap = sum(sum(row) / len(row) for row in exact) / n
        worst = sum(max(exact[k][i] for k in range(i, n - 1)) - exact[-1][i] for i in range(n - 1)) / (n - 1)
        assert pm.backward_transfer(triangle) == pytest.approx(float(bwt), abs=1e-8)
        assert pm.average_performance(triangle) == pytest.approx(float(ap), abs=1e-8)
        assert pm.last_performance(triangle) == pytest.approx(float(sum(exact[-1]) / n), abs=1e-8)
        assert pm.forgetting(triangle) == pytest.approx(float(worst), abs=1e-8)

    @given(squares(min_tasks=2), st.data())
    def test_forward_transfer_is_linear_in_the_baseline(self, square, data):
        n = len(square)
        baseline = data.draw(st.lists(scores, min_size=n, max_size=n))
        difference = pm.forward_transfer(square, [0.0] * n) - pm.forward_transfer(square, baseline)
        assert difference == pytest.approx(sum(baseline[1:]) / (n - 1), abs=1e-8)

    @given(squares(min_tasks=2))
    def test_inputs_are_not_mutated_nor_aliased(self, square):
        as_list, as_array, baseline = copy.deepcopy(square), np.array(square), [1.0] * len(square)
        for matrix in (as_list, as_array):
            every_metric(matrix)
            pm.forward_transfer(matrix, baseline)
            pm.check_matrix(matrix)[:] = -1.0
            np.testing.assert_array_equal(matrix, square)
        assert baseline == [1.0] * len(square)


class TestNumbers:
    def test_types_that_are_numbers(self):
        matrix = [[np.float32(0.5)], [Fraction(1, 4), np.int64(1)]]
        assert pm.backward_transfer(matrix) == -0.25
        assert pm.backward_transfer(np.array([[2, 0], [1, 0]], dtype=np.int8)) == -1.0
        assert pm.backward_transfer(np.array([[0.5, 0], [0.25, 1]], dtype=np.float16)) == -0.25

    def test_float64_is_kept(self):
        matrix = [[0.1], [0.3, 0.7]]
        assert pm.last_performance_per_task(matrix) == [0.3, 0.7]
        assert pm.backward_transfer(matrix) == 0.3 - 0.1

    def test_a_masked_array_has_missing_entries(self):
        matrix = np.ma.masked_invalid([[0.5, NAN], [0.25, 1.0]])
        assert pm.backward_transfer(matrix) == -0.25
        with pytest.raises(ValueError, match=r"matrix\[0\]\[1\].*missing"):
            pm.forward_transfer(matrix, [0, 0])

    def test_a_tensor_is_read(self):
        torch = pytest.importorskip("torch")
        matrix = torch.tensor([[0.5, 0.0], [0.25, 1.0]], dtype=torch.bfloat16, requires_grad=True)
        assert pm.backward_transfer(matrix) == -0.25

    def test_results_are_plain_python(self, published):
        for value in every_metric(published).values():
            assert {type(number) for number in value} == {float}


class TestNotNeeded:
    """What a metric does not read may be absent; what it reads may not."""

    @pytest.mark.parametrize("missing", [None, NAN, math.inf, 10**400])
    def test_only_the_needed_entries_are_read(self, missing):
        x = missing
        ends = [[1.0, x, x, x], [x, 2.0, x, x], [x, x, 3.0, x], [0.0, 0.0, 0.0, x]]
        assert pm.backward_transfer(ends) == -2.0
        assert pm.forgetting(ends, "first") == 2.0
        assert pm.last_performance([[x], [x, x], [1.0, 2.0, 3.0]]) == 2.0
        assert pm.average_performance([[1.0, x], [2.0, 4.0]]) == 2.0
        assert pm.forgetting([[1.0, x], [0.5, x]]) == 0.5
        assert pm.forward_transfer([[x, 2.0], [x, x]], [x, 1.0]) == 1.0

    @pytest.mark.parametrize(("missing", "text"), [(None, "missing"), (NAN, "missing"), (-math.inf, "infinite")])
    @pytest.mark.parametrize(
        ("function", "place"),
        [
            (pm.backward_transfer, (1, 1)),
            (pm.backward_transfer, (2, 0)),
            (lambda m: pm.forgetting(m, "first"), (0, 0)),
            (pm.forgetting, (1, 0)),
            (pm.average_performance, (1, 0)),
            (pm.average_performance, (2, 2)),
            (pm.last_performance, (2, 2)),
            (lambda m: pm.forward_transfer(m, [0, 0, 0]), (1, 2)),
        ],
    )
    def test_a_needed_entry_is_named(self, function, place, missing, text):
        matrix = [[1.0, 2.0, 3.0] for _ in range(3)]
        matrix[place[0]][place[1]] = missing
        with pytest.raises(ValueError, match=rf"matrix\[{place[0]}\]\[{place[1]}\].*it is {text}.*Evaluate"):
            function(matrix)

    def test_forward_transfer_refuses_a_triangle(self, published):
        with pytest.raises(ValueError, match=r"matrix\[0\]\[1\].*before it is trained.*all N entries in every row"):
            pm.forward_transfer(published, BASELINE)


class TestErrors:
    @pytest.mark.parametrize(
        ("matrix", "text"),
        [
            (None, "matrix is None .NoneType., not a sequence"),
            (0.5, "matrix is 0.5 .float., not a sequence"),
            ("0.5", "matrix is '0.5' .str., not a sequence"),
            ({0: [1.0]}, "matrix is .* .dict., not a sequence"),
            (np.float64(1), "not a sequence"),
            ([1.0, 2.0], r"matrix\[0\] is 1.0 .float., not a sequence"),
            ([[1.0], "23"], r"matrix\[1\] is '23' .str., not a sequence"),
            ([], "no rows"),
            (np.empty((0, 0)), "no rows"),
            ([[]], r"matrix\[0\] has length 0, but should have 1, since one row means one task"),
            ([[1.0, 2.0]], r"matrix\[0\] has length 2, but should have 1,"),
            ([[1.0], [2.0]], r"matrix\[1\] has length 1, but should have 2,.*triangle"),
            ([[1.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0]], r"matrix\[1\] has length 3, but should have 2,.*triangle"),
            ([[1.0, 2.0], [3.0]], r"matrix\[1\] has length 1, but should have 2,.*square"),
            ([[1.0, 2.0], [3.0, 4.0, 5.0]], r"matrix\[1\] has length 3, but should have 2,.*square"),
            (np.zeros((2, 3)), r"matrix\[0\] has length 3, but should have 1 .a triangle. or 2 .a square."),
            ([[True], [1.0, 2.0]], r"matrix\[0\]\[0\] is True .bool., not a number"),
            (np.ones((2, 2), dtype=bool), r"matrix\[0\]\[0\] is True .bool., not a number"),
            ([[1.0], [np.bool_(False), 2.0]], r"matrix\[1\]\[0\] is .*False.* .bool.*, not a number"),
            ([["0.5"], [1.0, 2.0]], r"matrix\[0\]\[0\] is '0.5' .str., not a number"),
            (np.array([["1", "2"], ["3", "4"]]), r"matrix\[0\]\[0\] is '1' .str., not a number"),
            ([[1.0], [2.0, 1j]], r"matrix\[1\]\[1\] is 1j .complex., not a number"),
            (np.zeros((2, 2, 2)), r"matrix\[0\]\[0\] is .* .list., not a number"),
            ([[1.0, "x"], [2.0, 3.0]], r"matrix\[0\]\[1\] is 'x'"),
        ],
    )
    @pytest.mark.parametrize(
        "function", [pm.read_matrix, *(getattr(pm, name) for name in ("check_matrix", "forgetting"))]
    )
    def test_a_malformed_matrix(self, function, matrix, text):
        with pytest.raises(ValueError, match=text):
            function(matrix)

    @pytest.mark.parametrize("function", [pm.backward_transfer, pm.forgetting, lambda m: pm.forward_transfer(m, [1.0])])
    def test_one_task_is_too_few_to_compare(self, function):
        with pytest.raises(ValueError, match=r"matrix of 1 task.*undefined below 2 tasks.*second task"):
            function([[1.0]])

    @pytest.mark.parametrize("definition", ["last", None, "Max", 1])
    def test_an_unknown_definition(self, definition):
        with pytest.raises(ValueError, match=r"definition=.*not known\. Use 'max' .* or 'first'"):
            pm.forgetting([[1.0], [2.0, 3.0]], definition)

    def test_an_unknown_need(self):
        with pytest.raises(ValueError, match=r"needs='all' is not known\. Use one of triangle, "):
            pm.check_matrix([[1.0]], needs="all")

    @pytest.mark.parametrize(
        ("baseline", "text"),
        [
            (None, "no baseline.*give baseline="),
            (0.5, "baseline is 0.5 .float., not a sequence"),
            ([1.0], "baseline has length 1 for a matrix of 2 tasks"),
            ([1.0, 2.0, 3.0], "baseline has length 3 for a matrix of 2 tasks"),
            ([1.0, None], r"needs baseline\[1\].*it is missing"),
            ([1.0, math.inf], r"needs baseline\[1\].*it is infinite"),
            ([1.0, True], r"baseline\[1\] is True .bool., not a number"),
            (["a", 1.0], r"baseline\[0\] is 'a' .str., not a number"),
        ],
    )
    def test_a_bad_baseline(self, baseline, text):
        with pytest.raises(ValueError, match=text):
            pm.forward_transfer([[1.0, 2.0], [3.0, 4.0]], baseline)

    def test_a_huge_value_is_shortened_in_the_text(self):
        with pytest.raises(ValueError) as caught:
            pm.read_matrix("x" * 10_000)
        assert len(str(caught.value)) < 400


def test_the_file_imports_nothing_but_the_standard_library_and_numpy():
    """It is copied beside a metric script on the Hub, where the package is not installed."""
    tree = ast.parse(Path(pm.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy"}
