"""Pictures and text of alignment dynamics: what is on them, what they leave out, and in both forms."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from hf_lifealign.dynamics.findings import Findings, find, find_priming
from hf_lifealign.report import dynamics_pictures as pictures
from hf_lifealign.report.drawing import drawing_style
from hf_lifealign.report.dynamics_document import overview_parts
from hf_lifealign.report.dynamics_pictures import write_dynamics_pictures
from hf_lifealign.report.dynamics_writer import Again, write_dynamics_report
from hf_lifealign.report.page import Heading, Items, Paragraph, Picture, Table, link, quoted, render


def series(intervals: int = 10, gain: float = 0.06, split: bool = True, forces: bool = True) -> list[dict[str, Any]]:
    """Entries of a training with an anchor every 10 steps and a point between two."""
    entries: list[dict[str, Any]] = []
    for i in range(2 * intervals + 1):
        step, anchor = 5 * i, i % 2 == 0
        s = 0.2 + 0.5 * gain * i
        score = {"score": s, "low": s - 0.1, "high": s + 0.1, "ess": 1.0, "anchor": step}
        since = step - 10 if anchor else step - 5
        entry: dict[str, Any] = {"step": step, "score": score if anchor else {**score, "anchor": since, "ess": 0.7}}
        if i:
            measured = 0.1 + 0.02 * i
            entry["log_odds_change"] = {"value": measured, "low": measured - 0.1, "high": measured + 0.1,
                                        "since": since}  # fmt: skip
            if forces:
                net = 0.05 * (step - since) - 0.01 * i
                parts = {"drive": net + 0.5, "rebound": -0.5} if split else {}
                # the halves differ from each other, and from all samples together
                cross = [[measured + 0.03, measured + 0.02], [measured - 0.01, measured - 0.02]]
                entry["attribution"] = {"since": since, "log_odds": measured + 0.01, "net": net, **parts,
                                        "cross": cross, "residual": measured + 0.01 - net}  # fmt: skip
        if anchor:
            if i:
                entry["rescored"] = {**score, "anchor": since, "ess": 0.4}
            if forces:
                rebound = 0.3 - 0.5 * s
                entry["forces"] = {"drive": 0.1, "rebound": rebound, "net": 0.1 + rebound} if split else {"net": 0.1}
        entries.append(entry)
    return entries


def words(figure: Any) -> str:
    told = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        told += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
    return " ".join(text.get_text() for text in told)


@pytest.fixture
def found() -> Findings:
    return find(series())


def test_the_score_has_its_interval_and_its_anchors(found: Findings) -> None:
    with drawing_style():
        figure = pictures.score_figure(found)
    told = words(figure)
    for part in ("0.20 at step 0", "0.80 at step 100", "S (share of aligned answers)", "ESS (share)", "optimizer step",
                 "anchor, fresh samples", "95 % interval"):  # fmt: skip
        assert part in told
    ax, below = figure.axes[1:]  # type: ignore[union-attr]
    assert len(ax.collections) == 10, "a band for each anchor that is followed"
    # each anchor's samples carry less and less, until the next one draws anew
    assert [list(line.get_ydata()) for line in below.lines][:2] == [[1.0, 0.7, 0.4]] * 2
    anchors = [line for line in ax.lines if line.get_markersize() == 5.5]
    assert [float(line.get_xdata()[0]) for line in anchors] == list(range(0, 101, 10))  # type: ignore[index]


def test_forces_are_stacked_up_to_what_is_attributed(found: Findings) -> None:
    with drawing_style():
        figure = pictures.forces_figure(found)
    told = words(figure)
    for part in ("drive", "rebound", "residual", "measured", "nats", "times its steps"):
        assert part in told
    bars = figure.axes[1].patches  # type: ignore[union-attr]
    assert len(bars) == 3 * 10
    first = found.intervals[0]
    heights = [bar.get_height() for bar in bars[:3]]
    assert heights == pytest.approx([first.drive, first.rebound, first.residual])
    assert sum(heights) == pytest.approx(first.predicted)
    # drive lifts the score; rebound hangs below 0, and residual from its end
    assert (first.drive > 0, first.rebound < 0, first.residual < 0) == (True, True, True)  # type: ignore[operator]
    assert [bar.get_y() for bar in bars[:3]] == pytest.approx([0.0, 0.0, first.rebound])


def test_a_whole_loss_has_one_force(found: Findings) -> None:
    with drawing_style():
        figure = pictures.forces_figure(find(series(split=False)))
        told = words(figure)
        assert "force of the loss" in told
        assert "rebound" not in told
        assert len(figure.axes[1].patches) == 2 * 10  # type: ignore[union-attr]
        assert pictures.phase_figure(find(series(split=False))) == "no anchor has both a score and a rebound"


def test_an_interval_without_forces_is_not_split() -> None:
    entries = series(2)
    entries[0].pop("forces")
    for entry in entries[1:3]:
        entry["attribution"] = {"since": 0, "log_odds": 0.4}
    with drawing_style():
        figure = pictures.forces_figure(find(entries))
    assert "attributed, not split" in words(figure)
    assert [bar.get_height() for bar in figure.axes[1].patches][:1] == [0.4]  # type: ignore[union-attr]


def test_the_phase_plot_is_coloured_by_step(found: Findings) -> None:
    with drawing_style():
        figure = pictures.phase_figure(found)
    told = words(figure)
    for part in ("correlation −1.00", "11 anchors", "rebound (change of log-odds in a step, nats)", "optimizer step"):
        assert part in told
    dots = figure.axes[1].collections[0]  # type: ignore[union-attr]
    assert list(dots.get_array()) == list(range(0, 101, 10))
    assert np.allclose(dots.get_offsets()[:, 1], [f.rebound for f in found.forces])


def test_the_prediction_shows_pairs_and_verdict(found: Findings) -> None:
    with drawing_style():
        figure = pictures.prediction_figure(found)
        few = pictures.prediction_figure(find(series(3)))
    assert "Forces reliable here: correlation 1.00 [1.00, 1.00]" in words(figure)
    assert "10 whole intervals" in words(figure)
    assert "Too few points to tell" in words(few)
    line = next(line for line in figure.axes[1].lines if line.get_markersize() == 7)  # type: ignore[union-attr]
    assert list(line.get_xdata()) == [x for c in found.intervals for x, _ in c.cross]
    assert list(line.get_ydata()) == [y for c in found.intervals for _, y in c.cross]
    same = next(line for line in figure.axes[1].lines if line.get_markersize() == 4)  # type: ignore[union-attr]
    assert list(same.get_xdata()) == [c.predicted for c in found.intervals]
    assert list(same.get_ydata()) == [c.measured for c in found.intervals]
    assert "one half predicts, the other measures" in words(figure)
    assert "the same samples (linearisation)" in words(figure)


def test_priming_shows_the_steps_of_both() -> None:
    first, again = find(series(10)), find(series(10, gain=0.12))
    with drawing_style():
        told = words(pictures.priming_figure(find_priming(first, again, 0.6)))
        apart = words(pictures.priming_figure(find_priming(first, again, 0.99)))
        unmatched = words(pictures.priming_figure(find_priming(first, find(series(10)[8:]), 0.6)))
    for part in ("Priming ratio 0.50", "first: 67 steps", "again: 33 steps", "target S = 0.60", "since the start"):
        assert part in told
    assert "no priming ratio" in apart
    assert "first never reaches the target" in apart
    assert "With care: the starts are not matched" in unmatched


def test_pictures_are_whole_and_tell_data_apart(tmp_path: Path, found: Findings) -> None:
    priming = find_priming(found, find(series(10, gain=0.1)))
    for name in ("a", "b"):
        told = write_dynamics_pictures(found, priming, tmp_path / name)
        assert told == dict.fromkeys(pictures.PICTURES)
    other = find(series(9, gain=0.05))
    write_dynamics_pictures(other, find_priming(other, found), tmp_path / "c")
    for name in pictures.PICTURES:
        same, again, differs = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert same == again
        assert same != differs
        pixels = imread(tmp_path / "a" / name)
        assert min(pixels.shape[:2]) > 600
        assert np.ptp(pixels[..., :3]) > 0.8
        # the marks are in colour, not only text
        assert (np.ptp(pixels[..., :3], axis=2) > 0.3).mean() > 0.001


def test_no_picture_where_there_is_no_data(tmp_path: Path) -> None:
    for entries in ([], [{"step": 0}, {"step": 4, "not_estimable": {"anchor": "the judge slept"}}]):
        told = write_dynamics_pictures(find(entries), find_priming(find(entries), find(series())), tmp_path)
        assert told["score.png"] == "no score was measured"
        assert told["priming.png"] == "not estimable: first has no score"
        assert None not in told.values()
    assert list(tmp_path.iterdir()) == []
    told = write_dynamics_pictures(find(series(forces=False)), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["score.png"]
    assert "priming.png" not in told


def test_one_measurement_is_a_picture(tmp_path: Path) -> None:
    told = write_dynamics_pictures(find(series()[:1]), None, tmp_path)
    assert told["score.png"] is None
    assert told["phase.png"] == "only one anchor has both a score and a rebound"
    pixels = imread(tmp_path / "score.png")
    assert np.ptp(pixels[..., :3]) > 0.8


# The text


class Reader(HTMLParser):
    """Gathers tags and text, and minds that every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_both_forms_of_a_page_say_the_same() -> None:
    parts = [
        Heading("A `b` & <c>", 1),
        Paragraph("**bold** `**code**` [there](./a/b.md) [not](javascript:x)"),
        Items(["one", "<two>"]),
        Table(("x", "y"), [("a|b", 1)]),
        Picture("p.png", 'a "picture"'),
    ]
    text = render(parts, "md")
    assert text.startswith("# A `b` & <c>\n\n**bold**")
    assert "- one\n- <two>" in text
    assert '![a "picture"](p.png)' in text
    read = Reader(render(parts, "html"))
    assert [attrs["href"] for tag, attrs in read.tags if tag == "a"] == ["./a/b.md"]
    assert [attrs for tag, attrs in read.tags if tag == "img"] == [{"src": "p.png", "alt": 'a "picture"'}]
    assert {"strong", "code", "li", "th", "td"} <= {tag for tag, _ in read.tags}
    for part in ("A b & <c>", "**code**", "[not](javascript:x)", "<two>", "a|b"):
        assert part in read.text
    with pytest.raises(ValueError, match="'pdf'"):
        render(parts, "pdf")


