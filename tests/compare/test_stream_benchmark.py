"""benchmarks/stream on a tiny model: cut, sweep, choice, final runs, and what a second call leaves alone."""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny import preference_rows, write_jsonl

from hf_lifealign._files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("truthful", "safe", "harmless", "helpful")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, task in enumerate(TASKS):
        sides = ("yes", "no") if number % 2 else ("no", "yes")
        write_jsonl(folder / task / "train.jsonl", preference_rows(20, *sides, start=100 * number))
        # the last one stands in the training rows too
        write_jsonl(folder / task / "test.jsonl", preference_rows(4, *sides, start=100 * number + 17))
    return folder


def call(tiny_dir: str, data: Path, out: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "benchmarks/stream/run.py", str(data), "--output", str(out), "--model", tiny_dir,
            "--tokens", "80", "--train", "8", "--validation", "4", "--test", "6", "--max-steps", "1"]  # fmt: skip
    return subprocess.run([*line, *flags], capture_output=True, text=True, cwd=ROOT, timeout=280, env=os.environ)


def test_rows_are_cut_into_parts_that_share_nothing(tiny_dir: str, data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "benchmarks/stream/prepare.py", str(data), str(tmp_path), "--model", tiny_dir, "--tokens",
            "80", "--train", "8", "--validation", "4", "--test", "6"]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    for task in TASKS:
        prompts = {}
        for part in ("train", "validation", "test"):
            rows = [json.loads(each) for each in (tmp_path / task / f"{part}.jsonl").read_text().splitlines()]
            prompts[part] = {json.dumps(row["prompt"]) for row in rows}
        assert [len(prompts[part]) for part in prompts] == [8, 4, 6]
        assert len(set().union(*prompts.values())) == 18
    short = subprocess.run([*line, "--tokens", "3"], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert "Raise --tokens" in short.stderr


def result(method: str, seed: int, won: float, order: str = "first") -> dict[str, Any]:
    """What a run leaves behind that wins a share of its pairs."""
    margins = [[[1.0] * round(10 * won) + [-1.0] * round(10 * (1 - won))] * (i + 1) for i in range(4)]
    return {
        "order": order, "method": method, "seed": seed, "status": "done", "tasks": list(TASKS), "margins": margins,
        "seconds": {"training": 60.0, "evaluation": 10.0}, "steps": 200, "peak_memory_mb": 100.0, "kept_mb": 1.0,
        "trainable_parameters": 1000, "perplexity": None, "routes": None,
    }  # fmt: skip


def runs_that_are_kept(out: Path, docs: Path, line: list[str]) -> None:
    """Tables are the same without the results, from what was kept of them; none is written without runs that it tells;
    and those of another machine are parts of their own."""

    def run(*flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*line, *flags], capture_output=True, text=True, cwd=ROOT, timeout=120)

    before = (docs / "evidence.md").read_text()
    rows = (out / "data" / "manifest.json").read_text()
    aside = out.rename(out.parent / "aside")
    assert run().returncode == 0
    assert (docs / "evidence.md").read_text() == before
    kept = docs / "evidence" / "runs" / "final" / "first" / "replay" / "seed-1.json"
    held = kept.read_text()
    kept.unlink()
    refused = run("--parts", "final")
    assert "replay (order first, seed 1)" in refused.stderr
    assert (docs / "evidence.md").read_text() == before
    (docs / "evidence.md").write_text(before + "<!-- table: later-methods -->\n<!-- end -->\n")
    (docs / "evidence" / "methods" / "comparison.json").write_text(
        (docs / "evidence" / "methods" / "comparison.json").read_text().replace('"ewc"', '"osf"')
    )
    assert "invalid choice" in run("--against", "replays").stderr
    assert run("--parts", "methods", "--prefix", "later-", "--against", "ewc").returncode == 0
    assert read_json(docs / "evidence" / "later-methods" / "comparison.json")["against"] == "ewc"
    page = (docs / "evidence.md").read_text()
    assert page.startswith(before)
    later = page.split("<!-- table: later-methods -->")[1]
    assert "| ewc | 1 |" in later
    assert "`gem`" in later.split("Not run: ")[1]
    assert "`osf`" not in later
    (docs / "evidence.md").write_text(before)
    kept.write_text(held)
    write_json(out / "data" / "manifest.json", json.loads(rows) | {"tokens": 7})
    assert "other rows" in run().stderr
    shutil.rmtree(out)
    aside.rename(out)


