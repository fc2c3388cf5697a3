"""The lineage in ``slmc/lineage.json``: what a revision holds, where it comes from, and the log of its repository."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_lifealign.hub.contents import LINEAGE, Content, check_listing, json_digest
from hf_lifealign.hub.errors import DamagedRevisionError
from hf_lifealign.stream.task import name_fault

FORMAT = "lifealign-lineage"
FORMAT_VERSION = 1
_TAG = re.compile(r"task-[0-9]{2,}-[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(r"[0-9T:.+Z-]{0,40}")
_PLAIN = re.compile(r"[\w .:-]{1,80}")
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


@dataclass(frozen=True)
class Entry:
    """One line of a repository's log: a task that was published, or a return to an earlier one.

    Args:
        kind (`str`): `"task"` or `"rollback"`.
        task, label (`str`): name of the task, and `NN-<name>`.
        tag (`str`): tag of the task; of a rollback the tag of the revision that it restored.
        content (`str`): digest of the revision, see [`content_digest`].
        date (`str`): when the task was finished or the rollback made (ISO 8601, UTC).
        parent (`dict`, *optional*): the revision from which the task went on: `tag`, `content`, `commit`, and `repo`
            where it lies in another one; `None` for the first task of a life.
        metrics (`dict`): `metric`, `value` on the task itself, `bwt`, `last_performance`, `average_performance`.
        sizes (`dict`): bytes of `adapter`, `memory`, `total`.
        license (`str`, *optional*): licence of the adapter as its author stated it.
    """

    kind: Literal["task", "rollback"]
    task: str
    label: str
    tag: str
    content: str
    date: str
    parent: dict[str, str | None] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    license: str | None = None

    @classmethod
    def read(cls, value: Any) -> "Entry":
        """An entry of a downloaded lineage; nothing in it is taken on trust.

        Raises:
            ValueError: saying what is wrong.
        """
        if not isinstance(value, dict) or set(value) != set(cls.__dataclass_fields__):
            raise ValueError("an entry of its log lacks or adds keys")
        texts = [value[name] for name in ("task", "label", "tag", "content", "date")]
        if value["kind"] not in ("task", "rollback") or not all(isinstance(text, str) for text in texts):
            raise ValueError("an entry of its log is not of a known kind")
        if not _TAG.fullmatch(value["tag"]) or ".." in value["tag"] or not _DIGEST.fullmatch(value["content"]):
            raise ValueError("an entry of its log names a tag or a digest that cannot be one")
        parent = value["parent"]
        if parent is not None and not _is_parent(parent):
            raise ValueError("an entry of its log names a parent that cannot be one")
        if name_fault(value["task"]) is not None or not re.fullmatch(
            rf"[0-9]{{2,}}-{re.escape(value['task'])}", value["label"]
        ):
            raise ValueError("an entry of its log names a task that cannot be one")
        if not _DATE.fullmatch(value["date"]) or not (value["license"] is None or isinstance(value["license"], str)):
            raise ValueError("an entry of its log has a date or a licence that cannot be one")
        if not _are_numbers(value["metrics"], "metric") or not _are_numbers(value["sizes"]):
            raise ValueError("an entry of its log has metrics or sizes that are no numbers")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON."""
        return dict(self.__dict__)


def _are_numbers(values: Any, named: str = "") -> bool:
    """Whether this is a mapping of numbers by name, but for one short text."""
    if not isinstance(values, dict):
        return False
    texts = [values[key] for key in values if key == named]
    numbers = [values[key] for key in values if key != named]
    return all(isinstance(text, str) and _PLAIN.fullmatch(text) for text in texts) and all(
        number is None or (isinstance(number, int | float) and not isinstance(number, bool)) for number in numbers
    )


