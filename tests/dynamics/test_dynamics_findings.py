"""What a series says, on made-up entries whose answers are known by hand, and on series that say nothing."""

import json
import math
from typing import Any

import numpy as np
import pytest

from hf_lifealign.dynamics.agreement import Agreement, agreement
from hf_lifealign.dynamics.findings import RELIABLE, TOO_FEW, UNRELIABLE, find, find_priming, judge_forces


def told(step: int, score: float, anchor: int | None = None, ess: float = 1.0, **more: Any) -> dict[str, Any]:
    """An entry with a score, of its own samples unless an earlier anchor is given."""
    at = step if anchor is None else anchor
    return {"step": step, "score": {"score": score, "low": score - 0.05, "high": score + 0.05, "ess": ess,
                                    "anchor": at}, **more}  # fmt: skip


def change(since: int, value: float | None, predicted: float | None = None, **more: float) -> dict[str, Any]:
    """The keys of a change of log-odds since an anchor; both halves of the samples say what all of them say."""
    found: dict[str, Any] = {"log_odds_change": {"value": value, "since": since}}
    if predicted is not None:
        found["attribution"] = {"since": since, "log_odds": predicted, "cross": [[predicted, value]] * 2, **more}
    return found


def linear(intervals: int = 10, slope: float = 2.0, noise: float = 0.0) -> list[dict[str, Any]]:
    """Anchors every 10 steps with one point on the way; measured changes are `slope` times the predicted ones.

    At anchor i drive is .3 and rebound -.1 i in each step, and what is attributed is what they make in 5 or 10.
    """
    entries: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for i in range(intervals + 1):
        force = {"drive": 0.3, "rebound": -0.1 * i, "net": 0.3 - 0.1 * i}
        entry = told(10 * i, 0.05 * i + 0.2, forces=force)
        if i:
            entry |= {"rescored": {"score": 0.5, "low": 0.4, "high": 0.6, "ess": 0.6, "anchor": 10 * (i - 1)}}
            entry |= made(i - 1, 10, slope, float(rng.normal()) * noise)
        entries.append(entry)
        if i < intervals:
            entries.append(told(10 * i + 5, 0.5, 10 * i, 0.8, **made(i, 5, slope, 0.0)))
    return entries


def made(i: int, steps: int, slope: float, noise: float) -> dict[str, Any]:
    drive, rebound = 0.3 * steps, -0.1 * i * steps
    predicted = drive + rebound + 0.5
    return change(10 * i, slope * predicted + noise, predicted, drive=drive, rebound=rebound, net=drive + rebound,
                  residual=0.5)  # fmt: skip


# Agreement of pairs


def test_agreement_is_pearsons_correlation_and_a_slope_through_the_origin() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 6.0]
    found = agreement(x, y)
    # by hand: centred products 7, squares 5 and 14; products 37 over squares 30
    assert found.correlation == pytest.approx(7 / math.sqrt(5 * 14))
    assert found.slope == pytest.approx(37 / 30)
    assert (found.points, found.clusters) == (4, 4)
    assert agreement(x, [-2 * v for v in x]).correlation == pytest.approx(-1)
    assert agreement([1e-200 * v for v in x], y).correlation == pytest.approx(found.correlation)


def test_the_interval_is_over_clusters() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    alone = agreement(x.tolist(), y.tolist())
    assert alone.low is not None
    assert alone.low < alone.correlation < alone.high  # type: ignore[operator]
    copies = agreement(np.tile(x, 20).tolist(), np.tile(y, 20).tolist(), np.tile(np.arange(12), 20).tolist())
    # twenty copies of each pair in one cluster say no more than one
    assert copies.correlation == pytest.approx(alone.correlation)
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))
    free = agreement(np.tile(x, 20).tolist(), np.tile(y, 20).tolist())
    assert free.high - free.low < 0.5 * (alone.high - alone.low)  # type: ignore[operator]


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        x = rng.normal(size=40)
        y = 0.8 * x + 0.6 * rng.normal(size=40)
        found = agreement(x.tolist(), y.tolist())
        covered += found.low <= 0.8 <= found.high  # type: ignore[operator]
    assert covered >= 50


@pytest.mark.parametrize(
    ("x", "y", "clusters", "why"),
    [
        ([], [], None, "0 points"),
        ([1.0], [1.0], None, "1 point: a correlation needs at least 3"),
        ([1.0, 2.0], [1.0, 2.0], None, "2 points"),
        ([0.1] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], None, "all 5 values are the same: first"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], None, "all 3 values are the same: second"),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], None, "no interval: 3 independent groups"),
    ],
)
def test_what_says_too_little(x: list[float], y: list[float], clusters: Any, why: str) -> None:
    found = agreement(x, y, clusters)
    assert why in str(found.reason)
    assert found.low is None
    assert (found.correlation is None) == ("no interval" not in why)


