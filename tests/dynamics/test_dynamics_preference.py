"""A score of preference pairs, and the forces on it, against closed forms and against what steps really do."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import preference_dataset, tiny_model, tiny_tokenizer

from hf_lifealign.dynamics.likelihood import weighted_gradient
from hf_lifealign.dynamics.preference import PairMargins, PreferenceMeter, margin_scale, preferences
from hf_lifealign.dynamics.updates import norm
from hf_lifealign.lifelong.scoring import EncodedPair, encode_pairs, score_pairs

# numbers so near 0 that they lose digits are none that a model gives
finite = st.floats(-50, 50).map(lambda m: 0.0 if abs(m) < 1e-100 else m)


def meter(count: int = 10, **settings: Any) -> PreferenceMeter:
    pairs = encode_pairs(preference_dataset(count), tiny_tokenizer(), None)
    reference = score_pairs(tiny_model(1), pairs, 0)
    return PreferenceMeter(pairs, reference, 0, **settings)


@given(st.lists(finite, min_size=1, max_size=9), st.floats(0.1, 20))
def test_preferences_are_probabilities_of_the_margins(margins: list[float], scale: float) -> None:
    found = preferences(margins, scale)
    exact = [1 / (1 + math.exp(-m / scale)) for m in margins]
    assert found == pytest.approx(exact, abs=1e-12)
    assert found + preferences([-m for m in margins], scale) == pytest.approx(np.ones(len(margins)))


@given(st.lists(finite.filter(lambda m: abs(m) > 0.1), min_size=1, max_size=9))
def test_at_a_scale_of_nothing_it_is_the_accuracy(margins: list[float]) -> None:
    assert preferences(margins, 1e-9).mean() == pytest.approx(sum(m > 0 for m in margins) / len(margins))


@given(st.lists(finite, min_size=1, max_size=9), st.floats(0.1, 20))
def test_the_scale_makes_alike_what_differs_in_size(margins: list[float], factor: float) -> None:
    scale = margin_scale(margins)
    if scale != 1.0:
        grown = [factor * m for m in margins]
        assert margin_scale(grown) == pytest.approx(factor * scale)
        assert preferences(grown, factor * scale) == pytest.approx(preferences(margins, scale))
    assert margin_scale([0.0, 0.0]) == 1.0


def test_the_untouched_base_stands_at_one_half() -> None:
    found = meter().draw(tiny_model(1).eval(), 0)
    assert found.margins == pytest.approx([0.0] * 10, abs=1e-5)
    assert meter().anchored(found).score == pytest.approx(0.5, abs=1e-5)
    assert found.one_sided() is None


def test_the_error_is_that_of_the_same_pairs() -> None:
    margins, before = [1.0, -2.0, 3.0, 0.5], [1.1, -1.8, 3.3, 0.4]
    plain, paired = meter(4, scale=2.0), meter(4, scale=2.0, before=before)
    s = np.array([1 / (1 + math.exp(-m / 2)) for m in margins])
    d = s - np.array([1 / (1 + math.exp(-m / 2)) for m in before])
    told, again = plain.anchored(PairMargins(margins)), paired.anchored(PairMargins(margins))
    assert told.score == again.score == pytest.approx(s.mean())
    assert told.standard_error == pytest.approx(s.std(ddof=1) / 2)
    assert again.standard_error == pytest.approx(d.std(ddof=1) / 2)
    assert (again.low, again.high) == pytest.approx((s.mean() - 0.98 * s.std(ddof=1), s.mean() + 0.98 * s.std(ddof=1)))
    single = meter(1).anchored(PairMargins([1.0]))
    assert single.standard_error == 0.0


def test_forces_are_what_steps_do() -> None:
    """Half the difference between a step forth and one back errs by the third order only; logits are float32."""
    model = tiny_model().double().eval()
    parameters = list(model.parameters())
    steps = []
    for chosen, rejected in ((" yes", " no"), (" no", " up"), (" down", " yes")):
        ids = [tiny_tokenizer()(text)["input_ids"] for text in (chosen, rejected)]
        gradient = weighted_gradient(model, parameters, [[5, 6]], [ids], [[1.0, -1.0]])
        steps.append([(0.02 * part / norm(gradient)).double() for part in gradient])
    measure = meter(scale=0.7)
    found = measure.forces(model, parameters, measure.draw(model, 0), steps)

    def moved(step: list[torch.Tensor], sign: float) -> float:
        with torch.no_grad():
            for p, part in zip(parameters, step, strict=True):
                p += sign * part
            score = measure.anchored(measure.draw(model, 0)).score
            for p, part in zip(parameters, step, strict=True):
                p -= sign * part
        return score

    for (value, error), step in zip(found, steps, strict=True):
        assert value == pytest.approx((moved(step, 1.0) - moved(step, -1.0)) / 2, rel=0.01, abs=5e-7)
        assert error > 0
    one = meter(1)
    assert math.isnan(one.forces(model, parameters, one.draw(model, 0), steps)[0][1])


def test_what_cannot_be_measured_is_refused() -> None:
    pairs = encode_pairs(preference_dataset(2), tiny_tokenizer(), None)
    for bad in ([], [*pairs, EncodedPair([1, 2], [1, 2], 2, 1)], [EncodedPair([1, 2], [1, 2], 0, 1)]):
        with pytest.raises(ValueError, match="needs pairs"):
            PreferenceMeter(bad, [(0.0, 0.0)] * len(bad))
    with pytest.raises(ValueError, match="There are 2 pairs"):
        PreferenceMeter(pairs, [(0.0, 0.0)])
    with pytest.raises(ValueError, match="There are 2 pairs"):
        PreferenceMeter(pairs, [(0.0, 0.0)] * 2, before=[1.0])
    with pytest.raises(ValueError, match="scale=0"):
        PreferenceMeter(pairs, [(0.0, 0.0)] * 2, scale=0.0)
