"""What the server keeps: repos, commits, trees, LFS objects, branches, tags and tokens. No HTTP in here."""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

TOKENS = {
    "hf_test_write_me": ("me", "write"),
    "hf_test_read_me": ("me", "read"),
    "hf_test_write_you": ("you", "write"),
}
REPO_TYPES = ("model", "dataset", "space")
SPACE_SDKS = ("gradio", "streamlit", "docker", "static")
REGULAR_LIMIT = 10 * 1024 * 1024
LFS_SUFFIXES = (".safetensors", ".png", ".parquet", ".bin", ".gguf")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)).encode()
SHORT_OID = re.compile(r"[0-9a-f]{7,40}")
REPO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
REF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")


class HubError(Exception):
    """An answer other than success, raised from anywhere below the handler."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers: dict[str, str] = {}
        self.extra = extra


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    data: bytes = field(repr=False)
    lfs: bool
    oid: str
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the content, also for an LFS file."""
        return len(self.data)

    @property
    def content_oid(self) -> str:
        """What the client compares its local file with: the sha256 of an LFS file, git's sha1 of another."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit with its whole tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: float
    tree: dict[str, Blob] = field(repr=False)
    author: str = "me"


def git_hash(data: bytes) -> str:
    """The name git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def make_blob(data: bytes, lfs: bool) -> Blob:
    """A blob with its names computed."""
    sha256 = hashlib.sha256(data).hexdigest()
    return Blob(data, lfs, git_hash(lfs_pointer(sha256, len(data)) if lfs else data), sha256)


def commit_oid(parent: str | None, tree: dict[str, Blob], title: str, message: str) -> str:
    """A name without dates in it, so that the same pushes to two servers give the same commits."""
    digest = hashlib.sha1()
    for part in (parent or "", title, message):
        digest.update(part.encode() + b"\0")
    for path in sorted(tree):
        digest.update(f"{path}\0{tree[path].sha256}\0".encode())
    return digest.hexdigest()


def check_path(path: Any) -> str:
    """Refuse what would leave the repo or lie in git's own folder."""
    parts = path.split("/") if isinstance(path, str) else [""]
    if "\\" in str(path) or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in repo: {path!r}")
    return str(path)


class Repo:
    """One repo. Everything that changes it is called under the store's lock."""

    def __init__(self, repo_type: str, repo_id: str, private: bool, sdk: str | None, date: float) -> None:
        self.type = repo_type
        self.id = repo_id
        self.private = private
        self.sdk = sdk
        self.created = date
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        # What downloads send in place of an object, by its sha256.
        self.damaged: dict[str, bytes] = {}

    @property
    def head(self) -> str:
        """Commit of main."""
        return self.branches["main"]

    def resolve(self, revision: str) -> str:
        """Full commit oid of a branch, tag, or full or short oid."""
        for refs in (self.branches, self.tags):
            name = revision.removeprefix("refs/heads/" if refs is self.branches else "refs/tags/")
            if name in refs:
                return refs[name]
        if revision in self.commits:
            return revision
        if SHORT_OID.fullmatch(revision):
            found = [oid for oid in self.commits if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit_at(self, revision: str) -> Commit:
        """The commit that a revision names."""
        return self.commits[self.resolve(revision)]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that led to a revision, oldest first."""
        commits = []
        oid: str | None = self.resolve(revision)
        while oid is not None:
            commits.append(self.commits[oid])
            oid = commits[-1].parent
        return commits[::-1]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What was committed, undamaged."""
        return {path: blob.data for path, blob in self.commit_at(revision).tree.items()}

    def snapshot(self) -> dict[str, Any]:
        """All that can be reached, as plain values that two servers can be compared by."""
        reached = {}
        for ref in (*self.branches.values(), *self.tags.values()):
            for depth, commit in enumerate(self.history(ref)):
                reached[commit.oid] = (depth, commit)
        ordered = sorted(reached.values(), key=lambda item: (item[0], item[1].oid))
        return {
            "branches": dict(sorted(self.branches.items())),
            "tags": dict(sorted(self.tags.items())),
            "commits": [
                (commit.oid, commit.title, {path: blob.sha256 for path, blob in sorted(commit.tree.items())})
                for _, commit in ordered
            ],
        }

    def add_commit(self, branch: str, tree: dict[str, Blob], title: str, message: str, date: float, who: str) -> Commit:
        """Append to a branch."""
        parent = self.branches.get(branch)
        oid = commit_oid(parent, tree, title, message)
        commit = self.commits.setdefault(oid, Commit(oid, parent, title, message, date, tree, who))
        self.branches[branch] = oid
        return commit

    def put_lfs(self, oid: str, data: bytes) -> None:
        """Keep an uploaded object, if it is what it says it is."""
        found = hashlib.sha256(data).hexdigest()
        if found != oid:
            raise HubError(422, f"The upload's sha256 is {found}, not {oid}")
        self.lfs[oid] = data

    def served(self, blob: Blob) -> bytes:
        """The bytes a download gets."""
        return self.damaged.get(blob.sha256, blob.data)


def apply_operations(repo: Repo, tree: dict[str, Blob], operations: list[tuple[str, dict[str, Any]]]) -> None:
    """Change a tree by a commit's operations, in their order."""
    for key, value in operations:
        if key == "deletedFolder":
            value = {**value, "path": str(value.get("path", "")).rstrip("/")}
        path = check_path(value.get("path"))
        if key == "file":
            _add(tree, path, make_blob(decoded(value), lfs=False))
        elif key == "lfsFile":
            data = repo.lfs.get(value.get("oid", ""))
            if data is None or value.get("size", len(data)) != len(data):
                raise HubError(400, f"The LFS object of {path} has not been uploaded")
            _add(tree, path, make_blob(data, lfs=True))
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in tree if name.startswith(f"{path}/")]
            if not inside:
                raise HubError(404, "A folder with this name doesn't exist", "EntryNotFound")
            for name in inside:
                del tree[name]
        else:
            raise HubError(400, f"Unknown operation {key!r}")


