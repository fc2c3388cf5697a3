"""Fetches a revision: safetensors only, names and sizes checked before anything is fetched, every hash after it."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.hub.contents import LARGEST, LINEAGE, Content, check_listing, is_allowed
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.lineage import Lineage
from hf_lifealign.hub.patience import Patience
from hf_lifealign.hub.remote import Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """A verified revision on disk.

    Args:
        folder (`Path`): where it lies, in the cache of huggingface_hub; not to be written to.
        repo_id (`str`), commit (`str`): which one it is.
        lineage (`Lineage`, *optional*): its lineage; `None` for an adapter that no lifelong run published.
    """

    folder: Path
    repo_id: str
    commit: str
    lineage: Lineage | None

    def identity(self, revision: str | None) -> dict[str, str | None]:
        """`repo`, `revision` as it was asked for, `commit`, and `tag` and `content` of the lineage."""
        entry = self.lineage.entry if self.lineage else None
        return {
            "repo": self.repo_id,
            "revision": revision,
            "commit": self.commit,
            "tag": entry.tag if entry else None,
            "content": entry.content if entry else None,
        }


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` as `(owner/name, revision)`."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def fetch_revision(
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    api: "HfApi | None" = None,
    subfolder: str | None = None,
    only: Callable[[str], bool] = lambda path: True,
    foreign: Callable[[str], bool] = is_allowed,
    patience: Patience = Patience(attempts=3),  # noqa: B008  frozen
) -> Fetched:
    """Fetches and verifies a revision, or takes it from the cache where the Hub cannot be reached.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): tag, branch or commit; `main` by default.
        token (`str`, *optional*): access token.
        cache_dir (`str` or `Path`, *optional*): cache of huggingface_hub to use.
        local_files_only (`bool`): take what the cache has, and ask nobody.
        api (`HfApi`, *optional*): client to use.
        subfolder (`str`, *optional*): folder of the adapter in a repository that no lifelong run published.
        only (`Callable`): which of a revision's files are wanted; all by default.
        foreign (`Callable`): names that are taken from a repository that no lifelong run published.
        patience ([`Patience`]): how often what may pass is tried before the cache is looked at.

    Raises:
        DamagedRevisionError: if a file is not what the lineage says, or the listing cannot be that of a revision.
        HubError: if the Hub refuses, or cannot be reached and the cache does not hold the revision.
    """
    from huggingface_hub import constants

    remote = Remote(repo_id, token, api)
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _cached(remote, revision, cache_dir, subfolder, only, foreign)
    try:
        return patience.until_done(lambda: _fetch(remote, revision, subfolder, only, foreign, cache_dir))
    except HubError as error:
        if not error.may_pass:
            raise
        try:
            cached = _cached(remote, revision, cache_dir, subfolder, only, foreign)
        except HubError:
            raise error from None
        logger.warning(f"{error} Using the copy of {repo_id}@{cached.commit[:12]} in the cache.")
        return cached


def _fetch(
    remote: Remote,
    revision: str | None,
    subfolder: str | None,
    only: Callable[[str], bool],
    foreign: Callable[[str], bool],
    cache_dir: str | Path | None,
) -> Fetched:
    """One attempt, from the resolved commit to the last hash."""
    commit = remote.resolve(revision)
    sizes = {path: item.size for path, item in remote.tree(commit).items()}
    lineage = remote.lineage(commit)
    wanted = _wanted(sizes, lineage, subfolder, only, foreign, f"{remote.repo_id}@{commit[:12]}")
    folder = _download(remote, commit, wanted, {p: sizes[p] for p in wanted}, lineage, cache_dir)
    return Fetched(folder, remote.repo_id, commit, lineage)


def _wanted(
    sizes: Mapping[str, int],
    lineage: Lineage | None,
    subfolder: str | None,
    only: Callable[[str], bool],
    foreign: Callable[[str], bool],
    where: str,
) -> list[str]:
    """The files to fetch: those of the lineage, or what an adapter consists of; all of them checked."""
    if lineage is None:
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        own = {path: size for path, size in sizes.items() if path.startswith(prefix) and ".." not in path}
        found = {path: size for path, size in own.items() if foreign(path.removeprefix(prefix))}
        check_listing({path.removeprefix(prefix): size for path, size in found.items()}, where, foreign)
        return sorted(found)
    wanted = {path: facts for path, facts in lineage.files.items() if only(path)}
    for path, facts in wanted.items():
        if path not in sizes:
            raise DamagedRevisionError(f"{where} lacks {path}, which its lineage names. Take another revision.")
        if sizes[path] != facts["size"]:
            raise DamagedRevisionError(
                f"{path} at {where} has {sizes[path]} bytes, and {facts['size']} by its lineage. Take another revision."
            )
    return [LINEAGE, *sorted(wanted)]


def _check_space(remote: Remote, needed: int, cache_dir: str | Path | None) -> None:
    """Refuses to fill the disk."""
    from huggingface_hub import constants

    folder = Path(cache_dir or constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(f"{remote.repo_id} needs {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left.")


def _download(
    remote: Remote,
    commit: str,
    paths: list[str],
    sizes: Mapping[str, int],
    lineage: Lineage | None,
    cache_dir: str | Path | None,
) -> Path:
    folder: Path | None = None
    _check_space(remote, sum(sizes.values()), cache_dir)
    for path in paths:
        what = f"fetch {path} of {remote.repo_id}@{commit[:12]}"

        get = partial(
            remote.ask, what, remote.api.hf_hub_download, remote.repo_id, path, revision=commit, cache_dir=cache_dir
        )
        file = Path(get())
        fault = _fault(file, path, lineage)
        if fault:
            # what the cache holds may be the rest of an earlier, broken download
            file = Path(get(force_download=True))
            fault = _fault(file, path, lineage)
        if fault:
            # nothing damaged stays behind for others to load
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise DamagedRevisionError(
                f"{path} of {remote.repo_id}@{commit[:12]} {fault}. It was fetched twice; take another revision, or "
                "tell its author."
            )
        folder = file.parents[len(Path(path).parts) - 1]
    if folder is None:
        raise HubError(f"{remote.repo_id}@{commit[:12]} holds no adapter. Give the repository of one.")
    return folder


def _fault(file: Path, path: str, lineage: Lineage | None) -> str | None:
    """What is wrong with a fetched file, or `None`."""
    if file.stat().st_size > LARGEST[Path(path).suffix]:
        return "is larger than such a file may be"
    if lineage is None or path == LINEAGE:
        return None
    facts = lineage.files[path]
    content = Content(file)
    if content.size != facts["size"]:
        return f"has {content.size} bytes, and {facts['size']} by its lineage"
    if content.sha256 != facts["sha256"]:
        return f"does not match the lineage (sha256 {content.sha256[:12]}, not {facts['sha256'][:12]})"
    return None


def _cached(
    remote: Remote,
    revision: str | None,
    cache_dir: Any,
    subfolder: str | None,
    only: Callable[[str], bool],
    foreign: Callable[[str], bool],
) -> Fetched:
    """What the cache holds of a revision, verified as if it had just been fetched."""
    from huggingface_hub import snapshot_download

    where = f"{remote.repo_id}@{revision or 'main'}"
    try:
        folder = Path(snapshot_download(remote.repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (OSError, ValueError) as error:
        raise HubError(f"The cache does not hold {where}, and the Hub was not asked ({error}).") from error
    return verify_folder(folder, remote.repo_id, subfolder, only, foreign)


def verify_folder(
    folder: Path,
    repo_id: str,
    subfolder: str | None = None,
    only: Callable[[str], bool] = lambda path: True,
    foreign: Callable[[str], bool] = is_allowed,
) -> Fetched:
    """Checks every file of a revision that lies in a folder named after its commit.

    Raises:
        DamagedRevisionError: naming the file.
    """
    where = f"{repo_id}@{folder.name[:12]}"
    lineage = Lineage.from_bytes((folder / LINEAGE).read_bytes(), where) if (folder / LINEAGE).is_file() else None
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    for path in _wanted(sizes, lineage, subfolder, only, foreign, where):
        fault = _fault(folder / path, path, lineage)
        if fault:
            raise DamagedRevisionError(f"{path} of {where} {fault}. Remove it from the cache and fetch it again.")
    return Fetched(folder, repo_id, folder.name, lineage)
