"""The folder `meta_aligner/` beside a saved adapter: weights as safetensors, what they mean as JSON."""

import inspect
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from hf_lifealign._files import read_json, replacing, write_json
from hf_lifealign.hub.contents import CONFIG, WEIGHTS
from hf_lifealign.hub.loading import locate_adapter
from hf_lifealign.meta_aligner.conditioning import CONDITIONINGS

FOLDER = "meta_aligner"
SETTINGS = "meta_aligner.json"
TENSORS = "meta_aligner.safetensors"
FORMAT = 1
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
# What a policy may say about `model.generate`, which runs code of a repository under other names.
GENERATION_NAMES = (
    "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p",
    "repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty", "early_stopping", "eos_token_id",
)  # fmt: skip
_MOST_OBJECTIVES, _WIDEST = 1000, 10**6
# What a chat template is called with by us, or could change more than its text.
_TEMPLATE_RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}


@dataclass(frozen=True)
class SavedPolicy:
    """What a saved meta-aligned policy is made of, beside base and adapter.

    Args:
        settings (`dict`): content of `meta_aligner.json`.
        tensors (`dict[str, torch.Tensor]`): content of `meta_aligner.safetensors`.
    """

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_policy(file: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Writes `file`, a JSON, and the tensors beside it; the JSON, which is read first, last.

    Raises:
        ValueError: if a tensor is not finite, or a setting is one that would not be read; nothing is written then.
    """
    check_policy(settings, tensors)
    with replacing(file.with_suffix(".safetensors")) as partial:
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, partial)
    write_json(file, {"format": FORMAT, **settings})


def check_policy(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Refuses what [`write_policy`] would not write.

    Raises:
        ValueError: as there.
    """
    check_finite(tensors)
    _checked(settings, "the settings of the policy")


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Refuses what a diverged training has left.

    Raises:
        ValueError: if a tensor is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"The tensor {name} of the meta-aligned policy is not finite. Training has diverged; nothing was "
                "saved. Lower the learning rates."
            )


def _is_number(value: Any) -> bool:
    # whole numbers of JSON know no limit
    return isinstance(value, int | float) and abs(value) < 2**63 and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    named = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return named and 0 < len(set(value)) == len(value) <= _MOST_OBJECTIVES


def _is_encoder(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("kind") != "auto":
        return value == {"kind": "policy"}
    known = set(value) == {"kind", "name", "revision", "trainable"}
    revised = known and (value["revision"] is None or isinstance(value["revision"], str))
    return revised and isinstance(value["name"], str) and isinstance(value["trainable"], bool)


def _are_statistics(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"mean", "std"}:
        return value is None
    columns = list(value.values())
    return all(isinstance(c, list) and all(map(_is_number, c)) for c in columns) and len(columns[0]) == len(columns[1])


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "objectives": (_are_names, f"a list of 1 to {_MOST_OBJECTIVES} different names"),
    "conditioning": (lambda value: value in CONDITIONINGS, f"one of {CONDITIONINGS}"),
    "encoder": (_is_encoder, 'of the kind "policy", or "auto" with name, revision and trainable'),
    "hidden": (lambda value: _is_count(value) and 0 < value <= _WIDEST, f"a whole number from 1 to {_WIDEST}"),
    "base_model": (lambda value: isinstance(value, str), "a text"),
    "adapter": (lambda value: isinstance(value, bool), "true or false"),
    "generation": (lambda value: isinstance(value, dict), "an object"),
    "reward_statistics": (_are_statistics, "null, or mean and std with as many finite numbers"),
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
}


