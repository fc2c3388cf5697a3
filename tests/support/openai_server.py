"""A real HTTP server that speaks OpenAI's protocol."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OpenAIServer(ThreadingHTTPServer):
    """Remembers what it was asked, and fails as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.fail: list[int] = []
        self.odd: Any = None
        self.lock, self.running, self.most = threading.Lock(), 0, 0
        self.hold: float = 0.0
        self.answer: Callable[[str], str] = lambda prompt: f"You said: {prompt} ### and more"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body | {"path": self.path})
            self.server.keys.append(self.headers.get("Authorization", ""))
            status = self.server.fail.pop(0) if self.server.fail else 200
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        threading.Event().wait(self.server.hold)
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        text = self.server.answer(prompt)
        for stop in body.get("stop", []):
            text = text.split(stop)[0]
        choice = {"index": 0, "finish_reason": "length" if "long" in prompt else "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        answer = {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice],
                  "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}}  # fmt: skip
        if status != 200:
            answer = {"error": {"message": f"status {status}", "type": "x", "code": None}}
        if self.server.odd is not None:
            answer = self.server.odd
        content = json.dumps(answer).encode()
        with self.server.lock:
            self.server.running -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass
