"""A reward on disk and on the Hub: safetensors and JSON only, written whole, sizes bounded before anything is read."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hf_lifealign._files import write_folder, write_json, write_text
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.patience import Patience
from hf_lifealign.hub.remote import Remote
from hf_lifealign.rewards.record import RewardRecord

WEIGHTS = "reward.safetensors"
RECORD = "reward.json"
CARD = "README.md"
_FILES = {WEIGHTS, RECORD, CARD}
LARGEST = {WEIGHTS: 32 * 1024**2, RECORD: 1024**2}


def tensor_bytes(weight: torch.Tensor, probe: torch.Tensor) -> bytes:
    """The content of `reward.safetensors`: the head, and an embedding by which its encoder is known again."""
    return save({"weight": weight.contiguous(), "probe": probe.contiguous()}, metadata={"format": "pt"})


def write_reward(folder: Path, weight: torch.Tensor, probe: torch.Tensor, record: RewardRecord, card: str) -> None:
    """Writes the folder of a reward, wholly or not at all.

    Raises:
        ValueError: if the folder holds something else, which would be lost.
    """
    folder = folder.expanduser().resolve()
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"You gave {folder} to save the reward in. That is a file; give a folder.")
        foreign = sorted({entry.name for entry in folder.iterdir()} - _FILES)
        if foreign:
            raise ValueError(
                f"You gave {folder} to save the reward in. It holds {foreign[0]}, and a reward is written as a whole "
                "folder. Give a new folder, or that of a reward."
            )

    def fill(partial: Path) -> None:
        (partial / WEIGHTS).write_bytes(tensor_bytes(weight, probe))
        write_json(partial / RECORD, record.to_json())
        write_text(partial / CARD, card)

    write_folder(folder, fill)


def read_reward(folder: Path, where: str) -> tuple[torch.Tensor, torch.Tensor, RewardRecord]:
    """Head, probe and record from a folder.

    Args:
        folder (`Path`): with `reward.json` and `reward.safetensors`.
        where (`str`): how errors call it.

    Raises:
        ValueError: if a file is missing, too large, or not what it should be.
    """
    for name, most in LARGEST.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{where} has no {name}, so it is no reward. Give what `save_pretrained` wrote.")
        if file.stat().st_size > most:
            raise ValueError(f"{name} of {where} has {file.stat().st_size} bytes. At most {most} are read.")
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{RECORD} of {where} is not valid JSON ({error}). It was edited or damaged.") from error
    record = RewardRecord.from_json(content, f"{RECORD} of {where}")
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{WEIGHTS} of {where} is not valid safetensors ({error}). It was damaged.") from error
    if set(tensors) != {"weight", "probe"}:
        raise ValueError(f"{WEIGHTS} of {where} holds {sorted(tensors)} and not weight and probe.")
    for name, tensor in tensors.items():
        wanted = torch.float64 if name == "weight" else torch.float32
        if tensor.shape != (record.dimension,) or tensor.dtype != wanted or not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{name} in {WEIGHTS} of {where} is {tensor.dtype} of shape {tuple(tensor.shape)}. It has to be finite "
                f"{wanted} of shape ({record.dimension},)."
            )
    return tensors["weight"], tensors["probe"], record


def fetch_reward(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Fetches a reward's two files from a repository, or takes them from the cache where the Hub cannot be reached.

    Raises:
        DamagedRevisionError: if a file is larger than it may be.
        HubError: if the repository holds no reward, or the Hub refuses, or cannot be reached and the cache has none.
    """
    from huggingface_hub import constants

    remote = Remote(repo_id, token)
    if constants.HF_HUB_OFFLINE:
        return _cached(remote, revision)
    try:
        return Patience(attempts=3).until_done(lambda: _fetch(remote, revision))
    except HubError as error:
        if not error.may_pass:
            raise
        try:
            return _cached(remote, revision)
        except HubError:
            raise error from None


def _fetch(remote: Remote, revision: str | None) -> Path:
    """One attempt; both files come from the same commit, and their sizes are looked at first."""
    commit = remote.resolve(revision)
    present = remote.tree(commit)
    where = f"{remote.repo_id}@{commit[:12]}"
    for name, most in LARGEST.items():
        if name not in present:
            raise HubError(f"{where} has no {name}, so it is no reward of hf_lifealign. Give the repository of one.")
        if not 0 <= present[name].size <= most:
            raise DamagedRevisionError(
                f"{where} says that {name} has {present[name].size} bytes. At most {most} are fetched; nothing was."
            )
    get = partial(remote.ask, f"fetch the reward {where}", remote.api.hf_hub_download, remote.repo_id)
    files = [Path(get(name, revision=commit)) for name in LARGEST]
    if revision != commit:
        # nothing is fetched again: the cache notes which commit the name stands for, to find it without the Hub
        get(RECORD, revision=revision)
    return files[0].parent


def _cached(remote: Remote, revision: str | None) -> Path:
    """The folder in the cache that holds both files."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(remote.repo_id, name, revision=revision) for name in LARGEST]
    if not all(isinstance(file, str) for file in found):
        raise HubError(
            f"The cache does not hold the reward {remote.repo_id}@{revision or 'main'}, and the Hub was not asked: "
            "HF_HUB_OFFLINE is set, or it cannot be reached."
        )
    return Path(str(found[0])).parent
