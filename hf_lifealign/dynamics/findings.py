"""What a series of measurements says, as pure functions of the entries of `dynamics.jsonl`; numpy only."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_lifealign.dynamics.agreement import Agreement, agreement
from hf_lifealign.dynamics.rehearsal import calibrate, logit
from hf_lifealign.metrics.alignment_dynamics import PrimingEstimate, priming_ratio, steps_to_target

RELIABLE, UNRELIABLE, TOO_FEW = "forces reliable here", "forces unreliable here", "too few points to tell"
LEAST_CORRELATION, LEAST_INTERVALS = 0.8, 8
# Measured over predicted change within which their sizes are called alike.
_ALIKE = (0.5, 2.0)


@dataclass(frozen=True)
class Point:
    """The score at one step.

    Args:
        step (`int`): optimizer steps before it.
        anchor (`int`): step of the anchor whose samples say it; the same step at an anchor.
        score (`float`): S.
        low, high (`float`, *optional*): ends of its 95 % interval.
        ess (`float`, *optional*): share of the samples that are effective.
    """

    step: int
    anchor: int
    score: float
    low: float | None
    high: float | None
    ess: float | None

    @property
    def anchored(self) -> bool:
        """Whether the samples were drawn here."""
        return self.anchor == self.step


@dataclass(frozen=True)
class Change:
    """The change of log-odds from an anchor up to a step: as measured, as attributed, and as the forces there foretold.

    Args:
        since, step (`int`): the anchor, and where the change ends.
        last (`bool`): whether it is the last one since that anchor. Those are independent of each other; all since one
            anchor are not.
        measured (`float`, *optional*): in nats, on the anchor's samples.
        low, high (`float`, *optional*): ends of its 95 % interval.
        predicted (`float`, *optional*): the real change of the parameters times grad S of the anchor.
        trapezoid (`float`, *optional*): the same with the mean of the gradients at both ends.
        fresh (`float`, *optional*): difference of the log-odds of both anchors' own samples, where it ends in one.
        drive, rebound, net (`float`, *optional*): the forces at the anchor times the steps since.
        residual (`float`, *optional*): what is predicted beyond `net`.
        ess (`float`, *optional*): share of the anchor's samples that are still effective.
        cross (`list` of pairs): predicted by one half of the anchor's samples, and measured on the other half.
        doubt (`str`, *optional*): why what was measured has no interval.
    """

    since: int
    step: int
    last: bool
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    predicted: float | None = None
    trapezoid: float | None = None
    fresh: float | None = None
    drive: float | None = None
    rebound: float | None = None
    net: float | None = None
    residual: float | None = None
    ess: float | None = None
    cross: tuple[tuple[float, float], ...] = ()
    doubt: str | None = None

    @property
    def steps(self) -> int:
        """Steps since the anchor, at least 1."""
        return self.step - self.since


@dataclass(frozen=True)
class Force:
    """The forces at an anchor, in logit S for each step.

    Args:
        step (`int`): of the anchor.
        score (`float`, *optional*): S there.
        drive, rebound (`float`, *optional*): missing where the loss is no likelihood.
        net (`float`, *optional*): their sum, or what the whole loss does.
    """

    step: int
    score: float | None
    drive: float | None
    rebound: float | None
    net: float | None


@dataclass(frozen=True)
class Missing:
    """Something that could not be estimated.

    Args:
        what (`str`): what it is.
        reason (`str`): why not; where reasons differ in numbers alone, with N in their place.
        steps (`list[int]`): where.
    """

    what: str
    reason: str
    steps: list[int]


@dataclass(frozen=True)
class Findings:
    """All that a series says.

    Args:
        measurements (`int`): entries.
        start, end (`int`, *optional*): steps of the first and the last entry.
        seconds (`float`): that measuring took.
        curve (`list[Point]`): in the order of steps. At an anchor first what the anchor before says, if there is one.
        changes (`list[Change]`): of every measurement since each anchor.
        forces (`list[Force]`): at each anchor that has them.
        narrowness (`list[dict]`): step, and the chance that two aligned answers begin alike.
        reference_margin (`list[dict]`): step, and how much likelier the model finds the data set's aligned answers to
            the probes than its non-aligned ones, in nats, with the ends of its interval.
        prediction (`dict[str, Agreement]`): of predicted and measured change of log-odds at the ends of intervals:
            `cross`, predicted by one half of the samples and measured on the other, on which the verdict is. On the
            same samples, which says that first order holds, and nothing of whether the samples speak for the model:
            `linearisation`; `all`, on the way as well, which share their starts; `trapezoid`, by the gradients at both
            ends. `fresh`, against the difference of both anchors' own samples.
        verdict (`str`): whether forces can be relied on here.
        reasons (`list[str]`): for it.
        calibration ([`Agreement`]): of `net` at an anchor and the measured change for each step of its interval.
        factor (`float`, *optional*): measured over predicted force; see [`~hf_lifealign.dynamics.rehearsal.calibrate`].
        phase ([`Agreement`]): of S and rebound at the anchors.
        target, reached (`float`, *optional*): a score, and how many steps after the start it is first reached.
        missing (`list[Missing]`): what was not estimable.
    """

    measurements: int
    start: int | None
    end: int | None
    seconds: float
    curve: list[Point]
    changes: list[Change]
    forces: list[Force]
    narrowness: list[dict[str, float]]
    reference_margin: list[dict[str, float]]
    prediction: dict[str, Agreement]
    verdict: str
    reasons: list[str]
    calibration: Agreement
    factor: float | None
    phase: Agreement
    target: float | None
    reached: float | None
    missing: list[Missing]

    @property
    def intervals(self) -> list[Change]:
        """The changes over whole intervals: from each anchor to its last measurement."""
        return [change for change in self.changes if change.last]

    @property
    def scores(self) -> list[Point]:
        """One point for each step; an anchor's own samples count, where there are two."""
        return list({point.step: point for point in self.curve}.values())

    def to_json(self) -> dict[str, Any]:
        """All figures by their names."""
        return asdict(self)


