"""The picture of a performance matrix: tasks from left to right, stages from top to bottom, the base above them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_lifealign.report.drawing import GREY, INK, PENDING, axes_at, canvas, new_figure, shorten, signed, text_width
from hf_lifealign.report.view import MatrixView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.14  # between the matrix and the base's row, and the column of means, in inches
_EDGE = 0.3


@dataclass(frozen=True)
class _Layout:
    """Where the cells lie, in inches from the figure's upper left corner."""

    left: float
    top: float
    cell: tuple[float, float]
    base: bool
    size: float
    width: float
    height: float

    def x(self, column: int, tasks: int) -> float:
        """Left edge of a column; the one after the last task holds the means."""
        return self.left + column * self.cell[0] + (_GAP if column == tasks else 0.0)

    def y(self, stage: int) -> float:
        """Upper edge of a stage's row; -1 is the base."""
        return self.top + (stage + self.base) * self.cell[1] + (_GAP if self.base and stage >= 0 else 0.0)

    def line(self, y: float) -> float:
        """Baseline of text in the middle of a row whose upper edge is `y`; half the height of a digit below it."""
        return y + self.cell[1] / 2 + 0.365 * self.size / 72


def _colours(view: MatrixView) -> tuple[Any, Any]:
    """Colour map and norm: red to blue around what the base has where that is known, else from light to dark blue."""
    import matplotlib
    from matplotlib.colors import Normalize

    values = view.values
    if view.centre is not None:
        reach = max(float(np.abs(values - view.centre).max(initial=0.0)), 0.1 if view.centre else 1e-6)
        # The ends of the map are so dark that colours there hardly differ, so the range goes a little beyond the data.
        return matplotlib.colormaps["RdBu"], Normalize(view.centre - 1.25 * reach, view.centre + 1.25 * reach)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    reach = max(high - low, 1e-6)
    return matplotlib.colormaps["Blues"], Normalize(low - 0.1 * reach, high + 0.2 * reach)


def _layout(view: MatrixView) -> _Layout:
    n = len(view.tasks)
    cell = (min(0.98, max(0.46, 9.5 / n)), min(0.52, max(0.3, 7.0 / n)))
    size = 9.5 if n <= 9 else 8.0 if n <= 14 else 6.5
    base = view.baseline is not None
    rows = [f"{i + 1}  {shorten(task)}" for i, task in enumerate(view.tasks)]
    left = _EDGE + 0.3 + max(text_width(row, size) for row in rows) + 0.12
    longest = max(text_width(shorten(task), size) for task in view.tasks)
    header = 0.3 if longest < cell[0] * 0.95 else 0.25 + longest * 0.64
    top = 1.12 + header
    width = max(left + (n + (n > 1)) * cell[0] + _GAP + 1.15, 6.4)
    height = top + (n + base) * cell[1] + (_GAP if base else 0.0) + 0.62
    return _Layout(left, top, cell, base, size, width, height)


def matrix_figure(view: MatrixView) -> "Figure":
    """Draws a matrix with the value in every cell.

    A frame marks each task's own stage; cells before it are drawn pale, cells without a value are hatched.
    """
    lay = _layout(view)
    figure = new_figure(lay.width, lay.height)
    ax = canvas(figure)
    _draw_titles(ax, view, lay)
    _draw_labels(ax, view, lay)
    n = len(view.tasks)
    colours = _colours(view)
    if view.baseline is not None:
        for j, value in enumerate(view.baseline):
            _draw_cell(ax, lay, (lay.x(j, n), lay.y(-1)), value, view, colours)
    for i in range(n):
        for j in range(n):
            value = view.cells[i, j] if i < view.trained else np.nan
            _draw_cell(ax, lay, (lay.x(j, n), lay.y(i)), value, view, colours, early=j > i)
        if n > 1 and i < view.trained:
            _draw_cell(ax, lay, (lay.x(n, n), lay.y(i)), view.stage_means[i], view, colours)
    _draw_frames(ax, view, lay)
    _draw_colour_bar(figure, view, lay, colours)
    return figure


def _draw_titles(ax: "Axes", view: MatrixView, lay: _Layout) -> None:
    summary = view.summary()
    names = [("bwt", "BWT", True), ("last_performance", "Last", False), ("average_performance", "AP", False)]
    parts = []
    for key, short, always in names:
        value = summary[key]
        parts.append(f"{short} {'–' if value is None else signed(value, view.decimals, always)}")
    progress = "" if view.trained == len(view.tasks) else f"    (after {view.trained} of {len(view.tasks)} tasks)"
    ax.text(_EDGE, 0.42, f"{view.title} through the stream", fontsize=13.5, fontweight="bold", va="center")
    ax.text(_EDGE, 0.74, "    ".join(parts) + progress, fontsize=10.5, color=GREY, va="center")


