"""The text of a report of alignment dynamics: key figures, the verdict on the forces, and how to read it all."""

from collections.abc import Mapping, Sequence

from hf_lifealign.dynamics.agreement import Agreement
from hf_lifealign.dynamics.findings import Change, Findings, Point, Priming
from hf_lifealign.report import dynamics_pictures as pictures
from hf_lifealign.report.document import duration
from hf_lifealign.report.drawing import signed
from hf_lifealign.report.page import Heading, Items, Paragraph, Part, Picture, Table, link, quoted

# Rows of the table of intervals; longer ones are told by the picture and the JSON.
_MOST_ROWS = 40
_NONE = "–"

_KINDS = {
    "cross": ("one half of the samples predicts, the other measures", "both ways; the verdict is on these"),
    "linearisation": ("linearisation: the same samples", "whether first order holds, and nothing else"),
    "all": ("linearisation, all measurements", "those since one anchor share their start: they are not independent"),
    "trapezoid": ("linearisation, gradients of both ends", "right to second order"),
    "fresh": ("against fresh samples", "difference of both anchors' own scores: noisier, but on other samples"),
}

_READING = (
    "**S** is the share of answers to the probes that the judge calls aligned, as the model answers them: a "
    "probability, and only as good as its judge. An anchor draws fresh samples; between anchors the same samples are "
    "weighed anew by what the model now says of them, which carries as long as enough of them stay effective (ESS), "
    "and as they speak for what it says now: their mean weight (coverage) is 1 but for chance, and less where it has "
    "turned to answers that are not among them.",
    "**Log-odds** of S are log(S / (1 - S)), in nats. They add up where S cannot, and a step counts alike at .5 and "
    "at .95.",
    "**Attribution** is what the real change of the parameters does to S to first order: grad S at the anchor times "
    "that change, whatever the optimizer did.",
    "**Drive** is the part of a step on the training data that raises the likelihood of its answers, **rebound** the "
    "part that lowers that of all others. Their sum is the net force. Losses that are no likelihood have one force.",
    "**Residual** is what is attributed beyond the net force: momentum from earlier steps, forces that changed after "
    "the anchor, and batches that differ from those on which forces are measured.",
    "**Rebound is a response to further training, not to time**: nothing decays without gradient steps.",
    "**The verdict** is on predictions by one half of the samples, held against what the other half measures: they "
    "have no answer and no judgement in common. On the same samples prediction and measurement agree whatever the "
    "judge says, even by lot: that says that first order holds from anchor to anchor (linearisation), and no more. The "
    "calibration rests on the same samples, too.",
)


def dynamics_parts(
    name: str, found: Findings, told: Mapping[str, str | None], priming: Priming | None = None, again: str = ""
) -> list[Part]:
    """The report of one series.

    Args:
        name (`str`): of the series.
        found ([`~hf_lifealign.dynamics.findings.Findings`]): what it says.
        told (`dict[str, str | None]`): of each picture, `None`, or why there is none.
        priming ([`~hf_lifealign.dynamics.findings.Priming`], *optional*): against a second series.
        again (`str`): its name.
    """
    parts: list[Part] = [Heading(f"Alignment dynamics of {quoted(name)}", 1), Paragraph(_opening(found))]
    parts += [Heading("Key figures"), Table(("figure", "value", "meaning"), key_figures(found), left=3)]
    parts += [Heading("Score"), *_shown(told, pictures.SCORE, "Score over the steps of the training")]
    parts += [Heading("Forces"), *_shown(told, pictures.FORCES, "Drive, rebound and residual of each interval")]
    parts += _intervals(found.intervals)
    parts += [
        Heading("Can the forces be relied on?"),
        Paragraph(" ".join([f"**{_sentence(found.verdict)}**", *found.reasons])),
    ]
    parts += _shown(told, pictures.PREDICTION, "Predicted against measured change of log-odds")
    parts += [Table(("pairs", "note", "number", "correlation", "95 % interval", "slope"), _agreements(found), left=2)]
    parts += [Paragraph(_calibration(found))]
    parts += [Heading("Score and rebound"), *_shown(told, pictures.PHASE, "Score against rebound, by step")]
    if priming is not None:
        parts += _priming(priming, again, told)
    return [*parts, *_missing(found), Heading("How to read this"), Items(_READING)]


