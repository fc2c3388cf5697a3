"""The recipe of a comparison: what each arm's own recipe is, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_lifealign.compare.plan import check_methods, overlaid, read_plan

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
        ({"methods": {"r": "replay"}}, r"methods\.r to 'replay'. Give a mapping"),
        ({"methods": {"r": {"stratgy": "ewc"}}}, r"'stratgy' in methods\.r.*Did you mean 'strategy'"),
        ({"methods": {"r": {"strategy": "ewc", "strategies": []}}}, "Put all of them under strategies"),
        ({"methods": {"r": {"tasks": []}}}, r"'tasks' in methods\.r"),
        ({"methods": {"r": {"training": 3}}}, "training in methods.r to 3. It has to be a mapping"),
        ({"methods": {"r": {"run": {"push_to_hub": True}}}}, r"run\.push_to_hub in methods\.r.*are not published"),
        ({"run": {"hub_token": "hf_x"}}, r"run\.hub_token in the recipe"),
        ({"run": "fast"}, "run in the recipe to 'fast'"),
        ({"tasks": None}, "Give a list of mappings"),
        ({"tasks": {"a": {}}}, "Give a list of mappings"),
        ({"orders": ["a", "b"]}, "Give a mapping: name"),
        ({"orders": {"x": None}}, "Give a mapping: name"),
        ({"seeds": 3}, "Give a list of whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        plan_of(tmp_path, **changes)


def test_a_token_is_told_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hub_token") as told:
        plan_of(tmp_path, run={"hub_token": "hf_secret"})
    assert "hf_secret" not in str(told.value)


def test_what_another_type_of_adapter_does_not_have_is_not_shared(tmp_path: Path) -> None:
    methods = {"plain": {"strategies": []}, "l2p": {"strategy": "l2p"}, "slmc": {"adapter": {"type": "slmc", "r": 2}},
               "own": {"strategy": "l2p", "adapter": {"r": 3}}}  # fmt: skip
    adapter = {"type": "lora", "r": 16, "target_modules": "all-linear"}
    untyped = {key: value for key, value in adapter.items() if key != "type"}
    arms = {arm.method: arm.recipe["adapter"] for arm in plan_of(tmp_path, methods=methods, adapter=untyped).arms}
    assert arms["plain"] == untyped
    assert arms["l2p"] == {}
    assert arms["slmc"] == {"type": "slmc", "r": 2, "target_modules": "all-linear"}
    assert arms["own"] == {"r": 3}, "what a method sets itself is refused where it does not fit"
    pool = {"strategy": "l2p", "adapter": {"type": "l2p"}}
    arms = {arm.method: arm.recipe["adapter"] for arm in plan_of(tmp_path, methods={"l2p": pool}, adapter=adapter).arms}
    assert arms["l2p"] == {"type": "l2p"}
    training = {"use_cpu": True, "bf16": False}
    check_methods(plan_of(tmp_path, methods={"l2p": pool}, adapter=adapter, training=training), tmp_path)


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"strategy": "replai"}, "Did you mean 'replay'"),
        ({"strategy": {"name": "replay", "fraction": "20%"}}, "Give numbers as numbers"),
        ({"strategy": {"name": "routed_memory", "lean": "1/3"}}, "Give numbers as numbers"),
        ({"strategies": "replay"}, "Give a list"),
        ({"training": {"learnin_rate": 1e-4}}, "Did you mean 'learning_rate'"),
        ({"adapter": {"type": "lora", "rr": 3}}, "'rr' in adapter"),
        ({"strategy": "l2p", "adapter": {"r": 3}}, "'r' in adapter"),
        ({"trainer": "nobody:Nothing"}, "cannot be imported"),
    ],
)
def test_each_method_is_looked_at_before_any_is_run(over: dict[str, Any], match: str, tmp_path: Path) -> None:
    training = {"use_cpu": True, "bf16": False}
    with pytest.raises(ValueError, match=f"(?s)method 'r' cannot be run.*{match}"):
        check_methods(plan_of(tmp_path, methods={"plain": {"strategies": []}, "r": over}, training=training), tmp_path)