def test_pairs_have_to_match() -> None:
    with pytest.raises(ValueError, match="Give one for each pair"):
        agreement([1.0], [1.0, 2.0])


# Findings of a series


def test_intervals_and_contributions() -> None:
    found = find(linear(3))
    assert [(c.since, c.step, c.last) for c in found.changes] == [
        (0, 5, False), (0, 10, True), (10, 15, False), (10, 20, True), (20, 25, False), (20, 30, True),
    ]  # fmt: skip
    second = found.intervals[1]
    assert (second.drive, second.rebound, second.net, second.residual) == pytest.approx((3.0, -1.0, 2.0, 0.5))
    assert second.drive + second.rebound + second.residual == pytest.approx(second.predicted)  # type: ignore[operator]
    assert second.measured == pytest.approx(2 * 2.5)
    # what the anchors' own samples say: .25 to .30 is log(.3/.7) - log(.25/.75)
    assert second.fresh == pytest.approx(math.log(0.3 / 0.7 * 3))
    assert [change.ess for change in found.changes[:2]] == [0.8, 0.6]


def test_the_curve_tells_anchors_from_rescored_points() -> None:
    found = find(linear(2))
    assert [(p.step, p.anchor, p.anchored) for p in found.curve] == [
        (0, 0, True), (5, 0, False), (10, 0, False), (10, 10, True), (15, 10, False), (20, 10, False), (20, 20, True),
    ]  # fmt: skip
    assert [p.score for p in found.scores] == pytest.approx([0.2, 0.5, 0.25, 0.5, 0.3])
    assert (found.start, found.end, found.measurements) == (0, 20, 5)


def test_predicted_and_measured_on_a_line() -> None:
    found = find(linear(10, slope=2.0))
    last, every = found.prediction["linearisation"], found.prediction["all"]
    cross = found.prediction["cross"]
    assert (cross.points, cross.clusters) == (20, 10)
    assert (cross.correlation, cross.slope) == (pytest.approx(1.0), pytest.approx(2.0))
    assert (last.points, last.clusters) == (10, 10)
    assert (every.points, every.clusters) == (20, 10)
    assert last.correlation == every.correlation == pytest.approx(1.0)
    assert last.slope == pytest.approx(2.0)
    assert found.verdict == RELIABLE
    assert found.prediction["trapezoid"].reason == "0 points: a correlation needs at least 3"
    # measured 2 (F + .05) a step with F = .3 - .1 i: by hand, from sums over i = 0..9
    force = [0.3 - 0.1 * i for i in range(10)]
    assert found.factor == pytest.approx(2 * sum(f * (f + 0.05) for f in force) / sum(f * f for f in force))
    assert found.calibration.correlation == pytest.approx(1.0)
    assert (found.phase.points, found.phase.correlation) == (11, pytest.approx(-1.0))


def test_noise_makes_forces_unreliable() -> None:
    found = find(linear(12, noise=30.0))
    assert found.verdict == UNRELIABLE
    assert "which is below 0.8" in found.reasons[0]
    assert "more samples" in found.reasons[1]


def test_the_verdict_is_on_samples_that_the_prediction_did_not_see() -> None:
    entries = linear(10)
    rng = np.random.default_rng(0)
    for entry in entries:
        if "attribution" in entry:
            entry["attribution"]["cross"] = rng.normal(size=(2, 2)).tolist()
    found = find(entries)
    assert found.prediction["linearisation"].correlation == pytest.approx(1.0)
    assert found.verdict == UNRELIABLE
    assert "On the same samples it is 1.00" in found.reasons[1]
    assert "verdicts do not depend on the answers" in found.reasons[1]


def test_without_a_cross_check_there_is_no_verdict() -> None:
    entries = linear(10)
    for entry in entries:
        entry.get("attribution", {}).pop("cross", None)
        entry["not_estimable"] = {"cross": "samples=2: both halves of them are needed"}
    found = find(entries)
    assert found.verdict == TOO_FEW
    assert "0 intervals have a prediction that other samples can check" in found.reasons[0]
    assert found.reasons[0].endswith("Not checked: samples=2: both halves of them are needed.")
    # halves that say nothing are left out, one by one
    for entry, pairs in zip(entries[1:], ([[None, 1.0], [0.5, 2.0]], "x", [[1.0]], [3, None]), strict=False):
        entry["attribution"]["cross"] = pairs
    assert [c.cross for c in find(entries).changes[:4]] == [((0.5, 2.0),), (), (), ()]