def overview_parts(name: str, series: Mapping[str, Findings], report: str) -> list[Part]:
    """The overview of several series, one a row.

    Args:
        name (`str`): of the folder that holds them.
        series (`dict[str, Findings]`): by their names, which are the folders of their reports.
        report (`str`): the file name of each report.
    """
    rows = []
    for each, found in series.items():
        cross = found.prediction["cross"]
        scores = found.scores
        rows.append([
            link(each, *each.split("/"), report), found.verdict, _span(found),
            _point_text(scores[0]) if scores else _NONE, _point_text(scores[-1]) if scores else _NONE,
            str(cross.clusters), _correlation(cross), str(sum(len(missing.steps) for missing in found.missing)),
        ])  # fmt: skip
    head = ("series", "verdict", "steps", "S at the start", "S at the end", "intervals", "correlation",
            "not estimable")  # fmt: skip
    parts: list[Part] = [
        Heading(f"Alignment dynamics of {quoted(name)}", 1),
        Paragraph(f"{len(series)} series. Each name leads to its report; correlation is of the changes over whole "
                  "intervals that one half of the samples predicts and the other measures, with its 95 % interval."),
        Table(head, rows, left=2),
        Heading("How to read this"),
        Items(_READING),
    ]  # fmt: skip
    return parts


def key_figures(found: Findings) -> list[tuple[str, str, str]]:
    """`(figure, value, meaning)` of what a series says in short."""
    rows = [
        ("steps", _span(found), f"{found.measurements} measurements, {sum(p.anchored for p in found.curve)} anchors")
    ]
    if found.scores:
        first, last = found.scores[0], found.scores[-1]
        rows += [
            ("S at the start", _point_text(first), f"at step {first.step}, with its 95 % interval"),
            ("S at the end", _point_text(last), f"at step {last.step}"),
        ]
        least = min((p.ess for p in found.curve if p.ess is not None), default=None)
        rows.append(("least ESS", _number(least), "share of effective samples where they carried worst"))
    if found.target is not None:
        at = "never" if found.reached is None else f"{found.reached:.0f}"
        rows.append(("steps to target", at, f"from the start until S first reaches {found.target:g}"))
    last_force = found.forces[-1] if found.forces else None
    if last_force is not None:
        for name in ("drive", "rebound", "net"):
            value = getattr(last_force, name)
            if value is not None:
                what = f"at the last anchor, step {last_force.step}: change of log-odds in a step"
                rows.append((f"{name} force" if name == "net" else name, f"{signed(value, 4, always=True)}", what))
    rows += [
        ("correlation", _correlation(found.prediction["cross"]), "of changes that one half of the samples predicts and "
         "the other half measures"),
        ("linearisation", _correlation(found.prediction["linearisation"]), "the same on the same samples: whether "
         "first order holds"),
        ("calibration", _number(found.factor), "measured change for each step over the net force; 1 where they agree"),
    ]  # fmt: skip
    if found.narrowness:
        values = ", ".join(f"{k} {v:.2f}" for k, v in found.narrowness[-1].items() if k != "step")
        rows.append(("narrowness", values, "chance that two aligned answers begin with the same k tokens, at the end"))
    margins = [told for told in found.reference_margin if "margin" in told]
    if margins:
        ends = " to ".join(signed(told["margin"], 2, always=True) for told in (margins[0], margins[-1]))
        interval = _range(margins[-1].get("low"), margins[-1].get("high"))
        rows.append(
            (
                "reference margin",
                f"{ends} {interval}",
                "nats by which the data set's aligned answers to the "
                "probes are likelier than its non-aligned ones, at the start and at the end; a proxy, not S",
            )
        )
    rows.append(("verdict", found.verdict, "whether forces can be relied on in this training"))
    return rows


def _opening(found: Findings) -> str:
    if not found.measurements:
        return "The series is empty: nothing was measured yet."
    text = f"{found.measurements} measurement{'s' * (found.measurements != 1)}, step {_span(found)}, "
    text += f"in {duration(found.seconds)} beside the training. "
    return text + "The figures are from arXiv 2605.18309, or derived from it; the judge decides what is aligned."


