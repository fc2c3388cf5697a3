"""The folder `meta_aligner/` beside a saved adapter: weights as safetensors, what they mean as JSON."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_lifealign._files import read_json, replacing, write_json

FOLDER = "meta_aligner"
SETTINGS = "meta_aligner.json"
TENSORS = "meta_aligner.safetensors"
FORMAT = 1


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
        ValueError: if a tensor is not finite; nothing is written then.
    """
    check_finite(tensors)
    with replacing(file.with_suffix(".safetensors")) as partial:
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, partial)
    write_json(file, {"format": FORMAT, **settings})


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
        ValueError: if one is damaged, or of a later version.
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
    try:
        tensors = load_file(tensors_file)
    except SafetensorError as error:
        raise ValueError(f"The file {tensors_file} is damaged ({error}). Fetch or save the policy again.") from error
    return SavedPolicy(settings, tensors)


def locate_policy(path_or_repo: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    """A local folder, or the fetched copy of a repository: adapter and `meta_aligner/` (in `slmc/strategies/` where a
    lifelong run published it), nothing else.

    Raises:
        ValueError: if it is neither, or the repository holds files larger than a policy's.
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    lived = f"slmc/strategies/{FOLDER}/"
    wanted = [f"{FOLDER}/{SETTINGS}", f"{FOLDER}/{TENSORS}", "adapter_config.json", "adapter_model.safetensors"]
    try:
        info = HfApi(token=token).model_info(str(path_or_repo), revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted += [name for name in sizes if name.startswith(lived) and name.endswith((".json", ".safetensors"))]
        sizes = {name: size for name, size in sizes.items() if name in wanted}
        _check_sizes(sizes, str(path_or_repo))
        return Path(snapshot_download(str(path_or_repo), revision=info.sha, token=token, allow_patterns=wanted))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"You asked for the policy {str(path_or_repo)!r}{f' at {revision!r}' if revision else ''}. There is no "
            f"such folder, and no such repository or revision on the Hub that you can read ({type(error).__name__})."
        ) from error


def _check_sizes(sizes: dict[str, int], repo: str) -> None:
    for name, size in sizes.items():
        largest = 64 * 1024**2 if name.endswith(".json") else 64 * 1024**3
        if size > largest:
            raise ValueError(f"The repository {repo} says that {name} has {size} bytes. At most {largest} are fetched.")


def canonical(value: Any) -> str:
    """JSON by which settings are compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
