"""``pgqueue health``: asks the port of a supervisor how it is. Imports next to nothing, because probes run every few seconds, in
every container: no application, no database, not even the command line (see cli/__init__.py)."""

from __future__ import annotations

import os
import socket
import sys

PATHS = {"live": "/livez", "ready": "/readyz"}
USUAL = "127.0.0.1:9909"
SECONDS = 5.0


def ask(what: str, address: str | None, seconds: float = SECONDS) -> tuple[bool, str]:
    """Is it so, and what was said."""
    address = address or os.environ.get("PGQUEUE_METRICS") or USUAL
    host, _, port = address.rpartition(":")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104 -- nothing is bound
    try:
        with socket.create_connection((host, int(port)), seconds) as supervisor:
            supervisor.settimeout(seconds)
            supervisor.sendall(f"GET {PATHS[what]} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            said = b""
            while data := supervisor.recv(4096):
                said += data
    except (OSError, ValueError) as error:
        return False, f"nobody answers at {address}: {error}. Is pgqueue work running, with --metrics {address}?"
    head, _, body = said.decode("utf-8", "replace").partition("\r\n\r\n")
    return head.split(" ")[1:2] == ["200"], body.strip() or "no answer"


def fast(arguments: list[str]) -> int | None:
    """The exit code; None: these arguments are for the command line as a whole."""
    what, *rest = arguments or [""]
    if what not in PATHS or len(rest) not in (0, 2) or (rest and rest[0] != "--metrics"):
        return None
    well, said = ask(what, rest[1] if rest else None)
    print(said, file=sys.stdout if well else sys.stderr)
    return 0 if well else 1
