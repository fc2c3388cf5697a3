"""load_adapter: an adapter with its verified memory, from a folder or from any revision of a repository."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.hub.contents import CONFIG, WEIGHTS, is_allowed

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

_HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "api")


def _is_of_the_adapter(path: str) -> bool:
    """Rows for replay, pictures and the like are of no use to a model."""
    return path in (CONFIG, WEIGHTS) or path.startswith("slmc/memory.")


def load_adapter(
    base: "nn.Module | str | os.PathLike[str]",
    path_or_repo: str | os.PathLike[str],
    revision: str | None = None,
    is_trainable: bool = True,
    adapter_name: str = "default",
    **kwargs: Any,
) -> "PeftModel":
    """Load an adapter that has a memory, so that its next task continues its life.

    From a repository only safetensors and JSON are fetched; with a lineage in it every file is checked against it.
    `model.lifealign_origin` then tells which commit it is.

    Args:
        base (`torch.nn.Module` or `str`): the base model, or its Hub id or path (loaded as a causal language model).
        path_or_repo (`str`): a folder made by `save_pretrained` or a Trainer's checkpoint, or a Hub repository.
        revision (`str`, *optional*): branch, tag or commit of the adapter's repository; never applied to the base.
        is_trainable (`bool`): whether the adapter can be trained further.
        adapter_name (`str`): its name in the model.
        kwargs: `token`, `cache_dir`, `local_files_only`, `subfolder`; others go to `PeftModel.from_pretrained`, for
            instance `autocast_adapter_dtype`.

    Returns:
        `PeftModel`: with the memory attached, and the running task if the folder is a checkpoint of one.

    Raises:
        SLMCMemoryError: if the folder has no memory, no safetensors weights, or they do not belong together.
        DamagedRevisionError: if a file of a repository is not what its lineage says.
        HubError: if the Hub refuses or cannot be reached.
    """
    from hf_lifealign.slmc import load_folder

    folder, identity = locate_adapter(path_or_repo, revision, kwargs)
    model = load_folder(base, folder, is_trainable=is_trainable, adapter_name=adapter_name, **kwargs)
    if identity is not None:
        model.lifealign_origin = identity  # type: ignore[assignment]
    return model


def locate_adapter(
    path_or_repo: str | os.PathLike[str],
    revision: str | None,
    options: dict[str, Any],
    only: Callable[[str], bool] = _is_of_the_adapter,
    foreign: Callable[[str], bool] = is_allowed,
) -> tuple[Path, dict[str, str | None] | None]:
    """The folder of an adapter, fetched and verified where it is a repository, and which commit that is.

    Args:
        path_or_repo (`str`): a folder, or `owner/name`.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        options (`dict`): keyword arguments, from which those for the Hub are taken out.
        only, foreign (`Callable`): which files are fetched; see [`fetch_revision`].

    Raises:
        FileNotFoundError: if it is neither a folder nor a repository's name.
        ValueError: if a revision is given with a folder.
        HubError: see [`fetch_revision`].
    """
    from hf_lifealign.hub.errors import DamagedRevisionError, HubError
    from hf_lifealign.hub.fetch import fetch_revision

    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    subfolder = options.pop("subfolder", None)
    path = Path(path_or_repo)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"You gave the revision {revision!r} with the folder {path}, which has no revisions.")
        return (path / subfolder if subfolder else path), None
    name = str(path_or_repo)
    if isinstance(path_or_repo, os.PathLike) or name.count("/") != 1 or name[0] in "./~" or name.endswith("/"):
        raise FileNotFoundError(f"{name} is neither a folder nor a Hub repository of the form owner/name.")
    try:
        fetched = fetch_revision(name, revision, subfolder=subfolder, only=only, foreign=foreign, **hub)
    except DamagedRevisionError:
        raise
    except HubError as error:
        raise HubError(f"There is no folder {name}, and the Hub did not give it: {error}", error.may_pass) from error
    return (fetched.folder / subfolder if subfolder else fetched.folder), fetched.identity(revision)