def test_texts_from_outside_are_shown_not_obeyed() -> None:
    assert quoted("plain\nwords") == "plain words"
    assert quoted("<b>`x`") == "`<b>'x'`"
    assert link("a[b](c)", "d e", "f.md") == "[ab(c)](./d%20e/f.md)"


def test_the_report_tells_what_it_has(tmp_path: Path, found: Findings) -> None:
    content, files = write_dynamics_report(tmp_path, "my run", found)
    assert [path.name for path in files] == ["report.md", "dynamics.json", *pictures.PICTURES[:4]]
    text = files[0].read_text()
    for part in ("# Alignment dynamics of my run", "**Forces reliable here.**",
                 "| S at the end   | 0.800 [0.70, 0.90] ",
                 "![Drive, rebound and residual of each interval](forces.png)", "| 90 to 100 |",
                 "nothing decays without gradient steps", "## What was not estimable\n\nNothing"):  # fmt: skip
        assert part in text
    assert "Priming" not in text
    assert content["prediction"]["cross"]["points"] == 20
    assert content["prediction"]["linearisation"]["points"] == 10
    assert "linearisation: the same samples" in text


def test_the_report_of_nothing_says_so(tmp_path: Path) -> None:
    _, files = write_dynamics_report(tmp_path, "run", find([]))
    text = files[0].read_text()
    assert "nothing was measured yet" in text
    assert "There is no picture: no score was measured." in text
    assert ".png" not in text
    assert len(files) == 2


