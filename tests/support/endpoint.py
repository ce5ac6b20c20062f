"""A local server behind the OpenAI protocol for chats, which answers as a test says, and misbehaves if it says so."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from s1jax.runtime import endpoint


class Server(ThreadingHTTPServer):
    """Answers `reply(body)`, where `body` is a request.

    Text is the content of a message, a dict is a message, bytes are a raw body, a number is an HTTP state. A function does the rest with
    the handler.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Any]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests = reply, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that a test breaks."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        reply = self.server.reply(body)
        if callable(reply):
            reply(self)
        elif isinstance(reply, int):
            self.send(b"{}", reply)
        elif isinstance(reply, bytes):
            self.send(reply)
        else:
            message = {"role": "assistant"} | (reply if isinstance(reply, dict) else {"content": reply})
            choice = {"message": message, "finish_reason": message.pop("finish_reason", "stop")}
            usage = {"prompt_tokens": 10, "completion_tokens": 5}
            self.send(json.dumps({"choices": [choice], "usage": usage}).encode())

    def send(self, body: bytes, state: int = 200, length: int | None = None, **headers: str) -> None:
        """Send a body. With a `length` above its own the connection ends before the body does."""
        self.send_response(state)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = length is not None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[dict[str, Any]], Any]], Server]]:
    """Starts servers. Meanwhile no further try waits."""
    monkeypatch.setattr(endpoint, "_PAUSES", (0,))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(reply: Callable[[dict[str, Any]], Any]) -> Server:
        server = Server(reply)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
