"""The commands for those who watch: ``health`` and ``exporter``."""

from __future__ import annotations

import signal
import sys
import threading

import click

from pgqueue import database
from pgqueue.cli.health import PATHS, USUAL, ask
from pgqueue.cli.options import Read, dsn_option
from pgqueue.config import Address, host_and_port
from pgqueue.context import process
from pgqueue.logs import hide, log_to_stderr

ADDRESS = Read(Address())


@click.command()
@click.argument("what", type=click.Choice(list(PATHS)))
@click.option("--metrics", type=ADDRESS, envvar="PGQUEUE_METRICS", help=f"What pgqueue work was given.  [default: {USUAL}]")
def health(what: str, metrics: str | None) -> None:
    """Is the supervisor of this machine alive, or ready to run jobs? Exits with 0 or 1. Imports no application."""
    well, said = ask(what, metrics)
    click.echo(said, err=not well)
    sys.exit(0 if well else 1)


@click.command()
@click.option(
    "--metrics",
    type=ADDRESS,
    envvar="PGQUEUE_METRICS",
    default="127.0.0.1:9910",
    show_default=True,
    help="Where to answer /metrics.",
)
@click.option("--log-format", type=click.Choice(("auto", "text", "json")), default="auto", show_default=True)
@dsn_option
def exporter(metrics: str, log_format: str, dsn: str | None) -> None:
    """Show the metrics of the database in one place, so that no supervisor has to. Those of workers stay with them."""
    from pgqueue.housekeeper.exposition import Exporter

    where = database.dsn_from(dsn)
    log_to_stderr(format=log_format)
    hide(where)
    process.role = "exporter"
    database.connect(where, "pgqueue:exporter").close()  # a clear error at once
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    Exporter(where).serve(host_and_port(metrics))
    over.wait()