def test_changes_without_an_interval_do_not_count() -> None:
    """Nine of ten rest on an answer or two: their sizes are chance, and nothing is said of the forces by them."""
    entries = linear()
    for entry in (e for e in entries[:-2] if "log_odds_change" in e):
        entry["log_odds_change"]["reason"] = "interval not estimable: one side is in so few prompts"
    found = find(entries)
    assert [change.doubt is None for change in found.changes] == [False] * 18 + [True] * 2
    assert all(agreed.clusters <= 1 for agreed in found.prediction.values())
    assert found.verdict == TOO_FEW


def test_few_updates_are_told() -> None:
    entries = [told(0, 0.4, forces={"net": 0.1, "updates": 1, "reason": "1 update of training rows"})]
    assert [(m.what, m.reason) for m in find(entries).missing] == [("sizes of forces", "1 update of training rows")]


def test_few_intervals_are_too_few() -> None:
    assert find(linear(8)).verdict == RELIABLE
    found = find(linear(7))
    assert found.verdict == TOO_FEW
    assert "7 intervals have a prediction that other samples can check; a verdict needs at least 8" in found.reasons[0]


def test_the_verdict_says_what_it_does_not_cover() -> None:
    def pairs(correlation: float | None, low: float | None = 0.9, slope: float = 1.0) -> Agreement:
        return Agreement(10, 10, correlation, low, 0.99, slope, None if correlation is not None else "all the same")

    def judged(cross: Agreement, same: Agreement, trapezoid: Agreement, forecast: Agreement) -> tuple[str, list[str]]:
        return judge_forces({"cross": cross, "linearisation": same, "trapezoid": trapezoid}, forecast)

    good, bad = pairs(0.95), pairs(0.5)
    assert judged(good, good, good, good)[1] == [
        "Changes predicted by one half of the samples and measured on the other correlate by 0.95 [0.90, 0.99] over 10 "
        "intervals, which is at least 0.8."
    ]
    assert judged(pairs(0.8), good, good, good)[0] == RELIABLE
    for cross, same, trapezoid, forecast, verdict, word in (
        (pairs(0.79), good, good, good, UNRELIABLE, "mostly chance"),
        (pairs(0.79), bad, good, good, UNRELIABLE, "Take anchors more often"),
        (pairs(0.79), bad, bad, good, UNRELIABLE, "more probes"),
        (pairs(0.85, 0.4), good, good, good, RELIABLE, "may be chance"),
        (pairs(0.95, slope=0.3), good, good, good, RELIABLE, "Measured changes are 0.30 of the predicted"),
        (good, good, good, pairs(0.2, -0.3), RELIABLE, "correlates by only 0.20 [-0.30, 0.99]"),
        (pairs(None), good, good, good, TOO_FEW, "but all the same"),
    ):
        found, reasons = judged(cross, same, trapezoid, forecast)
        assert found == verdict
        assert word in reasons[-1]