def _is_parent(parent: Any) -> bool:
    if not isinstance(parent, dict) or set(parent) != {"repo", "tag", "content", "commit"}:
        return False
    repo, tag, content, commit = (parent[name] for name in ("repo", "tag", "content", "commit"))
    return (
        (repo is None or (isinstance(repo, str) and _REPOSITORY.fullmatch(repo) is not None))
        and (tag is None or (isinstance(tag, str) and _TAG.fullmatch(tag) is not None))
        and (commit is None or (isinstance(commit, str) and _COMMIT.fullmatch(commit) is not None))
        and (content is None or (isinstance(content, str) and _DIGEST.fullmatch(content) is not None))
    )


@dataclass(frozen=True)
class Lineage:
    """Content of ``slmc/lineage.json``.

    Args:
        log (`tuple[Entry, ...]`): everything that was published in the repository up to this revision, which is the
            last entry.
        files (`dict`): `sha256`, `git_oid` and `size` of every other file of the revision.
    """

    log: tuple[Entry, ...]
    files: dict[str, dict[str, Any]]

    @property
    def entry(self) -> Entry:
        """What this revision is."""
        return self.log[-1]

    def to_bytes(self) -> bytes:
        """The file."""
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "log": [entry.to_dict() for entry in self.log],
            "files": self.files,
        }
        body["checksum"] = json_digest(body)
        return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Lineage":
        """Reads and checks a lineage that comes from outside.

        Args:
            data (`bytes`): the file.
            where (`str`): the repository and revision, for errors.

        Raises:
            DamagedRevisionError: saying what is wrong with it.
        """

        def damaged(what: str) -> DamagedRevisionError:
            return DamagedRevisionError(
                f"{LINEAGE} of {where} cannot be trusted: {what}. It was damaged or edited; take another revision."
            )

        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise damaged(f"it is not valid JSON ({error})") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise damaged(f"its format is not {FORMAT!r}")
        if body.get("format_version") != FORMAT_VERSION:
            raise DamagedRevisionError(
                f"{LINEAGE} of {where} has format version {body.get('format_version')!r}; this hf_lifealign reads "
                f"{FORMAT_VERSION}. Install a newer one."
            )
        if set(body) != {"format", "format_version", "log", "files", "checksum"}:
            raise damaged("it lacks or adds keys")
        if json_digest({key: value for key, value in body.items() if key != "checksum"}) != body["checksum"]:
            raise damaged("it does not match its own checksum")
        if not isinstance(body["log"], list) or not body["log"]:
            raise damaged("its log is empty")
        try:
            log = tuple(Entry.read(entry) for entry in body["log"])
            files = _read_files(body["files"])
        except ValueError as error:
            raise damaged(str(error)) from error
        check_listing({path: facts["size"] for path, facts in files.items()}, f"{LINEAGE} of {where}")
        return cls(log, files)


def _read_files(files: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    for path, facts in files.items():
        whole = isinstance(facts, dict) and set(facts) == {"sha256", "git_oid", "size"}
        if not whole or type(facts["size"]) is not int or not _DIGEST.fullmatch(str(facts["sha256"])):
            raise ValueError(f"its entry of the file {path!r} is not a hash and a size")
    return files


def file_facts(files: Mapping[str, Content]) -> dict[str, dict[str, Any]]:
    """Hash and size of each file, as a lineage lists them."""
    return {
        path: {"sha256": files[path].sha256, "git_oid": files[path].git_oid, "size": files[path].size}
        for path in sorted(files)
        if path != LINEAGE
    }


def free_tag(label: str, taken: Iterable[str]) -> str:
    """`task-<label>`, or with `.2`, `.3`, ... behind it where that is taken: a published tag never moves."""
    taken = set(taken)
    tag, number = f"task-{label}", 2
    while tag in taken:
        tag, number = f"task-{label}.{number}", number + 1
    return tag


def find_content(log: Iterable[Entry], content: str) -> Entry | None:
    """The task of a log that holds exactly this content, if it was published already."""
    return next((entry for entry in log if entry.kind == "task" and entry.content == content), None)
