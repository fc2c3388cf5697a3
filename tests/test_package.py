"""The package itself: what importing it costs, what it exports, what its wheel carries."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hf_lifealign

ROOT = Path(__file__).resolve().parents[1]


def test_import_touches_nothing_heavy() -> None:
    code = (
        "import sys, hf_lifealign\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'FPOTrainer' in dir(hf_lifealign)\n"
        "try: hf_lifealign.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", hf_lifealign.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(hf_lifealign, name) is not None


def test_the_adapter_type_is_there_as_soon_as_it_is_needed() -> None:
    code = (
        "from hf_lifealign import FPOTrainer, SLMCConfig\n"
        "from peft import PeftType\n"
        "assert SLMCConfig().peft_type == PeftType.SLMC == 'SLMC'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tested_versions_satisfy_the_declared_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pinned = {name.lower().replace("-", "_"): version for name, version in pinned.items()}
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    for text in [*project["dependencies"], *extras]:
        requirement = Requirement(text)
        if requirement.name == "hf-lifealign":
            continue
        version = pinned[requirement.name.lower().replace("-", "_")]
        assert requirement.specifier.contains(version), text


def test_the_wheel_carries_recipes_and_cards(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "hf_lifealign/_data/recipes/quickstart.yaml",
        "hf_lifealign/_data/recipes/general_text.txt",
        "hf_lifealign/_data/recipes/quickstart/data/detailed/train.jsonl",
        "hf_lifealign/_data/hub_cards/adapter_card.md.jinja",
        "hf_lifealign/metrics/bwt/bwt.py",
        "hf_lifealign/metrics/bwt/README.md",
        "hf_lifealign/py.typed",
    ):
        assert name in names, name
    assert not [name for name in names if name.endswith((".safetensors", ".gguf", ".bin", ".pt"))]
    # unpacked anywhere, it finds what it carries
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from hf_lifealign._resources import resource_path as r; print(r('recipes', 'quickstart.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in done.stdout


def test_missing_resources_are_named() -> None:
    from hf_lifealign._resources import resource_path

    with pytest.raises(FileNotFoundError, match=r"recipes/none\.yaml"):
        resource_path("recipes", "none.yaml")
