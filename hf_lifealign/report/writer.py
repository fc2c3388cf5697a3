"""write_report: the pictures and the report of a run's folder, each written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lifealign._files import write_text
from hf_lifealign.report.document import report_text
from hf_lifealign.report.priming import primed_tasks
from hf_lifealign.report.run_data import read_run
from hf_lifealign.report.view import view_matrix

PICTURES = ("matrix.png", "curves.png")


def write_report(run_dir: str | Path) -> list[Path]:
    """Writes `matrix.png`, `curves.png` and `report.md` into a run's folder, for a finished run or one in progress.

    For each task that took up an earlier one there is also a picture of both curves, `priming-NN-<task>.png`.

    The same folder content gives the same bytes. A picture for which there is nothing to show yet is left out.

    Args:
        run_dir (`str` or `Path`): folder with `state.json` or `matrix.json`, and what else the run has written.

    Returns:
        `list[Path]`: the files written.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if one of its files is not what a run writes.
    """
    from hf_lifealign.report.curves import curves_figure
    from hf_lifealign.report.drawing import drawing_style, save_png
    from hf_lifealign.report.dynamics_pictures import priming_figure
    from hf_lifealign.report.heat_map import matrix_figure

    data = read_run(run_dir)
    view = view_matrix(data.matrix or {}) if data.finished else None
    written: list[Path] = []
    with drawing_style():
        figures = (matrix_figure(view) if view is not None else None, curves_figure(data, view))
        for name, figure in zip(PICTURES, figures, strict=True):
            if figure is not None:
                save_png(figure, data.root / name)
                written.append(data.root / name)
        for task in primed_tasks(data):
            curves = task.curves()
            drawn = priming_figure(curves) if curves is not None else ""
            if not isinstance(drawn, str):
                save_png(drawn, data.root / task.picture)
                written.append(data.root / task.picture)
    report = data.root / "report.md"
    write_text(report, report_text(data, [path.name for path in written]))
    return [*written, report]


def write_matrix_picture(matrix: Mapping[str, Any], path: Path) -> None:
    """Draws a performance matrix, up to its last finished stage.

    Args:
        matrix (`dict`): content of `matrix.json`, with at least one stage.
        path (`Path`): the PNG.
    """
    from hf_lifealign.report.drawing import drawing_style, save_png
    from hf_lifealign.report.heat_map import matrix_figure

    view = view_matrix(matrix)
    with drawing_style():
        save_png(matrix_figure(view.up_to(view.trained)), path)
