"""The `evaluate` modules for steered policies on the real path: loaded from their folder, fed through Arrow."""

import copy
import doctest
import json

import numpy as np
import pytest

import hf_lifealign
from hf_lifealign.metrics import pareto_front as pf

WEIGHTS = [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [0.9, 0.1, 0.0]]
REWARDS = [[0.1, 0.5, 0.9], [0.2, 0.8, 0.7], [0.6, 0.3, 0.7], [0.7, 0.1, 0.3]]
REFERENCE = [0.0, 0.0, 0.1]
# metric -> its numbers on rewards and weights, straight from the pure functions
EXPECTED = {
    "hypervolume": lambda r, w: {
        "hypervolume": pf.hypervolume(r, REFERENCE),
        "n_nondominated": int(pf.nondominated(r).sum()),
    },
    "pareto_inner_product": lambda r, w: {
        "pareto_inner_product": pf.mean_inner_product(w, r),
        "inner_products": pf.inner_products(w, r),
    },
    "controllability": lambda r, w: {
        "controllability": pf.controllability(w, r),
        "controllability_per_objective": pf.controllability_per_objective(w, r),
    },
}
PAIRS = ("pareto_inner_product", "controllability")


def arguments(name, weights=WEIGHTS):
    return {"reference_point": REFERENCE} if name == "hypervolume" else {"references": weights}


@pytest.fixture
def load(evaluate_cache):
    return hf_lifealign.load_metric


