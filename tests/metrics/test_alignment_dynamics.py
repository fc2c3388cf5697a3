"""The mathematics of alignment scores and curves: closed forms, enumerated models, properties, bad input."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lifealign.metrics import alignment_dynamics as ad

units = st.floats(0, 1)
logs = st.floats(-30, 30)


@st.composite
def samples(draw, least_prompts=1):
    """Labels and log-weights of a few prompts."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=least_prompts, max_size=5))
    rows = [
        (draw(st.lists(units, min_size=n, max_size=n)), draw(st.lists(logs, min_size=n, max_size=n))) for n in sizes
    ]
    return [labels for labels, _ in rows], [weights for _, weights in rows]


class Model:
    """A softmax over the answers of each prompt, before and after an update: everything can be enumerated."""

    def __init__(self, seed, prompts=3, answers=5, step=1.5):
        rng = np.random.default_rng(seed)
        # Probabilities before the update are whole numbers of copies, so that repeated samples are the model exactly.
        self.copies = rng.integers(1, 6, size=(prompts, answers))
        self.before = self.copies / self.copies.sum(axis=1, keepdims=True)
        self.after = self.before * np.exp(step * rng.normal(size=self.before.shape))
        self.after /= self.after.sum(axis=1, keepdims=True)
        self.a = rng.choice([0.0, 1.0, 0.25], size=self.before.shape)
        self.a[0, :2] = (0.0, 1.0)

    def score(self, policy):
        return float((policy * self.a).sum(axis=1).mean())

    def samples(self):
        dl = np.log(self.after / self.before)
        copies = zip(self.copies, self.a, dl, strict=True)
        return tuple(zip(*[(np.repeat(a, n).tolist(), np.repeat(d, n).tolist()) for n, a, d in copies], strict=True))


def logit(p):
    return math.log(p / (1 - p))


# Effective sample size


@pytest.mark.parametrize(
    ("log_weights", "share"),
    [
        ([0.0], 1.0),
        ([-7.5] * 9, 1.0),
        ([0.0, math.log(3)], 0.8),  # (1 + 3)^2 / (2 * 10)
        ([900.0, -900.0, 0.0, 0.0], 0.25),
        ([-5000.0, -5000.0 + math.log(3)], 0.8),
    ],
)
def test_effective_sample_size_in_closed_form(log_weights, share):
    assert ad.effective_sample_size(log_weights) == pytest.approx(share, rel=1e-12)


@given(st.lists(logs, min_size=1, max_size=9), logs)
def test_effective_sample_size_is_a_share_and_knows_no_constant(log_weights, shift):
    share = ad.effective_sample_size(log_weights)
    assert 1 / len(log_weights) - 1e-12 <= share <= 1
    assert ad.effective_sample_size([each + shift for each in log_weights]) == pytest.approx(share, rel=1e-9)


# The score