@dataclass(frozen=True)
class Priming:
    """Two trainings from matched starts, and how much faster the second one aligns.

    Args:
        first, again (`list[Point]`): their scores, with steps counted from the start of each.
        estimate ([`~hf_lifealign.metrics.alignment_dynamics.PrimingEstimate`], *optional*): the ratios.
        reason (`str`, *optional*): why there is no estimate.
    """

    first: list[Point]
    again: list[Point]
    estimate: PrimingEstimate | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures by their names."""
        return asdict(self)


def find(entries: Sequence[dict[str, Any]], target: float | None = None) -> Findings:
    """Reads what a series says.

    Args:
        entries (`list[dict]`): as [`~hf_lifealign.dynamics.series.read_series`] gives them; each may lack anything but
            its step.
        target (`float`, *optional*): a score of which to tell when it is reached.
    """
    curve, changes, forces = _curve(entries), _changes(entries), _forces(entries)
    prediction = _prediction(changes)
    ends = [c for c in changes if c.last and c.net is not None and c.measured is not None]
    net, measured = [_part(c.net) / c.steps for c in ends], [_part(c.measured) / c.steps for c in ends]
    forecast = agreement(net, measured, names=("the net force", "the measured change for each step"))
    missing = _missing(entries)
    lacking = next((m.reason for m in missing if m.what == "cross"), None)
    verdict, reasons = judge_forces(prediction, forecast, lacking)
    phase = [(f.score, f.rebound) for f in forces if f.score is not None and f.rebound is not None]
    scores = list({point.step: point.score for point in curve}.items())
    reached = None
    if target is not None and scores:
        at = steps_to_target([step for step, _ in scores], [score for _, score in scores], target)
        reached = None if at is None else at - entries[0]["step"]
    return Findings(
        measurements=len(entries),
        start=entries[0]["step"] if entries else None,
        end=entries[-1]["step"] if entries else None,
        seconds=sum(_number(entry, "seconds") or 0.0 for entry in entries),
        curve=curve,
        changes=changes,
        forces=forces,
        narrowness=_numbers(entries, "narrowness"),
        reference_margin=_numbers(entries, "reference_margin"),
        prediction=prediction,
        verdict=verdict,
        reasons=reasons,
        calibration=forecast,
        factor=calibrate(net, measured),
        phase=agreement([s for s, _ in phase], [r for _, r in phase], names=("S", "rebound")),
        target=target,
        reached=reached,
        missing=missing,
    )


def find_priming(first: Findings, again: Findings, target: float | None = None) -> Priming:
    """Compares a training with one that aligns the model again.

    Args:
        first, again ([`Findings`]): of both.
        target (`float`, *optional*): see [`~hf_lifealign.metrics.alignment_dynamics.priming_ratio`].
    """
    one, other = _from_start(first), _from_start(again)
    for name, points in (("first", one), ("again", other)):
        if not points:
            return Priming(one, other, None, f"not estimable: {name} has no score")
    curves = [([p.step for p in points], [p.score for p in points]) for points in (one, other)]
    return Priming(one, other, priming_ratio(curves[0], curves[1], target=target))


def judge_forces(
    prediction: Mapping[str, Agreement], forecast: Agreement, lacking: str | None = None
) -> tuple[str, list[str]]:
    """Whether the forces of a series can be relied on, and why.

    Args:
        prediction (`dict[str, Agreement]`): of predicted and measured change; see [`Findings`]. The verdict is on
            `cross` alone, whose two sides have no sample in common; `linearisation` and `trapezoid` tell why they
            disagree.
        forecast ([`Agreement`]): of the net force at an anchor and the measured change for each step. Attribution knows
            the real update, a forecast does not: one may hold without the other.
        lacking (`str`, *optional*): why there are no cross-checks.

    Returns:
        `tuple[str, list[str]]`: the verdict and its reasons.
    """
    cross, same, trapezoid = (prediction[name] for name in ("cross", "linearisation", "trapezoid"))
    number = cross.clusters
    have = f"{number} interval{'s have' if number != 1 else ' has'} a prediction that other samples can check"
    if number < LEAST_INTERVALS:
        why = f" Not checked: {lacking}." if lacking else ""
        return TOO_FEW, [f"{have}; a verdict needs at least {LEAST_INTERVALS}.{why}"]
    if cross.correlation is None:
        return TOO_FEW, [f"{have}, but {cross.reason}."]
    told = (
        "Changes predicted by one half of the samples and measured on the other correlate by "
        f"{_interval(cross)} over {number} intervals"
    )
    if cross.correlation < LEAST_CORRELATION:
        return UNRELIABLE, [f"{told}, which is below {LEAST_CORRELATION}.", _why_unreliable(same, trapezoid)]
    reasons = [f"{told}, which is at least {LEAST_CORRELATION}."]
    if cross.low is None or cross.low < LEAST_CORRELATION:
        reasons.append(f"The interval reaches below {LEAST_CORRELATION}, so that this may be chance.")
    if cross.slope is not None and not _ALIKE[0] <= cross.slope <= _ALIKE[1]:
        reasons.append(
            f"Measured changes are {cross.slope:.2f} of the predicted ones: rely on signs and order, not on sizes."
        )
    if forecast.correlation is not None and forecast.correlation < LEAST_CORRELATION:
        reasons.append(
            "That is attribution, which knows the real update. As a forecast, the net force at an anchor correlates by "
            f"only {_interval(forecast)} with what follows."
        )
    return RELIABLE, reasons


def _why_unreliable(same: Agreement, trapezoid: Agreement) -> str:
    """What to do, by whether first order holds on the same samples."""

    def holds(found: Agreement) -> bool:
        return found.correlation is not None and found.correlation >= LEAST_CORRELATION

    if holds(same):
        return (
            f"On the same samples it is {same.correlation:.2f}: first order holds, but what the samples say is mostly "
            "chance, or the judge's verdicts do not depend on the answers. Take more samples of each probe, or more "
            "probes."
        )
    if holds(trapezoid):
        return (
            f"On the same samples, with the gradients of both ends, it is {trapezoid.correlation:.2f}: too much "
            "changes between anchors for a forecast from the first. Take anchors more often."
        )
    return "Take more samples of each probe, or more probes, and anchors more often."


def _interval(found: Agreement) -> str:
    ends = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.correlation:.2f}{ends}"


def _prediction(changes: Sequence[Change]) -> dict[str, Agreement]:
    """The agreement of each kind of pair, one cluster for each anchor.

    A measured change whose interval was not estimable does not count: one side stands in so few probes that its size
    is chance.
    """
    changes = [change for change in changes if change.doubt is None]

    def of(found: Iterable[Change], predicted: str, measured: str) -> Agreement:
        pairs = [(getattr(c, predicted), getattr(c, measured), c.since) for c in found]
        whole = [pair for pair in pairs if None not in pair]
        x, y, anchors = ([pair[i] for pair in whole] for i in range(3))
        return agreement(x, y, anchors, names=("the predicted change", "the measured change"))

    last = [change for change in changes if change.last]
    crossed = [(*pair, change.since) for change in last for pair in change.cross]
    x, y, anchors = [pair[0] for pair in crossed], [pair[1] for pair in crossed], [pair[2] for pair in crossed]
    return {
        "cross": agreement(x, y, anchors, names=("the predicted change", "the measured change")),
        "linearisation": of(last, "predicted", "measured"),
        "all": of(changes, "predicted", "measured"),
        "trapezoid": of(last, "trapezoid", "measured"),
        "fresh": of(last, "predicted", "fresh"),
    }


# Reading entries, of which nothing but the step is sure


def _number(entry: Any, *keys: str) -> float | None:
    """A finite number at a place in an entry, or `None`."""
    for key in keys:
        entry = entry.get(key) if isinstance(entry, dict) else None
    sound = isinstance(entry, int | float) and not isinstance(entry, bool) and math.isfinite(entry)
    return float(entry) if sound else None


def _whole(entry: Any, *keys: str) -> int | None:
    value = _number(entry, *keys)
    return None if value is None else int(value)


def _part(value: float | None) -> float:
    """A number that has been looked at before."""
    assert value is not None
    return value


def _curve(entries: Sequence[dict[str, Any]]) -> list[Point]:
    # by step and kind, since a training that was resumed without its anchor measures its first step twice
    found: dict[tuple[int, bool], Point] = {}
    for entry in entries:
        for key in ("rescored", "score"):
            score, step = _number(entry, key, "score"), entry["step"]
            if score is not None:
                anchor = _whole(entry, key, "anchor")
                ends = _number(entry, key, "low"), _number(entry, key, "high")
                point = Point(step, step if anchor is None else anchor, score, *ends, _number(entry, key, "ess"))
                found[step, point.anchored] = point
    return [found[key] for key in sorted(found)]


def _changes(entries: Sequence[dict[str, Any]]) -> list[Change]:
    forces = {entry["step"]: entry["forces"] for entry in entries if isinstance(entry.get("forces"), dict)}
    anchored = {p.step: p.score for p in _curve(entries) if p.anchored}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in entries:
        since = _whole(entry, "attribution", "since")
        since = _whole(entry, "log_odds_change", "since") if since is None else since
        step = entry["step"]
        if since is None or since >= step:
            continue
        told = {name: _number(entry, "attribution", name) for name in ("drive", "rebound", "net", "residual")}
        for name in ("drive", "rebound", "net"):
            force = _number(forces.get(since), name)
            if told[name] is None and force is not None:
                told[name] = force * (step - since)
        predicted = _number(entry, "attribution", "log_odds")
        if told["residual"] is None and predicted is not None and told["net"] is not None:
            told["residual"] = predicted - told["net"]
        ends = [logit(anchored[at]) if at in anchored else math.inf for at in (since, step)]
        found[since, step] = told | {
            "measured": _number(entry, "log_odds_change", "value"),
            "low": _number(entry, "log_odds_change", "low"),
            "high": _number(entry, "log_odds_change", "high"),
            "predicted": predicted,
            "trapezoid": _number(entry, "attribution", "trapezoid"),
            "fresh": ends[1] - ends[0] if all(map(math.isfinite, ends)) else None,
            "ess": _number(entry, "rescored" if "rescored" in entry else "score", "ess"),
            "cross": _cross(entry),
            "doubt": _doubt(entry),
        }
    last = {since: max(step for start, step in found if start == since) for since, _ in found}
    return [Change(since, step, step == last[since], **found[since, step]) for since, step in sorted(found)]


def _doubt(entry: dict[str, Any]) -> str | None:
    told = entry.get("log_odds_change")
    reason = told.get("reason") if isinstance(told, dict) else None
    return None if reason is None else str(reason)


def _cross(entry: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    """The pairs of a cross-check that have both sides."""
    told = entry.get("attribution")
    pairs = told.get("cross") if isinstance(told, dict) else None
    found = []
    for pair in pairs if isinstance(pairs, list) else ():
        sides = [_number({"side": side}, "side") for side in pair] if isinstance(pair, list) and len(pair) == 2 else []
        if sides and None not in sides:
            found.append((_part(sides[0]), _part(sides[1])))
    return tuple(found)


def _forces(entries: Sequence[dict[str, Any]]) -> list[Force]:
    found: dict[int, Force] = {}
    for entry in entries:
        drive, rebound, net = (_number(entry, "forces", name) for name in ("drive", "rebound", "net"))
        if drive is not None and rebound is not None and net is None:
            net = drive + rebound
        if not (drive is None and rebound is None and net is None):
            found[entry["step"]] = Force(entry["step"], _number(entry, "score", "score"), drive, rebound, net)
    return [found[step] for step in sorted(found)]


def _numbers(entries: Sequence[dict[str, Any]], key: str) -> list[dict[str, float]]:
    """The numbers under a key, with their steps."""
    found: dict[int, dict[str, float]] = {}
    for entry in entries:
        told = entry.get(key)
        values = {name: _number(told, name) for name in told} if isinstance(told, dict) else {}
        sound = {name: value for name, value in values.items() if value is not None}
        if sound:
            found[entry["step"]] = {"step": entry["step"], **sound}
    return [found[step] for step in sorted(found)]


def _missing(entries: Sequence[dict[str, Any]]) -> list[Missing]:
    """What was not estimable, the same reasons together."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for entry in entries:
        told = entry.get("not_estimable")
        pairs = list(told.items()) if isinstance(told, dict) else []
        names = (
            ("score", "score"), ("rescored", "score"), ("log_odds_change", "change of log-odds"),
            ("forces", "sizes of forces"),
        )  # fmt: skip
        pairs += [(what, entry[key].get("reason")) for key, what in names if isinstance(entry.get(key), dict)]
        for what, reason in pairs:
            if reason:
                alike = re.sub(r"\d+(?:\.\d+)?", "N", str(reason))
                found.setdefault((str(what), alike), []).append((entry["step"], str(reason)))
    return [
        Missing(what, told[0][1] if len({reason for _, reason in told}) == 1 else alike, [step for step, _ in told])
        for (what, alike), told in found.items()
    ]


def _from_start(found: Findings) -> list[Point]:
    """The scores of a series by the steps since its start."""
    start = found.start or 0
    return [Point(p.step - start, p.anchor - start, p.score, p.low, p.high, p.ess) for p in found.scores]
