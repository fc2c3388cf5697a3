"""The server as tests use it."""

import base64
import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from .faults import Fault, Faults
from .handler import Handler, corrupted, truncated
from .store import Repo, Store


@dataclass
class Request:
    """One request that arrived; `status` is None where no answer was sent."""

    method: str
    path: str
    step: str
    status: int | None = None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: "HubServer", port: int) -> None:
        self.hub = hub
        self.open_connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self.open_connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close at once: the usual shutdown would announce an orderly end before a reset."""
        self.open_connections.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none of the server's business."""

    def server_close(self) -> None:
        """Stop listening and end the connections that clients kept."""
        super().server_close()
        for connection in list(self.open_connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class HubServer:
    """A Hugging Face Hub on 127.0.0.1 for the length of a `with`, all of it in memory."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.store = Store()
        self.faults = Faults()
        self.requests: list[Request] = []
        self.page_size = 1000
        self._listener: _Listener | None = None
        self._gate = threading.Event()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tokens(self) -> dict[str, tuple[str, str]]:
        """User and scope ("read" or "write") of every token."""
        return self.store.tokens

    def __enter__(self) -> Self:
        self.listen_again()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop_listening()

    def listen_again(self) -> None:
        """Start, or start again on the same port."""
        if self._listener is None:
            self._listener = _Listener(self, self.port)
            self.port = self._listener.server_address[1]
            threading.Thread(
                target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, name="test-hub", daemon=True
            ).start()

    def stop_listening(self) -> None:
        """Be gone: connections are refused and those that are open end. What is stored stays."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
        self.release()

    def fail(self, *faults: Fault) -> None:
        """Put faults in force."""
        for fault in faults:
            self.faults.append(fault)

    def release(self) -> None:
        """End the stalls that are on now."""
        gate, self._gate = self._gate, threading.Event()
        gate.set()

    def wait(self, seconds: float) -> None:
        """Stall until the time is over or `release`."""
        self._gate.wait(seconds)

    def record(self, method: str, path: str, step: str) -> Request:
        """Note a request that arrived."""
        request = Request(method, path, step)
        self.requests.append(request)
        return request

    @property
    def steps(self) -> list[str]:
        """The steps of all requests so far, in order."""
        return [request.step for request in self.requests]

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repo as it lies in the store."""
        return self.store.repos[repo_type, repo_id]

    def corrupt(self, repo_id: str, revision: str, path: str, repo_type: str = "model") -> None:
        """From now on downloads of a stored object get other bytes of the same length."""
        self._damage(repo_id, revision, path, repo_type, corrupted)

    def truncate(self, repo_id: str, revision: str, path: str, repo_type: str = "model") -> None:
        """From now on downloads of a stored object get its first half."""
        self._damage(repo_id, revision, path, repo_type, truncated)

    def _damage(self, repo_id: str, revision: str, path: str, repo_type: str, how: Any) -> None:
        with self.store.lock:
            repo = self.repo(repo_id, repo_type)
            blob = repo.commit_at(revision).tree[path]
            repo.damaged[blob.sha256] = how(blob.data)

    def elsewhere(self, repo_id: str, files: dict[str, bytes], title: str = "Somebody else's commit") -> str:
        """Commit past the HTTP door, as another machine would between two requests; the new head."""
        operations = [
            ("file", {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"})
            for path, data in files.items()
        ]
        with self.store.lock:
            return self.store.commit(self.repo(repo_id), "main", {"summary": title}, operations, "you", time.time()).oid


def client_environment(hub: HubServer, home: Path, token: str | None = "hf_test_write_me") -> dict[str, str]:
    """Environment of a subprocess whose Hugging Face libraries are to talk to this server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment.pop("TRANSFORMERS_OFFLINE", None)
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # A proxy of the machine would be asked for 127.0.0.1 too.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return environment | ({} if token is None else {"HF_TOKEN": token})
