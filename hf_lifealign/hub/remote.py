"""One repository of revisions on the Hub, through an unmodified huggingface_hub: read, commit, tag, and verify both."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from hf_lifealign.hub.contents import LINEAGE, Content
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.lineage import Entry, Lineage

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
_LARGEST_LINEAGE = 64 * 1024**2
_LONGEST_WAIT = 300.0
# What a new repository holds before anything is published.
_BLANK = {".gitattributes", ".gitignore", "README.md", "LICENSE"}


@dataclass(frozen=True)
class Head:
    """A repository as it is now.

    Args:
        commit (`str`): what main points at.
        tags (`dict[str, str]`): commit of each tag.
        lineage (`Lineage`, *optional*): that of main; `None` before anything was published.
    """

    commit: str
    tags: dict[str, str]
    lineage: Lineage | None

    @property
    def log(self) -> tuple[Entry, ...]:
        """Everything that was published."""
        return self.lineage.log if self.lineage else ()


def check_repo_id(repo_id: str) -> str:
    """The id, if it can be one.

    Raises:
        ValueError: if not.
    """
    if not _REPOSITORY.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".", "-")):
        raise ValueError(
            f"You gave the repository {repo_id!r}. It has to read owner/name, with letters, digits, '-', '_' and '.'."
        )
    return repo_id


def _bound_silence(request: Any) -> None:
    """Gives a request that would wait for ever a limit on every silence of the server."""
    limit = float(os.environ.get("HF_LIFEALIGN_HUB_TIMEOUT") or 120.0)
    bounds = {"connect": min(limit, 20.0), "read": limit, "write": limit, "pool": limit}
    asked = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {name: asked.get(name) or bounds[name] for name in bounds}


def _bind_client() -> None:
    """huggingface_hub waits for ever by itself, and some calls ask for that: its client gets a limit where none is."""
    from huggingface_hub.utils import get_session

    client = get_session()
    hooks = client.event_hooks
    if _bound_silence not in hooks["request"]:
        client.event_hooks = hooks | {"request": [*hooks["request"], _bound_silence]}


class Remote:
    """A repository of revisions.

    Args:
        repo_id (`str`): `owner/name`, or `name` in the user's own namespace.
        token (`str`, *optional*): access token; that of `hf auth login` or `HF_TOKEN` by default.
        api (`HfApi`, *optional*): client to use.
    """

    def __init__(self, repo_id: str, token: str | None = None, api: "HfApi | None" = None) -> None:
        from huggingface_hub import HfApi

        self.api = api or HfApi(token=token)
        self.repo_id = check_repo_id(repo_id)
        if "/" not in repo_id:
            self.repo_id = f"{self.ask('find out your name', self.api.whoami)['name']}/{repo_id}"

    @property
    def secrets(self) -> list[str]:
        """Tokens in use."""
        from huggingface_hub import get_token

        return [token for token in (self.api.token, get_token()) if isinstance(token, str)]

    def ask(self, what: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls the client; whatever goes wrong becomes a [`HubError`] that says what was tried.

        Args:
            what (`str`): what is tried, as it goes on after "Could not".
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        _bind_client()
        try:
            return call(*args, **kwargs)
        except (OSError, RuntimeError, ValueError, KeyError, httpx2.HTTPError) as error:
            # the client puts its own errors around those of an upload or a download
            causes = list(_causes(error))
            for cause in causes:
                if isinstance(cause, HfHubHTTPError):
                    raise self._refusal(what, cause) from cause
            # of a network failure the cause says most; of anything else, what the client made of it
            network = any(isinstance(c, httpx2.TransportError | ConnectionError | TimeoutError) for c in causes)
            source = causes[-1] if network else error
            told = " ".join(str(source).split()) or type(source).__name__
            if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
                raise HubError(f"Could not {what}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.") from error
            if network:
                where = f"the Hub at {self.api.endpoint} did not answer"
                raise HubError(f"Could not {what}: {where} ({told}).", may_pass=True) from error
            # an answer that is no JSON, or shorter than it should be, comes from a server in trouble
            unreadable = isinstance(error, OSError | KeyError | json.JSONDecodeError)
            answer = "the Hub's answer cannot be read" if unreadable else "the client refuses"
            raise HubError(f"Could not {what}: {answer} ({told}).", may_pass=unreadable) from error

    def _refusal(self, what: str, error: Any) -> HubError:
        status, told = error.response.status_code, " ".join(str(error.server_message or "").split())
        reason = f" ({told})" if told else ""
        where = getattr(self, "repo_id", "the Hub")
        if status == 401:
            return HubError(
                f"Could not {what}: the Hub does not accept the token (401){reason}. Log in with `hf auth login`, or "
                "set HF_TOKEN to a token with write access."
            )
        if status == 403:
            return HubError(
                f"Could not {what}: the token may not do that in {where} (403){reason}. Use a token with write access "
                "to it, or another repository."
            )
        if status == 404:
            code = error.response.headers.get("X-Error-Code", "")
            lacking = {"RevisionNotFound": "no such revision", "EntryNotFound": "no such file"}.get(
                code, "no such repository, or the token may not see it"
            )
            return HubError(f"Could not {what}: {lacking} in {where} (404){reason}.")
        if status == 412:
            return HubError(f"Could not {what}: {where} changed meanwhile (412){reason}.", True, 0.0)
        if status in (408, 409, 422, 425, 429) or status >= 500:
            wait = retry_after(error.response.headers.get("Retry-After"))
            return HubError(f"Could not {what}: the Hub answered {status}{reason}.", True, wait)
        return HubError(f"Could not {what}: the Hub refused it ({status}){reason}.")

    # Reading

    def head(self) -> Head | None:
        """The repository as it is now, or `None` if there is none (or none that the token may see)."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = self.ask(f"read {self.repo_id}", self.api.list_repo_refs, self.repo_id)
        except HubError as error:
            cause = error.__cause__
            # without any token the client takes a 401 for it as well
            if isinstance(cause, RepositoryNotFoundError) and cause.response.status_code == 404:
                return None
            raise
        mains = [branch.target_commit for branch in refs.branches if branch.name == "main"]
        if not mains:
            raise HubError(f"{self.repo_id} has no branch main. Create it, or choose another repository.")
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        return Head(mains[0], tags, self.lineage(mains[0]))

    def tree(self, commit: str) -> dict[str, "RepoFile"]:
        """All files at a commit."""
        from huggingface_hub.hf_api import RepoFile

        listing = self.ask(
            f"list the files of {self.repo_id}",
            lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)),
        )
        return {item.path: item for item in listing if isinstance(item, RepoFile)}

    def lineage(self, commit: str) -> Lineage | None:
        """The lineage at a commit, or `None` if there is none."""
        facts = self.ask(
            f"look for the lineage of {self.repo_id}",
            self.api.get_paths_info, self.repo_id, [LINEAGE], revision=commit,
        )  # fmt: skip
        if not facts:
            return None
        where = f"{self.repo_id}@{commit[:12]}"
        if getattr(facts[0], "size", _LARGEST_LINEAGE + 1) > _LARGEST_LINEAGE:
            raise DamagedRevisionError(f"{LINEAGE} of {where} is too large to be one.")
        return Lineage.from_bytes(self.download(LINEAGE, commit), where)

    def download(self, path: str, commit: str) -> bytes:
        """Bytes of one small file; not cached, so that nothing damaged stays behind."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            file = self.ask(
                f"fetch {path} of {self.repo_id}",
                self.api.hf_hub_download, self.repo_id, path, revision=commit, local_dir=folder,
            )  # fmt: skip
            return Path(file).read_bytes()

    def resolve(self, revision: str | None) -> str:
        """The commit that a tag, a branch or a commit names."""
        info = self.ask(
            f"find {self.repo_id}@{revision or 'main'}", self.api.repo_info, self.repo_id, revision=revision
        )
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise HubError(f"The Hub named no commit for {self.repo_id}@{revision or 'main'}. Try again later.", True)
        return info.sha

    def commit_with(self, entry: Entry) -> str | None:
        """The commit that published an entry of the log: its message holds the digest, its lineage ends with it."""
        commits = self.ask(f"read the history of {self.repo_id}", self.api.list_repo_commits, self.repo_id)
        for commit in commits:
            if entry.content in commit.message or entry.content in commit.title:
                lineage = self.lineage(commit.commit_id)
                if lineage is not None and lineage.entry == entry:
                    return commit.commit_id
        return None

    # Writing

    def create(self, private: bool | None) -> None:
        """Makes the repository, if it is not there."""
        self.ask(f"create {self.repo_id}", self.api.create_repo, self.repo_id, private=private, exist_ok=True)

    def check_is_ours(self, head: Head) -> None:
        """Refuses a repository of another making, whose files a revision could take the place of.

        Raises:
            HubError: naming one of its files.
        """
        if head.lineage is None:
            foreign = sorted(set(self.tree(head.commit)) - _BLANK)
            if foreign:
                raise HubError(
                    f"{self.repo_id} holds {foreign[0]} and no {LINEAGE}: it was not made by a lifelong run, and "
                    "publishing could take the place of what is there. Choose another repository."
                )

    def check_is_private(self) -> None:
        """Refuses a repository that is there and public where a private one was asked for.

        Raises:
            HubError: saying so.
        """
        info = self.ask(f"read {self.repo_id}", self.api.repo_info, self.repo_id)
        if not info.private:
            raise HubError(
                f"You asked for a private repository, and {self.repo_id} is there and public. Make it private in its "
                "settings, or choose another one. Nothing was sent."
            )

    def commit(self, files: Mapping[str, Content], head: Head, title: str, description: str) -> str:
        """One commit with exactly these files in the place of those of the head's lineage; files of others stay.

        Returns:
            `str`: the commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [
            CommitOperationAdd(path, content.source if isinstance(content.source, bytes) else str(content.source))
            for path, content in sorted(files.items())
        ]
        present = self.tree(head.commit)
        published = {*(head.lineage.files if head.lineage else ()), LINEAGE}
        operations += [CommitOperationDelete(path) for path in sorted(published - set(files)) if path in present]
        done = self.ask(
            f"publish {title!r} to {self.repo_id}", self.api.create_commit, self.repo_id, operations,
            commit_message=title, commit_description=description, parent_commit=head.commit,
        )  # fmt: skip
        return str(done.oid)

    def check_tree(self, commit: str, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares what the Hub says to hold at a commit with what was sent; nothing is fetched.

        Args:
            facts (`Mapping`): `sha256`, `git_oid` and `size` of each file, as in a lineage.

        Raises:
            DamagedRevisionError: naming the first file that differs.
        """
        present = self.tree(commit)
        for path, expected in sorted(facts.items()):
            there = present.get(path)
            same = there is not None and there.size == expected["size"]
            if same and there is not None:
                lfs = there.lfs
                same = lfs.sha256 == expected["sha256"] if lfs else there.blob_id == expected["git_oid"]
            if not same:
                raise DamagedRevisionError(
                    f"{path} at {self.repo_id}@{commit[:12]} is not what was sent"
                    f"{'' if there is not None else ': it is not there'}. No tag was set. Push again; if it stays so, "
                    "publish to another repository."
                )

    def tag(self, tag: str, commit: str) -> None:
        """Sets a tag, and checks that it points where it should; a tag that is there is never moved.

        Raises:
            HubError: if the tag points elsewhere.
        """
        try:
            self.ask(
                f"set the tag {tag} in {self.repo_id}", self.api.create_tag, self.repo_id, tag=tag, revision=commit
            )
        except HubError as error:
            # it may have been set all the same, by an attempt whose answer was lost
            if getattr(getattr(error.__cause__, "response", None), "status_code", None) != 409:
                raise
        refs = self.ask(f"read the tags of {self.repo_id}", self.api.list_repo_refs, self.repo_id)
        found = {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
        if found is None:
            raise HubError(f"The tag {tag} was set in {self.repo_id}, but the Hub does not show it yet.", True)
        if found != commit:
            raise HubError(
                f"The tag {tag} in {self.repo_id} points at {found[:12]} and not at {commit[:12]}, where the task was "
                "published. It was set by hand; nothing is rewritten. Delete it with `hf repos tag delete`, and push "
                "again."
            )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date), at most 300; `None` if it asks for nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT)
