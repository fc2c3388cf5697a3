"""The picture of a comparison: a row for each method, a panel for each number, an interval for each."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hf_lifealign.compare.figures import TITLES, Figure
from hf_lifealign.report.drawing import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    axes_at,
    canvas,
    drawing_style,
    new_figure,
    save_png,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_SHOWN = ("bwt", "last_performance", "average_performance")
_LEFT, _HEAD, _ROW, _PANEL, _SPACE, _FOOT = 1.75, 0.95, 0.27, 2.5, 0.3, 0.5
_LONGEST = 40  # letters of a method's name
Found = Mapping[str, Mapping[str, Mapping[str, Figure | None]]]


def comparison_figure(orders: Mapping[str, Found], against: str) -> "Drawing":
    """Draws what methods reach in each order of the tasks.

    Args:
        orders (`dict`): by order, what [`~hf_lifealign.compare.figures.compared`] gives.
        against (`str`): the method that gets the dotted line.
    """
    methods = list(dict.fromkeys(method for found in orders.values() for method in found))
    rows = len(methods)
    height = _HEAD + rows * _ROW * max(1, len(orders)) ** 0.5 + _FOOT
    # wide enough for the longest name, in inches a letter at this size
    left = max(_LEFT, 0.25 + 0.068 * min(_LONGEST, max(map(len, methods), default=0)))
    figure = new_figure(left + len(_SHOWN) * (_PANEL + _SPACE), height)
    page = canvas(figure)
    page.text(0.2, 0.32, "What each method keeps", fontsize=12, color=INK, va="center", weight="bold")
    dotted = f"; dotted: {shorten(against, _LONGEST)}" if against in methods else ""
    page.text(0.2, 0.56, "Preference accuracy, mean over seeds; lines: 95 % bootstrap intervals" + dotted,
              fontsize=8, color=GREY, va="center")  # fmt: skip
    for k, name in enumerate(_SHOWN):
        ax = axes_at(figure, left + k * (_PANEL + _SPACE), _HEAD, _PANEL, height - _HEAD - _FOOT)
        for o, (order, found) in enumerate(orders.items()):
            shift = 0.0 if len(orders) == 1 else 0.5 * (o / (len(orders) - 1) - 0.5)
            colour = COLOURS[o % len(COLOURS)]
            for r, method in enumerate(methods):
                told = found.get(method, {}).get("figures", {}).get(name)
                if told is None:
                    continue
                ax.plot([told.low, told.high], [r + shift] * 2, color=colour, lw=1.4)
                ax.plot([told.value], [r + shift], "o", color=colour, ms=4.5, label=order if r == 0 else None)
            base = found.get(against, {}).get("figures", {}).get(name)
            if base is not None:
                ax.axvline(base.value, color=colour, lw=0.8, ls=":")
        if name == "bwt":
            ax.axvline(0, color=FAINT, lw=1)
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_yticks(range(rows), [shorten(m, _LONGEST) for m in methods] if k == 0 else [""] * rows)
        ax.tick_params(axis="y", length=0)
        ax.set_title(TITLES[name], fontsize=9, color=INK, loc="left")
        ax.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])  # not 2.5: its labels are too long to stand apart
        ax.grid(axis="x", color=FAINT, lw=0.5)
        ax.set_axisbelow(True)
    if len(orders) > 1:
        for o, order in enumerate(orders):
            page.plot([left + 1.6 * o], [height - 0.16], "o", color=COLOURS[o % len(COLOURS)], ms=4.5)
            page.text(left + 1.6 * o + 0.1, height - 0.16, shorten(order, 20), fontsize=8, color=GREY, va="center")
    return figure


def write_comparison_picture(path: Path, orders: Mapping[str, Found], against: str) -> None:
    """Writes the picture as PNG."""
    with drawing_style():
        save_png(comparison_figure(orders, against), path)
