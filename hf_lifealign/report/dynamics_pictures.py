"""Pictures of alignment dynamics: score, forces, phase plot, predicted against measured change, and priming."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lifealign.dynamics.agreement import Agreement
from hf_lifealign.dynamics.findings import RELIABLE, UNRELIABLE, Change, Findings, Point, Priming
from hf_lifealign.report.drawing import COLOURS, FAINT, GREY, INK, axes_at, canvas, new_figure, shorten, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE, FORCES, PHASE, PREDICTION, PRIMING = "score.png", "forces.png", "phase.png", "prediction.png", "priming.png"
PICTURES = (SCORE, FORCES, PHASE, PREDICTION, PRIMING)

_BLUE, _RED, _GREEN, _ORANGE = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[4]
_LEFT, _WIDTH, _RIGHT, _FOOT = 0.8, 7.7, 0.35, 0.6
_GRID = "#e6e9ed"
_ROOMY = 40  # intervals up to which marks have their full size
_GAP = 0.06  # beside the bar of an interval, as a share of its steps

_DOTS: dict[str, Any] = {"linestyle": ""}
_Key = tuple[str, str, dict[str, Any]]


def write_dynamics_pictures(found: Findings, priming: Priming | None, folder: Path) -> dict[str, str | None]:
    """Draws what there is to draw into a folder, each picture whole or not at all.

    Args:
        found ([`~hf_lifealign.dynamics.findings.Findings`]): of a series.
        priming ([`~hf_lifealign.dynamics.findings.Priming`], *optional*): against a second one.
        folder (`Path`): where the pictures go.

    Returns:
        `dict[str, str | None]`: of each picture that was asked for, `None`, or why there is none.
    """
    from hf_lifealign.report.drawing import drawing_style, save_png

    drawers: dict[str, Callable[[], Figure | str]] = {
        SCORE: lambda: score_figure(found),
        FORCES: lambda: forces_figure(found),
        PHASE: lambda: phase_figure(found),
        PREDICTION: lambda: prediction_figure(found),
    }
    if priming is not None:
        drawers[PRIMING] = lambda: priming_figure(priming)
    told: dict[str, str | None] = {}
    with drawing_style():
        for name, drawer in drawers.items():
            figure = drawer()
            told[name] = figure if isinstance(figure, str) else None
            if not isinstance(figure, str):
                save_png(figure, folder / name)
    return told


def score_figure(found: Findings) -> "Figure | str":
    """S with its interval over the steps, and the share of effective samples below; why not, if there is no score."""
    if not found.curve:
        return "no score was measured"
    keys: list[_Key] = [
        ("anchor, fresh samples", "marker", {"marker": "o", "color": _BLUE, "markersize": 5.5}),
        ("rescored samples of the last anchor", "marker", {"marker": "o", "color": _BLUE, "markersize": 3.2,
                                                           "markerfacecolor": "white"}),
        ("95 % interval", "patch", {"facecolor": _BLUE, "alpha": 0.16}),
    ]  # fmt: skip
    first, last = found.scores[0], found.scores[-1]
    title = f"Alignment score S: {first.score:.2f} at step {first.step}"
    if last.step > first.step:
        title += f", {last.score:.2f} at step {last.step}"
    figure, top = _page(title, keys, 3.0 + 0.55 + 0.95)
    ax, below = axes_at(figure, _LEFT, top, _WIDTH, 3.0), axes_at(figure, _LEFT, top + 3.55, _WIDTH, 0.95)
    segments = _segments(found.curve)
    scale = _scale(len(segments))
    for segment in segments:
        _draw_curve(ax, segment, _BLUE, scale)
        ess = [(p.step, p.ess) for p in segment if p.ess is not None]
        if ess:
            x, y = zip(*ess, strict=True)
            below.plot(x, y, color=_GREEN, linewidth=1.3 * scale, marker="o", markersize=2.6 * scale, clip_on=False,
                       zorder=3)  # fmt: skip
    ax.set_ylabel("S (share of aligned answers)")
    ax.set_ylim(*_unit_limits([v for p in found.curve for v in (p.score, p.low, p.high) if v is not None]))
    below.set_ylim(0, 1.04)
    below.set_yticks([0, 0.5, 1])
    below.set_ylabel("ESS (share)")
    below.set_xlabel("optimizer step")
    below.set_title("Samples that are effective after reweighting; a new anchor sets it back to 1", fontsize=8,
                    color=GREY, loc="left", pad=4)  # fmt: skip
    for axes in (ax, below):
        _frame(axes)
        _step_axis(axes, [p.step for p in found.curve])
    ax.tick_params(axis="x", labelbottom=False)
    return figure


def forces_figure(found: Findings) -> "Figure | str":
    """Drive, rebound and residual of each interval as stacked bars, with what was measured as a line."""
    told = [change for change in found.intervals if change.predicted is not None]
    if not told:
        return "no interval between anchors has an attributed change"
    split = any(change.drive is not None for change in told)
    whole = any(change.drive is None and change.net is not None for change in told)
    alone = any(change.net is None for change in told)
    patches = [(split, "drive", _BLUE, ""), (split, "rebound", _ORANGE, ""), (whole, "force of the loss", _BLUE, ""),
               (split or whole, "residual", FAINT, "////"), (alone, "attributed, not split", FAINT, "")]  # fmt: skip
    keys: list[_Key] = [
        (name, "patch", {"facecolor": colour, "hatch": hatch, "edgecolor": GREY if hatch else "none"})
        for shown, name, colour, hatch in patches if shown
    ]  # fmt: skip
    keys += [
        ("sum, as attributed", "line", {"color": _RED, "linewidth": 2.0}),
        ("measured, with 95 % interval", "line", {"color": INK, "marker": "o", "markersize": 4, "linewidth": 1.2}),
    ]
    note = "Bars span the interval between two anchors. Forces of a step, measured at its start, times its steps."
    figure, top = _page("What moved the score, interval by interval", keys, 3.3 + 0.5 + 1.5, note=note)
    ax, below = axes_at(figure, _LEFT, top, _WIDTH, 3.3), axes_at(figure, _LEFT, top + 3.8, _WIDTH, 1.5)
    for change in told:
        _draw_stack(ax, change)
    for axes in (ax, below):
        _draw_sums(axes, told, halo=axes is ax)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=4)
        axes.margins(y=0.08)
        _frame(axes)
        _step_axis(axes, [step for change in told for step in (change.since, change.step)])
    ax.tick_params(axis="x", labelbottom=False)
    ax.set_ylabel("change of log-odds of S (nats)")
    below.set_ylabel("(nats)")
    below.set_xlabel("optimizer step")
    below.set_title("The sum and what was measured, on a scale of their own", fontsize=8, color=GREY, loc="left", pad=4)
    return figure


def phase_figure(found: Findings) -> "Figure | str":
    """S against the rebound at the anchors, coloured by step."""
    told = [(f.score, f.rebound, f.step) for f in found.forces if f.score is not None and f.rebound is not None]
    if len(told) < 2:
        have = "only one anchor has" if told else "no anchor has"
        return f"{have} both a score and a rebound"
    note = "Rebound below 0 pulls S down, above 0 up. In theory it opposes the state: it falls from left to right."
    figure, top = _page(f"Score and rebound: {_correlation_text(found.phase)}, {len(told)} anchors", [], 4.0, note)
    ax = axes_at(figure, _LEFT, top, _WIDTH - 1.0, 4.0)
    scores, rebounds, steps = zip(*told, strict=True)
    ax.plot(scores, rebounds, color=FAINT, linewidth=1.0, zorder=2)
    dots = ax.scatter(scores, rebounds, c=steps, cmap="viridis", s=46, edgecolors=INK, linewidths=0.6, zorder=4)
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    for place, word in ((0, "start"), (-1, "end")):
        inside = _inside(scores[place], *_unit_limits(scores))
        ax.annotate(word, (scores[place], rebounds[place]), (7 if inside == "left" else -7, 6), ha=inside,
                    textcoords="offset points", fontsize=8.5, color=INK, zorder=5)  # fmt: skip
    ax.set_xlim(*_unit_limits(scores))
    ax.margins(y=0.12)
    ax.set_xlabel("S (share of aligned answers)")
    ax.set_ylabel("rebound (change of log-odds in a step, nats)")
    _frame(ax, both=True)
    bar = figure.colorbar(dots, cax=axes_at(figure, _LEFT + _WIDTH - 0.75, top + 0.25, 0.14, 3.5))
    bar.set_label("optimizer step", color=GREY)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return figure


def prediction_figure(found: Findings) -> "Figure | str":
    """Predicted against measured change of log-odds over whole intervals, with the diagonal and the verdict: by one
    half of the samples against the other, and on the same samples."""
    same = [c for c in found.intervals if c.predicted is not None and c.measured is not None]
    cross = [pair for change in found.intervals for pair in change.cross]
    if not same and not cross:
        return "no interval has both a predicted and a measured change"
    both_ends = [c for c in same if c.trapezoid is not None]
    keys: list[_Key] = []
    if cross:
        keys.append(("one half predicts, the other measures", "marker", {"marker": "o", "color": _BLUE,
                                                                         "markersize": 6}))  # fmt: skip
    keys.append(("the same samples (linearisation)", "marker", {"marker": "o", "color": GREY, "markersize": 4,
                                                                "markerfacecolor": "white"}))  # fmt: skip
    if both_ends:
        keys.append(("... gradients of both ends", "marker", {"marker": "D", "color": _ORANGE, "markersize": 4}))
    keys.append(("agreement", "line", {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1.0}))
    title = f"{found.verdict[:1].upper()}{found.verdict[1:]}: {_correlation_text(found.prediction['cross'])}"
    colour = {RELIABLE: _GREEN, UNRELIABLE: _RED}.get(found.verdict, INK)
    number = len(found.intervals)
    note = f"{number} whole interval{'s' * (number != 1)} between anchors; verdict and correlation are of the halves."
    figure, top = _page(title, keys, 4.6, note, colour)
    ax = axes_at(figure, _LEFT, top, _WIDTH, 4.6)
    dots: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0.8}
    ax.plot([_of(c.predicted) for c in same], [_of(c.measured) for c in same], marker="o", markersize=4,
            markeredgecolor=GREY, markerfacecolor="white", alpha=0.75, zorder=4, **dots)  # fmt: skip
    ax.plot([_of(c.trapezoid) for c in both_ends], [_of(c.measured) for c in both_ends], marker="D", markersize=4,
            color=_ORANGE, markeredgecolor="white", alpha=0.75, zorder=5, **dots)  # fmt: skip
    ax.plot([x for x, _ in cross], [y for _, y in cross], marker="o", markersize=7, color=_BLUE,
            markeredgecolor="white", zorder=6, **dots)  # fmt: skip
    ax.margins(0.08)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    ax.axline((0, 0), slope=1, color=GREY, linestyle=(0, (4, 3)), linewidth=1.0, zorder=2)
    for line in (ax.axhline, ax.axvline):
        line(0, color=FAINT, linewidth=0.8, zorder=1)
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    ax.set_xlabel("predicted change of log-odds: grad S times the real change of the parameters (nats)")
    ax.set_ylabel("measured change of log-odds (nats)")
    _frame(ax, both=True)
    return figure


def priming_figure(priming: Priming) -> "Figure | str":
    """Two trainings from matched starts, with the steps that each took to the target."""
    if not (priming.first and priming.again):
        return priming.reason or "one of both series has no score"
    estimate = priming.estimate
    ratio = None if estimate is None else estimate.ratio
    title = "First and again, from their starts: no priming ratio"
    if ratio is not None:
        title = f"Priming ratio {ratio:.2f}: steps to align again over steps to align first"
    keys: list[_Key] = [
        ("first", "line", {"color": _BLUE, "linewidth": 1.8, "marker": "o", "markersize": 3.5}),
        ("again", "line", {"color": _RED, "linewidth": 1.8, "marker": "s", "markersize": 3.5}),
    ]
    if estimate is not None:
        keys.append((f"target S = {estimate.target:.2f}", "line", {"color": GREY, "linestyle": (0, (4, 3))}))
    note = "Below 1 the model is primed: it aligns faster than it did first. Bands: 95 % intervals."
    doubt = None if estimate is None else estimate.reason
    if doubt is not None:
        note = f"With care: {shorten(doubt, 115)}"
    figure, top = _page(title, keys, 3.6, note)
    ax = axes_at(figure, _LEFT, top, _WIDTH, 3.6)
    for points, colour, marker in ((priming.first, _BLUE, "o"), (priming.again, _RED, "s")):
        _draw_band(ax, points, colour)
        ax.plot([p.step for p in points], [p.score for p in points], color=colour, linewidth=1.8, marker=marker,
                markersize=3.5, zorder=4)  # fmt: skip
    values = [v for p in (*priming.first, *priming.again) for v in (p.score, p.low, p.high) if v is not None]
    low, high = _unit_limits([*values, *([estimate.target] if estimate is not None else [])])
    ax.set_ylim(low, high)
    _frame(ax)
    _step_axis(ax, [p.step for p in (*priming.first, *priming.again)])
    if estimate is not None:
        ax.axhline(estimate.target, color=GREY, linestyle=(0, (4, 3)), linewidth=1.0, zorder=3)
        for name, steps, colour in (("first", estimate.first_steps, _BLUE), ("again", estimate.again_steps, _RED)):
            if steps is not None:
                ax.plot([steps, steps], [low, estimate.target], color=colour, linestyle=(0, (1, 1.5)), linewidth=1.2,
                        zorder=3)  # fmt: skip
                inside = _inside(steps, *ax.get_xlim())
                # one above the other, since both may take as many steps
                place = (4 if inside == "left" else -4, 5 if name == "first" else 17)
                ax.annotate(f"{name}: {steps:.0f} steps", (steps, low), place, textcoords="offset points", ha=inside,
                            fontsize=8.5, color=colour, zorder=8)  # fmt: skip
    ax.set_xlabel("optimizer steps since the start of each training")
    ax.set_ylabel("S (share of aligned answers)")
    return figure


# Parts of pictures


def _page(title: str, keys: Sequence[_Key], height: float, note: str = "", colour: str = INK) -> tuple["Figure", float]:
    """A figure with its title, a note and the keys of its marks; and where the axes begin, in inches from above."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    top = 0.62 + 0.24 * bool(note) + 0.27 * bool(keys)
    figure = new_figure(_LEFT + _WIDTH + _RIGHT, top + height + _FOOT)
    page = canvas(figure)
    page.text(_LEFT, 0.34, title, fontsize=12.5, fontweight="bold", va="center", color=colour)
    if note:
        page.text(_LEFT, 0.62, note, fontsize=8.3, color=GREY, va="center")
    handles: list[Any] = []
    for label, kind, style in keys:
        if kind == "patch":
            handles.append(Patch(label=label, **style))
        else:
            handles.append(Line2D([], [], label=label, **(_DOTS | style if kind == "marker" else style)))
    if handles:
        x, y = _LEFT / (_LEFT + _WIDTH + _RIGHT), 1 - (top - 0.27) / (top + height + _FOOT)
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(x, y), ncols=len(handles), frameon=False,
                      fontsize=8.3, borderpad=0, borderaxespad=0, handletextpad=0.5, columnspacing=1.4)  # fmt: skip
    return figure, top


