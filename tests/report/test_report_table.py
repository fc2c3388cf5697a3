"""matrix_table and what it is made of: both layouts, runs in progress, judges, and input that must be refused."""

import json

import pytest
from report.fake_run import matrix_content

from hf_lifealign.report import matrix_table
from hf_lifealign.report.table import markdown_table, summary_rows
from hf_lifealign.report.view import read_matrix_file, view_matrix

PAPER = [
    [52.52], [54.17, 55.62], [49.89, 54.26, 40.69], [51.61, 56.39, 54.62, 50.74],
    [47.54, 59.55, 58.43, 49.85, 69.71], [50.63, 54.84, 54.38, 46.54, 64.74, 73.37],
]  # fmt: skip


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_published_matrix(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(PAPER))
    view = view_matrix(read_matrix_file(tmp_path / "m.json"))
    values = {short: value for short, value, _ in summary_rows(view)}
    assert values == {"BWT": "+0.37", "Forgetting": "+4.29", "Last": "57.42", "AP": "53.91", "Forward transfer": "-"}


def test_columns_align_as_text():
    lines = matrix_table(matrix_content(4, True, ["a", "bb", "c", "a-long-name"], False)).split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1


def test_full_rows_show_base_and_cells_before_training():
    table = matrix_table(matrix_content(4, True, ["a", "b", "c", "d"], False))
    rows = cells(table)
    assert rows[0] == ["after task", "a", "b", "c", "d", "mean so far"]
    assert rows[2] == ["(base)", "0.500", "0.500", "0.500", "0.500", ""]
    assert rows[3] == ["1 a", "0.879", "(0.512)", "(0.487)", "(0.521)", "0.879"]
    assert rows[-1] == ["test pairs", "58", "680", "647", "234", ""]
    assert "In parentheses" in table


def test_triangle_in_progress_and_judge():
    content = matrix_content(2, False, ["a", "b", "c", "d"], True)
    rows = cells(matrix_table(content, "rouge_l"))
    assert rows[2] == ["1 a", "0.352", "", "", "", "0.352"]
    assert rows[3] == ["2 b", "0.345", "0.286", "", "", "0.315"]
    assert rows[-1][0] == "2 b", "a judge does not read all test pairs, so their number is not shown"


def test_values_not_measured_stay_empty():
    content = matrix_content(3, False, ["a", "b", "c"], False)
    content["matrices"]["preference_accuracy"][2][0] = None
    view = view_matrix(content)
    assert view.summary()["bwt"] is None
    assert cells(matrix_table(content))[4][1] == ""


def test_cut_to_a_stage():
    view = view_matrix(matrix_content(4, True, ["a", "b", "c", "d"], False)).up_to(2)
    assert (view.trained, view.tasks, view.counts) == (2, ("a", "b"), (58, 680))
    assert view.cells.shape == (2, 2)


def test_cells_cannot_break_a_table():
    assert markdown_table(["a"], [["x|y\nz"]]).splitlines()[2] == "| x\\|y z |"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"metric": "m", "matrices": {}}, "none so far"),
        ({"matrices": {"m": [[0.5, 0.6, 0.7]]}}, "has to hold 1 to 2"),
        ({"matrices": {"m": [[0.5], [0.6]]}}, "has to hold 2 to 2"),
        ({"matrices": {"m": [["0.5"]]}}, "not a number"),
        ({"matrices": {"m": [[True]]}}, "not a number"),
        ({"matrices": {"m": [[0.1], [0.1, 0.1], [0.1, 0.1]]}}, "at most 2 rows"),
        ({"matrices": {"m": 3}}, "at most 2 rows"),
    ],
)
def test_bad_content(change, match):
    with pytest.raises(ValueError, match=match):
        matrix_table({"format": 1, "metric": "m", "tasks": ["a", "b"], "matrices": {"m": [[0.5]]}} | change)


def test_unknown_metric_names_the_others():
    with pytest.raises(ValueError, match=r"'bleu'.*preference_accuracy, margin"):
        matrix_table(matrix_content(1, False, ["a"], False), "bleu")


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "not valid JSON"), ("{}", "no performance matrix"), ("[[1], [2]]", "length 1"), ("[]", "no rows"),
     ('{"format": 2, "matrices": {}}', "format 2")],
)  # fmt: skip
def test_bad_files(tmp_path, text, match):
    (tmp_path / "matrix.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_matrix_file(tmp_path)
