"""Publishes a set of files as one commit on a known head, or not at all; for repositories that are no adapter's."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lifealign.hub.contents import Content
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.patience import Patience
from hf_lifealign.hub.remote import Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

RepoType = Literal["model", "dataset", "space"]

_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_CARD = "README.md"
# What the Hub itself puts into a repository that it makes.
_BLANK = {".gitattributes", ".gitignore", _CARD}


@dataclass(frozen=True)
class CommitResult:
    """Where the files lie.

    Args:
        oid (`str`): the commit that holds them.
        url (`str`): page of the repository.
        changed (`bool`): whether a commit was made; `False` where the head held the same files already.
    """

    oid: str
    url: str
    changed: bool


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at its head, before anything is committed.

    Args:
        repo_id (`str`): the repository.
        head (`str`, *optional*): commit of main; `None` where there is none.
        files (`dict[str, RepoFile]`): by path.
        metadata (`dict`): front matter of its card; empty where there is none.
    """

    repo_id: str
    head: str | None
    files: Mapping[str, "RepoFile"]
    metadata: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[Snapshot], None]


def check_owner_and_name(repo_id: str) -> tuple[str, str]:
    """Owner and name of a repository id.

    Raises:
        ValueError: if it is not of the form `owner/name`.
    """
    parts = repo_id.split("/") if isinstance(repo_id, str) else []
    sound = len(parts) == 2 and all(_PART.fullmatch(part) and len(part) <= 96 for part in parts)
    if not sound or len(repo_id) > 96 or ".." in repo_id or "--" in repo_id or repo_id.endswith(".git"):
        raise ValueError(
            f"You set repo_id with {repo_id!r}. The Hub takes owner/name, at most 96 of a-z, A-Z, 0-9, '-', '_', '.', "
            "neither '--' nor '..' in it. Set, say, repo_id='me/my-repo'."
        )
    return parts[0], parts[1]


def only_over(marker: str, value: str, what: str) -> Check:
    """A check that lets a commit replace only what this project published under the same name.

    Args:
        marker (`str`): key of the card's front matter that says what a repository holds.
        value (`str`): what is about to be published, as it stands under that key.
        what (`str`): the kind of thing, e.g. `"metric"`, for errors.

    Returns:
        `Callable`: raises [`HubError`] for a repository that holds something else; one that is new or holds nothing but
        a card passes.
    """

    def check(snapshot: Snapshot) -> None:
        held = snapshot.metadata.get(marker)
        if held == value:
            return
        if held is not None:
            raise HubError(
                f"You set repo_id with {snapshot.repo_id!r} for the {what} {value!r}. It holds the {what} {held!r}, "
                "which those who load it would lose. Set another repo_id, or delete that repository first."
            )
        foreign = sorted(set(snapshot.files) - _BLANK)
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise HubError(
                f"You set repo_id with {snapshot.repo_id!r} for the {what} {value!r}. It holds files that this project "
                f"did not write ({', '.join(foreign[:3])}{more}), and nothing was changed. Set another repo_id, or "
                "delete that repository first."
            )

    return check


def commit_files(
    api: "HfApi | None",
    repo_id: str,
    files: Mapping[str, bytes | Path],
    repo_type: RepoType,
    message: str,
    *,
    token: str | None = None,
    private: bool = False,
    space_sdk: str | None = None,
    check: Check | None = None,
    patience: Patience | None = None,
) -> CommitResult:
    """Brings files into a repository in one commit, and compares what the Hub then holds with what was sent.

    Files of the repository that are not among them stay as they are. Nothing is committed where the head holds the same
    files. What may pass (another commit that came first, a server that does not answer) is tried again, each time from
    the head as it then is, so that a commit whose answer was lost is found and not made twice.

    Args:
        api (`HfApi`, *optional*): client to use.
        repo_id (`str`): `owner/name`; made if it is not there.
        files (`dict[str, bytes | Path]`): what each path in the repository holds, in memory or on disk.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        message (`str`): title of the commit.
        token (`str`, *optional*): access token; the client's by default.
        private (`bool`, *optional*, defaults to `False`): make the repository private. One that is there keeps its
            visibility, and is refused if it is public.
        space_sdk (`str`, *optional*): SDK of a Space that is made.
        check (`Callable`, *optional*): is given the [`Snapshot`] before each commit, and raises to refuse it.
        patience ([`Patience`], *optional*): how often what may pass is tried.

    Raises:
        ValueError: if `repo_id` is none, or the Hub refuses the card's front matter.
        HubError: if the Hub refuses, or does not answer in 5 attempts.
        DamagedRevisionError: if the Hub holds something else than what was sent.
    """
    check_owner_and_name(repo_id)
    repo = _Repository(Remote(repo_id, token, api), repo_type, token)
    contents = {path: Content(source) for path, source in files.items()}
    changed = False

    def attempt() -> CommitResult:
        nonlocal changed
        snapshot = repo.snapshot(private, space_sdk, with_metadata=check is not None)
        if snapshot.head is not None and _first_difference(snapshot.files, contents) is None:
            return CommitResult(snapshot.head, repo.url, changed)
        if check is not None:
            check(snapshot)
        changed = True
        oid = repo.commit(contents, message, snapshot.head)
        repo.verify(oid, contents)
        return CommitResult(oid, repo.url, True)

    return (patience or Patience()).until_done(attempt)


