"""``pgqueue top``: what goes on, as one looks at it while something is wrong."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from pgqueue import database, protocol
from pgqueue.cli.options import DURATION, dsn_option
from pgqueue.cli.output import cell, many
from pgqueue.database import brief
from pgqueue.errors import DatabaseUnreachable

WINDOW = 10.0  # seconds over which rates are counted
FAILURES = 5


@click.command()
@click.option("--once", is_flag=True, help="Print it once, and leave.")
@click.option("--every", type=DURATION, default="2s", show_default=True, help="Look again after so long.")
@dsn_option
def top(once: bool, every: float, dsn: str | None) -> None:
    """Queues, workers, rates and the last failures, live. q quits."""
    where = database.dsn_from(dsn)
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        with database.connect(where, "pgqueue:top") as only:
            click.echo("\n".join(_lines(only)))
        return
    with _whole_screen():
        conn: psycopg.Connection[Any] | None = None
        while True:
            try:
                if conn is None:
                    conn = database.connect(where, "pgqueue:top")
                lines = _lines(conn)
            except (psycopg.Error, DatabaseUnreachable) as error:
                conn, lines = None, [f"no answer from the database: {brief(error)}"]
            _show(lines)
            if _told_to_quit(max(0.2, every)):
                return


def _told_to_quit(seconds: float) -> bool:
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    return os.read(sys.stdin.fileno(), 64) in (b"q", b"Q", b"")  # the last one: there is no terminal any more


@contextmanager
def _whole_screen() -> Iterator[None]:
    """Keys come at once, and what was on the terminal is there again afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _show(lines: Sequence[str]) -> None:
    columns, rows = shutil.get_terminal_size()
    shown = [line[:columns] for line in lines[: rows - 1]]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
    sys.stdout.flush()


def _lines(conn: psycopg.Connection[Any]) -> list[str]:
    rates = {row[0]: row[1:] for row in database.run(conn, protocol.rates(WINDOW))}
    queues = [
        (queue, "paused" if paused else "", ready, oldest, running, waiting, scheduled, *(rates.get(queue) or (0.0, 0.0)))
        for queue, paused, ready, scheduled, running, waiting, oldest in database.run(conn, protocol.stats())
    ]
    workers = [row for row in database.run(conn, protocol.worker_rows()) if row[5] is None]
    busy = sum(1 for row in workers if row[3])
    failures = database.run(conn, protocol.last_failures(FAILURES))
    return [
        f"pgqueue  {time.strftime('%H:%M:%S')}  {many(len(workers), 'worker')}, {busy} with jobs, "
        f"{sum(row[7] for row in queues):.1f} jobs/s, {sum(row[8] for row in queues):.1f} failed/s",
        "",
        *_table(("queue", "", "ready", "oldest s", "running", "waiting", "scheduled", "jobs/s", "failed/s"), queues),
        "",
        *_table(("worker", "host", "pid", "jobs", "since"), [row[:5] for row in workers]),
        "",
        *_table(("last failures", "workflow", "queue", "at", "error"), failures),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
