"""The recipe of a comparison: what each arm's own recipe is, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_lifealign.compare.plan import overlaid, read_plan

BASE: dict[str, Any] = {
    "model": "m",
    "output_dir": "out",
    "tasks": [{"name": name, "train": "x", "test": "y"} for name in ("a", "b")],
    "training": {"learning_rate": 1e-4, "beta": 0.1},
    "strategies": ["replay", "consolidation"],
    "methods": {"plain": {"strategies": []}, "ewc": {"strategy": "ewc", "training": {"beta": 0.5}}, "own": None},
}


def plan_of(folder: Path, **changes: Any) -> Any:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(BASE | changes, sort_keys=False))
    return read_plan(file)


def test_mappings_are_laid_over_key_by_key() -> None:
    assert overlaid({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert overlaid({"a": {"b": 1}, "c": 2}, {"a": {"b": None}, "c": None}) == {"a": {}}


def test_arms_are_all_orders_seeds_and_methods(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=[1, 2], orders={"there": ["a", "b"], "back": ["b", "a"]})
    assert [arm.name for arm in plan.arms][:4] == [
        "there/plain/seed-1", "there/ewc/seed-1", "there/own/seed-1", "there/plain/seed-2",
    ]  # fmt: skip
    assert len(plan.arms) == 12
    ewc, own, last = plan.arms[1].recipe, plan.arms[2].recipe, plan.arms[-1].recipe
    assert ewc["strategy"] == "ewc"
    assert "strategies" not in ewc
    assert ewc["training"] == {"learning_rate": 1e-4, "beta": 0.5}
    assert own["strategies"] == ["replay", "consolidation"]
    assert [task["name"] for task in last["tasks"]] == ["b", "a"]
    assert last["run"]["seed"] == 2
    assert not {"methods", "orders", "seeds", "against", "output_dir"} & set(last)


def test_defaults(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, run={"seed": 7})
    assert (plan.seeds, plan.against, plan.orders) == ([7], "plain", {"given": ["a", "b"]})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": {}}, "names none"),
        ({"methods": {"a b": {}}}, "'a b'"),
        ({"orders": {"x": ["a"]}}, "It has to hold each of"),
        ({"against": "nobody"}, "no such method"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": ["one"]}, "whole numbers"),
        ({"method": {}}, "Did you mean 'methods'"),
        ({"output_dir": None}, "sets no output_dir"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        plan_of(tmp_path, **changes)