def _draw_labels(ax: "Axes", view: MatrixView, lay: _Layout) -> None:
    n, (w, h) = len(view.tasks), lay.cell
    turned = max(text_width(shorten(task), lay.size) for task in view.tasks) >= w * 0.95
    columns = [shorten(task) for task in view.tasks] + (["mean\nso far"] if n > 1 else [])
    for j, label in enumerate(columns):
        x = lay.x(j, n) + w / 2
        if turned and j < n:
            ax.text(x - 0.05, lay.top - 0.08, label, rotation=40, ha="left", va="bottom", rotation_mode="anchor",
                    fontsize=lay.size)  # fmt: skip
        else:
            ax.text(x, lay.top - 0.12, label, ha="center", va="baseline", fontsize=lay.size if j < n else lay.size - 1,
                    color=INK if j < n else GREY, linespacing=1.05)  # fmt: skip
    if view.baseline is not None:
        ax.text(_EDGE + 0.3, lay.line(lay.y(-1)), "base", va="baseline", fontsize=lay.size, color=GREY)
    for i, task in enumerate(view.tasks):
        label, colour = f"{i + 1}  {shorten(task)}", INK if i < view.trained else PENDING
        ax.text(_EDGE + 0.3, lay.line(lay.y(i)), label, va="baseline", fontsize=lay.size, color=colour)
    middle = (lay.y(0) + lay.y(n - 1) + h) / 2
    ax.text(_EDGE, middle, "after task", rotation=90, ha="center", va="center", color=GREY)
    note = "Framed: right after the task's own training."
    if view.centre is not None:
        note += f" {'0.5' if view.centre else '0'} is the base."
    note += " Hatched: not measured." if np.isnan(view.cells).any() or view.trained < n else ""
    ax.text(_EDGE, lay.height - 0.27, note, fontsize=8, color=GREY, va="center")


def _draw_cell(
    ax: "Axes",
    lay: _Layout,
    corner: tuple[float, float],
    value: float,
    view: MatrixView,
    colours: tuple[Any, Any],
    early: bool = False,
) -> None:
    """One cell; `early` ones, before the task's own training, are drawn pale and in italics."""
    from matplotlib.patches import Rectangle

    (x, y), (w, h) = corner, lay.cell
    if not np.isfinite(value):
        ax.add_patch(Rectangle(corner, w, h, facecolor="white", edgecolor="#e3e6ea", hatch="////", linewidth=0))
        ax.add_patch(Rectangle(corner, w, h, fill=False, edgecolor="white", linewidth=1.6))
        return
    cmap, norm = colours
    red, green, blue = cmap(norm(value))[:3]
    if early:
        red, green, blue = (1 - (1 - channel) * 0.5 for channel in (red, green, blue))
    ax.add_patch(Rectangle(corner, w, h, facecolor=(red, green, blue), edgecolor="white", linewidth=1.6))
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
    digits = 2 if view.decimals == 3 else 1 if view.decimals == 2 else 0
    ax.text(x + w / 2, lay.line(y), signed(value, digits), ha="center", va="baseline", fontsize=lay.size,
            color="white" if dark else INK, fontstyle="italic" if early else "normal")  # fmt: skip


def _draw_frames(ax: "Axes", view: MatrixView, lay: _Layout) -> None:
    from matplotlib.patches import Rectangle

    n, (w, h) = len(view.tasks), lay.cell
    for i in range(view.trained):
        box = (lay.x(i, n) + 0.022, lay.y(i) + 0.022)
        ax.add_patch(Rectangle(box, w - 0.044, h - 0.044, fill=False, edgecolor=INK, linewidth=1.4, zorder=3))


def _draw_colour_bar(figure: "Figure", view: MatrixView, lay: _Layout, colours: tuple[Any, Any]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    if not len(view.values):
        return
    n = len(view.tasks)
    bottom = lay.y(n - 1) + lay.cell[1]
    right = lay.x(n, n) + (lay.cell[0] if n > 1 else 0.0)
    bar = axes_at(figure, right + 0.3, lay.top, 0.13, bottom - lay.top)
    drawn = figure.colorbar(ScalarMappable(norm=colours[1], cmap=colours[0]), cax=bar)
    drawn.outline.set_visible(False)
    bar.yaxis.set_major_locator(MaxNLocator(4 if bottom - lay.top < 1.6 else 6))
    bar.tick_params(length=2, width=0.6, labelsize=8)