def test_the_gradients_of_both_ends_are_looked_at_where_they_are() -> None:
    entries = linear(9)
    for i, entry in enumerate(entries):
        if "rescored" in entry:
            entry["attribution"]["trapezoid"] = entry["log_odds_change"]["value"]
            entry["attribution"]["log_odds"] = value = (-1) ** (i // 2)
            entry["attribution"]["cross"] = [[value, entry["log_odds_change"]["value"]]] * 2
    found = find(entries)
    assert found.prediction["trapezoid"].correlation == pytest.approx(1.0)
    assert found.verdict == UNRELIABLE
    assert "with the gradients of both ends, it is 1.00" in found.reasons[1]


def test_contributions_are_made_from_the_forces_where_attribution_has_none() -> None:
    entries = [
        told(0, 0.4, forces={"drive": 0.2, "rebound": -0.05}),
        told(4, 0.5, 0, **change(0, 0.7, 0.9)),
    ]
    found = find(entries).intervals[0]
    assert (found.drive, found.rebound) == pytest.approx((0.8, -0.2))
    assert (found.net, found.residual) == (None, None)
    entries[0]["forces"] = {"total": 0.1, "net": 0.1}
    found = find(entries).intervals[0]
    assert (found.drive, found.net, found.residual) == (None, pytest.approx(0.4), pytest.approx(0.5))
    assert find(entries).phase.points == 0


def test_a_step_that_was_measured_twice_counts_once() -> None:
    entries = [told(0, 0.2), told(4, 0.3, 0, **change(0, 0.5, 0.5)), told(4, 0.35), told(8, 0.4, 4, **change(4, 0.2))]
    found = find(entries)
    assert [(p.step, p.score) for p in found.scores] == [(0, 0.2), (4, 0.35), (8, 0.4)]
    assert [(c.since, c.step) for c in found.intervals] == [(0, 4), (4, 8)]
    assert find_priming(found, found).estimate is not None


def test_steps_to_a_target_count_from_the_start() -> None:
    entries = [told(100, 0.2), told(110, 0.4, 100), told(120, 0.8, 100)]
    assert find(entries, 0.5).reached == pytest.approx(12.5)
    assert find(entries, 0.9).reached is None
    assert find([], 0.9).reached is None


def test_reasons_are_counted() -> None:
    lack = "interval not estimable: {} of 1000 redraws lack it"
    entries = [
        {"step": 0, "not_estimable": {"anchor": "the judge slept"}},
        told(2, 1.0, not_estimable={"forces": "all 36 samples are aligned"}),
        told(4, 1.0, 2, log_odds_change={"value": 0.1, "since": 2, "reason": lack.format(60)}),
        told(6, 1.0, 2, log_odds_change={"value": 0.1, "since": 2, "reason": lack.format(71)}),
        told(8, 1.0, not_estimable={"forces": "all 36 samples are aligned"}),
    ]
    entries[2]["score"]["reason"] = "no non-aligned sample"
    found = {(m.what, m.reason): m.steps for m in find(entries).missing}
    assert found == {
        ("anchor", "the judge slept"): [0],
        ("forces", "all 36 samples are aligned"): [2, 8],
        ("score", "no non-aligned sample"): [4],
        ("change of log-odds", lack.replace("1000", "N").format("N")): [4, 6],
    }


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0}],
        [{"step": 0, "seconds": 0.1, "score": None, "forces": None, "attribution": None, "narrowness": None}],
        [{"step": s, "score": {"score": None}, "log_odds_change": {"value": None, "since": 0}} for s in range(9)],
        [{"step": s, "score": 0.5, "forces": [], "rescored": "x", "not_estimable": "x"} for s in range(9)],
        [told(0, 0.5, forces={"drive": None, "net": float("nan")}, narrowness={"c_1": None})],
    ],
)
def test_series_that_say_nothing(entries: list[dict[str, Any]]) -> None:
    found = find(entries, target=0.9)
    assert found.verdict == TOO_FEW
    assert found.factor is None
    assert found.forces == []
    assert found.narrowness == []
    assert all(a.correlation is None for a in (*found.prediction.values(), found.calibration, found.phase))
    assert all(c.measured is None and c.predicted is None for c in found.changes)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_constant_series_correlates_with_nothing() -> None:
    entries = [told(0, 0.5)]
    entries += [told(10 * i, 0.5, rescored={"score": 0.5, "anchor": 10 * i - 10},
                     **change(10 * i - 10, 0.0, 0.0, net=0.0)) for i in range(1, 11)]  # fmt: skip
    found = find(entries)
    assert found.verdict == TOO_FEW
    assert "10 intervals have a prediction" in found.reasons[0]
    assert "all 20 values are the same: the predicted change" in found.reasons[0]
    assert found.prediction["cross"].slope is None
    assert found.factor is None
    json.dumps(found.to_json(), allow_nan=False)


def test_scores_at_the_ends_have_no_log_odds() -> None:
    entries = [told(0, 0.5), told(10, 1.0, **change(0, 0.3, 0.2)), told(20, 0.9, **change(10, 0.3, 0.2))]
    assert [c.fresh for c in find(entries).intervals] == [None, None]


# Priming


def test_priming_from_curves_that_start_elsewhere() -> None:
    first = find([told(0, 0.2), told(40, 0.6, 0), told(80, 1.0, 0)])
    again = find([told(500, 0.2), told(520, 1.0, 500)])
    found = find_priming(first, again, target=0.6)
    assert found.estimate is not None
    assert (found.estimate.first_steps, found.estimate.again_steps) == (40.0, pytest.approx(10.0))
    assert found.estimate.ratio == pytest.approx(0.25)
    # triangles over the first 20 steps: .2 x 20 / 2 first, .8 x 20 / 2 again
    assert found.estimate.area_ratio == pytest.approx(4.0)
    assert [p.step for p in found.again] == [0, 20]
    json.dumps(found.to_json(), allow_nan=False)


def test_priming_without_scores_says_which() -> None:
    one = find([told(0, 0.2)])
    assert find_priming(one, find([{"step": 0}])).reason == "not estimable: again has no score"
    assert find_priming(find([]), one).reason == "not estimable: first has no score"