def test_a_later_report_leaves_no_earlier_picture(tmp_path: Path, found: Findings) -> None:
    again = Again("again", find_priming(found, found))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "score.png").write_text("another's")
    write_dynamics_report(tmp_path / "ours", "run", found, again)
    assert (tmp_path / "ours" / "priming.png").is_file()
    for folder in ("ours", "mine"):
        write_dynamics_report(tmp_path / folder, "run", find([]))
    assert not list((tmp_path / "ours").glob("*.png"))
    assert (tmp_path / "mine" / "score.png").read_text() == "another's"


def test_what_an_error_told_is_made_public(tmp_path: Path) -> None:
    entries = series(1)
    entries[0]["not_estimable"] = {"anchor": "no file /home/someone/secret/judge.bin with hf_abcdefghijklmnopqrstuv"}
    content, files = write_dynamics_report(tmp_path, "run", find(entries))
    assert "judge.bin" in files[0].read_text()
    for text in (files[0].read_text(), files[1].read_text()):
        assert "someone" not in text
        assert "hf_abc" not in text
    assert content["missing"][0]["steps"] == [0]


def test_the_overview_has_a_row_for_each() -> None:
    text = render(overview_parts("life", {"01-a": find(series()), "b/c": find([])}, "report.md"), "md")
    assert "| [01-a](./01-a/report.md) | forces reliable here " in text
    assert "| [b/c](./b/c/report.md)   | too few points to tell |" in text
