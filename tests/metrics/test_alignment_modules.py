"""The `evaluate` modules on alignment on the real path: loaded from their folder, fed through Arrow."""

import copy
import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hf_lifealign
from hf_lifealign.hub.metric_space import metric_space_files
from hf_lifealign.metrics import alignment_dynamics as ad

LABELS = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0]
PROMPTS = ["b", "a", "b", "c", "a", "a"]
BY_PROMPT = [[1.0, 0.5], [0.0, 0.0, 1.0], [1.0]]
WEIGHTS = [0.5, 0.1, -0.5, 0.25, 0.0, 1.0]
WEIGHTS_BY_PROMPT = [[0.5, -0.5], [0.1, 0.0, 1.0], [0.25]]
AGAIN, FIRST = [0.4, 0.8, 0.9], [0.45, 0.5, 0.6, 0.75, 0.8, 0.9]
STEPS, FIRST_STEPS = [0, 10, 40], [0, 8, 16, 32, 64, 128]
# metric -> what it is given, what else it takes, and its numbers straight from the pure functions
CASES = {
    "alignment_score": (
        {"predictions": LABELS, "references": PROMPTS},
        {"log_weights": WEIGHTS, "seed": 3, "level": 0.9},
    ),
    "priming_ratio": ({"predictions": AGAIN, "references": FIRST}, {"steps": STEPS, "reference_steps": FIRST_STEPS}),
}


def renamed(found, name, score):
    found = found.to_json()
    return {name: found.pop(score)} | found


def expected(name):
    if name == "alignment_score":
        found = ad.alignment_score(BY_PROMPT, WEIGHTS_BY_PROMPT, seed=3, level=0.9)
        return renamed(found, name, "score")
    return renamed(ad.priming_ratio((FIRST_STEPS, FIRST), (STEPS, AGAIN)), name, "ratio")


@pytest.fixture
def load(evaluate_cache):
    return hf_lifealign.load_metric


@pytest.mark.parametrize("name", CASES)
class TestEveryModule:
    def test_evaluate_loads_the_folder(self, name, evaluate_cache):
        import evaluate

        metric = evaluate.load(hf_lifealign.metric_path(name))
        assert metric.name == name
        given, options = CASES[name]
        result = metric.compute(**given, **options)
        assert result == expected(name)
        assert next(iter(result)) == name
        assert type(result[name]) is float
        assert json.loads(json.dumps(result)) == result

    def test_arrays_tuples_and_memory(self, name, load):
        given, options = CASES[name]
        metric = load(name, keep_in_memory=True)
        for make in (np.array, tuple):
            inputs = {key: make(value) for key, value in (given | options).items() if isinstance(value, list)}
            rest = {key: value for key, value in options.items() if not isinstance(value, list)}
            assert metric.compute(**inputs, **rest) == expected(name)

    def test_inputs_are_not_mutated(self, name, load):
        given, options = CASES[name]
        before = copy.deepcopy((given, options))
        load(name).compute(**given, **options)
        assert (given, options) == before

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({}, "is None|given as None"),
            ({"predictions": "abc", "references": "abc"}, "'abc'"),
            ({"predictions": [], "references": []}, r"is \[\]|is empty"),
            ({"predictions": [0.5, None], "references": [0.5, 1.0]}, "is None"),
            ({"predictions": [0.5, "1"], "references": [1, 2]}, "is '1' .str., not a number"),
            ({"predictions": [0.5, np.nan], "references": [1, 2]}, "is nan. Give finite numbers"),
        ],
    )
    def test_bad_input_is_named_and_leaves_nothing_behind(self, name, load, tmp_path, given, text):
        metric = load(name, cache_dir=str(tmp_path))
        if name == "alignment_score" and given.get("references") == [0.5, 1.0]:
            text = r"references\[0\] is 0.5. Give the id of the prompt"
        with pytest.raises(ValueError, match=text):
            metric.compute(**given)
        assert not list(tmp_path.rglob("*.arrow"))

    def test_a_misspelt_argument_is_refused(self, name, load, tmp_path):
        metric = load(name, cache_dir=str(tmp_path))
        with pytest.raises(TypeError, match="tarket"):
            metric.compute(**CASES[name][0], tarket=0.5)
        assert not list(tmp_path.rglob("*.arrow"))

    def test_the_examples_of_the_docstring_hold(self, name, load):
        metric = load(name)
        assert metric.description.strip()
        assert metric.citation.strip().startswith("@")
        assert metric.inputs_description in metric.compute.__doc__
        test = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
        assert len(test.examples) >= 3
        assert doctest.DocTestRunner().run(test).failed == 0

    def test_it_runs_from_the_files_of_its_space_with_numpy_alone(self, name, tmp_path):
        """In a new process in which this package, scipy and moocore cannot be imported."""
        folder = tmp_path / f"my-{name}"
        folder.mkdir()
        for path, content in metric_space_files(name, f"me/my-{name}").items():
            (folder / path).write_bytes(content)
        assert Path(folder / "alignment_dynamics.py").read_bytes() == Path(ad.__file__).read_bytes()
        code = (
            "import json, sys\n"
            "sys.modules |= dict.fromkeys(('hf_lifealign', 'scipy', 'moocore'))\n"
            "import evaluate\n"
            "print(json.dumps(evaluate.load(sys.argv[1]).compute(**json.loads(sys.argv[2]))))\n"
        )
        given, options = CASES[name]
        environment = {"HF_HOME": str(tmp_path / "home"), "HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(folder), json.dumps(given | options)],
            env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected(name)


class TestAlignmentScore:
    def test_samples_handed_over_one_by_one(self, load):
        metric = load("alignment_score")
        options = CASES["alignment_score"][1]
        for label, prompt in zip(LABELS, PROMPTS, strict=True):
            metric.add(prediction=label, reference=prompt)
        assert metric.compute(**options) == expected("alignment_score")
        metric.add_batch(predictions=LABELS[:4], references=PROMPTS[:4])
        assert metric.compute(predictions=LABELS[4:], references=PROMPTS[4:], **options) == expected("alignment_score")

    @pytest.mark.parametrize("ids", [[7, 5, 7, 9, 5, 5], ["7", "5", "7", "9", "5", "5"], np.array([7, 5, 7, 9, 5, 5])])
    def test_ids_are_strings_or_whole_numbers(self, load, ids):
        metric = load("alignment_score")
        options = CASES["alignment_score"][1]
        assert metric.compute(predictions=LABELS, references=ids, **options) == expected("alignment_score")
        for label, prompt in zip(LABELS, ids, strict=True):
            metric.add(prediction=label, reference=prompt)
        assert metric.compute(**options) == expected("alignment_score")

    def test_bools_are_labels(self, load):
        metric = load("alignment_score")
        found = metric.compute(predictions=[True, False, True], references=["a", "a", "b"])
        assert found == metric.compute(predictions=[1, 0, 1.0], references=["a", "a", "b"])
        assert (found["alignment_score"], found["prompts"], found["samples"]) == (0.75, 2, 3)

    def test_reasons_come_through(self, load):
        metric = load("alignment_score")
        found = metric.compute(predictions=[1] * 3, references=[1, 2, 3])
        assert (found["standard_error"], found["reason"].split(":")[0]) == (None, "no non-aligned sample")
        found = metric.compute(
            predictions=[1, 0, 1, 0], references=[1, 1, 2, 2], log_weights=[9, 0, 0, 9], least_ess=0.9
        )
        assert found["reason"].startswith("ESS collapsed")

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"predictions": [1, 0], "references": ["a"]}, "predictions has 2 entries, but references has 1"),
            ({"predictions": [1, 2], "references": ["a", "b"]}, r"labels\[1\]\[0\] is 2. A label is the share"),
            ({"predictions": [1, 0], "references": ["a", None]}, r"references\[1\] is None"),
            ({"predictions": [1, 0], "references": [True, False]}, r"references\[0\] is True"),
            (
                {"predictions": [1, 0], "references": ["a", "b"], "log_weights": [0.0]},
                "log_weights has 1 entries, but references has 2",
            ),
            (
                {"predictions": [1, 0], "references": ["a", "b"], "log_weights": [0.0, np.inf]},
                r"log_weights\[1\]\[0\] is inf",
            ),
            ({"predictions": [1, 0], "references": ["a", "b"], "level": 95}, "You set level with 95"),
        ],
    )
    def test_bad_samples_are_named(self, load, tmp_path, given, text):
        with pytest.raises(ValueError, match=text):
            load("alignment_score", cache_dir=str(tmp_path)).compute(**given)
        assert not list(tmp_path.rglob("*.arrow"))


