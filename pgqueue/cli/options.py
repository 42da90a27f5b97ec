"""What several commands share: options, durations, and a connection for one question."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import psycopg
from click.core import ParameterSource

from pgqueue import database, protocol
from pgqueue.app import App
from pgqueue.config import SETTINGS, Duration, Flag, Kind
from pgqueue.errors import UnknownQueue
from pgqueue.settings import dsn_of_file

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

dsn_option = click.option(
    "--dsn",
    envvar="PGQUEUE_DSN",
    default=dsn_of_file,
    help="The database. Better in the environment variable PGQUEUE_DSN: other users of the machine see command lines.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


class Read(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """A value of some kind of setting, or argument."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._kind.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Read(Duration())


def setting_options(command: F) -> F:
    """An option for each setting of ``pgqueue work``."""
    for setting in reversed(SETTINGS.values()):
        if setting.name != "dsn":
            flag = isinstance(setting.kind, Flag)
            default = None if setting.default is None else setting.kind.text(setting.default)
            command = click.option(
                setting.option, *setting.short, help=setting.says, is_flag=flag, default=False if flag else default or None,
                show_default=bool(default) and not flag, type=None if flag else Read(setting.kind),
            )(command)  # fmt: skip
    return command


def typed(given: dict[str, Any]) -> dict[str, Any]:
    """What of these parameters was really typed: everything else is found out by settings.py."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in given.items() if source(name) is ParameterSource.COMMANDLINE}


def dsn_for(app: App | None, dsn: str | None) -> str:
    """Where a command works that may have been given an App: its DSN beats the environment, but not what was typed."""
    return database.dsn_from(typed({"dsn": dsn}).get("dsn") or (app and app.client.pool.given_dsn) or dsn)


def asker(command: str) -> str:
    """Who asks, for the records: ``ann@web1 (pgqueue requeue)``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a process of a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (pgqueue {command})"


def confirm(question: str, yes: bool) -> None:
    """Go on only where somebody says so. UsageError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here: --yes says so beforehand")
    click.confirm(question, abort=True)


def check_queue(conn: psycopg.Connection[Any], queue: str | None) -> None:
    """For where nothing fits: UnknownQueue if that is because nobody has declared this queue."""
    if queue is not None and queue not in database.run(conn, protocol.queue_names()):
        raise UnknownQueue(f"there is no queue {queue!r}: pgqueue queues shows those that there are")


def ask(dsn: str | None, call: protocol.Call[T]) -> T:
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        return database.run(conn, call)
