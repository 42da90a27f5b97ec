"""The commands that need nothing but pgqueue: ``demo`` and ``dev``, both with a PostgreSQL of their own."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psycopg

from pgqueue import database, migrate
from pgqueue.cli.output import many, show_json
from pgqueue.config import Exit
from pgqueue.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from pgqueue.demo.signals import Signals

KILLS_PER_SECOND = 4
LOOK = 0.2  # seconds
DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--orders", default=400, show_default=True, type=click.IntRange(10, 5000), help="How many orders come in.")
@click.option("--seconds", default=18.0, show_default=True, type=click.FloatRange(1, 600), help="How long they keep coming.")
@click.option("--kills", type=click.IntRange(0, 5000), help="How many workers are killed meanwhile.  [default: 4 per second]")
@click.option("-w", "--workers", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--seed", default=1, show_default=True, help="Which orders are rolled back, and when somebody is killed.")
@click.option("--keep", is_flag=True, help="Keep the database and the logs, and say where they are.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON instead of the story.")
@click.option(
    "--dsn", envvar="PGQUEUE_DSN", help="Use this server, in a database of its own, instead of an embedded one (or PGQUEUE_DSN)."
)
def demo(
    orders: int, seconds: float, kills: int | None, workers: int, seed: int, keep: bool, as_json: bool, dsn: str | None
) -> int:
    """The whole story on an embedded PostgreSQL, in under a minute.

    A bank credit and an order, first as they fail without pgqueue; then a shop whose workers are killed several times a second,
    and its ledger, line by line. Exits with 1 if it does not balance.
    """
    from pgqueue.demo.play import Settings, play
    from pgqueue.demo.screen import screen
    from pgqueue.demo.signals import Signals, Stopped

    settings = Settings(dsn, orders, seconds, int(KILLS_PER_SECOND * seconds) if kills is None else kills, workers, seed, keep)
    shown = screen(as_json)
    try:
        with Signals() as signals:
            result = play(settings, shown, signals)
    except Stopped as stopped:
        shown.say("stopped")
        return stopped.code
    finally:
        shown.clear()
    if as_json:
        show_json(result.as_json())
    return Exit.OK if result.good else Exit.FAILED


@click.command()
@click.argument("target", required=False, metavar="[MODULE:APP]")
@click.option("-w", "--workers", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--reload/--no-reload", default=True, help="Reload when a source file changes (the default).")
@click.option("--data", default=".pgqueue", show_default=True, type=DIRECTORY, help="Where its data stays.")
def dev(target: str | None, workers: int, reload: bool, data: Path) -> int:
    """A PostgreSQL of your own in .pgqueue, migrated, and workers for an App.

    Its data is there again the next time. The App works in this database, whatever other it names. Ctrl-C lets running jobs
    end and stops everything.
    """
    from pgqueue.demo.signals import Signals, Stopped

    try:
        with Signals() as signals, _server(data) as dsn, database.connect(dsn, "pgqueue:dev") as conn:
            _introduce(conn, dsn, data, target, workers)
            child = _start_workers(dsn, target, workers, reload) if target else None
            return _serve(conn, child, signals)
    except Stopped:
        click.echo("stopped")
        return Exit.OK


@contextmanager
def _server(data: Path) -> Iterator[str]:
    """The DSN of this directory's server, started if need be. Of several ``pgqueue dev`` in one directory the first stops it; it
    is also the one that finds a server which a killed one left running."""
    from pgqueue.embedded import Embedded

    new = not data.exists() or not any(data.iterdir())
    server = Embedded(data)
    _ = server.home  # makes the directory
    if new:
        (data / ".gitignore").write_text("*\n")  # a cluster and its password are not for others
    with open(data / "dev.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = True
        except BlockingIOError:
            first = False
        try:
            yield server.start()
        finally:
            if first:
                server.stop()


def _introduce(conn: psycopg.Connection[Any], dsn: str, data: Path, target: str | None, workers: int) -> None:
    """Say what there is, and how to use it."""
    applied = migrate.migrate(conn)
    version = str(conn.info.parameter_status("server_version")).split()[0]
    click.echo(f"PostgreSQL {version} is running, its data stays in {data}")
    click.echo("the schema was up to date" if not applied else f"applied {len(applied)} migrations")
    click.echo(f"\n  export PGQUEUE_DSN={shlex.quote(dsn)}\n")
    if target:
        click.echo(f"{many(workers, 'worker')} for {target}. Ctrl-C stops everything.")
    else:
        click.echo("No workers: name an App (pgqueue dev MODULE:APP), or run pgqueue work elsewhere. Ctrl-C stops the server.")


def _serve(conn: psycopg.Connection[Any], child: subprocess.Popen[bytes] | None, signals: Signals) -> int:
    """Until somebody stops us, or the workers give up. Their exit code."""
    try:
        while True:
            signals.check()
            if child is not None and (code := child.poll()) is not None:
                click.echo("the workers have ended" + (f", killed by signal {-code}" if code < 0 else ""), err=True)
                return code if code >= 0 else Exit.FAILED
            if select.select([conn.fileno()], [], [], LOOK)[0]:
                _check(conn)
    finally:
        if child is not None:
            _drain(child, signals)


def _check(conn: psycopg.Connection[Any]) -> None:
    """The server has something to say to an idle connection: most likely that it stops."""
    try:
        conn.execute("")
    except psycopg.OperationalError:
        raise DatabaseUnreachable("PostgreSQL has stopped: start pgqueue dev again") from None


def _start_workers(dsn: str, target: str, workers: int, reload: bool) -> subprocess.Popen[bytes]:
    """``pgqueue work`` for the App, in a session of its own: Ctrl-C is for us, and we tell it to drain."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "work", target, "--workers", str(workers), "--dsn-first", *["--reload"] * reload],
        env={**os.environ, "PGQUEUE_DSN": dsn},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _drain(child: subprocess.Popen[bytes], signals: Signals) -> None:
    """Let running jobs end; give them back when somebody insists."""
    seen = signals.count
    child.terminate()
    while True:
        try:
            child.wait(LOOK)
            return
        except subprocess.TimeoutExpired:
            if signals.count > seen:
                seen = signals.count
                child.send_signal(signal.SIGQUIT)