def test_a_sweep_elsewhere_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its comparison.json tells the rates that were tried, and those that failed; there may be several."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "stream"))
    run = importlib.import_module("run")
    figures = {"accuracy": {"figures": {"last_performance": {"value": 0.7}}}}
    failure = {"method": "ewc-0.0003", "seed": 100, "error": "no"}
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    write_json(files[0], {"orders": {"first": {"methods": {"replay-0.0001": figures}, "failed": []}}})
    write_json(files[1], {"orders": {"first": {"methods": {}, "failed": [failure]}}})
    asked: list[set[str]] = []
    monkeypatch.setattr(run, "plans_of", lambda *given: iter([None]))
    monkeypatch.setattr(run, "live", lambda plan, options, names: asked.append(names) or [])
    options = argparse.Namespace(swept=files, output=tmp_path)
    settings = {"kind": "required", "settings": {}}
    content = {"grid": [1e-4, 3e-4], "methods": {"replay": settings | {"grid": [1e-4]}, "ewc": settings}}
    assert run.sweep(options, content, ["replay", "ewc"]) == {"replay": 1e-4}
    assert asked == [{"ewc-0.0001"}]
    told = json.loads((tmp_path / "chosen.json").read_text())["last_on_validation"]
    assert told == {"replay": {"0.0001": 0.7}, "ewc": {"0.0003": None}}


def test_other_orders_are_for_what_is_required_and_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "stream")
    run = importlib.import_module("run")
    methods = yaml.safe_load((ROOT / "benchmarks" / "stream" / "methods.yaml").read_text())["methods"]
    best = {name: methods[name] for name in ("replay", "routed_memory", "joint", "ewc", "gem")}
    stages = run.stages_of(best, [], [0, 1])
    assert {stage: set(told[0]) for stage, told in stages.items()} == {
        "final": {"replay", "routed_memory", "joint"}, "orders": {"replay", "routed_memory"},
        "baselines": {"ewc", "gem"},
    }  # fmt: skip
    assert [told[2] for told in stages.values()] == [[0, 1], [0, 1], [0]]
    assert stages["orders"][1] == ["reverse", "mixed"]
    assert set(run.stages_of(best, ["gem"], [0])["orders"][0]) == {"replay", "routed_memory", "gem"}
    assert run.stages_of(best, [], [0], ["mixed"])["orders"][1] == ["mixed"]


