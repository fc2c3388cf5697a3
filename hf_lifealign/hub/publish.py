"""Publishes a run's tasks, one commit and one tag each, exactly once: content decides what is there already.

The order for each task: read the head and its log; if the content is in the log, find its commit, else make one commit
on that head; compare what the Hub then holds with what was sent; set the tag by the commit's id; check the tag. A
process that dies anywhere in between leaves a repository from which the next push goes on to the same end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_lifealign.hub.bundle import Bundle, PushReplay, build_bundle, check_private, finished_tasks
from hf_lifealign.hub.cards import revision_card
from hf_lifealign.hub.contents import CARD, LINEAGE, Content
from hf_lifealign.hub.errors import HubError, NotPublishableError
from hf_lifealign.hub.lineage import Entry, Lineage, file_facts, find_content, free_tag
from hf_lifealign.hub.outbox import Outbox
from hf_lifealign.hub.patience import Patience
from hf_lifealign.hub.remote import Head, Remote


@dataclass(frozen=True)
class PushOptions(Patience):
    """How a run is published, and with how much patience.

    Args:
        private (`bool`, *optional*): whether a repository that is made is private; the account's default if `None`.
        push_replay (`str`): `"none"`, `"ids"` or `"rows"`, see [`build_bundle`].
        license (`str`, *optional*): licence of the adapter, for its card.
        attempts, first_wait, sleep, tell: see [`Patience`].
    """

    private: bool | None = None
    push_replay: PushReplay = "none"
    license: str | None = None


@dataclass(frozen=True)
class Published:
    """Where a task lies.

    Args:
        label, tag, commit, content (`str`): see [`Entry`].
        fresh (`bool`): whether this push made the commit.
    """

    label: str
    tag: str
    commit: str
    content: str
    fresh: bool


def push_run(run_dir: str | Path, remote: Remote | str, options: PushOptions | None = None) -> list[Published]:
    """Sends whatever finished task of a run is missing in a repository, in order.

    Args:
        run_dir (`str` or `Path`): folder of the run, finished or in progress.
        remote ([`Remote`] or `str`): the repository, or its name; it is made if it is not there.
        options ([`PushOptions`], *optional*): how.

    Returns:
        `list[Published]`: every finished task with its tag and commit.

    Raises:
        HubError: if a task could not be sent; those before it are published, and the outbox keeps the rest.
        NotPublishableError: if something in the folder must not be published.
    """
    options = options or PushOptions()
    remote = Remote(remote) if isinstance(remote, str) else remote
    root = Path(run_dir)
    outbox = Outbox(root)
    sent: list[Published] = []
    with outbox.lock():
        previous: str | None = None
        # a run in progress may finish another task while this one is being sent
        while len(folders := finished_tasks(root)) > len(sent):
            folder = folders[len(sent)]
            known = outbox.published(remote.repo_id)
            try:
                bundle = build_bundle(root, folder, options.push_replay, remote.secrets)
                published = options.until_done(partial(publish, bundle, previous, remote, options, known))
            except Exception as error:
                outbox.failed(folder.name, remote.repo_id, str(error) or type(error).__name__)
                if isinstance(error, HubError | OSError):
                    raise
                raise NotPublishableError(
                    f"{folder} cannot be published ({type(error).__name__}: {error}). A file in it was changed since "
                    "the run wrote it; restore it."
                ) from error
            outbox.sent(published.label, remote.repo_id, published.tag, published.commit, published.content)
            outbox.remember(remote.repo_id, options.push_replay, options.private, options.license)
            sent.append(published)
            previous = published.content
    return sent


def publish(
    bundle: Bundle,
    previous: str | None,
    remote: Remote,
    options: PushOptions,
    sent: Mapping[str, Mapping[str, str]] | None = None,
) -> Published:
    """One attempt to bring a task into a repository: does what is missing of commit, verification and tag.

    Args:
        bundle ([`Bundle`]): the task.
        previous (`str`, *optional*): digest of the one before it in the same run, which is its parent.
        remote ([`Remote`]), options ([`PushOptions`]): where, and how.
        sent (`dict`, *optional*): by label: tag, commit and content that earlier pushes verified.
    """
    sent = sent or {}
    head = remote.head()
    if head is None:
        remote.create(options.private)
        head = remote.head()
        if head is None:
            raise HubError(f"{remote.repo_id} was created, but the Hub does not show it yet.", True)
    known = find_content(head.log, bundle.content)
    if known is not None:
        now = {"tag": known.tag, "commit": head.tags.get(known.tag), "content": known.content}
        if options.license and options.license != known.license:
            options.tell(
                f"{known.tag} was published with the licence {known.license or 'not stated'!r} and stays as it is; "
                f"tasks that are still to come say {options.license!r}."
            )
        if sent.get(known.label) == now:
            return Published(known.label, known.tag, str(now["commit"]), known.content, False)
        return _complete(known, head, remote)
    remote.check_is_ours(head)
    if options.private:
        remote.check_is_private()
    tag = free_tag(bundle.record.label, [*head.tags, *(entry.tag for entry in head.log)])
    if previous is None and len(bundle.record.lived) > 1:
        lived = bundle.record.lived
        previous = (sent.get(f"{len(lived) - 1:02d}-{lived[-2]}") or {}).get("content")
    entry = new_entry(bundle, tag, parent_of(bundle, previous, head), options.license)
    files = whole_revision(bundle.files, (*head.log, entry), remote)
    options.tell(f"Sending {bundle.record.label} as {tag} ({sum(c.size for c in files.values()) / 1e6:.1f} MB).")
    commit = remote.commit(files, head, f"Task {bundle.record.label}", message(entry))
    remote.check_tree(commit, file_facts(files))
    remote.tag(tag, commit)
    return Published(bundle.record.label, tag, commit, bundle.content, True)


def _complete(known: Entry, head: Head, remote: Remote) -> Published:
    """A task that is in the log: an earlier attempt made its commit and may have died before the tag."""
    commit = head.tags.get(known.tag) or remote.commit_with(known)
    if commit is None:
        raise HubError(
            f"The log of {remote.repo_id} names {known.tag}, but no commit holds it: its history was rewritten. "
            "Publish to another repository."
        )
    lineage = remote.lineage(commit)
    if lineage is None or lineage.entry != known:
        raise HubError(
            f"The tag {known.tag} in {remote.repo_id} points at {commit[:12]}, which is not what was published under "
            "it. It was set by hand; nothing is rewritten. Delete it with `hf repos tag delete`, and push again."
        )
    remote.check_tree(commit, lineage.files)
    if known.tag not in head.tags:
        remote.tag(known.tag, commit)
    return Published(known.label, known.tag, commit, known.content, False)


def new_entry(bundle: Bundle, tag: str, parent: dict[str, str | None] | None, license: str | None) -> Entry:
    """The line of the log for a task."""
    record = bundle.record
    return Entry(
        kind="task",
        task=record.task,
        label=record.label,
        tag=tag,
        content=bundle.content,
        date=str((record.records.get(record.task) or {}).get("date") or ""),
        parent=parent,
        metrics=bundle.metrics,
        sizes=bundle.sizes,
        license=license,
    )


def parent_of(bundle: Bundle, previous: str | None, head: Head) -> dict[str, str | None] | None:
    """The revision from which a task went on: the run's task before it, or the one that the run was continued from.

    Returns:
        `dict`: `repo` (`None`: the same), `tag`, `content`, `commit`; all `None` if the task had a parent that is not
        known here; `None` for the first task of a life.
    """
    if len(bundle.record.lived) == 1:
        return None
    origin = bundle.record.origin if previous is None else None
    for content in [previous] if previous else (origin or {}).get("contents", []):
        entry = find_content(head.log, content)
        if entry is not None:
            return {"repo": None, "tag": entry.tag, "content": entry.content, "commit": head.tags.get(entry.tag)}
    origin = origin or {"contents": [previous]}
    known = {name: origin.get(name) for name in ("repo", "tag", "commit")}
    return known | {"content": origin["contents"][0] if origin["contents"] else None}


def whole_revision(files: Mapping[str, Content], log: Sequence[Entry], remote: Remote) -> dict[str, Content]:
    """A revision ready to be committed: its state with card and lineage.

    Raises:
        NotPublishableError: if the card would tell something private.
    """
    whole = {path: content for path, content in files.items() if path not in (CARD, LINEAGE)}
    whole[CARD] = Content(revision_card(whole, log, remote.repo_id).encode())
    whole[LINEAGE] = Content(Lineage(tuple(log), file_facts(whole)).to_bytes())
    check_private({name: whole[name] for name in (CARD, LINEAGE)}, remote.secrets, [Path.cwd()])
    return whole


def message(entry: Entry) -> str:
    """The description of a commit, by which it is found again."""
    return f"Published by hf_lifealign as {entry.tag}.\n\ncontent: {entry.content}"
