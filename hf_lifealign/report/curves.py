"""The picture of a run's course: training curves above, performance on each task below, on one axis of steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_lifealign.report.drawing import (
    BAND,
    COLOURS,
    FAINT,
    GREY,
    INK,
    axes_at,
    canvas,
    new_figure,
    shorten,
    spread,
    text_width,
)
from hf_lifealign.report.run_data import PhaseLog, RunData
from hf_lifealign.report.view import MatrixView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _WIDTH, _RIGHT, _HEAD, _TITLE, _SPACE = 0.75, 8.2, 1.75, 0.8, 0.32, 0.22
_LEGEND = "Bands: tasks; dotted: end of a warm start. Thin: logged values; thick: their running mean."


@dataclass(frozen=True)
class _Line:
    """A logged quantity in a panel; `phase` restricts it to one phase, since losses of two phases are not one curve."""

    key: str
    label: str
    colour: str
    phase: str | None = None


@dataclass(frozen=True)
class _Panel:
    """A panel of training curves."""

    title: str
    lines: tuple[_Line, ...]
    height: float = 1.25
    limits: tuple[float, float] | None = None  # the least that the axis shows


_PANELS = (
    _Panel(
        "Training loss (log scale)",
        (_Line("loss", "preference", COLOURS[0], "preference"), _Line("loss", "warm start", COLOURS[4], "warm_start")),
        1.45,
    ),
    _Panel(
        "Reward accuracy on training pairs", (_Line("rewards/accuracies", "accuracy", COLOURS[0]),), limits=(0.4, 1.0)
    ),
    _Panel("Reward margin on training pairs", (_Line("rewards/margins", "margin", COLOURS[0]),)),
    _Panel(
        "Focal gate",
        (
            _Line("focal/weight", "mean weight", COLOURS[0]),
            _Line("focal/mastered", "share mastered", COLOURS[2]),
            _Line("focal/review", "share to review", COLOURS[1]),
        ),
        1.45,
        limits=(0.0, 0.5),
    ),
)


def curves_figure(data: RunData, view: MatrixView | None) -> "Figure | None":
    """Draws what was logged so far and how the performance on each task went; `None` if there is neither."""
    panels = [p for p in _PANELS if any(_segments(data.logs, line) for line in p.lines)]
    ends = data.task_ends()
    shown = view if view is not None and view.trained else None
    if not panels and shown is None:
        return None
    tasks_height = max(2.3, 0.19 * len(data.tasks)) if shown is not None else 0.0
    heights = [panel.height for panel in panels] + ([tasks_height] if shown is not None else [])
    bands = _bands(data, ends)
    total = max(end for _, end, _ in bands)
    turned = any(text_width(shorten(name), 9) > (end - start) / total * _WIDTH * 0.96 for start, end, name in bands)
    longest = max(text_width(shorten(name), 9) for _, _, name in bands)
    names = 0.12 + longest * 0.64 if turned else 0.2
    height = _HEAD + names + sum(heights) + len(heights) * (_TITLE + _SPACE) + 0.42
    figure = new_figure(_LEFT + _WIDTH + _RIGHT, height)
    page = canvas(figure)
    page.text(_LEFT, 0.4, "Course of the run", fontsize=13.5, fontweight="bold", va="center")
    page.text(_LEFT, 0.7, _LEGEND if panels else "Bands: tasks.", fontsize=8.5, color=GREY, va="center")
    top = _HEAD
    drawers: list[Callable[[Axes], None]] = [lambda ax, p=panel: _draw_panel(ax, p, data.logs) for panel in panels]  # type: ignore[misc]
    titles = [panel.title for panel in panels]
    if shown is not None:
        drawers.append(lambda ax: _draw_tasks(ax, shown, ends, total))
        titles.append(f"{shown.title} on each task's test pairs (large dot: after its own training, dashed: before)")
    for number, (drawer, title, panel_height) in enumerate(zip(drawers, titles, heights, strict=True)):
        top += _TITLE
        page.text(_LEFT, top - 0.09, title, fontsize=9.5, fontweight="bold", va="baseline")
        if number == 0:
            top += names
            _name_bands(page, bands, total, top - 0.08, turned)
        ax = axes_at(figure, _LEFT, top, _WIDTH, panel_height)
        _frame(ax, data.logs, bands, total)
        drawer(ax)
        last = number == len(heights) - 1
        ax.tick_params(axis="x", labelbottom=last, length=3 if last else 0)
        if last:
            ax.set_xlabel("optimizer step of the run" if data.logs else "finished tasks")
        top += panel_height + _SPACE
    return figure


def _segments(logs: Sequence[PhaseLog], line: _Line) -> list[tuple[list[float], list[float]]]:
    wanted = [log.series(line.key) for log in logs if line.phase in (None, log.phase)]
    return [(x, y) for x, y in wanted if x]


def _bands(data: RunData, ends: Sequence[float]) -> list[tuple[float, float, str]]:
    """`(first step, last step, name)` of every task that was begun."""
    bands = []
    start = 0.0
    for index, task in enumerate(data.tasks):
        last = [log.start + log.steps for log in data.logs if log.index == index and log.steps]
        end = ends[index] if index < len(ends) else max(last, default=start)
        if end > start:
            bands.append((start, float(end), task))
            start = float(end)
    return bands or [(0.0, 1.0, "")]


def _frame(ax: "Axes", logs: Sequence[PhaseLog], bands: Sequence[tuple[float, float, str]], total: float) -> None:
    """What all panels share: the tasks' bands, dotted lines between phases, a quiet grid."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0, total)
    for number, (start, end, _) in enumerate(bands):
        if number % 2 == 0:
            ax.axvspan(start, end, facecolor=BAND, edgecolor="none", zorder=0)
    starts = {float(start) for start, _, _ in bands}
    for log in logs:
        if 0 < log.start < total and log.start not in starts:
            ax.axvline(log.start, color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    ax.grid(axis="y", color="#dfe3e8", linewidth=0.6, zorder=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))


