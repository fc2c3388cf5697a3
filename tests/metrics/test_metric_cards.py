"""The metric cards: front matter that a Space can read, the sections of a metric card, and examples that hold."""

import doctest
import re
from pathlib import Path

import pytest
import yaml

import hf_lifealign
from hf_lifealign.metrics import METRICS

TITLES = {
    "bwt": "BWT",
    "forgetting": "Forgetting",
    "average_performance": "Average Performance",
    "last_performance": "Last Performance",
    "forward_transfer": "Forward Transfer",
    "hypervolume": "Hypervolume",
    "pareto_inner_product": "Pareto Inner Product",
    "controllability": "Controllability",
    "alignment_score": "Alignment Score",
    "priming_ratio": "Priming Ratio",
}
# Those whose paper has no table to quote from.
UNQUOTED = ("hypervolume", "pareto_inner_product", "controllability", "alignment_score", "priming_ratio")
# The colours a Space may have, from the Hub's reference of its configuration.
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SECTIONS = [
    "## Metric Description",
    "## How to Use",
    "### Inputs",
    "### Output Values",
    "#### Values from Papers",
    "### Examples",
    "## Limitations and Bias",
    "## Citation",
    "## Further References",
]


@pytest.fixture(params=METRICS)
def name(request):
    return request.param


@pytest.fixture
def card(name):
    text = (Path(hf_lifealign.metric_path(name)) / "README.md").read_text(encoding="utf-8")
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def test_front_matter(name, card):
    front, body = card
    assert list(front) == [
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "app_file",
        "pinned",
        "tags",
        "description",
    ]
    assert front["title"] == TITLES[name]
    assert 1 <= len(front["emoji"]) <= 2
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS
    assert (front["sdk"], front["app_file"], front["pinned"]) == ("gradio", "app.py", False)
    assert front["tags"] == ["evaluate", "metric"]
    assert front["description"].endswith(".")
    assert f"# Metric Card for {front['title']}\n" in body


def test_sections_come_in_order(card):
    _, body = card
    places = [body.index(f"\n{section}\n") for section in SECTIONS]
    assert places == sorted(places)


def test_inputs_outputs_and_citation_are_the_scripts(name, card, evaluate_cache):
    _, body = card
    metric = hf_lifealign.load_metric(name)
    documented = set(re.findall(r"^    (\w+) \(", metric.inputs_description, flags=re.MULTILINE))
    for argument in documented:
        assert f"\n- `{argument}` (" in body
    assert name in documented
    assert metric.citation.strip() in body


def test_values_of_the_published_matrix(name, card, published):
    _, body = card
    section = body.split("#### Values from Papers")[1].split("### Examples")[0]
    if name in UNQUOTED:
        assert "Values are **not quoted**: " in section
        return
    for k, row in enumerate(published):
        assert f"| {k + 1} | " + " | ".join(f"{score:.2f}" for score in row) in section
    expected = {"bwt": "BWT 0.37", "forgetting": "4.29", "average_performance": "AP 53.91"}
    expected |= {"last_performance": "Last 57.42", "forward_transfer": "not defined"}
    assert f"**{expected[name]}**" in section


def test_examples_hold(name, card, evaluate_cache):
    _, body = card
    blocks = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        test = doctest.DocTestParser().get_doctest(block, {}, f"{name}/README.md", None, 0)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0
