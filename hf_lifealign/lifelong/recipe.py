"""A lifelong run from a YAML recipe: every key is checked before anything is loaded."""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lifealign._recipes import build, find_recipe, numbers, read_settings, refuse_unknown

KEYS = {
    "model": "Hub id, local folder or embedded:NAME",
    "model_init_kwargs": "keyword arguments for from_pretrained",
    "output_dir": "folder of the run",
    "tasks": "list of tasks: name, train, test, ...",
    "adapter": "type (slmc, lora, ...; slmc by default, lora without consolidation) and fields of its configuration",
    "trainer": "fpo, dpo, or module:Class",
    "training": "arguments of the preference phase",
    "warm_start": "arguments of the SFT warm start; leave out for none",
    "strategies": "list of strategies",
    "strategy": "one strategy",
    "run": "fields of LifelongConfig",
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a recipe and applies overrides.

    Args:
        path (`str` or `Path`): YAML file.
        overrides (`Sequence[str]`): `"key.sub=value"` each; the value is YAML.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a mapping of known keys, or an override cannot be read.
    """
    content = read_settings(path, KEYS, ("model", "tasks"), overrides)
    if "strategy" in content and "strategies" in content:
        raise ValueError(f"The recipe {path} sets 'strategy' and 'strategies'. Put all of them under 'strategies'.")
    return content


def adapter_class(kind: str) -> Any:
    """The configuration class of an adapter type, e.g. of `"lora"`.

    Raises:
        ValueError: for an unknown type.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import hf_lifealign.prompt_pool
    import hf_lifealign.slmc  # noqa: F401  registers the type SLMC

    types = {str(member.value): member for member in PEFT_TYPE_TO_CONFIG_MAPPING}
    if kind.upper() not in types:
        refuse_unknown([kind.lower()], [name.lower() for name in types], "adapter.type")
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(types[kind.upper()])]


def build_adapter(options: dict[str, Any] | None, kind: str = "slmc") -> Any:
    """The adapter configuration of a recipe: `{"type": "slmc", "r": 16, ...}`; `kind` is the type if it names none.

    Raises:
        ValueError: for an unknown type or field.
    """
    options = dict(options or {})
    is_default = not options
    config_class = adapter_class(str(options.pop("type", kind)))
    options.setdefault("task_type", "CAUSAL_LM")
    if is_default and "target_modules" in {field.name for field in dataclasses.fields(config_class)}:
        options["target_modules"] = "all-linear"
    return build(config_class, options, "adapter")


def trainer_class(name: str) -> Any:
    """`"fpo"`, `"dpo"` or `"module:Class"`.

    Raises:
        ValueError: if there is no such trainer.
    """
    from hf_lifealign.lifelong.trainer import TRAINERS

    if name in TRAINERS:
        return TRAINERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"You set trainer: {name!r}. Use one of {sorted(TRAINERS)}, or module:Class for one of your own."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"You set trainer: {name!r}, which cannot be imported: {error}") from error


def strategies_of(recipe: dict[str, Any]) -> list[Any] | None:
    """What a recipe names as its strategies; nothing where it leaves them to the run."""
    return [recipe["strategy"]] if "strategy" in recipe else recipe.get("strategies")


def build_run(
    recipe: dict[str, Any], base_dir: Path, output_dir: str | None = None, continue_from: str | None = None
) -> Any:
    """The [`LifelongTrainer`] that a recipe describes.

    Args:
        recipe (`dict`): content of the recipe.
        base_dir (`Path`): folder against which relative paths of data are resolved first.
        output_dir (`str`, *optional*): takes the place of the recipe's.
        continue_from (`str`, *optional*): takes the place of `run.continue_from`.
    """
    from hf_lifealign.lifelong.trainer import LifelongTrainer
    from hf_lifealign.stream import TaskStream

    parts = recipe_parts(recipe, base_dir, output_dir, continue_from)
    return LifelongTrainer(stream=TaskStream.from_config(recipe["tasks"], base_dir), **parts)


