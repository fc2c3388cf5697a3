"""One connection: reads requests, lets faults happen to them, sends the answers."""

import socket
import struct
import time
import traceback
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from .faults import Fault
from .routes import Call, Response, Route, answer, find, refusal
from .store import HubError

if TYPE_CHECKING:
    from .server import HubServer, Request


def corrupted(data: bytes) -> bytes:
    """The same length with one bit changed in the middle, where a file's header doesn't show it."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def truncated(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


DAMAGE = {"corrupt": corrupted, "truncate": truncated}


def fault_response(fault: Fault) -> Response:
    """The answer of a "status" or "status_after"."""
    # What the client takes for a repo that is missing would be a different error from the one asked for.
    texts = {401: "Invalid credentials in Authorization header", 429: "Too many requests"}
    error = HubError(fault.status, texts.get(fault.status, f"Injected {fault.status}"), fault.code)
    if fault.retry_after is not None:
        error.headers["Retry-After"] = str(fault.retry_after)
    return refusal(error)


class Handler(BaseHTTPRequestHandler):
    """Serves one connection for as long as the client keeps it."""

    protocol_version = "HTTP/1.1"
    server_version = "TestHub"
    # Headers and body leave in one packet: two small ones would wait for each other's acknowledgement.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    skew = 0.0

    @property
    def hub(self) -> "HubServer":
        """The server that this connection belongs to."""
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, off by what a "skew" says."""
        return super().date_time_string(time.time() + self.skew if timestamp is None else timestamp)

    def do_GET(self) -> None:
        """Serve any method."""
        address, _, query = self.path.partition("?")
        step, route, arguments = find(self.command, address)
        record = self.hub.record(self.command, self.path, step)
        fault, self.skew = self.hub.faults.take(step, self.path)
        kind = fault.kind if fault else None
        if fault is not None and kind == "refuse":
            return self._hang_up(fault.reset)
        if fault is not None and kind == "drop" and self._read_body(half=True):
            return self._hang_up(fault.reset)
        body = self._read_body()
        if fault is not None and kind == "stall":
            # The body is read: a socket closed on unread bytes would reset instead of end.
            self.hub.wait(fault.seconds or 0.0)
            return self._hang_up(reset=False)
        if fault is not None and kind == "status":
            return self._send(fault_response(fault), record)
        if kind in DAMAGE and step == "lfs_put":
            body = DAMAGE[kind](body)
        response = self._answer(route, address, query, arguments, body)
        if fault is not None and kind == "drop_after":
            return self._hang_up(fault.reset)
        if fault is not None and kind == "status_after":
            response = fault_response(fault)
        elif kind in DAMAGE and step != "lfs_put":
            response.body = DAMAGE[kind](response.body)
        if fault is not None and kind == "drop":
            self._send(response, record, part=len(response.body) // 2)
            return self._hang_up(fault.reset)
        return self._send(response, record)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(
        self, route: Route, address: str, query: str, arguments: dict[str, str | None], body: bytes
    ) -> Response:
        hub = self.hub
        with hub.store.lock:
            now = time.time() + self.skew
            call = Call(hub.store, hub.url, hub.page_size, address, arguments, parse_qs(query), self.headers, body, now)
            try:
                return route(call)
            except HubError as error:
                return refusal(error)
            except Exception as error:
                traceback.print_exc()
                return answer({"error": f"{type(error).__name__}: {error}"}, 500)

    def _send(self, response: Response, record: "Request", part: int | None = None) -> None:
        # Before the bytes: the client's next line of code may look at it.
        record.status = response.status
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:part])
        self.wfile.flush()

    def _read_body(self, half: bool = False) -> bytes:
        """The request's body, or half of it (of its first chunk) to stop there."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read((size + 1) // 2 if half else size))
                if half:
                    break
                self.rfile.readline()
            else:
                while self.rfile.readline().strip():
                    pass
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read((size + 1) // 2 if half else size)

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