def _first_difference(present: Mapping[str, "RepoFile"], wanted: Mapping[str, Content]) -> str | None:
    """The first path whose content is another than wanted, by size and hash; `None` where all are the same."""
    for path, content in sorted(wanted.items()):
        there = present.get(path)
        if there is None or there.size != content.size:
            return path
        if there.lfs.sha256 != content.sha256 if there.lfs else there.blob_id != content.git_oid:
            return path
    return None


@dataclass(frozen=True)
class _Repository:
    """A repository of any type; every answer that is no success becomes a [`HubError`]."""

    remote: Remote
    repo_type: RepoType
    token: str | None

    @property
    def url(self) -> str:
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.remote.api.endpoint}/{prefix}{self.remote.repo_id}"

    def _ask(self, what: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        repo_id = self.remote.repo_id
        return self.remote.ask(what, method, repo_id, *args, repo_type=self.repo_type, token=self.token, **kwargs)

    def snapshot(self, private: bool, space_sdk: str | None, with_metadata: bool) -> Snapshot:
        """The repository as it is now; it is made where it is not there."""
        name = self.remote.repo_id
        head = self._head_or_nothing()
        if head is None:
            create = self.remote.api.create_repo
            self._ask(f"create {name}", create, private=private, space_sdk=space_sdk, exist_ok=True)
            head = self._head_or_nothing()
            if head is None:
                raise HubError(f"{name} was created, but the Hub does not show it yet.", True)
        if private and not self._ask(f"read {name}", self.remote.api.repo_info).private:
            raise HubError(
                f"You set private=True for {name}. It is there already and public, so nothing was sent. Make it "
                "private in its settings, or set another repo_id."
            )
        files = self.tree(head) if head else {}
        metadata = self._metadata(head) if with_metadata and _CARD in files else {}
        return Snapshot(name, head or None, files, metadata)

    def _head_or_nothing(self) -> str | None:
        """Commit of main, an empty text where the repository has no commit, `None` where there is no repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = self._ask(f"read {self.remote.repo_id}", self.remote.api.list_repo_refs)
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and error.__cause__.response.status_code == 404:
                return None
            raise
        return next((branch.target_commit for branch in refs.branches if branch.name == "main"), "")

    def tree(self, commit: str) -> dict[str, "RepoFile"]:
        """All files at a commit."""
        method = self.remote.api.list_repo_tree
        listing = self._ask(
            f"list the files of {self.remote.repo_id}",
            lambda *args, **kwargs: list(method(*args, recursive=True, revision=commit, **kwargs)),
        )
        return {item.path: item for item in listing if hasattr(item, "size")}

    def _metadata(self, commit: str) -> dict[str, Any]:
        """Front matter of the card at a commit; empty where it has none that can be read."""
        import tempfile

        import yaml
        from huggingface_hub.repocard import metadata_load

        fetch = self.remote.api.hf_hub_download
        with tempfile.TemporaryDirectory() as folder:
            # Not into the user's cache: this is looked at once.
            path = self._ask(f"read the card of {self.remote.repo_id}", fetch, _CARD, revision=commit, local_dir=folder)
            try:
                return metadata_load(path) or {}
            except (ValueError, yaml.YAMLError):
                return {}

    def commit(self, contents: Mapping[str, Content], message: str, head: str | None) -> str:
        """One commit on exactly that head."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path, content.source) for path, content in sorted(contents.items())]
        create = self.remote.api.create_commit
        what = f"publish to {self.remote.repo_id}"
        return str(self._ask(what, create, operations, commit_message=message, parent_commit=head).oid)

    def verify(self, oid: str, contents: Mapping[str, Content]) -> None:
        """Compares what the Hub holds at a commit with what was sent.

        Raises:
            DamagedRevisionError: naming the first file that differs.
        """
        path = _first_difference(self.tree(oid), contents)
        if path is not None:
            raise DamagedRevisionError(
                f"{path} at {self.remote.repo_id}@{oid[:12]} is not what was sent. Push again; if it stays so, look "
                "whether a .gitignore of the repository leaves it out, or set another repo_id."
            )
