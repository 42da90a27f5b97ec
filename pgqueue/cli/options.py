"""What several commands share: options, durations, and a connection for one question."""

from __future__ import annotations

import getpass
import os
import re
import socket
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pgqueue import database, protocol
from pgqueue.retry import seconds

T = TypeVar("T")

dsn_option = click.option(
    "--dsn",
    envvar="PGQUEUE_DSN",
    help="The database. Better in the environment variable PGQUEUE_DSN: other users of the machine see command lines.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """Durations such as 90s, 10m, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return seconds(float(value) if re.fullmatch(r"-?\d+(\.\d+)?", str(value)) else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


def only_from_the_command_line(dsn: str | None) -> str | None:
    """The option --dsn where it was really typed: what an App says beats the environment, but not that."""
    source = click.get_current_context().get_parameter_source("dsn")
    return dsn if source is ParameterSource.COMMANDLINE else None


def asker(command: str) -> str:
    """Who asks, for the records: ``ann@web1 (pgqueue requeue)``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a process of a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (pgqueue {command})"


def ask(dsn: str | None, call: protocol.Call[T]) -> T:
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        return database.run(conn, call)
