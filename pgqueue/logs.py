"""The log: one record, one line, one write to stderr; text for people, JSON for machines.

Nothing stops because nobody reads: what stderr does not take at once is dropped and counted. What the records say is made
harmless: no line of it looks like another record, nothing steers a terminal, and no password of the database is in it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import stat
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

from pgqueue.context import log_fields, process
from pgqueue.database import brief, secrets_of
from pgqueue.meter import Meter
from pgqueue.metrics import LOG_DROPPED

LONGEST = 4096  # bytes: a pipe takes so many as one piece, or none of them
FIELDS = ("role", "pid", "worker", "job_id", "workflow", "queue", "attempt", "step", "duration_ms", "logger")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORTEST_SECRET = 4  # characters: to hide less would make every record unreadable


def harmless(text: str) -> str:
    """A text from elsewhere, without what could steer a terminal or forge a line of a log."""
    return _UNPRINTABLE.sub(lambda match: repr(match.group())[1:-1], text)


def described(error: BaseException | None) -> str:
    """The traceback of an error and of what it came from."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append("".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__qualname__}: {brief(error)}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nthen:\n".join(reversed(parts))


class Lines(logging.Formatter):
    """Makes a line of a record."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._secrets: list[str] = []

    def hide(self, secrets: Iterable[str]) -> None:
        """These must not be seen in any record either: what was a password once is one elsewhere, or again."""
        found = {form for secret in secrets for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1])}
        found = {form for form in found if len(form) >= _SHORTEST_SECRET}
        self._secrets = sorted(found.union(self._secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        known = {"role": process.role, "pid": os.getpid(), "worker": process.worker, **log_fields()}
        if record.name.partition(".")[0] != "pgqueue":
            known["logger"] = record.name
        given = {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        fields = {name: self._field(value) for name, value in {**known, **given}.items() if value is not None}
        error = record.exc_info[1] if record.exc_info else None
        said = {
            "msg": self._clean(_message(record)),
            "listing": self._clean(str(getattr(record, "listing", ""))),  # lines that belong to the message
            "exc": self._clean(described(error)) if error is not None else "",
        }
        said = {name: _shortened(text, LONGEST) for name, text in said.items()}
        while True:
            line = (self._json if self._as_json else self._text)(record, fields, said)
            longest = max(said, key=lambda name: len(said[name]))
            if len(line.encode("utf-8", "replace")) < LONGEST or len(said[longest]) < 100:
                return line
            said[longest] = _shortened(said[longest], len(said[longest]) * 3 // 4)

    def _field(self, value: Any) -> Any:
        return value if isinstance(value, (int, float)) else self._clean(str(value)[:200])

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _json(self, record: logging.LogRecord, fields: dict[str, Any], said: dict[str, str]) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        whole = {"ts": stamp, "level": record.levelname, "msg": "\n".join(filter(None, (said["msg"], said["listing"])))}
        whole.update({name: fields[name] for name in FIELDS if fields.get(name) is not None})
        if said["exc"]:
            whole["exc"] = said["exc"]
        return json.dumps(whole).replace("\x7f", "\\u007f")

    def _text(self, record: logging.LogRecord, fields: dict[str, Any], said: dict[str, str]) -> str:
        stamp = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        more = "".join(f" {name}={harmless(str(fields[name]))}" for name in FIELDS[3:] if fields.get(name) is not None)
        lines = [line for text in (said["listing"], said["exc"]) if text for line in text.split("\n")]
        below = "".join(f"\n    {harmless(line)}" for line in lines)
        return f"{stamp} {record.levelname:<7} {fields['role']}[{fields['pid']}] {harmless(said['msg'])}{more}{below}"


def _shortened(text: str, length: int) -> str:
    """The beginning and the end of it."""
    return text if len(text) <= length else f"{text[: length // 2]} [...] {text[length // 2 - length :]}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 -- whatever somebody's __str__ does
        return f"{record.msg!r} (cannot be formatted: {type(error).__name__})"


class Handler(logging.Handler):
    """Writes records to a descriptor, and never waits for it."""

    def __init__(self, descriptor: int, as_json: bool) -> None:
        super().__init__()
        self.lines = Lines(as_json)
        self.setFormatter(self.lines)
        self.dropped = 0
        self.on_drop: Callable[[], None] = lambda: None
        self._unsaid = 0  # dropped ones that nobody has been told of
        self._write, self._close = _writer(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record))
            if self._unsaid:
                dropped, self._unsaid = self._unsaid, 0
                note = logging.LogRecord(__name__, logging.WARNING, "", 0, "%d log records were dropped", (dropped,), None)
                self._send(self.format(note))
        except Exception:  # noqa: BLE001 -- a log never stops what it is about
            self._drop()

    def close(self) -> None:
        self._close()
        self._close = lambda: None
        super().close()

    def _send(self, line: str) -> None:
        try:
            self._write(line.encode("utf-8", "backslashreplace")[: LONGEST - 1] + b"\n")
        except OSError:  # it takes no more, or nobody reads it any more
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._unsaid += 1
        self.on_drop()


class Others(logging.Handler):
    """What libraries say of which nobody has said where it goes: warnings and errors go where ours do. Whoever configures logging
    (a handler of the root logger is enough) decides for himself."""

    def __init__(self, ours: Handler) -> None:
        super().__init__(logging.WARNING)
        self._ours = ours

    def emit(self, record: logging.LogRecord) -> None:
        self._ours.emit(record)


Writer = tuple[Callable[[bytes], Any], Callable[[], None]]


def _writer(descriptor: int) -> Writer:
    """How to write there without waiting, and how to stop. O_NONBLOCK on the descriptor itself would hold for all who have it."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return lambda data: os.write(descriptor, data), lambda: None
    if stat.S_ISFIFO(mode):
        try:
            ours = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # not ours to open, or there is no /proc
            pass
        else:
            return lambda data: os.write(ours, data), lambda: os.close(ours)
    if stat.S_ISSOCK(mode):
        stream = socket.socket(fileno=os.dup(descriptor))
        return lambda data: stream.send(data, socket.MSG_DONTWAIT), stream.close
    return lambda data: _write_if_ready(descriptor, data), lambda: None


def _write_if_ready(descriptor: int, data: bytes) -> int:
    look = select.poll()
    look.register(descriptor, select.POLLOUT)
    if not look.poll(0):
        raise BlockingIOError
    return os.write(descriptor, data)


def log_to_stderr(level: int = logging.INFO, format: str = "auto") -> Handler:
    """Our log, for this process and those that it forks. ``format``: text, json, or auto."""
    handler = Handler(2, not os.isatty(2) if format == "auto" else format == "json")
    logger = logging.getLogger("pgqueue")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.lastResort = Others(handler)
    return handler


def handler() -> Handler | None:
    """The one that this process writes its log with."""
    return next((found for found in logging.getLogger("pgqueue").handlers if isinstance(found, Handler)), None)


def hide(*dsns: str | None) -> None:
    """The passwords of these DSNs, and that of the environment, are in no record from now on."""
    if (ours := handler()) is not None:
        secrets = [secret for dsn in dsns if dsn for secret in secrets_of(dsn)]
        ours.lines.hide([*secrets, os.environ.get("PGPASSWORD", "")])


def count_dropped(meter: Meter) -> None:
    """Records that this process cannot write are counted from now on."""
    if (ours := handler()) is not None:
        ours.on_drop = lambda: meter.add(LOG_DROPPED)