def _add(tree: dict[str, Blob], path: str, blob: Blob) -> None:
    """Put a blob where no folder is, and below no file."""
    parts = path.split("/")
    above = {"/".join(parts[:end]) for end in range(1, len(parts))}
    if above & tree.keys() or any(name.startswith(f"{path}/") for name in tree):
        raise HubError(400, f"{path} is a file and a folder at once")
    tree[path] = blob


def decoded(value: dict[str, Any]) -> bytes:
    """Content of a "file" operation."""
    content = value.get("content", "")
    if value.get("encoding") != "base64":
        return str(content).encode()
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise HubError(400, f"Bad base64: {error}") from error
    if len(data) > REGULAR_LIMIT:
        raise HubError(400, "Your push was rejected because it contains files larger than 10 MiB. Use git-lfs.")
    return data


class Store:
    """All repos and tokens. Callers hold `lock` around every call that reads or changes them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, tuple[str, str]] = dict(TOKENS)
        self._secret = secrets.token_bytes(16)

    def user(self, token: str | None) -> tuple[str, str] | None:
        """Who a token belongs to and what it may do."""
        if token is None:
            return None
        if token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def readable(self, repo_type: str, repo_id: str, token: str | None) -> Repo:
        """A repo this token may know of."""
        user = self.user(token)
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and (user is None or user[0] != repo_id.split("/")[0])):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_type: str, repo_id: str, token: str | None) -> Repo:
        """A repo this token may change."""
        repo = self.readable(repo_type, repo_id, token)
        self.writer(token, repo_id.split("/")[0])
        return repo

    def writer(self, token: str | None, namespace: str | None = None) -> str:
        """The user behind a token that may write to a namespace (its own if None)."""
        user = self.user(token)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        name, scope = user
        if scope != "write":
            raise HubError(403, "Forbidden: this token has no write access")
        if namespace is not None and namespace != name:
            raise HubError(403, f"Forbidden: you don't have the rights to write to the namespace {namespace!r}")
        return name

    def create(self, repo_type: str, repo_id: str, private: bool, sdk: str | None, date: float) -> Repo:
        """A new repo with the commit that the Hub makes."""
        if repo_type not in REPO_TYPES or not all(map(REPO_NAME.fullmatch, repo_id.split("/"))):
            raise HubError(400, f"Invalid repo: {repo_type} {repo_id}")
        if repo_type == "space" and sdk not in SPACE_SDKS:
            raise HubError(400, f"Invalid sdk: {sdk!r}")
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, f"You already created this {repo_type} repo")
        repo = self.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private, sdk, date)
        tree = {".gitattributes": make_blob(GITATTRIBUTES, lfs=False)}
        if repo_type == "space":
            tree["README.md"] = make_blob(f"---\nsdk: {sdk}\n---\n".encode(), lfs=False)
        repo.add_commit("main", tree, "initial commit", "", date, repo_id.split("/")[0])
        return repo

    def commit(
        self,
        repo: Repo,
        branch: str,
        header: dict[str, Any],
        operations: list[Any],
        who: str,
        date: float | None = None,
    ) -> Commit:
        """Add a commit to a branch, unless the branch moved from the parent that the header names."""
        if branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head, parent = repo.branches[branch], header.get("parentCommit")
        if parent is not None and not (SHORT_OID.fullmatch(parent) and head.startswith(parent)):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        title = header.get("summary")
        if not isinstance(title, str) or not title:
            raise HubError(400, "A commit needs a summary")
        tree = dict(repo.commits[head].tree)
        apply_operations(repo, tree, operations)
        message = header.get("description") or ""
        return repo.add_commit(branch, tree, title, message, date, who)

    def branch(self, repo: Repo, name: str, start: str | None) -> None:
        """A new branch."""
        if not REF_NAME.fullmatch(name) or name.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {name}")
        if name in repo.branches:
            raise HubError(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.resolve(start or "main")

    def tag(self, repo: Repo, name: Any, revision: str) -> None:
        """A new tag."""
        if not isinstance(name, str) or not REF_NAME.fullmatch(name):
            raise HubError(400, f"Invalid reference for a tag: {name}")
        oid = repo.resolve(revision)
        if name in repo.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = oid

    def signature(self, repo: Repo, oid: str) -> str:
        """Lets the holder of an upload address put one object, without a token, as a signed S3 address does."""
        return hmac.new(self._secret, f"{repo.type}/{repo.id}/{oid}".encode(), "sha256").hexdigest()