class TestScore:
    def test_each_prompt_counts_once(self):
        found = ad.alignment_score([[1, 0, 0, 0], [1], [True, False]])
        assert found.score == pytest.approx((0.25 + 1 + 0.5) / 3)
        assert (found.prompts, found.samples, found.ess, found.reason) == (3, 7, 1.0, None)
        assert found.low <= found.score <= found.high

    def test_weights_against_fractions(self):
        weights = [[1, 2, 3], [5, 1]]
        labels = [[1, 0, 1], [0.5, 1]]
        expected = (Fraction(4, 6) + Fraction(7, 12)) / 2
        share = (Fraction(36, 42) + Fraction(36, 52)) / 2
        found = ad.alignment_score(labels, [np.log(row) - 800 for row in weights])
        assert found.score == pytest.approx(float(expected), rel=1e-12)
        assert found.ess == pytest.approx(float(share), rel=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_an_enumerated_model_before_and_after(self, seed):
        model = Model(seed)
        labels, dl = model.samples()
        assert ad.alignment_score(labels).score == pytest.approx(model.score(model.before), rel=1e-12)
        assert ad.alignment_score(labels, dl).score == pytest.approx(model.score(model.after), rel=1e-12)

    def test_the_interval_is_that_of_every_redraw(self):
        """Three prompts have 27 redraws: the bootstrap with many replicates finds their quantiles and their spread."""
        means = [0.0, 0.5, 1.0]
        exact = [sum(drawn) / 3 for drawn in itertools.product(means, repeat=3)]
        found = ad.alignment_score([[0, 0], [1, 0], [1]], replicates=50_000, level=0.8)
        low, high = np.quantile(exact, [0.1, 0.9])
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.standard_error == pytest.approx(np.std(exact), rel=0.02)

    def test_equal_inputs_give_equal_bits_and_blocks_change_nothing_of_note(self, monkeypatch):
        labels = np.random.default_rng(0).random((40, 3))
        first = ad.alignment_score(labels)
        assert ad.alignment_score(labels.tolist()) == first
        assert ad.alignment_score(labels, seed=1) != first
        monkeypatch.setattr(ad, "_BLOCK", 333)
        blocks = ad.alignment_score(labels)
        assert (blocks.low, blocks.high) == pytest.approx((first.low, first.high), abs=0.01)

    def test_the_interval_covers(self):
        """300 draws of 40 prompts from a population with a known score: about 95 % of the intervals hold it."""
        rng = np.random.default_rng(7)
        held = 0
        for _ in range(300):
            each = rng.beta(2, 1, size=(40, 1))
            found = ad.alignment_score(rng.random((40, 4)) < each, replicates=300)
            held += found.low <= 2 / 3 <= found.high
        assert 0.90 <= held / 300 <= 0.98

    def test_no_fault_among_the_prompts(self):
        found = ad.alignment_score([[1, 1]] * 20)
        assert (found.score, found.high, found.standard_error) == (1.0, 1.0, None)
        # At that lower end, 20 prompts without a fault come in 2.5 % of the cases.
        assert found.low**20 == pytest.approx(0.025)
        assert found.reason.startswith("no non-aligned sample")
        none = ad.alignment_score([[0, 0]] * 20)
        assert (none.score, none.low, none.high) == (0.0, 0.0, pytest.approx(1 - found.low))
        assert none.reason.startswith("no aligned sample")

    def test_one_prompt(self):
        found = ad.alignment_score([[1, 0, 1, 1]])
        assert (found.score, found.low, found.high, found.standard_error) == (0.75, 0.0, 1.0, None)
        assert found.reason.startswith("one prompt")
        assert ad.alignment_score([[1]]).reason.split(": ")[0] == "one prompt"

    def test_collapsed_weights(self):
        labels, weights = [[1, 0, 0, 0]] * 3, [[9.0, 0.0, 0.0, 0.0]] * 3
        assert ad.alignment_score(labels, weights).reason is None
        found = ad.alignment_score(labels, weights, least_ess=0.5)
        assert found.reason.startswith("ESS collapsed: 0.25 of the samples, less than 0.5")
        assert found.score > 0.99

    def test_the_weight_of_a_single_sample_cancels(self):
        found = ad.alignment_score([[1], [0]], [[5.0], [-5.0]])
        assert (found.score, found.ess) == (0.5, 1.0)
        assert found.reason.startswith("one sample a prompt")

    def test_json(self):
        found = ad.alignment_score([[1, 0], [1]])
        assert json.loads(json.dumps(found.to_json())) == {
            "score": 0.75,
            "low": found.low,
            "high": found.high,
            "standard_error": found.standard_error,
            "prompts": 2,
            "samples": 3,
            "ess": 1.0,
            "reason": None,
        }

    @settings(max_examples=50)
    @given(samples(), st.booleans())
    def test_everything_is_a_probability(self, drawn, weighted):
        labels, weights = drawn
        found = ad.alignment_score(labels, weights if weighted else None, replicates=20)
        assert 0 <= found.low <= found.score <= found.high <= 1
        assert 0 < found.ess <= 1

    @settings(max_examples=50)
    @given(samples(), st.data())
    def test_constants_and_order_change_nothing(self, drawn, data):
        labels, weights = drawn
        score = ad.alignment_score(labels, weights, replicates=2).score
        shifts = data.draw(st.lists(logs, min_size=len(labels), max_size=len(labels)))
        shifted = [[each + shift for each in row] for row, shift in zip(weights, shifts, strict=True)]
        assert ad.alignment_score(labels, shifted, replicates=2).score == pytest.approx(score, rel=1e-9, abs=1e-12)
        prompts = data.draw(st.permutations(range(len(labels))))
        orders = [data.draw(st.permutations(range(len(labels[x])))) for x in prompts]
        turned = [
            [[rows[x][i] for i in order] for x, order in zip(prompts, orders, strict=True)]
            for rows in (labels, weights)
        ]
        assert ad.alignment_score(*turned, replicates=2).score == pytest.approx(score, rel=1e-9, abs=1e-12)

    @settings(max_examples=50)
    @given(samples(), st.data())
    def test_a_better_label_never_lowers_it(self, drawn, data):
        labels, weights = drawn
        before = ad.alignment_score(labels, weights, replicates=20)
        x = data.draw(st.integers(0, len(labels) - 1))
        i = data.draw(st.integers(0, len(labels[x]) - 1))
        labels[x][i] = data.draw(st.floats(labels[x][i], 1))
        after = ad.alignment_score(labels, weights, replicates=20)
        assert after.score >= before.score - 1e-12


# The change in log-odds


class TestChange:
    @pytest.mark.parametrize("seed", range(8))
    def test_it_is_the_change_of_the_pooled_logit(self, seed):
        """Samples in proportion to the model: form 3 is the exact change of logit S, S pooled over the prompts."""
        model = Model(seed)
        found = ad.log_odds_change(*model.samples())
        exact = logit(model.score(model.after)) - logit(model.score(model.before))
        assert found.value == pytest.approx(exact, rel=1e-10)
        assert found.low <= found.value <= found.high

    def test_it_is_not_the_mean_of_the_changes_of_the_prompts(self):
        model = Model(3)
        each = [ad.log_odds_change([a], [dl]).value for a, dl in zip(*model.samples(), strict=True)]
        exact = logit(model.score(model.after)) - logit(model.score(model.before))
        assert abs(np.mean(each) - exact) > 0.01

    def test_prompts_count_once_however_many_samples_they_have(self):
        labels, dl = Model(1).samples()
        value = ad.log_odds_change(labels, dl).value
        more = ([labels[0] * 7, *labels[1:]], [dl[0] * 7, *dl[1:]])
        assert ad.log_odds_change(*more).value == pytest.approx(value, rel=1e-12)

    def test_a_fraction_is_so_many_copies(self):
        dl = [0.3, -0.2, 1.0]
        fractions = ad.log_odds_change([[0.25, 0.5, 1.0]], [dl]).value
        copies = ad.log_odds_change([[1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]], [np.repeat(dl, 4)]).value
        assert fractions == pytest.approx(copies, rel=1e-12)

    def test_samples_of_a_model_come_close(self):
        model = Model(11, prompts=60, step=0.5)
        rng = np.random.default_rng(0)
        dl = np.log(model.after / model.before)
        drawn = [rng.choice(5, size=64, p=row) for row in model.before]
        found = ad.log_odds_change(
            [a[i] for a, i in zip(model.a, drawn, strict=True)], [d[i] for d, i in zip(dl, drawn, strict=True)]
        )
        exact = logit(model.score(model.after)) - logit(model.score(model.before))
        assert found.low < exact < found.high
        assert abs(found.value - exact) < 0.1

    @pytest.mark.parametrize(("label", "side"), [(0, "aligned"), (1, "non-aligned")])
    def test_an_empty_side_is_no_number(self, label, side):
        found = ad.log_odds_change([[label] * 2] * 3, [[0.1, 0.2]] * 3)
        assert found == ad.ChangeEstimate(None, None, None, None, f"not estimable: no {side} sample")
        json.dumps(found.to_json())

    def test_a_side_in_one_prompt_has_a_value_but_no_interval(self):
        found = ad.log_odds_change([[1, 0]] + [[1, 1]] * 9, [[0.5, 0.25]] + [[0.5, 0.5]] * 9)
        assert found.value == pytest.approx(0.25)
        assert (found.low, found.high, found.standard_error) == (None, None, None)
        assert found.reason.startswith("interval not estimable: one side is in so few prompts that")

    def test_one_prompt_has_a_value_but_no_interval(self):
        found = ad.log_odds_change([[1, 0]], [[0.75, 0.25]])
        assert found.value == pytest.approx(0.5)
        assert (found.low, found.reason) == (None, "interval not estimable: one prompt, and it is over prompts")

    def test_log_weights_beyond_the_range_of_a_float(self):
        found = ad.log_odds_change([[1, 0], [1, 0]], [[1500.0, -1500.0], [-3000.0, -1500.0]])
        # Half of the aligned samples carry e^1500, all of the others e^-1500.
        assert found.value == pytest.approx(3000 + math.log(0.5))
        assert math.isfinite(found.low)
        assert math.isfinite(found.high)
        # A prompt's other side must not push a side below the range of a float.
        assert ad.log_odds_change([[1, 0, 0]], [[0.0, -2000.0, -2000.0]]).value == pytest.approx(2000)

    @settings(max_examples=50)
    @given(samples(), logs)
    def test_signs_and_constants(self, drawn, shift):
        labels, dl = drawn
        found = ad.log_odds_change(labels, dl, replicates=10)
        if found.value is None:
            assert found.reason.startswith("not estimable")
            return
        shifted = [[each + shift for each in row] for row in dl]
        assert ad.log_odds_change(labels, shifted, replicates=10).value == pytest.approx(found.value, abs=1e-8)
        quarters = [[round(4 * a) / 4 for a in row] for row in labels]
        turned = ad.log_odds_change([[1 - a for a in row] for row in quarters], dl, replicates=10).value
        straight = ad.log_odds_change(quarters, dl, replicates=10).value
        assert turned is straight is None or turned == pytest.approx(-straight, abs=1e-8)


# Curves


@pytest.mark.parametrize(
    ("steps", "scores", "target", "expected"),
    [
        ([0, 10, 20], [0.0, 0.5, 1.0], 0.75, 15.0),
        ([0, 10, 20], [0.0, 0.5, 1.0], 0.5, 10.0),
        ([0, 10, 20], [0.0, 0.5, 1.0], 1.01, None),
        ([0, 10, 20], [0.8, 0.5, 1.0], 0.75, 0.0),
        ([5, 10], [0.8, 0.9], 0.8, 5.0),
        ([0, 4, 8, 12], [0.0, 0.6, 0.2, 0.9], 0.5, 4 * 0.5 / 0.6),  # the first crossing, not the last
        ([3], [0.5], 0.6, None),
    ],
)
def test_steps_to_target(steps, scores, target, expected):
    found = ad.steps_to_target(steps, scores, target)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_the_step_lies_on_the_curve(scores, target):
    steps = [3.0 * i + 1 for i in range(len(scores))]
    found = ad.steps_to_target(steps, scores, target)
    if found is None:
        assert max(scores) < target
    else:
        assert steps[0] <= found <= steps[-1]
        if scores[0] < target:
            assert np.interp(found, steps, scores) == pytest.approx(target, abs=1e-9)


class TestPriming:
    FIRST = ([0, 32, 64, 128], [0.4, 0.6, 0.8, 0.9])

    def test_closed_form(self):
        again = ([0, 16, 64], [0.4, 0.8, 0.9])
        found = ad.priming_ratio(self.FIRST, again)
        assert found.target == pytest.approx(0.85)
        assert (found.first_steps, found.again_steps) == (pytest.approx(96), pytest.approx(40))
        assert found.ratio == pytest.approx(40 / 96)
        # Over 64 steps, which both cover: a triangle of 64 by 0.4; one of 16 by 0.4, and a trapezoid.
        assert found.area_ratio == pytest.approx((16 * 0.4 / 2 + 48 * 0.45) / (64 * 0.4 / 2))
        assert (found.area_steps, found.reason) == (64.0, None)
        assert json.loads(json.dumps(found.to_json()))["ratio"] == found.ratio

    def test_a_curve_against_itself_and_one_that_is_twice_as_fast(self):
        same = ad.priming_ratio(self.FIRST, self.FIRST)
        assert (same.ratio, same.area_ratio, same.area_steps) == (1.0, 1.0, 128.0)
        fast = ad.priming_ratio(self.FIRST, ([each / 2 for each in self.FIRST[0]], self.FIRST[1]))
        assert fast.ratio == pytest.approx(0.5)

    @pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
    def test_the_default_target_is_always_reached_by_the_first(self, share):
        for start in np.linspace(0.01, 0.7, 50):
            found = ad.priming_ratio(([0, 1], [start, 0.9]), ([0, 1], [start, 0.9]), share=share)
            assert found.ratio == 1.0

    def test_areas_are_cut_at_the_option(self):
        found = ad.priming_ratio(self.FIRST, ([0, 128], [0.4, 0.9]), area_steps=16)
        assert found.area_steps == 16
        assert found.area_ratio == pytest.approx((0.5 / 128) / (0.2 / 32))

    def test_starts_that_are_not_matched(self):
        found = ad.priming_ratio(self.FIRST, ([0, 64], [0.6, 0.9]))
        assert found.reason == "the starts are not matched: 0.4 first, 0.6 again, more than 0.1 apart"
        assert found.ratio is not None
        assert ad.priming_ratio(self.FIRST, ([0, 64], [0.6, 0.9]), tolerance=0.3).reason is None

    @pytest.mark.parametrize(
        ("first", "again", "target", "reason"),
        [
            (([0, 9], [0.1, 0.5]), ([0, 9], [0.1, 0.9]), 0.8, "not estimable: first never reaches the target 0.8"),
            (([0, 9], [0.1, 0.9]), ([0, 9], [0.1, 0.5]), 0.8, "not estimable: again never reaches the target 0.8"),
            (([0, 9], [0.1, 0.9]), ([0, 9], [0.1, 0.5]), 0.1, "not estimable: first starts at the target 0.1 or above"),
        ],
    )
    def test_no_ratio_without_a_crossing(self, first, again, target, reason):
        found = ad.priming_ratio(first, again, target)
        assert found.ratio is None
        assert found.reason.split("; ")[0] == reason
        assert found.area_ratio is not None

    def test_a_first_training_that_gains_nothing(self):
        found = ad.priming_ratio(([0, 9], [0.5, 0.4]), ([0, 9], [0.5, 0.6]))
        assert (found.ratio, found.area_ratio) == (None, None)
        assert found.reason.endswith("area ratio not estimable: first gains no area")

    def test_again_at_the_target_from_the_start(self):
        found = ad.priming_ratio(self.FIRST, ([0, 9], [0.45, 0.5]), target=0.42)
        assert (found.ratio, found.reason) == (0.0, "again starts at the target 0.42 or above")

    def test_no_steps_in_common(self):
        found = ad.priming_ratio(self.FIRST, ([0], [0.4]))
        assert (found.area_ratio, found.area_steps) == (None, 0.0)
        assert "area ratio not estimable: the curves have no steps in common" in found.reason


# Bad input


NOT_NUMBERS = [
    ([], "has no prompts"),
    ("abc", "is 'abc' .str., not a sequence"),
    (None, "is None .NoneType., not a sequence"),
    ([1.0, 0.0], r"labels\[0\] is 1.0 .float., not a sequence"),
    ([[1], []], r"labels\[1\] is empty"),
    ([[1, 0], [1, 1.5]], r"labels\[1\]\[1\] is 1.5. A label is the share"),
    ([[-0.1]], r"labels\[0\]\[0\] is -0.1"),
    ([[0.5, math.nan]], r"labels\[0\]\[1\] is nan"),
    ([[0.5, math.inf]], r"labels\[0\]\[1\] is inf"),
    ([[10**400]], r"labels\[0\]\[0\] is inf"),
    ([[0.5, None]], r"labels\[0\]\[1\] is None .NoneType., not a number"),
    ([["1"]], r"labels\[0\]\[0\] is '1' .str., not a number"),
    ([[[1.0]]], r"labels\[0\]\[0\] is \[1.0\] .list., not a number"),
]


@pytest.mark.parametrize(("labels", "text"), NOT_NUMBERS)
def test_bad_labels_are_named(labels, text):
    with pytest.raises(ValueError, match=text):
        ad.alignment_score(labels)
    with pytest.raises(ValueError, match=text):
        ad.log_odds_change(labels, labels)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([[0.0, 0.0]], "log_weights has 1 prompts, but labels has 2. Give one log-weight"),
        ([[0.0, 0.0], [0.0, 0.0]], r"log_weights\[1\] has length 2, but labels\[1\] has 1"),
        ([[0.0, math.nan], [0.0]], r"log_weights\[0\]\[1\] is nan"),
        ([[0.0, -math.inf], [0.0]], r"log_weights\[0\]\[1\] is -inf"),
        ([[0.0, None], [0.0]], r"log_weights\[0\]\[1\] is None"),
    ],
)
def test_bad_weights_are_named(weights, text):
    for function in (ad.alignment_score, ad.log_odds_change):
        with pytest.raises(ValueError, match=text):
            function([[1, 0], [1]], weights)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"replicates": 1}, "You set replicates with 1. Set a whole number, 2 or more"),
        ({"replicates": 10.0}, "You set replicates with 10.0"),
        ({"seed": -1}, "You set seed with -1"),
        ({"level": 1.0}, "You set level with 1.0"),
        ({"level": 95}, "You set level with 95"),
        ({"least_ess": 2}, "You set least_ess with 2"),
    ],
)
def test_bad_options_are_named(option, text):
    with pytest.raises(ValueError, match=text):
        ad.alignment_score([[1, 0]], **option)


