"""Which reward a text names, and what is said when it names none."""

import sys
from pathlib import Path

import pytest

from hf_lifealign import BrevityReward, MiniLMBradleyTerryReward, resolve_reward
from hf_lifealign.hub.errors import HubError

MODULE = """
def f(prompts, completions, **kwargs):
    return [1.0 for _ in prompts]

class Made:
    def __call__(self, prompts, completions, **kwargs):
        return [2.0 for _ in prompts]

class Asks:
    def __init__(self, something): ...

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_rewards"
    sys.modules.pop("some_rewards", None)


def test_names_of_installed_packages() -> None:
    assert isinstance(resolve_reward("brevity"), BrevityReward)


def test_a_folder_of_a_reward(fitted: MiniLMBradleyTerryReward, tmp_path: Path, monkeypatch) -> None:
    fitted.save_pretrained(tmp_path / "yes")
    found = resolve_reward(str(tmp_path / "yes"))
    assert isinstance(found, MiniLMBradleyTerryReward)
    monkeypatch.chdir(tmp_path)
    assert resolve_reward("yes").__name__ == "yes"
    assert resolve_reward("./yes").__name__ == "yes"


def test_a_folder_of_a_classifier_is_left_to_trl(tiny_dir: str, tmp_path: Path) -> None:
    assert resolve_reward(tiny_dir) == tiny_dir
    with pytest.raises(ValueError, match=r"neither reward\.json"):
        resolve_reward(str(tmp_path))


def test_functions_of_modules(module: str) -> None:
    assert resolve_reward(f"{module}:f")(prompts=["a"], completions=["b"]) == [1.0]
    assert resolve_reward(f"{module}:Made")(prompts=["a"], completions=["b"]) == [2.0]
    for spec, error, told in (
        (f"{module}:none", ImportError, "has no none"),
        ("no_such_module:f", ImportError, "PYTHONPATH"),
        (f"{module}:number", ValueError, "cannot be called"),
        (f"{module}:Asks", ValueError, "without arguments"),
    ):
        with pytest.raises(error, match=told):
            resolve_reward(spec)


@pytest.mark.parametrize("spec", ["brevty", "a/b/c", "/no/where", "what is this?", "a:b:c"])
def test_what_is_none_of_these(spec: str) -> None:
    with pytest.raises(ValueError, match="looked for as a reward of an installed package") as caught:
        resolve_reward(spec)
    assert ("Did you mean 'brevity'?" in str(caught.value)) == (spec == "brevty")


@pytest.mark.parametrize("spec", ["", "  ", None, 3])
def test_nothing_is_said_to_be_nothing(spec) -> None:
    with pytest.raises(ValueError, match="Set a text"):
        resolve_reward(spec)


def test_without_a_network_a_repository_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*local\s+folder"):
        resolve_reward("me/reward")
