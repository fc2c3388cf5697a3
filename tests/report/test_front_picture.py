"""Pictures of made-up fronts: what is on them, and that they are really pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from hf_lifealign.report.drawing import drawing_style
from hf_lifealign.report.front_picture import front_figure, write_front_picture

NAMES = ("helpful", "harmless", "short $x$", "kind")


def made(name: str = "meal", objectives: int = 2, steps: int = 11, base: bool = True, **changes: Any) -> dict[str, Any]:
    """A front as front.json has it: each mean is the root of its weight, in two units."""
    from hf_lifealign.meta_aligner.front import user_weights

    weights = user_weights(objectives, steps)

    def point(label: str, w: list[float] | None, mean: np.ndarray) -> dict[str, Any]:
        return {"label": label, "weights": w, "mean": mean.tolist(), "standard_error": [0.03] * objectives}

    unit = np.arange(1, objectives + 1)
    content = {
        "name": name,
        "objectives": list(NAMES[:objectives]),
        "figures": {"hypervolume": 12.3, "inner_product": -0.5, "controllability": None},
        "reference_point": [-3.0] * objectives,
        "points": [point("", w, np.sqrt(w) * unit) for w in weights],
        "own": point("own", [1 / objectives] * objectives, unit * 0.8),
        "base": point("base", None, unit * 0.1) if base else None,
    }
    return content | changes


def words(figure: Any) -> str:
    return " ".join(text.get_text() for ax in figure.axes for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label))


def test_one_front() -> None:
    with drawing_style():
        figure = front_figure([made()])
    told = words(figure)
    for part in ("meal", "hypervolume 12.300", "inner product −0.500", "controllability –", "helpful (mean reward)",
                 "harmless (mean reward)", "0.00 / 1.00", "1.00 / 0.00", "base", "(−3.00, −3.00)"):  # fmt: skip
        assert part in told
    line = next(line for line in figure.axes[1].lines if len(line.get_xdata()) == 11)
    assert np.all(np.diff(line.get_xdata()) > 0), "joined in the order of the weights"
    assert figure.axes[1].get_xlim()[0] > -3, "a far reference point does not squeeze the front"


def test_near_reference_point_is_on_the_axes() -> None:
    with drawing_style():
        figure = front_figure([made(reference_point=[-0.2, -0.2])])
    low, high = figure.axes[1].get_xlim()
    assert low < -0.2 < high


def test_arms_differ_in_colour_and_marker() -> None:
    with drawing_style():
        figure = front_figure([made(f"arm {i}", base=i == 0) for i in range(3)])
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 11]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert words(figure).count("base") == 1


@pytest.mark.parametrize(("objectives", "panels"), [(3, 3), (4, 6)])
def test_more_objectives_have_a_panel_for_each_pair(objectives: int, panels: int) -> None:
    with drawing_style():
        figure = front_figure([made(objectives=objectives, steps=5)])
    assert len(figure.axes) == 1 + panels
    labels = {(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes[1:]}
    assert len(labels) == panels


def test_the_same_fronts_give_the_same_png(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_front_picture([made(), made("other", base=False)], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = imread(tmp_path / "a.png")
    assert min(pixels.shape[:2]) > 600
    assert np.ptp(pixels[..., :3]) > 0.8


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no front"):
        front_figure([])
    with pytest.raises(ValueError, match="of the objectives"):
        front_figure([made(), made(objectives=3)])