def test_the_page_is_written_from_results(tmp_path: Path) -> None:
    """Its tables say what was measured, against ours, and what was not run."""
    out, docs = tmp_path / "results", tmp_path / "docs"
    runs = [("sweep", result(f"{name}-{rate}", 100, 0.5)) for name in ("replay", "routed_memory")
            for rate in ("0.0001", "0.0003")]  # fmt: skip
    runs += [("final", result(name, seed, won)) for name, won in (("replay", 0.5), ("routed_memory", 0.8))
             for seed in (0, 1)]  # fmt: skip
    runs += [("baselines", result("ewc", 0, 0.4))]
    # all rows as one task: 10 pairs of each task, of which truthful, safe, harmless win 9 and helpful 1
    pooled = [1.0] * 9 + [-1.0] + [1.0] * 9 + [-1.0] + [1.0] * 9 + [-1.0] + [1.0] + [-1.0] * 9
    runs += [("final-pooled", result("joint", 0, 0.5) | {"tasks": ["pooled"], "margins": [[pooled]]})]
    rows = {"test": {"rows": 10}, "validation": {"rows": 10}}
    write_json(out / "data" / "manifest.json", {"tasks": dict.fromkeys(TASKS, rows)})
    for stage, told in runs:
        write_json(out / stage / told["order"] / told["method"] / f"seed-{told['seed']}" / "result.json", told)
    docs.mkdir()
    parts = ("sweep", "final", "orders", "methods", "tasks")
    page = "before\n" + "".join(f"<!-- table: {part} -->\nold\n<!-- end -->\n" for part in parts) + "after\n"
    (docs / "evidence.md").write_text(page)
    line = [sys.executable, "benchmarks/stream/evidence.py", "--output", str(out), "--docs", str(docs)]
    early = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "run.py" in early.stderr
    rates = {"replay": 1e-4, "routed_memory": 3e-4}
    write_json(out / "chosen.json", {"last_on_validation": {}, "chosen": rates, "ours": "routed_memory"})
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (docs / "evidence.md").read_text()
    assert page.startswith("before")
    assert page.endswith("after\n")
    final = page.split("<!-- table: final -->")[1].split("<!-- end -->")[0]
    told = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in final.splitlines() if "|" in line}
    assert told["replay"][1] == "2"
    assert told["replay"][3].startswith("0.500")
    assert told["replay"][5].startswith("-0.300")
    assert told["routed_memory"][5] == ""
    assert (told["joint"][2], told["joint"][4]) == ("", "")
    assert told["joint"][3].startswith("0.700")
    assert told["joint"][5].startswith("-0.100")
    assert told["joint"][6] == ""
    held = json.loads((docs / "evidence" / "final" / "comparison.json").read_text())["orders"]["first"]["methods"]
    assert held["joint"]["matrix"] == [[None], [None] * 2, [None] * 3, [0.9, 0.9, 0.9, 0.1]]
    assert held["joint"]["by_seed"][0]["bwt"] is None
    assert "Not run: `sequential`, `lifealign`." in final
    assert "](evidence/final/comparison.png)" in final
    every = page.split("<!-- table: methods -->")[1].split("<!-- end -->")[0]
    assert "| ewc | 1 |" in every
    assert "`gem`" in every.split("Not run: ")[1]
    ends = page.split("<!-- table: tasks -->")[1].split("<!-- end -->")[0]
    assert "| first | joint | 1 | 0.900 | 0.900 | 0.900 | 0.100 |" in ends
    assert "| first | replay | 2 | 0.500 (+0.000) |" in ends
    assert "old" not in final
    assert "Not run yet" in page.split("<!-- table: orders -->")[1].split("<!-- end -->")[0]
    assert "Only one order" in ends
    for name, won in (("replay", 0.6), ("routed_memory", 0.7), ("ewc", 0.5)):
        folder = out / "orders" / "reverse" / name / "seed-0"
        told = result(name, 0, won, "reverse")
        # helpful is the first task there, and the others are won by both
        told["margins"][-1] = [told["margins"][-1][0], [1.0] * 10, [1.0] * 10, [1.0] * 10]
        write_json(folder / "result.json", told | {"tasks": list(reversed(TASKS))})
    again = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 0, again.stderr
    page = (docs / "evidence.md").read_text()
    assert "| ewc | 1 |" in page.split("<!-- table: orders -->")[1].split("<!-- end -->")[0]
    ends = page.split("<!-- table: tasks -->")[1].split("<!-- end -->")[0]
    assert "| reverse | replay | 1 | 1.000 | 1.000 (+0.400) | 1.000 (+0.400) | 0.600 (+0.000) |" in ends
    assert "| first | ewc | 1 | 0.400 (+0.000) |" in ends
    # .5 against .8 in the first order, in the reverse .6 against .7 of helpful alone
    cells = next(line for line in ends.splitlines() if line.startswith("| replay | 3 |")).split(" | ")
    assert [cell.split(" [")[0] for cell in cells[2:]] == ["-0.150", "-0.150", "-0.150", "-0.200", "-0.163"]
    assert {path.name for path in (docs / "evidence" / "final").iterdir()} == {
        "comparison.json", "comparison.md", "comparison.png",
    }  # fmt: skip
    runs_that_are_kept(out, docs, line)
    write_json(out / "data" / "manifest.json", {"tasks": {task: {"test": {"rows": 11}} for task in TASKS}})
    assert "measured on 40 pairs, but there are 44" in subprocess.run(line, capture_output=True, text=True, cwd=ROOT,
                                                                      timeout=120).stderr  # fmt: skip
    write_json(out / "data" / "manifest.json", {"tasks": dict.fromkeys(TASKS, rows)})
    (docs / "evidence.md").write_text("no place\n")
    assert "no lines" in subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120).stderr


