"""A small HTTP server, in one thread, for a few pages that are only read. No client can keep it: each has some seconds, whoever
comes when there are too many takes the place of the one that has been there for longest, and nothing here waits for anybody.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a client has to ask, and to read the answer
MOST_CLIENTS = 50
LONGEST_REQUEST = 8192  # bytes
BIND_AGAIN = 1.0  # seconds
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Answer(NamedTuple):
    """What a page says."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[str], Answer]
"""Is given the header ``Accept``."""


@dataclass
class _Client:
    connection: socket.socket
    until: float
    asked: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Server(threading.Thread):
    """Serves ``pages``, by path. Where the address is taken, it tries again until it is free."""

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Page]) -> None:
        super().__init__(name="pgqueue-http", daemon=True)
        self._address = address
        self._pages = pages
        self._clients: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        while True:
            try:
                with self._bound() as door:
                    self._serve(door)
            except Exception:  # without probes a healthy host would be restarted
                log.exception("internal error")
                time.sleep(BIND_AGAIN)

    def _bound(self) -> socket.socket:
        warned = False
        while True:
            try:
                family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
                door = socket.create_server(self._address, family=family, backlog=128)
            except OSError as error:
                if not warned:
                    log.warning("http: cannot listen on %s:%d, trying again: %s", *self._address, error.strerror or error)
                warned = True
                time.sleep(BIND_AGAIN)
            else:
                door.setblocking(False)
                log.info("http: listening on %s:%d", *door.getsockname()[:2])
                return door

    def _serve(self, door: socket.socket) -> None:
        self._selector.register(door, selectors.EVENT_READ)
        try:
            while True:
                first = min((client.until for client in self._clients.values()), default=None)
                for key, _ in self._selector.select(None if first is None else max(0.0, first - time.monotonic())):
                    if key.fileobj is door:
                        self._accept(door)
                    elif (client := self._clients.get(key.fd)) is not None:
                        self._go_on(client)
                for client in [client for client in self._clients.values() if client.until <= time.monotonic()]:
                    self._leave(client)
        finally:
            self._selector.unregister(door)
            for client in list(self._clients.values()):
                self._leave(client)

    def _accept(self, door: socket.socket) -> None:
        try:
            connection, _ = door.accept()
        except OSError:  # it has gone again; or there are no descriptors left
            time.sleep(0.01)
            return
        connection.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._leave(min(self._clients.values(), key=lambda client: client.until))
        self._clients[connection.fileno()] = _Client(connection, time.monotonic() + PATIENCE)
        self._selector.register(connection, selectors.EVENT_READ)

    def _leave(self, client: _Client) -> None:
        self._selector.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        client.connection.close()

    def _go_on(self, client: _Client) -> None:
        """Read a piece of the question, or write a piece of the answer."""
        try:
            if client.answer is None:
                data = client.connection.recv(4096)
                client.asked += data
                if b"\r\n\r\n" not in client.asked and data and len(client.asked) <= LONGEST_REQUEST:
                    return
                client.answer = memoryview(self._answer(bytes(client.asked)))
                self._selector.modify(client.connection, selectors.EVENT_WRITE)
            client.answer = client.answer[client.connection.send(client.answer) :]
            if not client.answer:
                client.connection.shutdown(socket.SHUT_WR)
                self._leave(client)
        except BlockingIOError:
            pass
        except OSError:  # it has gone
            self._leave(client)

    def _answer(self, asked: bytes) -> bytes:
        head, end, _ = asked.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        page = self._pages.get(words[1].partition("?")[0]) if len(words) == 3 else None
        if not end and len(asked) > LONGEST_REQUEST:
            answer = Answer(431, b"too long\n")
        elif not end or len(words) != 3 or not words[2].startswith("HTTP/1."):
            answer = Answer(400, b"this is no HTTP\n")
        elif words[0] not in ("GET", "HEAD"):
            answer = Answer(405, b"pages are only read here\n")
        elif page is None:
            answer = Answer(404, f"there are {', '.join(self._pages)}\n".encode())
        else:
            headers = dict(line.lower().partition(":")[::2] for line in lines[1:])
            try:
                answer = page(headers.get("accept", "").strip())
            except Exception:
                log.exception("http: %s", words[1])
                answer = Answer(500, b"internal error: see the log\n")
        said = f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        said += f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
        said += "Allow: GET, HEAD\r\n\r\n" if answer.status == 405 else "\r\n"
        return said.encode() + (b"" if words[0] == "HEAD" else answer.body)