class TestPrimingRatio:
    def test_whole_curves_handed_over(self, load):
        metric = load("priming_ratio")
        options = CASES["priming_ratio"][1]
        metric.add(prediction=AGAIN, reference=FIRST)
        assert metric.compute(**options) == expected("priming_ratio")
        assert metric.compute(predictions=[AGAIN], references=np.array([FIRST]), **options) == expected("priming_ratio")

    def test_without_steps_the_measurements_are_counted(self, load):
        found = load("priming_ratio").compute(predictions=AGAIN, references=FIRST, target=0.8, tolerance=0.01)
        straight = ad.priming_ratio((range(6), FIRST), (range(3), AGAIN), target=0.8, tolerance=0.01)
        assert found == renamed(straight, "priming_ratio", "ratio")
        assert (found["first_steps"], found["again_steps"]) == (4.0, 1.0)
        assert found["reason"].startswith("the starts are not matched")

    def test_no_ratio_is_none(self, load):
        found = load("priming_ratio").compute(predictions=[0.1, 0.2], references=[0.1, 0.9])
        assert found["priming_ratio"] is None
        assert found["reason"] == "not estimable: again never reaches the target 0.82"

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"steps": [0, 1, 2]}, "steps of one curve alone"),
            ({"reference_steps": [0, 1, 2]}, "steps of one curve alone"),
            ({"steps": [0, 1], "reference_steps": FIRST_STEPS}, "The steps of again are 2, but its scores are 3"),
            ({"predictions": [AGAIN, AGAIN]}, "was given 2 curves of one training"),
            ({"predictions": [0.1, np.nan]}, r"the scores of again\[1\] is nan"),
            ({"references": None}, "A curve was given as None"),
        ],
    )
    def test_bad_curves_are_named(self, load, tmp_path, given, text):
        with pytest.raises(ValueError, match=text):
            load("priming_ratio", cache_dir=str(tmp_path)).compute(**(CASES["priming_ratio"][0] | given))
        assert not list(tmp_path.rglob("*.arrow"))
