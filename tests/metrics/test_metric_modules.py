"""The `evaluate` modules on the real path: loaded from their folder, fed a matrix through Arrow, without a network."""

import copy
import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hf_lifealign
from hf_lifealign.metrics import METRICS
from hf_lifealign.metrics import performance_matrix as pm

BASELINE = [50.0, 40.0, 30.0, 45.0, 60.0, 70.0]
# metric -> its numbers on a square matrix, straight from the pure functions
EXPECTED = {
    "bwt": lambda m: {"bwt": pm.backward_transfer(m), "bwt_per_task": pm.backward_transfer_per_task(m)},
    "forgetting": lambda m: {"forgetting": pm.forgetting(m), "forgetting_per_task": pm.forgetting_per_task(m)},
    "average_performance": lambda m: {
        "average_performance": pm.average_performance(m),
        "average_performance_per_stage": pm.average_performance_per_stage(m),
    },
    "last_performance": lambda m: {
        "last_performance": pm.last_performance(m),
        "last_performance_per_task": pm.last_performance_per_task(m),
    },
    "forward_transfer": lambda m: {
        "forward_transfer": pm.forward_transfer(m, BASELINE),
        "forward_transfer_per_task": pm.forward_transfer_per_task(m, BASELINE),
    },
}
TRIANGULAR = [name for name in EXPECTED if name != "forward_transfer"]
# What the modules on other inputs are given, and say.
WEIGHTS = [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
REWARDS = [[1.0, 3.0], [2.0, 3.0], [8.0, 3.0]]
OTHERS = {
    "hypervolume": (
        {"predictions": REWARDS, "reference_point": [0.0, 0.0]},
        {"hypervolume": 24.0, "n_nondominated": 1},
    ),
    "pareto_inner_product": (
        {"predictions": REWARDS, "references": WEIGHTS},
        {"pareto_inner_product": 4.5, "inner_products": [3.0, 2.5, 8.0]},
    ),
    "controllability": (
        {"predictions": REWARDS, "references": WEIGHTS},
        {"controllability": pytest.approx(1.0), "controllability_per_objective": [pytest.approx(1.0), None]},
    ),
    "alignment_score": (
        {"predictions": [1, 0, 1, 1], "references": ["a", "a", "b", "b"]},
        {
            "alignment_score": 0.75,
            "low": 0.5,
            "high": 1.0,
            "standard_error": pytest.approx(0.177, abs=0.01),
            "prompts": 2,
            "samples": 4,
            "ess": 1.0,
            "reason": None,
        },
    ),
    "priming_ratio": (
        {"predictions": [0.0, 1.0], "references": [0.0, 0.5, 1.0], "target": 1.0},
        {
            "priming_ratio": 0.5,
            "first_steps": 2.0,
            "again_steps": 1.0,
            "target": 1.0,
            "area_ratio": 2.0,
            "area_steps": 1.0,
            "reason": None,
        },
    ),
}


def arguments(name):
    return {"baseline": BASELINE} if name == "forward_transfer" else {}


@pytest.fixture
def square(published):
    """The published matrix with made-up scores above the diagonal."""
    return [row + [31.4 + j for j in range(len(row), 6)] for row in published]


@pytest.fixture
def load(evaluate_cache):
    return hf_lifealign.load_metric


def test_the_folders_are_where_metric_path_says():
    for name in METRICS:
        assert {"README.md", f"{name}.py"} <= set(os.listdir(hf_lifealign.metric_path(name)))


@pytest.mark.parametrize("function", [hf_lifealign.metric_path, hf_lifealign.load_metric])
@pytest.mark.parametrize("name", ["BWT", "accuracy", "", "../metrics/bwt", None])
def test_an_unknown_name_lists_the_known_ones(function, name):
    with pytest.raises(ValueError, match="Use one of bwt, forgetting, average_performance, last_performance, forward"):
        function(name)


@pytest.mark.parametrize("name", EXPECTED)
class TestEveryModule:
    def test_evaluate_loads_the_folder(self, name, evaluate_cache, square):
        import evaluate

        metric = evaluate.load(hf_lifealign.metric_path(name))
        assert metric.compute(predictions=square, **arguments(name)) == EXPECTED[name](square)

    def test_the_first_value_carries_the_name(self, name, load, square):
        metric = load(name)
        result = metric.compute(predictions=square, **arguments(name))
        assert metric.name == name
        assert next(iter(result)) == name
        assert type(result[name]) is float
        assert all(key.startswith(name) for key in result)
        json.dumps(result)

    def test_arrays_and_memory(self, name, load, square):
        expected = EXPECTED[name](square)
        metric = load(name, keep_in_memory=True)
        holed = np.array(square)
        assert metric.compute(predictions=holed, **arguments(name)) == expected
        assert metric.compute(predictions=tuple(map(tuple, square)), **arguments(name)) == expected

    def test_float64_survives_arrow(self, name, load):
        rng = np.random.default_rng(0)
        matrix = rng.random((6, 6)) * 1e-3 + 1.0
        assert load(name).compute(predictions=matrix, **arguments(name)) == EXPECTED[name](matrix)

    def test_inputs_are_not_mutated(self, name, load, square):
        given_list, given_array = copy.deepcopy(square), np.array(square)
        metric = load(name)
        for matrix in (given_list, given_array):
            metric.compute(predictions=matrix, **arguments(name))
            np.testing.assert_array_equal(matrix, square)

    @pytest.mark.parametrize(
        ("matrix", "text"),
        [
            (None, "matrix is None"),
            ([], "no rows"),
            (3.0, "not a sequence"),
            ("abc", "not a sequence"),
            ([1.0, 2.0], r"matrix\[0\] is 1.0 .float., not a sequence"),
            ([[1.0], [2.0]], r"matrix\[1\] has length 1"),
            ([[1.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0]], r"matrix\[1\] has length 3"),
            ([[True, 0.0], [1.0, 2.0]], r"matrix\[0\]\[0\] is True .bool., not a number"),
            ([["1", 0.0], [1.0, 2.0]], r"matrix\[0\]\[0\] is '1' .str., not a number"),
            ([["x", 0.0], [1.0, 2.0]], r"matrix\[0\]\[0\] is 'x' .str., not a number"),
            ([[[1.0], 0.0], [1.0, 2.0]], r"matrix\[0\]\[0\] is \[1.0\] .list., not a number"),
            ([[np.nan, np.nan], [np.nan, np.nan]], "missing .None or NaN."),
            ([[np.inf, np.inf], [np.inf, np.inf]], "infinite"),
        ],
    )
    def test_bad_input_is_named_and_leaves_nothing_behind(self, name, load, tmp_path, matrix, text):
        metric = load(name, cache_dir=str(tmp_path))
        with pytest.raises(ValueError, match=text):
            metric.compute(predictions=matrix, **arguments(name))
        assert not list(tmp_path.rglob("*.arrow"))

    def test_a_misspelt_argument_is_refused(self, name, load, square, tmp_path):
        metric = load(name, cache_dir=str(tmp_path))
        with pytest.raises(TypeError, match="defintion"):
            metric.compute(predictions=square, defintion="max", **arguments(name))
        assert not list(tmp_path.rglob("*.arrow"))

    def test_the_examples_of_the_docstring_hold(self, name, load, evaluate_cache):
        metric = load(name)
        assert metric.description.strip()
        assert metric.citation.strip().startswith("@")
        assert metric.inputs_description in metric.compute.__doc__
        test = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
        assert len(test.examples) >= 3
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", TRIANGULAR)
class TestLayouts:
    def test_triangle_square_and_holes_agree(self, name, load, published):
        expected = EXPECTED[name](published)
        holed = [row + [None] * (6 - len(row)) for row in published]
        metric = load(name)
        assert metric.compute(predictions=published) == expected
        assert metric.compute(predictions=holed) == expected
        assert metric.compute(predictions=np.array(holed, dtype=float)) == expected
        assert metric.compute(predictions=[np.array(row) for row in published]) == expected

    def test_rows_handed_over_one_by_one(self, name, load, published):
        metric = load(name)
        for row in published:
            metric.add(prediction=row)
        assert metric.compute() == EXPECTED[name](published)
        metric.add_batch(predictions=published[:3])
        assert metric.compute(predictions=published[3:]) == EXPECTED[name](published)

    def test_missing_rows_are_named_at_the_end(self, name, load, published):
        metric = load(name, keep_in_memory=True)
        metric.add(prediction=published[0])
        metric.add(prediction=published[2])
        with pytest.raises(ValueError, match=r"matrix\[1\] has length 3"):
            metric.compute()


class TestArguments:
    def test_forgetting_definitions(self, load, published):
        metric = load("forgetting")
        assert metric.compute(predictions=published, definition="max")["forgetting"] == pytest.approx(4.294)
        first = metric.compute(predictions=published, definition="first")
        assert first["forgetting"] == -pm.backward_transfer(published)
        assert first["forgetting_per_task"] == pm.forgetting_per_task(published, "first")
        with pytest.raises(ValueError, match="definition='best', which is not known"):
            metric.compute(predictions=published, definition="best")

    def test_forward_transfer_needs_a_baseline_and_a_square(self, load, square, published):
        metric = load("forward_transfer")
        assert metric.compute(predictions=square, baseline=np.array(BASELINE)) == EXPECTED["forward_transfer"](square)
        with pytest.raises(ValueError, match="no baseline"):
            metric.compute(predictions=square)
        with pytest.raises(ValueError, match="baseline has length 2"):
            metric.compute(predictions=square, baseline=[1.0, 2.0])
        with pytest.raises(ValueError, match=r"matrix\[0\]\[1\]"):
            metric.compute(predictions=published, baseline=BASELINE)


class TestCombine:
    def test_all_that_need_no_argument(self, evaluate_cache, published):
        import evaluate

        combined = evaluate.combine([hf_lifealign.metric_path(name) for name in TRIANGULAR])
        expected = {}
        for name in TRIANGULAR:
            expected |= EXPECTED[name](published)
        assert combined.compute(predictions=published) == expected

    def test_row_by_row(self, load, published):
        import evaluate

        combined = evaluate.combine({"a": load("bwt"), "b": load("last_performance")}, force_prefix=True)
        for row in published:
            combined.add(prediction=row)
        result = combined.compute()
        assert result["a_bwt"] == pm.backward_transfer(published)
        assert result["b_last_performance"] == pm.last_performance(published)


ISOLATED = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a metric reached for the network")

import hf_lifealign
import hf_lifealign.metrics
# importing the package must not cost the seconds that these take
assert not {"evaluate", "datasets", "torch", "transformers"} & set(sys.modules)
socket.socket.connect = socket.getaddrinfo = refuse
arguments = json.loads(sys.argv[1])
results = {}
for name in hf_lifealign.metrics.METRICS:
    results[name] = hf_lifealign.load_metric(name).compute(**arguments[name])
print(json.dumps(results))
"""


def test_offline_in_a_fresh_home(tmp_path, square):
    """All of them in a new process with an empty HF_HOME, no network, and no cache but that one."""
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HOME": str(tmp_path)}
    given = {name: {"predictions": square, **arguments(name)} for name in EXPECTED}
    given |= {name: kwargs for name, (kwargs, _) in OTHERS.items()}
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED, json.dumps(given)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = {name: EXPECTED[name](square) for name in EXPECTED}
    expected |= {name: result for name, (_, result) in OTHERS.items()}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert (home / "modules" / "evaluate_modules" / "metrics" / "bwt").is_dir()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_runs_with_the_maths_beside_it(name, evaluate_cache, tmp_path, square):
    """As on a Space: a copy of the maths lies in the folder, and the script imports nothing of this package."""
    import evaluate

    folder = tmp_path / name
    folder.mkdir()
    script = (Path(hf_lifealign.metric_path(name)) / f"{name}.py").read_text(encoding="utf-8")
    bundled = script.replace("from hf_lifealign.metrics.performance_matrix import", "from .performance_matrix import")
    assert "\nfrom hf_lifealign" not in bundled
    assert "\nimport hf_lifealign" not in bundled
    (folder / f"{name}.py").write_text(bundled, encoding="utf-8")
    (folder / "performance_matrix.py").write_text(Path(pm.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    metric = evaluate.load(str(folder))
    assert metric.compute(predictions=square, **arguments(name)) == EXPECTED[name](square)