def _frame(ax: "Axes", both: bool = False) -> None:
    ax.grid(axis="both" if both else "y", color=_GRID, linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=2, width=0.6)


def _step_axis(ax: "Axes", steps: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = min(steps), max(steps)
    room = (last - first) * 0.012 or 1.0
    ax.set_xlim(first - room, last + room)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))


def _scale(count: int) -> float:
    """By how much marks shrink where there are so many that they would cover each other."""
    return min(1.0, max(0.5, _ROOMY / max(count, 1)))


def _unit_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of probabilities: all of [0, 1], or half of it where that shows more."""
    low, high = min(values), max(values)
    return (0.45, 1.02) if low >= 0.5 else (-0.02, 0.55) if high <= 0.5 else (-0.02, 1.02)


def _inside(value: float, low: float, high: float) -> Literal["left", "right"]:
    """Alignment of a text beside a mark that keeps it within the axes."""
    return "right" if value > low + 0.85 * (high - low) else "left"


def _segments(curve: Sequence[Point]) -> list[list[Point]]:
    """The points that speak by the samples of one anchor, in order."""
    ordered = sorted(curve, key=lambda point: (point.anchor, point.step))
    return [list(points) for _, points in groupby(ordered, key=lambda point: point.anchor)]


def _draw_band(ax: "Axes", points: Sequence[Point], colour: str) -> None:
    band = [(p.step, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(band) > 1:
        x, low, high = zip(*band, strict=True)
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)


def _draw_curve(ax: "Axes", points: Sequence[Point], colour: str, scale: float) -> None:
    """What the samples of one anchor say: the anchor as a dot with its interval, and the rescored points after it."""
    _draw_band(ax, points, colour)
    ax.plot([p.step for p in points], [p.score for p in points], color=colour, linewidth=1.4, zorder=3)
    rescored = [p for p in points if not p.anchored]
    ax.plot([p.step for p in rescored], [p.score for p in rescored], linestyle="", marker="o",
            markersize=3.2 * scale, markeredgecolor=colour, markeredgewidth=0.8 * scale, markerfacecolor="white",
            zorder=4)  # fmt: skip
    for point in points:
        if point.anchored:
            if point.low is not None and point.high is not None:
                ax.plot([point.step] * 2, [point.low, point.high], color=colour, linewidth=0.9 * scale, alpha=0.6,
                        zorder=3)  # fmt: skip
            ax.plot(point.step, point.score, marker="o", markersize=5.5 * scale, color=colour, markeredgecolor="white",
                    markeredgewidth=0.7 * scale, zorder=5)  # fmt: skip


def _draw_stack(ax: "Axes", change: Change) -> None:
    """The contributions of one interval: what raises the score above 0, what lowers it below."""
    if change.net is None:
        parts = [(_of(change.predicted), FAINT, "")]
    elif change.drive is None or change.rebound is None:
        parts = [(change.net, _BLUE, ""), (change.residual or 0.0, FAINT, "////")]
    else:
        parts = [(change.drive, _BLUE, ""), (change.rebound, _ORANGE, ""), (change.residual or 0.0, FAINT, "////")]
    gap = _GAP * change.steps
    above = below = 0.0
    for value, colour, hatch in parts:
        bottom = above if value >= 0 else below
        edge, width = (GREY, 0.0) if hatch else ("white", 0.4)
        ax.bar(change.since + gap, value, width=change.steps - 2 * gap, bottom=bottom, align="edge", color=colour,
               hatch=hatch, edgecolor=edge, linewidth=width, zorder=3)  # fmt: skip
        if value >= 0:
            above += value
        else:
            below += value


def _draw_sums(ax: "Axes", told: Sequence[Change], halo: bool) -> None:
    """What all contributions of an interval come to, across it, and what was measured, in its middle; with a white
    edge where it lies on bars."""
    from matplotlib.patheffects import Normal, Stroke

    scale = _scale(len(told))
    edge = [Stroke(linewidth=2.4 * scale, foreground="white"), Normal()] if halo else [Normal()]
    for change in told:
        gap = _GAP * change.steps
        ax.plot([change.since + gap, change.step - gap], [_of(change.predicted)] * 2, color=_RED,
                linewidth=2.0 * scale, zorder=5)  # fmt: skip
    seen = [change for change in told if change.measured is not None]
    for change in seen:
        if change.low is not None and change.high is not None:
            ax.plot([_middle(change)] * 2, [change.low, change.high], color=INK, linewidth=0.9 * scale,
                    path_effects=edge, zorder=6)  # fmt: skip
    ax.plot([_middle(c) for c in seen], [_of(c.measured) for c in seen], color=INK, linewidth=1.2 * scale,
            marker="o", markersize=4 * scale, markeredgecolor="white", markeredgewidth=0.7 * scale, path_effects=edge,
            zorder=7)  # fmt: skip


def _middle(change: Change) -> float:
    return (change.since + change.step) / 2


def _of(value: float | None) -> float:
    """A number that has been looked at before."""
    assert value is not None
    return value


def _correlation_text(found: Agreement) -> str:
    if found.correlation is None:
        return "no correlation"
    ends = "" if found.low is None or found.high is None else (
        f" [{signed(found.low, 2)}, {signed(found.high, 2)}]"
    )  # fmt: skip
    return f"correlation {signed(found.correlation, 2)}{ends}"
