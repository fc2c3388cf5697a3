"""What each address answers. Every function runs under the store's lock."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from . import cards
from .store import LFS_SUFFIXES, REGULAR_LIMIT, Blob, Commit, HubError, Repo, Store, lfs_pointer


@dataclass
class Response:
    """An answer before it is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A request after it was read."""

    store: Store
    base_url: str
    page_size: int
    address: str
    arguments: dict[str, str | None]
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    now: float

    @property
    def token(self) -> str | None:
        """The bearer token."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def __getitem__(self, name: str) -> str:
        return unquote(self.arguments[name] or "")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            data = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(data, dict):
            raise HubError(400, "Expected a JSON object")
        return data

    def repo(self, write: bool = False) -> Repo:
        """The repo in the address, if the token may read or write it."""
        repo_type = (self.arguments.get("type") or "models").removesuffix("s")
        return (self.store.writable if write else self.store.readable)(repo_type, self["id"], self.token)


def answer(data: Any, status: int = 200, **headers: str) -> Response:
    """An answer in JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, json.dumps(data).encode(), {"Content-Type": "application/json; charset=utf-8", **named})


def refusal(error: HubError) -> Response:
    """An error as the Hub words it: for people in the body, for programs in the headers."""
    headers = {"X-Error-Message": error.message.replace("\n", " ").encode("ascii", "replace").decode(), **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    response = answer({"error": error.message, **error.extra}, error.status)
    response.headers.update(headers)
    return response


def iso(date: float) -> str:
    """A time as the API writes it."""
    return datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def web_url(call: Call, repo: Repo) -> str:
    """The page of a repo."""
    return f"{call.base_url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"


def paged(call: Call, items: list[Any]) -> Response:
    """One page, with the address of the next one where there is more."""
    start = int(call.query.get("cursor", ["0"])[0])
    end = start + call.page_size
    response = answer(items[start:end])
    if end < len(items):
        query = urlencode({**call.query, "cursor": [str(end)]}, doseq=True)
        response.headers["Link"] = f'<{call.base_url}{call.address}?{query}>; rel="next"'
    return response


def flag(values: list[str] | None) -> bool:
    """A boolean of a query or a form."""
    return bool(values) and values[0].lower() in ("true", "1")


def whoami(call: Call) -> Response:
    """Whose token this is."""
    user = call.store.user(call.token)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    name, scope = user
    token = {"displayName": "test", "role": scope, "createdAt": iso(0)}
    return answer(
        {
            "type": "user",
            "id": hashlib.sha1(name.encode()).hexdigest()[:24],
            "name": name,
            "fullname": name,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def create_repo(call: Call) -> Response:
    """A new repo; the answer to one that is there carries its address too."""
    data = call.json()
    namespace = data.get("organization") or call.store.writer(call.token)
    call.store.writer(call.token, namespace)
    kind, repo_id = data.get("type") or "model", f"{namespace}/{data.get('name')}"
    private = data.get("visibility") == "private" or bool(data.get("private"))
    try:
        repo = call.store.create(kind, repo_id, private, data.get("sdk"), call.now)
    except HubError as error:
        if error.status == 409:
            error.extra["url"] = web_url(call, call.store.repos[kind, repo_id])
        raise
    return answer({"url": web_url(call, repo), "name": repo.id, "id": repo.id})


def delete_repo(call: Call) -> Response:
    """The end of a repo."""
    data = call.json()
    namespace = data.get("organization") or call.store.writer(call.token)
    repo = call.store.writable(data.get("type") or "model", f"{namespace}/{data.get('name')}", call.token)
    del call.store.repos[repo.type, repo.id]
    return Response(200, b"OK")


def validate_yaml(call: Call) -> Response:
    """What is wrong with a README's metadata."""
    errors, warnings = cards.validate(str(call.json().get("content", "")))
    lists = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return answer(lists, 400 if errors else 200)


def refs(call: Call) -> Response:
    """Branches and tags."""
    repo = call.repo()

    def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

    data: dict[str, Any] = {
        "branches": listed(repo.branches, "heads"),
        "converts": [],
        "tags": listed(repo.tags, "tags"),
    }
    if "include_prs" in call.query:
        data["pullRequests"] = []
    return answer(data)