@pytest.mark.parametrize("name", EXPECTED)
class TestEveryModule:
    def test_evaluate_loads_the_folder(self, name, evaluate_cache):
        import evaluate

        metric = evaluate.load(hf_lifealign.metric_path(name))
        assert metric.name == name
        result = metric.compute(predictions=REWARDS, **arguments(name))
        assert result == EXPECTED[name](REWARDS, WEIGHTS)
        assert next(iter(result)) == name
        assert type(result[name]) is float
        assert json.loads(json.dumps(result)) == result

    def test_arrays_tuples_and_memory(self, name, load):
        expected = EXPECTED[name](REWARDS, WEIGHTS)
        metric = load(name, keep_in_memory=True)
        assert metric.compute(predictions=np.array(REWARDS), **arguments(name, np.array(WEIGHTS))) == expected
        given = tuple(map(tuple, REWARDS))
        assert metric.compute(predictions=given, **arguments(name, tuple(map(tuple, WEIGHTS)))) == expected

    def test_float64_survives_arrow(self, name, load):
        rewards = np.random.default_rng(0).random((4, 3)) * 1e-3 + 1.0
        assert load(name).compute(predictions=rewards, **arguments(name)) == EXPECTED[name](rewards, WEIGHTS)

    def test_inputs_are_not_mutated(self, name, load):
        rewards, weights = copy.deepcopy(REWARDS), copy.deepcopy(WEIGHTS)
        load(name).compute(predictions=rewards, **arguments(name, weights))
        assert (rewards, weights) == (REWARDS, WEIGHTS)

    def test_rows_handed_over_one_by_one(self, name, load):
        metric = load(name)
        for reward, weight in zip(REWARDS, WEIGHTS, strict=True):
            metric.add(prediction=reward, **({"reference": weight} if name in PAIRS else {}))
        last = {} if name in PAIRS else {"reference_point": REFERENCE}
        assert metric.compute(**last) == EXPECTED[name](REWARDS, WEIGHTS)

    @pytest.mark.parametrize(
        ("rewards", "text"),
        [
            (None, "is None .NoneType., not a sequence"),
            ([], "has no rows"),
            ("abc", "not a sequence"),
            ([1.0, 2.0], r"\[0\] is 1.0 .float., not a sequence"),
            ([[1.0]] * 4, r"\[0\] has length 1. A trade-off needs at least 2"),
            ([[1.0, 2.0, 3.0], [1.0]], r"\[1\] has length 1, but \w+\[0\] has 3"),
            ([[True, 0.0, 1.0]], r"\[0\]\[0\] is True .bool., not a number"),
            ([["1", 0.0, 1.0]], r"\[0\]\[0\] is '1' .str., not a number"),
            ([[np.nan, 0.0, 1.0]], r"\[0\]\[0\] is missing .None or NaN."),
            ([[0.0, np.inf, 1.0]], r"\[0\]\[1\] is infinite"),
            ([[1.0, 2.0]] * 4, "(reference_point has length 3 for points of 2|rewards has 4 of 2)"),
        ],
    )
    def test_bad_input_is_named_and_leaves_nothing_behind(self, name, load, tmp_path, rewards, text):
        metric = load(name, cache_dir=str(tmp_path))
        with pytest.raises(ValueError, match=text):
            metric.compute(predictions=rewards, **arguments(name))
        assert not list(tmp_path.rglob("*.arrow"))

    def test_a_misspelt_argument_is_refused(self, name, load, tmp_path):
        metric = load(name, cache_dir=str(tmp_path))
        with pytest.raises(TypeError, match="refrence"):
            metric.compute(predictions=REWARDS, refrence_point=REFERENCE, **arguments(name))
        assert not list(tmp_path.rglob("*.arrow"))

    def test_the_examples_of_the_docstring_hold(self, name, load):
        metric = load(name)
        assert metric.description.strip()
        assert metric.citation.strip().startswith("@")
        assert metric.inputs_description in metric.compute.__doc__
        test = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
        assert len(test.examples) >= 3
        assert doctest.DocTestRunner().run(test).failed == 0


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({}, "hypervolume was given no reference_point"),
            ({"reference_point": [0.0]}, "reference_point has length 1 for points of 3 objectives"),
            ({"reference_point": [0.0, np.nan, 0.0]}, r"reference_point\[1\] is missing"),
        ],
    )
    def test_hypervolume_needs_a_reference_point(self, load, tmp_path, given, text):
        with pytest.raises(ValueError, match=text):
            load("hypervolume", cache_dir=str(tmp_path)).compute(predictions=REWARDS, **given)
        assert not list(tmp_path.rglob("*.arrow"))

    @pytest.mark.parametrize("name", PAIRS)
    @pytest.mark.parametrize(
        ("weights", "text"),
        [
            (None, "weights is None"),
            (WEIGHTS[:3], "weights has 3 rows of 3 numbers, but rewards has 4 of 3"),
            (REWARDS, r"weights\[0\] sums to 1.5, not to 1.*not exchanged"),
            ([[1.5, -0.5, 0.0]] * 4, r"weights\[0\]\[1\] is -0.5, which is negative"),
        ],
    )
    def test_bad_weights(self, load, tmp_path, name, weights, text):
        with pytest.raises(ValueError, match=text):
            load(name, cache_dir=str(tmp_path)).compute(predictions=REWARDS, references=weights)
        assert not list(tmp_path.rglob("*.arrow"))

    def test_a_policy_that_ignores_the_weights(self, load):
        metric = load("controllability")
        half = [[reward[0], 0.5, 0.5] for reward in REWARDS]
        result = metric.compute(predictions=half, references=WEIGHTS)
        assert result["controllability"] == pytest.approx(1.0)
        assert result["controllability_per_objective"] == [pytest.approx(1.0), None, None]
        with pytest.raises(ValueError, match="no rank correlation is defined"):
            metric.compute(predictions=[REWARDS[0]] * 4, references=WEIGHTS)


def test_combined(evaluate_cache):
    import evaluate

    combined = evaluate.combine([hf_lifealign.metric_path(name) for name in PAIRS])
    expected = EXPECTED["pareto_inner_product"](REWARDS, WEIGHTS) | EXPECTED["controllability"](REWARDS, WEIGHTS)
    assert combined.compute(predictions=REWARDS, references=WEIGHTS) == expected


def test_hypervolume_leaves_references_out(load):
    """As evaluate.combine would hand them over."""
    result = load("hypervolume").compute(predictions=REWARDS, references=WEIGHTS, reference_point=REFERENCE)
    assert result == EXPECTED["hypervolume"](REWARDS, WEIGHTS)