def _checked(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The known settings of a policy, all of them there and of their kind.

    Raises:
        ValueError: if one is not.
    """
    given = {"chat_template_kwargs": {}, **settings}
    for key, (fits, form) in _KEYS.items():
        if key not in given:
            raise ValueError(f"There is no {key!r} in {where}. It is damaged. Fetch or save the policy again.")
        if not fits(given[key]):
            raise ValueError(f"The {key!r} in {where} is {str(given[key])[:100]!r}. It has to be {form}.")
    statistics = given["reward_statistics"]
    if statistics is not None and len(statistics["mean"]) > len(given["objectives"]):
        raise ValueError(f"The 'reward_statistics' in {where} are of more objectives than {given['objectives']}.")
    check_generation(given["generation"], where)
    check_chat_template_kwargs(given["chat_template_kwargs"], where)
    return {key: given[key] for key in _KEYS}


def check_generation(given: dict[str, Any], where: str) -> None:
    """Refuses settings of `model.generate` that a saved policy may not have.

    Raises:
        ValueError: if one is not among [`GENERATION_NAMES`], or neither a number nor a list of token ids.
    """
    for name, value in given.items():
        listed = name == "eos_token_id" and isinstance(value, list) and all(map(_is_count, value))
        never = name == "early_stopping" and value == "never"
        if name not in GENERATION_NAMES or not (_is_number(value) or listed or never):
            raise ValueError(
                f"The 'generation' in {where} sets {name!r} to {str(value)[:100]!r}. Only numbers and true or false "
                f"for {', '.join(GENERATION_NAMES)} are taken from a policy. Pass anything else to generate()."
            )


def check_chat_template_kwargs(given: dict[str, Any], where: str) -> None:
    """Refuses variables of the chat template that a policy may not have.

    Raises:
        ValueError: if one has a name that means something else to the tokenizer, or is no number, text or boolean.
    """
    for name, value in given.items():
        if (
            name in _TEMPLATE_RESERVED
            or name.startswith("return_")
            or not (isinstance(value, str) or _is_number(value))
        ):
            raise ValueError(
                f"The 'chat_template_kwargs' in {where} set {name!r} to {str(value)[:100]!r}. Only texts, numbers and "
                "true or false, under names that the tokenizer does not use itself, are handed to the chat template."
            )


def policy_file(folder: Path) -> Path:
    """The JSON of a policy in a folder: one that `save_model()` wrote, or an adapter of a lifelong run, local or
    fetched, whose strategies lie beside it. It need not be there."""
    own = folder / FOLDER / SETTINGS
    for lived in (folder / "slmc" / "strategies" / FOLDER, folder.parent.parent / "strategies" / folder.name / FOLDER):
        found = sorted(lived.glob("*.json"))
        if found and not own.is_file():
            return found[-1]
    return own


def read_policy(path: Path) -> SavedPolicy:
    """Reads what [`write_policy`] wrote.

    Args:
        path (`Path`): the JSON, or the folder `meta_aligner/` that holds it.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged, of a later version, or sets what a policy may not set.
    """
    file = path if path.suffix == ".json" else path / SETTINGS
    tensors_file = file.with_suffix(".safetensors")
    for needed in (file, tensors_file):
        if not needed.is_file():
            raise FileNotFoundError(
                f"There is no {needed.parent.name}/{needed.name} in {needed.parent.parent}. It is no meta-aligned "
                "policy, or was saved only in part. Give the folder that MetaAlignerTrainer.save_model() wrote, or its "
                "repository."
            )
    settings = read_json(file)
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else None
        raise ValueError(f"The file {file} has the format {found}; this version reads {FORMAT}. Update hf_lifealign.")
    settings = _checked(settings, f"the file {file}")
    try:
        tensors = load_file(tensors_file)
    except SafetensorError as error:
        raise ValueError(f"The file {tensors_file} is damaged ({error}). Fetch or save the policy again.") from error
    return SavedPolicy(settings, tensors)


def _is_of_the_policy(path: str) -> bool:
    lived = path.startswith(f"slmc/strategies/{FOLDER}/") and path.endswith((".json", ".safetensors"))
    return lived or path in (f"{FOLDER}/{SETTINGS}", f"{FOLDER}/{TENSORS}", CONFIG, WEIGHTS, *TOKENIZER)


def locate_policy(path_or_repo: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    """A local folder, or the fetched copy of a repository: adapter, tokenizer and `meta_aligner/` (in
    `slmc/strategies/` where a lifelong run published it), nothing else; verified where there is a lineage.

    Raises:
        FileNotFoundError: if it is neither a folder nor a repository's name.
        ValueError: if a revision is given with a folder.
        HubError: if the Hub refuses, cannot be reached, or sends what is no policy's.
    """
    options = {"token": token}
    return locate_adapter(path_or_repo, revision, options, only=_is_of_the_policy, foreign=_is_of_the_policy)[0]


def canonical(value: Any) -> str:
    """JSON by which settings are compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