def info(call: Call) -> Response:
    """What a repo is at a revision."""
    repo = call.repo()
    commit = repo.commit_at(call["rev"] or "main")
    readme = commit.tree.get("README.md")
    card = cards.card_data(readme.data if readme else None)
    siblings = []
    for path, blob in sorted(commit.tree.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if flag(call.query.get("blobs")):
            entry |= {"size": blob.size, "blobId": blob.oid}
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": pointer_size(blob)}
        siblings.append(entry)
    tags = card.get("tags")
    data = {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "lastModified": iso(commit.date),
        "createdAt": iso(repo.created),
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "cardData": json.loads(json.dumps(card, default=str)),
        "siblings": siblings,
    }
    if repo.type == "model":
        data |= {"modelId": repo.id} | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
    if repo.type == "space":
        data["sdk"] = repo.sdk
    wanted = call.query.get("expand")
    return answer({key: data[key] for key in ("_id", "id", *wanted) if key in data} if wanted else data)


def pointer_size(blob: Blob) -> int:
    """Bytes of the text that git holds in place of an LFS object."""
    return len(lfs_pointer(blob.sha256, blob.size))


def commits(call: Call) -> Response:
    """History, newest first."""
    listed = []
    for commit in reversed(call.repo().history(call["rev"])):
        entry = {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "date": iso(commit.date),
            "authors": [{"user": commit.author}],
        }
        if "expand[]" in call.query:
            entry["formatted"] = {"title": commit.title, "message": commit.message}
        listed.append(entry)
    return paged(call, listed)


def entry_of(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
    """A file or folder as tree and paths-info show it, None where there is none."""
    blob = commit.tree.get(path)
    if blob is not None:
        entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer_size(blob)}
    else:
        inside = inside_of(commit, path)
        if not inside:
            return None
        names = "".join(f"{name}\0{oid}\0" for name, oid in sorted(inside.items()))
        entry = {"type": "directory", "oid": hashlib.sha1(names.encode()).hexdigest(), "size": 0, "path": path}
    if expand:
        last = last_change(repo, commit, path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso(last.date)}
    return entry


def inside_of(commit: Commit, path: str) -> dict[str, str]:
    """What lies at or below a path."""
    return {
        name: blob.oid for name, blob in commit.tree.items() if not path or name == path or name.startswith(f"{path}/")
    }


def last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    """The commit that made a path what it is at another one."""
    while commit.parent is not None:
        before = repo.commits[commit.parent]
        if inside_of(before, path) != inside_of(commit, path):
            break
        commit = before
    return commit


def tree(call: Call) -> Response:
    """Files and folders at a revision, below a path."""
    repo = call.repo()
    commit = repo.commit_at(call["rev"])
    root = call["path"].strip("/")
    inside = inside_of(commit, root)
    if root and (not inside or root in commit.tree):
        raise HubError(404, f"{root} does not exist on {call['rev']!r}", "EntryNotFound")
    below = root.count("/") + 1 if root else 0
    recursive, expand = flag(call.query.get("recursive")), flag(call.query.get("expand"))
    paths = set()
    for name in inside:
        parts = name.split("/")
        paths |= {"/".join(parts[:end]) for end in range(below + 1, len(parts) + 1 if recursive else below + 2)}
    return paged(call, [entry_of(repo, commit, path, expand) for path in sorted(paths)])


def paths_info(call: Call) -> Response:
    """Those of the asked paths that are there."""
    repo = call.repo()
    form = parse_qs(call.body.decode())
    commit = repo.commit_at(call["rev"])
    found = [entry_of(repo, commit, path.strip("/"), flag(form.get("expand"))) for path in form.get("paths", [])]
    return answer([entry for entry in found if entry is not None])


def preupload(call: Call) -> Response:
    """How each file is to be sent, and what is there in its place."""
    repo = call.repo(write=True)
    branch = known_branch(call, repo)
    files = []
    for file in call.json().get("files", []):
        large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT
        entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        blob = repo.commits[repo.branches[branch]].tree.get(file["path"])
        files.append(entry | ({"oid": blob.content_oid} if blob else {}))
    return answer({"files": files})


def known_branch(call: Call, repo: Repo) -> str:
    """The branch in the address. Only a branch can be committed to."""
    if flag(call.query.get("create_pr")):
        raise HubError(400, "This server has no pull requests")
    branch = call["rev"].removeprefix("refs/heads/")
    if branch not in repo.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return branch


def lfs_batch(call: Call) -> Response:
    """Where to put the objects that are not there."""
    data = call.json()
    if data.get("operation") != "upload":
        raise HubError(400, "Only uploads are served; download from resolve")
    repo = call.repo(write=True)
    objects = []
    for asked in data.get("objects", []):
        entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repo.lfs:
            base = f"{call.base_url}/lfs/{repo.type}s/{repo.id}/{asked['oid']}"
            signed = f"{base}?signature={call.store.signature(repo, asked['oid'])}"
            entry["actions"] = {"upload": {"href": signed, "header": {}}, "verify": {"href": f"{base}/verify"}}
        objects.append(entry)
    return answer({"transfer": "basic", "objects": objects})


def lfs_put(call: Call) -> Response:
    """An object's bytes. Like a signed S3 address it asks for no token."""
    repo = call.store.repos.get(((call.arguments["type"] or "").removesuffix("s"), call["id"]))
    if repo is None or call.query.get("signature") != [call.store.signature(repo, call["oid"])]:
        raise HubError(403, "Bad signature")
    repo.put_lfs(call["oid"], call.body)
    return Response(200, headers={"ETag": f'"{call["oid"]}"'})


def lfs_verify(call: Call) -> Response:
    """Whether an object arrived."""
    repo, data = call.repo(write=True), call.json()
    stored = repo.lfs.get(call["oid"])
    if data.get("oid") != call["oid"] or stored is None or len(stored) != data.get("size"):
        raise HubError(404, "The object has not been uploaded")
    return Response(200)


def commit(call: Call) -> Response:
    """One commit from its lines."""
    repo = call.repo(write=True)
    branch = known_branch(call, repo)
    header: dict[str, Any] = {}
    operations = []
    for line in call.body.splitlines():
        try:
            item = json.loads(line)
            key, value = item["key"], dict(item["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(400, f"Not a commit's line: {line[:80]!r}") from error
        if key == "header":
            header = value
        else:
            operations.append((key, value))
    made = call.store.commit(repo, branch, header, operations, call.store.writer(call.token), call.now)
    url = f"{web_url(call, repo)}/commit/{made.oid}"
    return answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def tag(call: Call) -> Response:
    """A new tag."""
    call.store.tag(call.repo(write=True), call.json().get("tag"), call["rev"])
    return Response(200)


def delete_tag(call: Call) -> Response:
    """The end of a tag."""
    repo = call.repo(write=True)
    if repo.tags.pop(call["rev"], None) is None:
        raise HubError(404, f"Tag not found: {call['rev']}", "RevisionNotFound")
    return Response(200)


def branch(call: Call) -> Response:
    """A new branch."""
    call.store.branch(call.repo(write=True), call["rev"], call.json().get("startingPoint"))
    return Response(200)


def delete_branch(call: Call) -> Response:
    """The end of a branch."""
    repo = call.repo(write=True)
    if call["rev"] == "main":
        raise HubError(403, "The default branch can't be deleted")
    if repo.branches.pop(call["rev"], None) is None:
        raise HubError(404, f"Branch not found: {call['rev']}", "RevisionNotFound")
    return Response(200)


def resolve(call: Call) -> Response:
    """A file's bytes, or the part of them that was asked for."""
    repo = call.repo()
    commit, path = repo.commit_at(call["rev"]), call["path"]
    blob = commit.tree.get(path)
    if blob is None:
        error = HubError(404, f"{path} does not exist on {call['rev']!r}", "EntryNotFound")
        error.headers["X-Repo-Commit"] = commit.oid
        raise error
    data = repo.served(blob)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{blob.content_oid}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream" if blob.lfs else "text/plain; charset=utf-8",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}",
        "Last-Modified": formatdate(commit.date + call.now - time.time(), usegmt=True),
    }
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if asked is None or not any(asked.groups()):
        return Response(200, data, headers)
    first, last = asked.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= end:
        return Response(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})


ID = "(?P<id>[^/]+/[^/]+)"
REV = "(?P<rev>refs/(?:convert|pr)/[^/]+|[^/]+)"
API = f"/api/(?P<type>models|datasets|spaces)/{ID}"
GIT = f"/(?:(?P<type>datasets|spaces)/)?{ID}"
LFS = f"/lfs/(?P<type>models|datasets|spaces)/{ID}/(?P<oid>[0-9a-f]{{64}})"
Route = Callable[[Call], Response]
ROUTES: list[tuple[str, re.Pattern[str], str, Route]] = [
    (method, re.compile(pattern), step, route)
    for method, pattern, step, route in (
        ("GET", "/api/whoami-v2", "whoami", whoami),
        ("POST", "/api/repos/create", "create_repo", create_repo),
        ("DELETE", "/api/repos/delete", "delete_repo", delete_repo),
        ("POST", "/api/validate-yaml", "validate_yaml", validate_yaml),
        ("GET", f"{API}/refs", "refs", refs),
        ("GET", f"{API}(?:/revision/{REV})?", "info", info),
        ("GET", f"{API}/commits/{REV}", "commits", commits),
        ("GET", f"{API}/tree/{REV}(?:/(?P<path>.*))?", "tree", tree),
        ("POST", f"{API}/paths-info/{REV}", "paths_info", paths_info),
        ("POST", f"{API}/preupload/{REV}", "preupload", preupload),
        ("POST", rf"{GIT}\.git/info/lfs/objects/batch", "lfs_batch", lfs_batch),
        ("PUT", LFS, "lfs_put", lfs_put),
        ("POST", f"{LFS}/verify", "lfs_verify", lfs_verify),
        ("POST", f"{API}/commit/{REV}", "commit", commit),
        ("POST", f"{API}/tag/{REV}", "tag", tag),
        ("DELETE", f"{API}/tag/{REV}", "delete_tag", delete_tag),
        ("POST", f"{API}/branch/{REV}", "branch", branch),
        ("DELETE", f"{API}/branch/{REV}", "delete_branch", delete_branch),
        ("HEAD", f"{GIT}/resolve/{REV}/(?P<path>.+)", "resolve_head", resolve),
        ("GET", f"{GIT}/resolve/{REV}/(?P<path>.+)", "resolve_get", resolve),
    )
]


def missing(call: Call) -> Response:
    """An address that this server does not know."""
    raise HubError(404, "Not found")


def find(method: str, address: str) -> tuple[str, Route, dict[str, str | None]]:
    """The step, the function and the parts of an address that was not unquoted."""
    for wanted, pattern, step, route in ROUTES:
        match = pattern.fullmatch(address) if wanted == method else None
        if match:
            return step, route, match.groupdict()
    return "other", missing, {}
