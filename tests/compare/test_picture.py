"""The picture of a comparison: what is written on it can be read, and tells what is drawn."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_lifealign.compare.figures import Margins, compared
from hf_lifealign.compare.picture import comparison_figure


def run_of(seed: int, pairs: int) -> Margins:
    generator = np.random.default_rng(seed)
    return [[generator.normal(0.2, 1, pairs) for _ in range(i + 1)] for i in range(3)]


def drawing(pairs: int, against: str) -> Figure:
    runs: dict[str, dict[int, Margins]] = {"sequential": {0: run_of(0, pairs)}, "replay": {0: run_of(1, pairs)}}
    return comparison_figure({"first": compared(runs, against, replicates=50)}, against)


@pytest.mark.parametrize("pairs", [6, 20, 40, 60, 100, 200, 400, 600, 800, 3000])
def test_the_labels_of_an_axis_stand_apart(pairs: int) -> None:
    """From wide intervals to narrow ones: each has other ticks, with more or fewer digits."""
    figure = drawing(pairs, "sequential")
    FigureCanvasAgg(figure).draw()
    labelled = 0
    for ax in figure.axes:
        if not ax.get_title(loc="left"):
            continue
        low, high = sorted(ax.get_xlim())
        shown = [t.label1.get_window_extent() for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
        labelled += len(shown)
        for left, right in itertools.pairwise(sorted(shown, key=lambda box: box.x0)):
            assert left.x1 + left.height / 2 < right.x0, f"{ax.get_title(loc='left')} of {pairs} pairs"
    assert labelled >= 6


@pytest.mark.parametrize(("against", "told"), [("replay", True), ("another", False)])
def test_the_dotted_line_is_told_only_where_it_is_drawn(against: str, told: bool) -> None:
    figure = drawing(20, against)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    dotted = [line for ax in figure.axes for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert any(f"dotted: {against}" in text for text in texts) == told
    assert bool(dotted) == told
