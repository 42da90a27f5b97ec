"""What the commands print: tables on a terminal, stable JSON with --json; and what their errors look like."""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

from pgqueue.config import Exit
from pgqueue.database import errors_translated
from pgqueue.errors import (
    BadValue,
    Configuration,
    DatabaseUnreachable,
    IdConflict,
    NotConfigured,
    NotPermitted,
    PgQueueError,
    SchemaMissing,
    UnknownJob,
    UnknownQueue,
    UnknownSchedule,
    UnknownWorkflow,
)
from pgqueue.logs import harmless

_CODES: dict[type[PgQueueError], Exit] = {
    DatabaseUnreachable: Exit.UNREACHABLE,
    NotConfigured: Exit.CONFIG,
    Configuration: Exit.CONFIG,
    SchemaMissing: Exit.CONFIG,
    NotPermitted: Exit.CONFIG,
    BadValue: Exit.USAGE,
    UnknownJob: Exit.FAILED,
    UnknownQueue: Exit.FAILED,
    UnknownWorkflow: Exit.FAILED,
    UnknownSchedule: Exit.FAILED,
    IdConflict: Exit.FAILED,
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that we know become one line on stderr and an exit code."""
    try:
        with errors_translated():
            yield
    except PgQueueError as error:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), Exit.FAILED)
        click.echo(f"pgqueue: {harmless(' '.join(str(error).split()))}", err=True)
        sys.exit(code)


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Leave quietly, with exit code 0, when the reader of our output has gone."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer
        sys.exit(Exit.OK)


def _reader_has_gone() -> bool:
    look = select.poll()
    look.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in look.poll(0))


def cell(value: Any) -> str:
    """One value in a table."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.1f}"
    return harmless(str(value))


def length(seconds: float) -> str:
    """A length of time as people write it, and as the options of commands take it.

    >>> length(2592000), length(5400), length(90), length(7.5), length(0)
    ('30d', '1h30m', '90s', '7.5s', '0s')
    """
    text, rest = "", seconds
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if rest >= size and (seconds >= 120 or rest == size):
            text += f"{int(rest // size)}{unit}"
            rest %= size
    return text + (f"{rest:.6f}".rstrip("0").rstrip(".") + "s" if rest or not text else "")


def many(amount: int, what: str) -> str:
    """So many of something.

    >>> many(1, "worker"), many(2000, "worker")
    ('1 worker', '2,000 workers')
    """
    return f"{amount:,} {what}{'s' * (amount != 1)}"


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    """A table, or a JSON array of objects."""
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(c), *(len(row[i]) for row in cells)) if cells else len(c) for i, c in enumerate(columns)]
    if sys.stdout.isatty():
        widths[-1] = max(4, min(widths[-1], shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * len(widths)))
    for line in [list(columns), *cells]:
        click.echo("  ".join(text[:width].ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def show_json(value: Any) -> None:
    """A JSON document."""
    click.echo(json.dumps(value, default=_json_default, indent=2, ensure_ascii=False))


def _json_default(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def show_fields(fields: Mapping[str, Any]) -> None:
    """One thing, a line for each of its fields."""
    width = max(map(len, fields))
    for name, value in fields.items():
        if value is not None:
            click.echo(f"{name.ljust(width)}  {cell(value)}")
