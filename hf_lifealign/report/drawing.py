"""What the pictures share: a style that no user setting changes, placing in inches, deterministic PNG files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, PENDING, FAINT, BAND = "#1b1f24", "#5c6470", "#9aa2ad", "#c9ced6", "#f3f4f6"
# Okabe and Ito's palette, which people with colour-blindness can tell apart; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#1b1f24")
DPI = 150
# Widths of a character of the default font relative to its size, for placing without asking a renderer.
_EM = 0.58

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    # A task may be called anything; "$" in a name is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """matplotlib's defaults and the style above, so that a user's matplotlibrc changes nothing; undone at the end."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty white figure for the Agg backend, of a size in inches; pyplot's state is left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: "Figure", left: float, top: float, width: float, height: float, **kwargs: Any) -> "Axes":
    """Axes whose upper left corner lies `left` and `top` inches from that of the figure."""
    full_width, full_height = figure.get_size_inches()
    bottom = full_height - top - height
    box = (left / full_width, bottom / full_height, width / full_width, height / full_height)
    return figure.add_axes(box, **kwargs)


def canvas(figure: "Figure") -> "Axes":
    """Invisible axes over the whole figure, in inches from its upper left corner."""
    width, height = figure.get_size_inches()
    ax = axes_at(figure, 0, 0, width, height)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")
    return ax


def text_width(text: str, size: float) -> float:
    """Width of a text of a font size in points, in inches, estimated."""
    return len(text) * size * _EM / 72


def shorten(text: str, most: int = 22) -> str:
    """A name cut to a length."""
    return text if len(text) <= most else text[: most - 1] + "…"


def signed(value: float, digits: int, always: bool = False) -> str:
    """A number with a real minus sign, and with a plus sign if asked for."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if always else f"{rounded:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to lie at least `gap` apart within `[low, high]`, in the same order.

    Where they do not all fit, the gap shrinks.
    """
    if not positions:
        return []
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    # Neighbours that come too close merge into a block around their common mean (pool adjacent violators).
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([min(max(positions[i], low), high) - rank * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (mean, count), (upper, more) = blocks[-2], blocks.pop()
            blocks[-1] = [(mean * count + upper * more) / (count + more), count + more]
    starts = [mean for mean, count in blocks for _ in range(int(count))]
    placed = [0.0] * len(positions)
    for rank, i in enumerate(order):
        start = min(max(starts[rank], low), high - (len(positions) - 1) * gap)
        placed[i] = start + rank * gap
    return placed


def save_png(figure: "Figure", path: Path) -> None:
    """Writes the figure whole or not at all; without date and software, so that equal figures give equal files."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
