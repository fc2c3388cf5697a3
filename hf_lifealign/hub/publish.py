"""Publishes a run's tasks, one commit and one tag each, exactly once: content decides what is there already.

The order for each task: read the head and its log; if the content is in the log, find its commit, else make one commit
on that head; compare what the Hub then holds with what was sent; set the tag by the commit's id; check the tag. A
process that dies anywhere in between leaves a repository from which the next push goes on to the same end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_lifealign.hub.bundle import Bundle, PushReplay, build_bundle, finished_tasks
from hf_lifealign.hub.cards import revision_card
from hf_lifealign.hub.contents import CARD, LINEAGE, Content
from hf_lifealign.hub.errors import HubError
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


def push_run(run_dir: str | Path, remote: Remote, options: PushOptions | None = None) -> list[Published]:
    """Sends whatever finished task of a run is missing in a repository, in order.

    Args:
        run_dir (`str` or `Path`): folder of the run, finished or in progress.
        remote ([`Remote`]): the repository; it is made if it is not there.
        options ([`PushOptions`], *optional*): how.

    Returns:
        `list[Published]`: every finished task with its tag and commit.

    Raises:
        HubError: if a task could not be sent; those before it are published, and the outbox keeps the rest.
        NotPublishableError: if something in the folder must not be published.
    """
    options = options or PushOptions()
    root = Path(run_dir)
    outbox = Outbox(root)
    outbox.remember(remote.repo_id, options.push_replay, options.private, options.license)
    sent: list[Published] = []
    with outbox.lock():
        previous: Bundle | None = None
        # a run in progress may finish another task while this one is being sent
        while len(folders := finished_tasks(root)) > len(sent):
            folder = folders[len(sent)]
            settled = outbox.published(remote.repo_id).get(folder.name)
            try:
                bundle = build_bundle(root, folder, options.push_replay, remote.secrets)
                published = options.until_done(partial(publish, bundle, previous, remote, options, settled))
            except (HubError, OSError) as error:
                outbox.failed(folder.name, remote.repo_id, str(error))
                raise
            outbox.sent(published.label, remote.repo_id, published.tag, published.commit, published.content)
            sent.append(published)
            previous = bundle
    return sent


def publish(
    bundle: Bundle,
    previous: Bundle | None,
    remote: Remote,
    options: PushOptions,
    settled: Mapping[str, str] | None = None,
) -> Published:
    """One attempt to bring a task into a repository: does what is missing of commit, verification and tag.

    Args:
        bundle, previous ([`Bundle`]): the task, and the one before it in the same run, which is its parent.
        remote ([`Remote`]), options ([`PushOptions`]): where, and how.
        settled (`dict`, *optional*): tag, commit and content that an earlier push verified.
    """
    head = remote.head()
    if head is None:
        remote.create(options.private)
        head = remote.head()
        if head is None:
            raise HubError(f"{remote.repo_id} was created, but the Hub does not show it yet.", True)
    known = find_content(head.log, bundle.content)
    if known is not None:
        now = {"tag": known.tag, "commit": head.tags.get(known.tag), "content": known.content}
        if settled == now:
            return Published(known.label, known.tag, settled["commit"], known.content, False)
        return _complete(known, head, remote)
    remote.check_is_ours(head)
    tag = free_tag(bundle.record.label, [*head.tags, *(entry.tag for entry in head.log)])
    entry = new_entry(bundle, tag, parent_of(bundle, previous, head, remote.repo_id))
    files = whole_revision(bundle.files, (*head.log, entry), remote.repo_id, options.license)
    options.tell(f"Sending {bundle.record.label} as {tag} ({sum(c.size for c in files.values()) / 1e6:.1f} MB).")
    commit = remote.commit(files, head, f"Task {bundle.record.label}", message(entry))
    remote.check_tree(commit, file_facts(files))
    remote.tag(tag, commit)
    return Published(bundle.record.label, tag, commit, bundle.content, True)


def _complete(known: Entry, head: Head, remote: Remote) -> Published:
    """A task that is in the log: an earlier attempt made its commit and may have died before the tag."""
    commit = head.tags.get(known.tag) or remote.commit_with(known)
    lineage = remote.lineage(commit) if commit else None
    if commit is None or lineage is None or lineage.entry != known:
        raise HubError(
            f"The log of {remote.repo_id} names {known.tag}, but "
            + (f"that tag points at something else ({commit[:12]}). " if commit else "no commit holds it. ")
            + "The repository was changed by other means; publish to another one."
        )
    remote.check_tree(commit, lineage.files)
    if known.tag not in head.tags:
        remote.tag(known.tag, commit)
    return Published(known.label, known.tag, commit, known.content, False)


def new_entry(bundle: Bundle, tag: str, parent: dict[str, str | None] | None) -> Entry:
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
    )


def parent_of(bundle: Bundle, previous: Bundle | None, head: Head, repo_id: str) -> dict[str, str | None] | None:
    """The revision from which a task went on: the run's task before it, or the one that the run was continued from."""
    if previous is not None:
        entry = find_content(head.log, previous.content)
        if entry is None:
            raise HubError(f"{repo_id} lacks {previous.record.label}, from which the next task went on.", True)
        return {"repo": None, "tag": entry.tag, "content": entry.content, "commit": head.tags.get(entry.tag)}
    origin = bundle.record.origin
    if origin is None:
        return None
    return {
        "repo": None if origin.get("repo") == repo_id else origin.get("repo"),
        "tag": origin.get("tag"),
        "content": origin.get("content"),
        "commit": origin.get("commit"),
    }


def whole_revision(
    files: Mapping[str, Content], log: Sequence[Entry], repo_id: str, license: str | None
) -> dict[str, Content]:
    """A revision ready to be committed: its state with card and lineage."""
    whole = {path: content for path, content in files.items() if path not in (CARD, LINEAGE)}
    whole[CARD] = Content(revision_card(whole, log, repo_id, license).encode())
    whole[LINEAGE] = Content(Lineage(tuple(log), file_facts(whole)).to_bytes())
    return whole


def message(entry: Entry) -> str:
    """The description of a commit, by which it is found again."""
    return f"Published by hf_lifealign as {entry.tag}.\n\ncontent: {entry.content}"
