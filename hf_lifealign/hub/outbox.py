"""What of a run is still to be published: one file for each waiting task, and a list of what was sent and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, sweep, write_json
from hf_lifealign.hub.errors import HubError


def same_repository(one: str, other: str) -> bool:
    """Whether two names can mean one repository: equal, or one of them without its owner."""
    bare = "/" not in one or "/" not in other
    return one.rpartition("/")[2] == other.rpartition("/")[2] if bare else one == other


class Outbox:
    """`outbox/` of a run's folder.

    ```
    outbox/NN-<task>.json   a task that waits: repository, attempts, last error
    outbox/sent.json        repository and options of the last push; tag, commit and content of what was sent
    outbox/push.log         what pushes in the background said
    ```

    Args:
        run_dir (`Path`): folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "outbox"
        self._sent_file = self.folder / "sent.json"

    @property
    def log_file(self) -> Path:
        """What pushes in the background said."""
        return self.folder / "push.log"

    def _content(self) -> dict[str, Any]:
        return read_json(self._sent_file) if self._sent_file.is_file() else {}

    @property
    def target(self) -> dict[str, Any]:
        """`repo_id`, `push_replay`, `private` and `license` of the last push; empty before the first."""
        return dict(self._content().get("target") or {})

    def remember(self, repo_id: str, push_replay: str, private: bool | None, license: str | None) -> None:
        """Keeps where and how the run is published, so that it need not be said again."""
        target = {"repo_id": repo_id, "push_replay": push_replay, "private": private, "license": license}
        content = self._content()
        if content.get("target") != target:
            write_json(self._sent_file, content | {"target": target})

    def published(self, repo_id: str) -> dict[str, dict[str, str]]:
        """By label: tag, commit and content of what was sent to a repository."""
        sent = self._content().get("sent") or {}
        return {k: v for name in sent if same_repository(name, repo_id) for k, v in sent[name].items()}

    def waiting(self) -> dict[str, dict[str, Any]]:
        """By label: the tasks that are still to be sent, with the last error."""
        return {path.stem: read_json(path) for path in sorted(self.folder.glob("[0-9]*.json"))}

    def announce(self, label: str, repo_id: str) -> None:
        """Notes that a task is to be sent."""
        path = self.folder / f"{label}.json"
        if not path.is_file():
            write_json(path, {"repo_id": repo_id, "attempts": 0, "error": None, "date": None})

    def failed(self, label: str, repo_id: str, error: str) -> None:
        """Notes that a task could not be sent, and why. What waits for another repository goes on waiting for that."""
        path = self.folder / f"{label}.json"
        waiting: dict[str, Any] = read_json(path) if path.is_file() else {"repo_id": repo_id, "attempts": 0}
        if not same_repository(waiting["repo_id"], repo_id):
            return
        attempts = int(waiting["attempts"])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, {"repo_id": repo_id, "attempts": attempts + 1, "error": error, "date": now})

    def excuse(self, error: str) -> None:
        """Notes why nothing was sent, with every task that waits and has no reason yet."""
        for label, waiting in self.waiting().items():
            if not waiting["error"]:
                self.failed(label, waiting["repo_id"], error)

    def sent(self, label: str, repo_id: str, tag: str, commit: str, content: str) -> None:
        """Notes that a task was sent."""
        everything = self._content()
        sent = everything.setdefault("sent", {}).setdefault(repo_id, {})
        facts = {"tag": tag, "commit": commit, "content": content}
        if sent.get(label) != facts:
            sent[label] = facts
            write_json(self._sent_file, everything)
        path = self.folder / f"{label}.json"
        if path.is_file() and same_repository(read_json(path)["repo_id"], repo_id):
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, wait: float = 10.0) -> Iterator[None]:
        """Keeps a second push of the same run away.

        Raises:
            HubError: if another one is still at work after `wait` seconds.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:
            raise HubError(
                f"Another push of this run is under way ({self.folder}). Wait for it; `lifealign push` then sends what "
                "is missing.",
                True,
            ) from error
        try:
            sweep(self.folder)
            yield
        finally:
            lock.release()