def _name_bands(page: "Axes", bands: Sequence[tuple[float, float, str]], total: float, y: float, turned: bool) -> None:
    for start, end, name in bands:
        x = _LEFT + (start + end) / 2 / total * _WIDTH
        where = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if turned else {"ha": "center"}
        page.text(x, y, shorten(name), fontsize=9, color=GREY, va="baseline", **where)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over a fifteenth of a phase, shorter at its ends."""
    half = max(len(values) // 30, 1 if len(values) > 8 else 0)
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _draw_panel(ax: "Axes", panel: _Panel, logs: Sequence[PhaseLog]) -> None:
    labels: list[tuple[float, str, str]] = []
    positive = True
    for line in panel.lines:
        segments = _segments(logs, line)
        for x, y in segments:
            positive = positive and min(y) > 0
            smooth = _smooth(y)
            marker = "o" if len(x) == 1 else ""
            ax.plot(x, y, color=line.colour, linewidth=0.8, alpha=0.28, zorder=2)
            ax.plot(x, smooth, color=line.colour, linewidth=1.6, marker=marker, markersize=4, zorder=3)
        if segments:
            labels.append((float(_smooth(segments[-1][1])[-1]), line.label, line.colour))
    if panel.limits is not None:
        low, high = ax.get_ylim()
        ax.set_ylim(min(panel.limits[0] - 0.02, low), max(panel.limits[1] + 0.02, high))
        _ticks(ax)
    elif panel.lines[0].key == "loss" and positive:
        _log_axis(ax)
    else:
        ax.margins(y=0.1)
        _ticks(ax)
    if len(panel.lines) > 1:
        _label_ends(ax, labels)


def _ticks(ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _log_axis(ax: "Axes") -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) > 6:
        ticks = [10.0**decade for decade in decades]
    elif len(ticks) < 3:
        ticks = list(MaxNLocator(4).tick_values(low, high))
    ax.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_tasks(ax: "Axes", view: MatrixView, ends: Sequence[float], total: float) -> None:
    """A line per task from its own stage on; what came before its own stage, if it was measured, is dashed."""
    labels: list[tuple[float, str, str]] = []
    for j, task in enumerate(view.tasks):
        colour = COLOURS[j % len(COLOURS)]
        points = [(float(x), float(view.cells[i, j])) for i, x in enumerate(ends) if np.isfinite(view.cells[i, j])]
        own = float(ends[j]) if j < len(ends) else total + 1
        before = [(x, y) for x, y in points if x <= own]
        if view.baseline is not None and np.isfinite(view.baseline[j]):
            before.insert(0, (0.0, float(view.baseline[j])))
        since = [(x, y) for x, y in points if x >= own]
        style = {"color": colour, "clip_on": False, "zorder": 3}
        if len(before) > 1:
            ax.plot(*zip(*before, strict=True), linewidth=1.0, linestyle=(0, (2, 2)), alpha=0.75, **style)  # type: ignore[arg-type]
        hollow = [(x, y) for x, y in before if x < own]
        if hollow:
            ax.plot(*zip(*hollow, strict=True), linestyle="", marker="o", markersize=3.2, alpha=0.75,
                    markerfacecolor="white", **style)  # type: ignore[arg-type]  # fmt: skip
        if since:
            ax.plot(*zip(*since, strict=True), linewidth=1.8, marker="o", markersize=4, **style)  # type: ignore[arg-type]
            ax.plot(*since[0], marker="o", markersize=7, markeredgecolor="white", markeredgewidth=1.2, **style)  # type: ignore[arg-type]
        if points:
            labels.append((points[-1][1], f"{j + 1} {shorten(task, 18)}", colour))
    if view.centre is not None:
        ax.axhline(view.centre, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        labels.append((view.centre, "base", GREY))
    ax.margins(y=0.1)
    _ticks(ax)
    _label_ends(ax, labels)


def _label_ends(ax: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Names the lines at the right end of the panel, moved apart where they would overlap."""
    height = ax.get_position().height * float(ax.figure.get_size_inches()[1])  # type: ignore[union-attr]
    ax.get_ylim()  # makes the axes settle their limits, which the transform below reads
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [float(to_axes.transform((0.0, value))[1]) for value, _, _ in labels]
    for y, (_, label, colour) in zip(spread(wanted, 0.155 / height, 0.02, 0.98), labels, strict=True):
        ax.annotate(label, (1.0, y), (9, 0), xycoords="axes fraction", textcoords="offset points", fontsize=8.5,
                    color=colour if colour != COLOURS[-1] else INK, va="center", annotation_clip=False)  # fmt: skip
