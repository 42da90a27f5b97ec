"""A proxy between clients and PostgreSQL that understands the frames of protocol 3, and can break the connection at any message.

It listens on TCP on this machine, and talks to the server as libpq would. Messages of the connections that are meant are
counted in the order in which they come by, in both directions, from the moment at which a cut is armed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from psycopg import conninfo

#: What can be done to message k.
MODES = {
    "drop": "the message never arrives, and the connection is closed",
    "cut": "the message is forwarded, and then the connection is closed",
    "reset": "the message is forwarded, and then the connection is reset",
    "silence": "nothing passes for a second, in both directions; then the connection is reset",
    "delay": "the message, and all behind it, is late by half a second",
}
SILENCE, DELAY = 1.0, 0.5  # seconds
_STARTUP = struct.Struct("!I")
_FRAME = struct.Struct("!cI")


@dataclass
class Cut:
    """What is to be done at which message. ``passed``: how many have come by since."""

    at: int
    mode: str
    meant: Callable[[str], bool]
    passed: int = 0
    what: str = ""  # the message that it hit
    done: threading.Event = field(default_factory=threading.Event)

    def comes(self, name: str, direction: str, kind: str) -> bool:
        """Is this the message?"""
        if self.done.is_set() or not self.meant(name):
            return False
        self.passed += 1
        if self.passed != self.at:
            return False
        self.what = f"{direction} {kind} of {name}"
        self.done.set()
        return True


class _Link:
    """One connection of a client."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.name = ""  # the application_name
        self.client = (reader, writer)
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
        self.silent = False

    async def run(self) -> None:
        try:
            self.server = await asyncio.open_unix_connection(self.proxy.upstream)
        except OSError:  # the server is away
            self.client[1].close()
            return
        ways = [
            asyncio.create_task(self._way(*way))
            for way in (("to server", self.client, self.server), ("to client", self.server, self.client))
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self.close()

    async def _way(self, direction: str, source: Any, target: Any) -> None:
        reader, writer = source[0], target[1]
        try:
            if direction == "to server":
                await self._startup(reader, writer)
            while True:
                head = await reader.readexactly(_FRAME.size)
                kind, length = _FRAME.unpack(head)
                frame = head + await reader.readexactly(length - 4)
                await self._pass(direction, kind.decode("latin-1"), frame, writer)
        except (asyncio.IncompleteReadError, OSError):
            return

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(_STARTUP.size)
        body = await reader.readexactly(_STARTUP.unpack(head)[0] - 4)
        words = body[4:].split(b"\0")
        if b"application_name" in words:
            self.name = words[words.index(b"application_name") + 1].decode()
        writer.write(head + body)

    async def _pass(self, direction: str, kind: str, frame: bytes, writer: asyncio.StreamWriter) -> None:
        cut = self.proxy.cut
        hit = cut is not None and cut.comes(self.name, direction, kind)
        mode = cut.mode if cut is not None and hit else ""
        if mode == "delay":
            await asyncio.sleep(DELAY)
        while self.silent or self.proxy.blocks(self.name, direction):
            await asyncio.sleep(0.02)
        if mode == "silence":
            self.silent = True
            await asyncio.sleep(SILENCE)
        if mode in ("drop", "silence"):
            self.close(reset=mode == "silence")
            raise OSError
        writer.write(frame)
        await writer.drain()
        if mode in ("cut", "reset"):
            self.close(reset=mode == "reset")
            raise OSError

    def close(self, reset: bool = False) -> None:
        for _, writer in (self.client, self.server):
            if reset and (raw := writer.get_extra_info("socket")) is not None and raw.family == socket.AF_INET:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if reset else writer.close()


class Proxy:
    """Runs in a thread of its own until the block ends. ``dsn`` leads through it."""

    def __init__(self, server_dsn: str) -> None:
        parts = conninfo.conninfo_to_dict(server_dsn)
        self.upstream = f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"
        self._server_dsn = server_dsn
        self.cut: Cut | None = None
        self._blocked: Callable[[str, str], bool] | None = None
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def dsn(self) -> str:
        """The same database, on the way through the proxy."""
        return conninfo.make_conninfo(self._server_dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")

    def arm(self, at: int, mode: str, meant: Callable[[str], bool]) -> Cut:
        """Break the ``at``-th message from now on, of connections whose application_name is meant."""
        self.cut = Cut(at, mode, meant)
        return self.cut

    def block(self, what: Callable[[str, str], bool] | None) -> None:
        """From now on nothing passes of these connections, in these directions, and nobody is told. None: all passes again."""
        self._blocked = what

    def blocks(self, name: str, direction: str) -> bool:
        """Is this way blocked?"""
        return self._blocked is not None and self._blocked(name, direction)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = listener.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        listener.close()
        self._loop.run_until_complete(self._leave())
        self._loop.close()

    async def _leave(self) -> None:
        """Close what is open."""
        links = asyncio.all_tasks() - {asyncio.current_task()}
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        await asyncio.sleep(0)  # what was closed is gone one turn later

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Link(self, reader, writer).run()
