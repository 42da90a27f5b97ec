"""The commands that enqueue jobs, send them something, and list them."""

from __future__ import annotations

import json
from typing import Any

import click

from pgqueue import database, protocol
from pgqueue.cli.options import DURATION, check_queue, dsn_option, json_option
from pgqueue.cli.output import show, show_json
from pgqueue.cli.show import whole_id
from pgqueue.client import Client
from pgqueue.config import Exit
from pgqueue.errors import BadValue
from pgqueue.model import ENDED


@click.command()
@click.argument("name")
@click.argument("input", required=False, default="{}", metavar="[JSON]")
@click.option("-q", "--queue")
@click.option("--id", "chosen", help="The same id, name and input is the same job.")
@click.option("--delay", type=DURATION)
@click.option("--priority", type=click.IntRange(0, 9))
@click.option(
    "--wait", type=DURATION, help="Wait so long for the result, and print it; what a producer needs for that: grant --help."
)
@dsn_option
def enqueue(
    name: str, input: str, queue: str | None, chosen: str | None, delay: float | None, priority: int | None,
    wait: float | None, dsn: str | None,
) -> None:  # fmt: skip
    """Enqueue a job by name. JSON is an object of parameter names and values: '{"order_id": 7}'."""
    arguments = _read(input, "the input", """Give an object: '{"order_id": 7}'""")
    said = {"queue": queue, "id": chosen, "delay": delay, "priority": priority}
    with Client(dsn) as client:
        job = client.enqueue(name, arguments, **{k: v for k, v in said.items() if v is not None})  # type: ignore[arg-type]
        click.echo(job.id)
        if wait is not None:
            show_json(job.result(timeout=wait))


@click.command()
@click.argument("key")
@click.argument("value", required=False, default="null", metavar="[JSON]")
@dsn_option
def event(key: str, value: str, dsn: str | None) -> int:
    """Say that something has happened: jobs that wait for this event go on with the value. The first value of a key counts."""
    with Client(dsn) as client:
        first = client.send_event(key, _read(value, "the value", _TEXT))
    click.echo("sent: this is its first value" if first else "not sent: this event has a value already, and the first one counts")
    return Exit.OK if first else Exit.FAILED


@click.command()
@click.argument("id")
@click.argument("topic")
@click.argument("value", required=False, default="null", metavar="[JSON]")
@dsn_option
def send(id: str, topic: str, value: str, dsn: str | None) -> int:
    """Send a message to one job, which gets it with receive(TOPIC)."""
    message = _read(value, "the message", _TEXT)
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        job = whole_id(conn, id)
    with Client(dsn) as client:
        sent = client.job(job).send(topic, message)
    click.echo("sent" if sent else "not sent: the job has ended")
    return Exit.OK if sent else Exit.FAILED


_TEXT = """A text needs quotes of its own: '"yes"'"""


def _read(text: str, what: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"{what} is not JSON: {error}. {advice}") from None


# ------------------------------------------------------------------------------------------------ looking


@click.command()
@click.option("--state", type=click.Choice(["ready", "scheduled", "running", "waiting", *ENDED]))
@click.option("--workflow", help="Only jobs of this name.")
@click.option("-q", "--queue")
@click.option("--since", type=DURATION, help="Only jobs younger than this.")
@click.option("-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
@json_option
@dsn_option
def jobs(
    state: str | None, workflow: str | None, queue: str | None, since: float | None, limit: int, as_json: bool, dsn: str | None
) -> None:
    """List jobs, the youngest first; with --state of an end, those that ended last."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        rows = database.run(conn, protocol.job_rows(state, workflow, queue, since, limit))
        if not rows:
            check_queue(conn, queue)
            if workflow is not None:
                click.echo(f"pgqueue: no job of the name {workflow!r} fits", err=True)
    if as_json:
        show(protocol.JOB_COLUMNS, rows, True)
    else:
        columns = ("id", "name", "queue", "state", "created_at")
        at = [protocol.JOB_COLUMNS.index(column) for column in columns]
        show(columns, [[row[i] for i in at] for row in rows], False)
