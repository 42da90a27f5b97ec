"""The commands about jobs: enqueue, look at, and change them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import click
import psycopg

from pgqueue import database, protocol
from pgqueue.cli.options import DURATION, ask, dsn_option, json_option
from pgqueue.cli.output import cell, show, show_fields, show_json
from pgqueue.client import Client
from pgqueue.config import Exit
from pgqueue.errors import BadValue, UnknownJob
from pgqueue.model import ENDED
from pgqueue.values import read_error


@click.command()
@click.argument("name")
@click.argument("input", required=False, default="{}", metavar="[JSON]")
@click.option("-q", "--queue")
@click.option("--id", "chosen", help="The same id, name and input is the same job.")
@click.option("--delay", type=DURATION)
@click.option("--priority", type=click.IntRange(0, 9))
@click.option("--wait", type=DURATION, help="Wait so long for the result and print it.")
@dsn_option
def enqueue(
    name: str, input: str, queue: str | None, chosen: str | None, delay: float | None, priority: int | None,
    wait: float | None, dsn: str | None,
) -> None:  # fmt: skip
    """Enqueue a job by name. JSON is an object of parameter names and values: '{"order_id": 7}'."""
    try:
        arguments = json.loads(input)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"the input is not JSON: {error}. Give an object: '{{\"order_id\": 7}}'") from None
    said = {"queue": queue, "id": chosen, "delay": delay, "priority": priority}
    with Client(dsn) as client:
        job = client.enqueue(name, arguments, **{k: v for k, v in said.items() if v is not None})  # type: ignore[arg-type]
        click.echo(job.id)
        if wait is not None:
            show_json(job.result(timeout=wait))


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
    """List jobs, the youngest first."""
    rows = ask(dsn, protocol.job_rows(state, workflow, queue, since, limit))
    if as_json:
        show(protocol.JOB_COLUMNS, rows, True)
    else:
        columns = ("id", "name", "queue", "state", "created_at")
        at = [protocol.JOB_COLUMNS.index(column) for column in columns]
        show(columns, [[row[i] for i in at] for row in rows], False)


@click.command("show")
@click.argument("id")
@json_option
@dsn_option
def show_command(id: str, as_json: bool, dsn: str | None) -> None:
    """Everything about one job: its state, steps, and every attempt that did not succeed. Any unique prefix of the id will do."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        job = _whole_id(conn, id)
        row = database.run(conn, protocol.job_row(job))
        value = database.run(conn, protocol.job_value(job))
        steps = database.run(conn, protocol.steps(job))
        attempts = database.run(conn, protocol.attempt_rows(job))
    if row is None or value is None:
        raise UnknownJob(f"there is no job {job}")
    facts = dict(zip(protocol.JOB_COLUMNS, row, strict=True))
    _, _, input, result, error = value
    if as_json:
        show_json({
            **facts, "input": _json(input), "result": _json(result), "error": _json(error),
            "steps": [{"seq": s[0], "name": s[1], "status": s[2], "result": _json(s[3]), "error": _json(s[4])} for s in steps],
            "attempts": [{"kind": a[0], "seq": a[1], "error": _json(a[2]), "host": a[3], "ended_at": a[4]} for a in attempts],
        })  # fmt: skip
        return
    show_fields({**facts, "input": input, "result": result, "error": error and _short(error)})
    if steps:
        click.echo("\nsteps")
        show(("seq", "name", "status", "result"), [(*s[:3], s[3] or _short(s[4])) for s in steps], False)
    if attempts:
        click.echo("\nattempts that did not succeed")
        rows = [(a[4], a[0], a[1] if a[1] is not None else "job", a[3], _short(a[2])) for a in attempts]
        show(("ended_at", "kind", "step", "host", "error"), rows, False)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _short(text: str | None) -> str:
    error = read_error(text)
    return f"{error.get('type', '')}: {error.get('message', '')}" if text else ""


def _whole_id(conn: psycopg.Connection[Any], prefix: str) -> str:
    prefix = prefix.lower()
    if not re.fullmatch(r"[0-9a-f-]{1,36}", prefix) or (len(prefix) < 36 and not _could_begin_a_uuid(prefix)):
        raise UnknownJob(f"{cell(prefix)!r} is not the id of a job, nor the beginning of one")
    found = database.run(conn, protocol.job_ids(prefix))
    if len(found) != 1:
        raise UnknownJob(f"{'no job has' if not found else 'several jobs have'} an id that begins with {prefix}")
    return found[0]


def _could_begin_a_uuid(prefix: str) -> bool:
    return bool(re.fullmatch("".join(f"(?:{'-' if i in (8, 13, 18, 23) else '[0-9a-f]'}" for i in range(36)) + ")?" * 36, prefix))


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@dsn_option
def cancel(ids: tuple[str, ...], dsn: str | None) -> int:
    """Ask jobs to end. A running job ends before its next step."""
    return _change(dsn, ids, protocol.cancel, "requested")


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--failed", is_flag=True, help="All failed jobs (with -q: of that queue).")
@click.option("-q", "--queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dsn_option
def requeue(ids: tuple[str, ...], failed: bool, queue: str | None, yes: bool, dsn: str | None) -> int:
    """Run failed or cancelled jobs again, from where they stopped."""
    if bool(ids) == failed:
        raise click.UsageError("name the jobs, or say --failed")
    if failed:
        ids = tuple(row[0] for row in ask(dsn, protocol.job_rows("failed", None, queue, None, 100_000)))
        if not ids:
            click.echo("no failed jobs")
            return Exit.OK
        if not yes:
            click.confirm(f"requeue {len(ids)} failed jobs?", abort=True)
    return _change(dsn, ids, protocol.requeue, "requeued")


def _change(
    dsn: str | None, ids: tuple[str, ...], verb: Callable[[list[str]], protocol.Call[list[tuple[Any, ...]]]], good: str
) -> int:
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        answers = database.run(conn, verb([_whole_id(conn, id) for id in ids]))
    show(("id", "answer"), answers, False)
    return Exit.OK if all(answer == good for _, answer in answers) else Exit.FAILED


@click.command()
@click.option("--older", required=True, type=DURATION, help="Only jobs that ended longer ago than this.")
@click.option("--state", "states", multiple=True, type=click.Choice(ENDED), help="Only these (default: all).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dsn_option
def prune(older: float, states: tuple[str, ...], yes: bool, dsn: str | None) -> None:
    """Delete ended jobs with everything about them."""
    if not yes:
        click.confirm(f"delete the {' and '.join(states or ('ended',))} jobs that ended more than {older:g} s ago?", abort=True)
    total = 0
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        while gone := database.run(conn, protocol.prune(states or ENDED, older, 1000)):
            total += gone
    click.echo(f"pruned {total} jobs")