def _intervals(intervals: Sequence[Change]) -> list[Part]:
    """The contributions of each interval as a table."""
    if not intervals:
        return []
    rows = [
        [f"{c.since} to {c.step}", *(_number(v, sign=True) for v in (c.drive, c.rebound, c.net, c.residual, c.predicted,
         c.measured)), _range(c.low, c.high), _number(c.ess)]
        for c in intervals[-_MOST_ROWS:]
    ]  # fmt: skip
    head = ("steps", "drive", "rebound", "net", "residual", "attributed", "measured", "95 % interval", "ESS")
    text = "Changes of the log-odds of S in each interval, in nats: forces of a step times the steps of the interval."
    if len(intervals) > _MOST_ROWS:
        text += f" The last {_MOST_ROWS} of {len(intervals)}; all are in `dynamics.json`."
    return [Paragraph(text), Table(head, rows)]


def _agreements(found: Findings) -> list[list[str]]:
    rows = []
    for key, (name, note) in _KINDS.items():
        agreed = found.prediction[key]
        rows.append([
            name, agreed.reason or note, str(agreed.points), _number(agreed.correlation, sign=True),
            _range(agreed.low, agreed.high), _number(agreed.slope),
        ])  # fmt: skip
    return rows


def _calibration(found: Findings) -> str:
    text = "Slopes are of measured on predicted changes, through the origin; intervals are bootstrapped over anchors. "
    if found.factor is None:
        why = found.calibration.reason or "the net force does not lead where the score went"
        return f"{text}The forces cannot be calibrated: {why}."
    return (
        f"{text}Calibrated, the net force at an anchor foretells {found.factor:.2f} times its size for each step of "
        f"its interval (correlation {_correlation(found.calibration)}, {found.calibration.points} intervals)."
    )


def _priming(priming: Priming, again: str, told: Mapping[str, str | None]) -> list[Part]:
    parts: list[Part] = [Heading("Priming"), *_shown(told, pictures.PRIMING, "Both trainings from their starts")]
    estimate = priming.estimate
    if estimate is None:
        return [*parts, Paragraph(f"No priming ratio: {priming.reason}.")]
    rows = [
        ("priming ratio", _number(estimate.ratio), "steps to align again over steps to align first"),
        ("steps, first", _number(estimate.first_steps, 0), f"until S reaches {estimate.target:.3g}"),
        ("steps, again", _number(estimate.again_steps, 0), f"in {quoted(again)}"),
        ("area ratio", _number(estimate.area_ratio), f"area gained over the first {estimate.area_steps:g} steps"),
    ]
    parts.append(Table(("figure", "value", "meaning"), rows, left=3))
    text = (
        "Below 1, or with an area ratio above 1, the model is primed. Both trainings have to be of the same kind, from "
        "a matched start and with a fresh optimizer. The ratio is a choice of this project; the paper has no number."
    )
    return [*parts, Paragraph(text if estimate.reason is None else f"**With care:** {estimate.reason}. {text}")]


def _missing(found: Findings) -> list[Part]:
    """What was not estimable, counted."""
    if not found.missing:
        return [Heading("What was not estimable"), Paragraph("Nothing: every measurement has all that was asked for.")]
    rows = [[m.what.replace("_", " "), quoted(m.reason), str(len(m.steps)), _steps(m.steps)] for m in found.missing]
    return [Heading("What was not estimable"), Table(("what", "reason", "times", "at steps"), rows, left=2)]


def _shown(told: Mapping[str, str | None], file: str, text: str) -> list[Part]:
    """A picture, or why there is none."""
    reason = told.get(file)
    return [Picture(file, text)] if reason is None else [Paragraph(f"There is no picture: {reason}.")]


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:8]))
    return shown if len(steps) <= 8 else f"{shown}, … {steps[-1]}"


def _span(found: Findings) -> str:
    return _NONE if found.start is None else f"{found.start} to {found.end}"


def _point_text(point: Point) -> str:
    ends = "" if point.low is None or point.high is None else f" [{point.low:.2f}, {point.high:.2f}]"
    return f"{point.score:.3f}{ends}"


def _correlation(found: Agreement) -> str:
    if found.correlation is None:
        return _NONE
    ends = _range(found.low, found.high)
    return signed(found.correlation, 2) + (f" {ends}" if ends != _NONE else "")


def _range(low: float | None, high: float | None) -> str:
    return _NONE if low is None or high is None else f"[{signed(low, 2)}, {signed(high, 2)}]"


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    return _NONE if value is None else signed(value, digits, always=sign)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