@pytest.mark.parametrize(
    ("first", "options", "text"),
    [
        (([], []), {}, "the steps of first is empty"),
        (([0, 1], [0.5]), {}, "The steps of first are 2, but its scores are 1"),
        (([0, 2, 2], [0.1, 0.2, 0.3]), {}, "The steps of first go from 2 to 2 at index 2. They have to increase"),
        (([-1, 2], [0.1, 0.2]), {}, "The steps of first begin at -1. Count them from the start"),
        (([0, 1], [0.1, math.nan]), {}, r"the scores of first\[1\] is nan"),
        (([0, 1, 2],), {}, "first has length 1. A curve is a pair"),
        (([0, 1], [0.1, 0.9]), {"share": 0}, "You set share with 0. It is a share: set a number above 0 to 1"),
        (([0, 1], [0.1, 0.9]), {"area_steps": 0}, "You set area_steps with 0"),
        (([0, 1], [0.1, 0.9]), {"tolerance": -1}, "tolerance with -1"),
        (([0, 1], [0.1, 0.9]), {"target": math.nan}, "You set target with nan, which is not a finite number"),
        (([0, 1], [0.1, 0.9]), {"target": "0.5"}, "You set target with '0.5', which is not a finite number"),
    ],
)
def test_bad_curves_are_named(first, options, text):
    with pytest.raises(ValueError, match=text):
        ad.priming_ratio(first, ([0, 1], [0.1, 0.9]), **options)


def test_arrays_and_tensors_are_read():
    torch = pytest.importorskip("torch")
    expected = ad.alignment_score([[1, 0], [1, 1]], [[0.5, 0.25], [0.0, 1.0]])
    labels, weights = np.array([[1, 0], [1, 1]]), np.array([[0.5, 0.25], [0.0, 1.0]])
    assert ad.alignment_score(labels, weights) == expected
    assert ad.alignment_score(torch.tensor(labels), torch.tensor(weights)) == expected
    assert ad.alignment_score([torch.tensor([1, 0]), np.array([True, True])], tuple(map(tuple, weights))) == expected
    assert ad.alignment_score([list(row) for row in labels], [list(row) for row in weights]) == expected