def recipe_parts(
    recipe: dict[str, Any], base_dir: Path, output_dir: str | None = None, continue_from: str | None = None
) -> dict[str, Any]:
    """What a recipe says of a [`LifelongTrainer`] but its tasks; neither data nor a model is looked at. See
    [`build_run`].

    Raises:
        ValueError: for what is not known, or does not fit.
    """
    from trl import DPOConfig, SFTConfig

    from hf_lifealign.fpo import FPOConfig, FPOTrainer
    from hf_lifealign.lifelong.adapters import default_adapter_type
    from hf_lifealign.lifelong.config import LifelongConfig

    folder = output_dir or recipe.get("output_dir")
    if not folder:
        raise ValueError("The recipe sets no output_dir. Set it there, or give --output-dir.")
    strategies = strategies_of(recipe)
    settings = dict(recipe.get("run") or {})
    text = settings.get("general_text")
    if text and (base_dir / str(text)).is_file():
        settings["general_text"] = str(base_dir / str(text))  # as the paths of the tasks are
    if continue_from:
        settings["continue_from"] = continue_from
    config = build(LifelongConfig, settings, "run", output_dir=str(folder), strategies=numbers(strategies))
    cls = trainer_class(str(recipe.get("trainer", "fpo")))
    args_class = FPOConfig if issubclass(cls, FPOTrainer) else getattr(cls, "args_class", DPOConfig)
    warm = recipe.get("warm_start")
    return {
        "model": recipe["model"],
        "args": config,
        "trainer_class": cls,
        "training_args": build(args_class, recipe.get("training"), "training", output_dir="unused"),
        "warm_start_args": None if warm is None else build(SFTConfig, warm, "warm_start", output_dir="unused"),
        "peft_config": build_adapter(recipe.get("adapter"), default_adapter_type(strategies)),
        "model_init_kwargs": recipe.get("model_init_kwargs"),
    }


def run_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    data_dir: str | None = None,
    resume: bool = True,
    continue_from: str | None = None,
) -> int:
    """Runs a recipe to its end and prints what came of it.

    Args:
        path (`str` or `Path`): YAML file.
        overrides (`Sequence[str]`): see [`read_recipe`].
        output_dir (`str`, *optional*): folder of the run.
        data_dir (`str`, *optional*): folder against which relative paths of data are resolved; the recipe's own by
            default.
        resume (`bool`): whether a run that lies in the folder is gone on with.
        continue_from (`str`, *optional*): see `LifelongConfig`.

    Returns:
        `int`: 0.

    Raises:
        ValueError: if something is set wrong, or a run lies in the folder and `resume` is false.
    """
    recipe = read_recipe(path, overrides)
    quiet_libraries()
    run = build_run(
        recipe, Path(data_dir) if data_dir else find_recipe(path).resolve().parent, output_dir, continue_from
    )
    if not resume and run.directory.state.exists():
        raise ValueError(
            f"You gave --no-resume, and there is a run in {run.directory.root} already. Remove it, or choose another "
            "--output-dir."
        )
    if run.is_main_process:
        for line in str(run.stream_report).splitlines():
            print(line)
    matrix = run.train()
    if run.is_main_process:
        print_result(run.directory.root, matrix)
        if run.published:
            print(run.published)
    return 0


def quiet_libraries() -> None:
    """Leaves the screen to the run's own bar: no bars for loading and tokenising, no upstream deprecations."""
    import warnings

    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|torch")


def print_result(root: Path, matrix: dict[str, Any]) -> None:
    """Prints the matrix, the metrics, where the pictures lie, and a sample answer before and after."""
    from hf_lifealign._files import read_json
    from hf_lifealign.report.table import matrix_text
    from hf_lifealign.report.view import view_matrix

    print()
    print(matrix_text(view_matrix(matrix)))
    samples = root / "samples.json"
    if samples.is_file():
        content = read_json(samples)
        print(f"\nAsked:  {content['prompts'][0]}")
        print(f"Before: {content['base'][0]}")
        print(f"After:  {content['after'][0]}")
    print(f"\nPictures: {root / 'matrix.png'}, {root / 'curves.png'}")
    print(f"Report:   {root / 'report.md'}")
    print(f"Adapters: {root / 'adapters'}")
