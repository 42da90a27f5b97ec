"""What the demo says: in colour with one living line on a terminal, in plain lines anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

import click

from pgqueue.logs import harmless

_PLAIN = str.maketrans({"✓": "+", "✗": "x", "━": "#", "─": "-", "·": "|", "…": ".", "→": ">"})
INDENT = "   "


class Screen:
    """Writes to one stream; ``None``: says nothing at all."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.alive = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self.alive and "NO_COLOR" not in os.environ
        self._unicode = stream is not None and _can_encode(stream, "✓✗━─·…→")
        self._status = False  # is the living line on the screen?
        self._last_plain = 0.0

    # ---------------------------------------------------------------------------------------------- lines

    def title(self, text: str) -> None:
        """The heading of a chapter."""
        self._line("")
        self._line(self._styled(text, bold=True))

    def say(self, text: str = "", *, dim: bool = False) -> None:
        """A line of the story."""
        self._line(self._styled(INDENT + text, dim=True) if dim and text else INDENT + text if text else "")

    def happened(self, who: str, what: str, *, killed: bool = False) -> None:
        """What a process did."""
        self._line(INDENT + "  " + self._styled(who.ljust(14), dim=True) + self._styled(what, fg="red" if killed else None))

    def code(self, source: str) -> None:
        """Lines of Python."""
        for line in source.splitlines():
            self._line(INDENT + "  " + self._styled(line, fg="cyan"))

    def verdict(self, good: bool, text: str) -> None:
        """How it ended."""
        mark = self._styled("✓" if good else "✗", fg="green" if good else "red", bold=True)
        self._line(f"{INDENT}{mark} {self._styled(text, bold=True)}")

    def table(self, rows: Sequence[tuple[str, str, bool | None]]) -> None:
        """Names, values, and whether the value is as it must be (None: any would do)."""
        width = max(len(name) for name, _, _ in rows) + 2
        figures = max(len(value.split("  ")[0]) for _, value, _ in rows)
        for name, value, good in rows:
            figure, _, rest = value.partition("  ")
            mark = "" if good is None else self._styled("✓" if good else "✗", fg="green" if good else "red", bold=True)
            figure = self._styled(figure.rjust(figures), bold=True)
            tail = self._styled("  " + rest, dim=True) if rest else ""
            self._line(f"{INDENT}{mark or ' '} {name.ljust(width)}{figure}{tail}")

    # --------------------------------------------------------------------------------------- what goes on

    def progress(self, done: int, total: int, text: str) -> None:
        """How far it is: one living line on a terminal, elsewhere a line now and then."""
        if self._stream is None:
            return
        if self.alive:
            width = 18
            full = width * done // max(total, 1)
            bar = self._styled("━" * full, fg="green") + self._styled("─" * (width - full), dim=True)
            room = shutil.get_terminal_size().columns - len(INDENT) - width - 3
            self._write(f"\r\x1b[2K{INDENT}{bar}  {self._plain(text)[: max(room, 0)]}")
            self._status = True
        elif time.monotonic() - self._last_plain >= 1.0:
            self._last_plain = time.monotonic()
            self._line(INDENT + text)

    def working(self, text: str) -> None:
        """Something that takes a moment, on a terminal only."""
        if self.alive:
            self._write(f"\r\x1b[2K{INDENT}{self._styled(self._plain(text), dim=True)}")
            self._status = True

    def clear(self) -> None:
        """Take the living line away."""
        if self._status:
            self._status = False
            self._write("\r\x1b[2K")

    # --------------------------------------------------------------------------------------------- inside

    def _line(self, text: str) -> None:
        self.clear()
        self._write(self._plain(text).rstrip() + "\n")

    def _plain(self, text: str) -> str:
        return text if self._unicode else text.translate(_PLAIN)

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text if self._unicode else text.encode("ascii", "replace").decode())
            self._stream.flush()

    def _styled(self, text: str, fg: str | None = None, bold: bool = False, dim: bool = False) -> str:
        text = harmless(text)
        return click.style(text, fg=fg, bold=bold or None, dim=dim or None) if self._colour and text else text


def screen(as_json: bool) -> Screen:
    """Standard output; where JSON goes there, standard error if somebody looks at it."""
    if not as_json:
        return Screen(sys.stdout)
    return Screen(sys.stderr if sys.stderr.isatty() else None)


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
