"""What a repository tells of its life: its log, a return to an earlier revision, and whether everything is whole."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_lifealign.hub.cards import LOG_HEAD, log_rows
from hf_lifealign.hub.contents import CARD, LINEAGE, WEIGHTS, Content, content_digest
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.fetch import Fetched, fetch_revision
from hf_lifealign.hub.lineage import Entry, file_facts
from hf_lifealign.hub.publish import Published, PushOptions, message, whole_revision
from hf_lifealign.hub.record import RunRecord
from hf_lifealign.hub.remote import Head, Remote
from hf_lifealign.report.table import markdown_table


def existing_head(remote: Remote) -> Head:
    """The head of a repository of revisions.

    Raises:
        HubError: if there is no such repository, or nothing was published in it.
    """
    head = remote.head()
    if head is None:
        raise HubError(f"There is no repository {remote.repo_id}, or the token may not see it. Check its name.")
    if head.lineage is None:
        raise HubError(f"{remote.repo_id} has no {LINEAGE}: no lifelong run was published in it.")
    return head


def read_log(remote: Remote) -> list[dict[str, Any]]:
    """The log of a repository, oldest first: each entry as JSON, with the `commit` of its tag (`None`: no such tag)."""
    head = existing_head(remote)
    return [e.to_dict() | {"commit": head.tags.get(e.tag) if e.kind == "task" else None} for e in head.log]


def log_text(remote: Remote) -> str:
    """The log as a table for a terminal."""
    head = existing_head(remote)
    commits = [(head.tags.get(e.tag) or "no tag")[:12] if e.kind == "task" else "-" for e in head.log]
    rows = [[row[0], commit, *row[1:]] for row, commit in zip(log_rows(head.log), commits, strict=True)]
    table = markdown_table((LOG_HEAD[0], "commit", *LOG_HEAD[1:]), rows, left=4)
    now = head.log[-1]
    at = now.tag if now.kind == "task" else f"{now.tag}, by a rollback"
    return f"{table}\n\nmain is at {at} ({head.commit[:12]})."


def rollback(
    remote: Remote,
    revision: str,
    options: PushOptions | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Published:
    """A new commit on main that restores an earlier revision; what was published in between keeps its tags.

    Args:
        remote ([`Remote`]): the repository.
        revision (`str`): tag or commit to restore.
        options ([`PushOptions`], *optional*): attempts, waits, licence.
        now (`Callable`): the clock.

    Returns:
        `Published`: with the commit; `fresh` tells whether main was not there already.

    Raises:
        HubError: if the revision is not one of the repository's, or the Hub refuses.
    """
    options = options or PushOptions()
    date = now().isoformat(timespec="seconds")
    return options.until_done(lambda: _rollback(remote, revision, options, date))


def _rollback(remote: Remote, revision: str, options: PushOptions, date: str) -> Published:
    head = existing_head(remote)
    fetched = fetch_revision(remote.repo_id, revision, api=remote.api)
    if fetched.lineage is None:
        raise HubError(f"{remote.repo_id}@{revision} has no lineage, so it cannot be restored. Name the tag of a task.")
    target = fetched.lineage.entry
    if target.content not in [entry.content for entry in head.log]:
        raise HubError(f"{remote.repo_id}@{revision} is not in the log of main. Name one of `lifealign log`.")
    label, tag, content = target.label, target.tag, target.content
    if head.log[-1].content == content:
        return Published(label, tag, head.commit, content, False)
    fields = target.to_dict() | {"kind": "rollback", "date": date, "parent": None}
    fields["license"] = options.license or target.license
    entry = Entry.read(fields)
    files = {path: Content(fetched.folder / path) for path in fetched.lineage.files if path != CARD}
    whole = whole_revision(files, (*head.log, entry), remote)
    commit = remote.commit(whole, head, f"Back to {tag}", message(entry))
    remote.check_tree(commit, file_facts(whole))
    return Published(label, tag, commit, content, True)


@dataclass(frozen=True)
class Verified:
    """Result of a check.

    Args:
        name (`str`): the revision.
        commit (`str`): its commit; empty if it could not be found.
        files (`int`), size (`int`): how many files were hashed, and their bytes.
        fault (`str`, *optional*): what is wrong; `None` if all is well.
    """

    name: str
    commit: str
    files: int
    size: int
    fault: str | None


def verify(remote: Remote, revision: str | None = None) -> list[Verified]:
    """Fetches revisions and hashes every file of them again.

    Args:
        remote ([`Remote`]): the repository.
        revision (`str`, *optional*): tag, branch or commit; main and all tasks of its log by default.

    Returns:
        `list[Verified]`: one for each revision.
    """
    if revision is not None:
        return [_verify(remote, revision, None)]
    head = existing_head(remote)
    found = [_verify(remote, "main", head.log[-1])]
    for entry in head.log:
        if entry.kind == "task":
            if entry.tag in head.tags:
                found.append(_verify(remote, entry.tag, entry))
            else:
                found.append(Verified(entry.tag, "", 0, 0, "its tag is missing; push the run again to set it"))
    return found


def _verify(remote: Remote, revision: str, expected: Entry | None) -> Verified:
    try:
        # what the cache holds says nothing of what the Hub holds
        with tempfile.TemporaryDirectory() as cache:
            fetched = fetch_revision(remote.repo_id, revision, api=remote.api, cache_dir=cache)
            if fetched.lineage is None:
                raise DamagedRevisionError(f"it has no {LINEAGE}")
            if expected is not None and fetched.lineage.entry != expected:
                raise DamagedRevisionError("its lineage is not that which the log of main names")
            check_revision(fetched)
    except DamagedRevisionError as error:
        return Verified(revision, "", 0, 0, str(error))
    sizes = [facts["size"] for facts in fetched.lineage.files.values()]
    return Verified(revision, fetched.commit, len(sizes), sum(sizes), None)


def check_revision(fetched: Fetched) -> None:
    """Checks what the hashes of single files cannot tell: that the revision is the one its lineage names, that its
    record can be read, and that memory and weights belong together.

    Raises:
        DamagedRevisionError: saying what does not fit.
    """
    assert fetched.lineage is not None
    files = {path: Content(fetched.folder / path) for path in fetched.lineage.files}
    if content_digest(files) != fetched.lineage.entry.content:
        raise DamagedRevisionError("its content is not the one that its lineage names")
    record = RunRecord.read(fetched.folder)
    if record.label != fetched.lineage.entry.label:
        raise DamagedRevisionError(f"its record is that of {record.label}, its lineage that of another task")
    if "slmc/memory.json" in files:
        _check_memory(fetched.folder)


def _check_memory(folder: Path) -> None:
    from hf_lifealign.slmc import Memory, SLMCMemoryError

    try:
        Memory.load(folder / "slmc").check_adapter(folder / WEIGHTS)
    except SLMCMemoryError as error:
        raise DamagedRevisionError(str(error)) from error


def verify_text(repo_id: str, found: list[Verified]) -> str:
    """The result as text for a terminal."""
    lines = []
    for item in found:
        if item.fault:
            lines.append(f"FAILED  {item.name}: {item.fault}")
        else:
            lines.append(f"ok      {item.name} ({item.commit[:12]}): {item.files} files, {item.size / 1e6:.1f} MB")
    bad = sum(item.fault is not None for item in found)
    lines.append(f"{repo_id}: {'all is well' if not bad else f'{bad} of {len(found)} revisions are damaged'}.")
    return "\n".join(lines)
