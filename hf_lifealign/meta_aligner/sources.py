"""What a recipe notes of itself for `lifealign pareto`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, write_json

# Of how a base was loaded, what a sweep takes over.
_BASE = ("revision", "dtype")
# It names local paths: trainers upload nothing whose name begins with an underscore.
RECORD = "_pareto.json"
_RECORD_FORMAT = 1


def located(name: str) -> str:
    """A local path made absolute, so that it holds wherever a later command is started; anything else as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def write_record(
    run: Path,
    base: str,
    rewards: Sequence[str],
    prompts: Sequence[str],
    split: str,
    encoder: str | None = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> None:
    """Notes in a run's folder how it is evaluated, so that `lifealign pareto RUN` needs nothing else.

    Args:
        run (`Path`): what `save_model()` wrote.
        base (`str`): Hub id, folder, or `"embedded:smollm2-135m"`.
        rewards (`list[str]`): as [`resolve_reward`] takes them, in the order of the objectives.
        prompts (`list[str]`): sources of held-out prompts; empty if there are none.
        split (`str`): of folders and Hub ids among them.
        encoder (`str`, *optional*): of prompts, where it is not the policy itself.
        model_init_kwargs (`dict`, *optional*): with which the base is loaded, e.g. `{"dtype": "bfloat16"}`.
    """
    from hf_lifealign.strategies.registry import available

    packaged = set(available("hf_lifealign.rewards"))
    content = {
        "format": _RECORD_FORMAT,
        "base": located(base),
        "rewards": [spec if spec in packaged else located(spec) for spec in rewards],
        "prompts": [located(name) for name in prompts],
        "split": split,
        "encoder": None if encoder is None else located(encoder),
        "model_init_kwargs": model_init_kwargs or {},
    }
    write_json(run / RECORD, content)


def read_record(run: Path) -> dict[str, Any]:
    """What [`write_record`] noted; empty where nothing was.

    It names what is imported and read, so that it is taken from a folder of the user's alone, never from one that was
    fetched.

    Args:
        run (`Path`): the folder that the user named.

    Raises:
        ValueError: if the file is damaged, or of a later version.
    """
    file = run / RECORD
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != _RECORD_FORMAT:
        raise ValueError(f"The file {file} is not one that this version writes. Remove it and give what it said anew.")
    given = content.get("model_init_kwargs")
    told = given if isinstance(given, dict) else {}
    options = {key: told[key] for key in _BASE if isinstance(told.get(key), str)}
    return {**content, "model_init_kwargs": options}
