"""The picture of fronts: mean rewards under user weights, one colour and marker for each arm, a panel for each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign.report.drawing import COLOURS, FAINT, GREY, INK, axes_at, canvas, new_figure, shorten, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_LEFT, _HEAD, _FOOT, _SPACE, _LINE = 0.85, 0.98, 0.62, 0.85, 0.24
_MOST_PANELS = 15
# Below this share of an axis, including the reference point would hide the shape of the fronts.
_VISIBLE = 0.5
_NOTE = "Joined in the order of the weights; crosses: one standard error; star: the policy's own choice of weights."


@dataclass(frozen=True)
class _Arm:
    """An arm as it is drawn."""

    content: Mapping[str, Any]
    colour: str
    marker: str

    @property
    def weights(self) -> NDArray[Any]:
        return np.array([point["weights"] for point in self.content["points"]], dtype=float)

    @property
    def means(self) -> NDArray[Any]:
        return np.array([point["mean"] for point in self.content["points"]], dtype=float)

    @property
    def errors(self) -> NDArray[Any]:
        return np.array([point["standard_error"] for point in self.content["points"]], dtype=float)


def front_figure(fronts: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws fronts.

    Args:
        fronts (`list[dict]`): the arms as `front.json` has them, with the same objectives.

    Raises:
        ValueError: if there are none, or they have other objectives.
    """
    if not fronts:
        raise ValueError("You gave no front to draw. Give at least one.")
    objectives = list(fronts[0]["objectives"])
    for front in fronts:
        if list(front["objectives"]) != objectives:
            raise ValueError(
                f"You gave fronts of the objectives {objectives} and {list(front['objectives'])}. One picture shows "
                "fronts of the same ones."
            )
    arms = [_Arm(f, COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, f in enumerate(fronts)]
    pairs = list(combinations(range(len(objectives)), 2))[:_MOST_PANELS]
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    size = (6.2, 4.6) if len(pairs) == 1 else (3.6, 3.0)
    head = _HEAD + _LINE * len(arms)
    width = max(_LEFT + columns * size[0] + (columns - 1) * _SPACE + 0.45, 6.4)
    figure = new_figure(width, head + rows * (size[1] + _SPACE) - _SPACE + _FOOT)
    _draw_titles(canvas(figure), arms)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        place = (_LEFT + column * (size[0] + _SPACE), head + row * (size[1] + _SPACE))
        _draw_pair(axes_at(figure, *place, *size), arms, objectives, pair)
    return figure


def write_front_picture(fronts: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws fronts into a PNG, written whole or not at all.

    Args:
        fronts (`list[dict]`): as in [`front_figure`].
        path (`Path`): the PNG.
    """
    from hf_lifealign.report.drawing import drawing_style, save_png

    with drawing_style():
        save_png(front_figure(fronts), path)


def _draw_titles(page: "Axes", arms: Sequence[_Arm]) -> None:
    page.text(_LEFT, 0.36, "What user weights reach", fontsize=13.5, fontweight="bold", va="center")
    note = _NOTE if arms[0].weights.shape[1] == 2 else f"{_NOTE} Small: points that weigh other objectives too."
    page.text(_LEFT, 0.64, note, fontsize=8, color=GREY, va="center")
    for number, arm in enumerate(arms):
        y = 0.9 + _LINE * number
        page.plot([_LEFT + 0.06], [y], marker=arm.marker, color=arm.colour, markersize=6)
        page.text(_LEFT + 0.2, y, f"{shorten(str(arm.content['name']), 40)}    {_figures_text(arm.content['figures'])}",
                  fontsize=9, va="center_baseline")  # fmt: skip


def _figures_text(figures: Mapping[str, Any]) -> str:
    names = (("hypervolume", "hypervolume"), ("inner_product", "inner product"), ("controllability", "controllability"))
    return "    ".join(
        f"{text} {'–' if figures[key] is None else signed(figures[key], 3)}" for key, text in names if key in figures
    )


def _draw_pair(ax: "Axes", arms: Sequence[_Arm], objectives: Sequence[str], pair: tuple[int, int]) -> None:
    """The panel of two objectives: the edge between them as a line, points that weigh others as well without one."""
    i, j = pair
    for number, arm in enumerate(arms):
        style: dict[str, Any] = {"color": arm.colour, "zorder": 3 + number}
        weights, means, errors = arm.weights, arm.means, arm.errors
        edge = np.flatnonzero(np.isclose(weights[:, i] + weights[:, j], 1.0))
        edge = edge[np.argsort(weights[edge, i], kind="stable")]
        inner = np.setdiff1d(np.arange(len(weights)), edge)
        if len(inner):
            ax.plot(means[inner, i], means[inner, j], linestyle="", marker=arm.marker, markersize=3.5, alpha=0.45,
                    **style)  # fmt: skip
        if len(edge):
            ax.errorbar(means[edge, i], means[edge, j], xerr=errors[edge, i], yerr=errors[edge, j], fmt="none",
                        ecolor=arm.colour, elinewidth=0.7, alpha=0.4, zorder=2)  # fmt: skip
            ax.plot(means[edge, i], means[edge, j], marker=arm.marker, markersize=5, linewidth=1.4, **style)
            for index in {edge[0], edge[-1]}:
                text = f"{signed(weights[index, i], 2)} / {signed(weights[index, j], 2)}"
                # every other arm on the other side, since arms end near each other
                place, side = ((6, 5), "left") if number % 2 == 0 else ((-6, -10), "right")
                ax.annotate(text, (means[index, i], means[index, j]), place, textcoords="offset points", fontsize=7.5,
                            color=arm.colour, ha=side, zorder=8)  # fmt: skip
        own = arm.content.get("own")
        if own is not None:
            ax.plot(own["mean"][i], own["mean"][j], marker="*", markersize=13, markeredgecolor="white",
                    markeredgewidth=0.8, linestyle="", **{**style, "zorder": 7})  # fmt: skip
    _draw_base(ax, arms, pair)
    _draw_reference(ax, arms, pair)
    ax.set_xlabel(f"{shorten(objectives[i], 40)} (mean reward)")
    ax.set_ylabel(f"{shorten(objectives[j], 40)} (mean reward)")
    ax.grid(color="#e6e9ed", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=2, width=0.6)


def _draw_base(ax: "Axes", arms: Sequence[_Arm], pair: tuple[int, int]) -> None:
    """The base, once for each place: arms of one base share it."""
    drawn: set[tuple[float, float]] = set()
    for arm in arms:
        base = arm.content.get("base")
        place = None if base is None else (float(base["mean"][pair[0]]), float(base["mean"][pair[1]]))
        if place is None or place in drawn:
            continue
        drawn.add(place)
        ax.plot(*place, marker="d", markersize=8, color=GREY, linestyle="", zorder=6)
        ax.annotate("base", place, (7, -10), textcoords="offset points", fontsize=8, color=GREY)


def _draw_reference(ax: "Axes", arms: Sequence[_Arm], pair: tuple[int, int]) -> None:
    """The reference point where it leaves the fronts their shape, else an arrow that points to it."""
    x, y = (float(arms[0].content["reference_point"][k]) for k in pair)
    ax.margins(0.12)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    share = min((right - left) / (max(right, x) - min(left, x)), (high - low) / (max(high, y) - min(low, y)))
    text = f"reference point ({signed(x, 2)}, {signed(y, 2)})"
    if share >= _VISIBLE:
        ax.plot(x, y, marker="x", color=INK, markersize=7, linestyle="", zorder=6)
        ax.annotate(text, (x, y), (7, 6), textcoords="offset points", fontsize=7.5, color=GREY)
        return
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    corner = (0.0 if x < (left + right) / 2 else 1.0, 0.0 if y < (low + high) / 2 else 1.0)
    inside = (0.07 + 0.86 * corner[0], 0.07 + 0.86 * corner[1])
    ax.annotate("", corner, inside, xycoords="axes fraction", textcoords="axes fraction",
                arrowprops={"arrowstyle": "->", "color": FAINT, "linewidth": 1.2})  # fmt: skip
    ax.annotate(text, inside, (4, 0), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=GREY,
                ha="left" if corner[0] == 0 else "right", va="center")  # fmt: skip