def test_an_end_that_no_order_changes_is_one_life_for_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seeds count in all orders, and one that was lived in three orders does not count three times."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "stream"))
    by_order = importlib.import_module("by_order")
    orders = ("first", "reverse", "mixed")
    routed = [result("routed_memory", 0, 0.9, order) for order in orders]
    routed += [result("routed_memory", seed, 0.6) for seed in (1, 2)]
    other = [result("replay", 0, 0.5, order) for order in orders]
    told = by_order.over_orders(routed + other, "routed_memory")
    assert "each of its 3 seeds counts in all" in told
    cells = told.splitlines()[-1].split(" | ")
    assert cells[:2] == ["| replay", "3"]
    assert [cell.split(" [")[0] for cell in cells[2:]] == ["-0.200"] * 5
    same_seed = by_order.over_orders([*routed[:3], *other], "routed_memory").splitlines()[-1]

    def width(line: str) -> float:
        low, high = line.split(" | ")[-1].split("[")[1].split("]")[0].split(", ")
        return float(high) - float(low)

    assert width(told.splitlines()[-1]) > width(same_seed), "seeds that differ make an interval wider"
    routed[1]["margins"][-1][0] = [-1.0] * 10
    assert "whatever order" not in by_order.over_orders(routed + other, "routed_memory")


@pytest.mark.slow
def test_rates_are_chosen_on_validation_rows_and_the_test_is_looked_at_once(
    tiny_dir: str, data: Path, tmp_path: Path
) -> None:
    methods = ("sequential", "routed_memory", "focal_routed_memory", "joint")
    flags = ("--methods", *methods, "--stage", "sweep", "final", "--seeds", "0")
    done = call(tiny_dir, data, tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    grid = yaml.safe_load((ROOT / "benchmarks" / "stream" / "methods.yaml").read_text())["grid"]
    assert set(chosen["chosen"]) == set(methods)
    for method, rate in chosen["chosen"].items():
        found = chosen["last_on_validation"][method]
        assert len(found) == len(grid)
        assert found[str(rate)] == max(found.values())
    final = json.loads((tmp_path / "final" / "comparison.json").read_text())["orders"]["first"]
    assert final["pairs"] == [6] * 4
    ours = max(methods[1:3], key=lambda name: max(chosen["last_on_validation"][name].values()))
    assert chosen["ours"] == ours
    assert set(final["methods"]) == {"sequential", ours}
    # joint training learns all rows in one task
    for stage, pairs in (("sweep", 16), ("final", 24)):
        pooled = json.loads((tmp_path / f"{stage}-pooled" / "comparison.json").read_text())["orders"]["first"]
        assert pooled["tasks"] == ["pooled"]
        assert pooled["pairs"] == [pairs]
        assert {name.split("-")[0] for name in pooled["methods"]} == {"joint"}
    again = call(tiny_dir, data, tmp_path, *flags)
    assert "[1/" not in again.stdout
