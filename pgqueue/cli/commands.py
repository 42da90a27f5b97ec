"""All commands, each a few lines: read the arguments, make a call, show the answer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import psycopg
from click.core import ParameterSource

from pgqueue import database, migrate, protocol
from pgqueue._version import __version__
from pgqueue.cli import local
from pgqueue.cli.bench import bench_command
from pgqueue.cli.output import cell, log_to_stderr, one_line_errors, show, show_fields, show_json
from pgqueue.client import Client
from pgqueue.config import Exit, WorkSettings
from pgqueue.errors import BadValue, SchemaMissing, UnknownJob
from pgqueue.loading import load_app
from pgqueue.model import ENDED
from pgqueue.retry import seconds
from pgqueue.values import read_error

F = TypeVar("F", bound=Callable[..., Any])
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pgqueue")
def cli() -> None:
    """Background jobs and durable workflows inside your own PostgreSQL."""


def run() -> None:
    """Run the command line; our exit codes instead of click's."""
    try:
        with one_line_errors():
            sys.exit(cli.main(standalone_mode=False) or 0)
    except click.UsageError as error:
        error.show()
        sys.exit(Exit.USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _only_from_the_command_line(dsn: str | None) -> str | None:
    """The option --dsn where it was really typed: what an App says beats the environment, but not that."""
    source = click.get_current_context().get_parameter_source("dsn")
    return dsn if source is ParameterSource.COMMANDLINE else None


def _ask(dsn: str | None, call: protocol.Call[T]) -> T:
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        return database.run(conn, call)


# ------------------------------------------------------------------------------------------------- schema


@cli.command("migrate")
@click.argument("target", required=False, metavar="[MODULE:APP]")
@click.option("--check", is_flag=True, help="Change nothing; exit with 78 unless everything is up to date.")
@click.option("--sql", is_flag=True, help="Change nothing; print the SQL for a fresh database.")
@dsn_option
def migrate_command(target: str | None, check: bool, sql: bool, dsn: str | None) -> None:
    """Install or upgrade the schema, and register the queues and workflows of an App."""
    if sql:
        click.echo("BEGIN;\nSET LOCAL check_function_bodies = off;")
        for name, text in migrate.script():
            click.echo(f"-- {name}\n{text}")
        click.echo("COMMIT;")
        return
    app = load_app(target) if target else None
    with database.connect(
        database.dsn_from((_only_from_the_command_line(dsn) or app.dsn) if app else dsn), "pgqueue:migrate"
    ) as conn:
        if check:
            pending = migrate.pending(conn)
            if pending:
                raise SchemaMissing(f'{len(pending)} schema migrations are to be applied: run "pgqueue migrate"')
            click.echo("the schema is up to date")
            return
        applied = migrate.migrate(conn)
        click.echo(f"applied {len(applied)} migrations" if applied else "the schema was up to date")
        if app:
            database.run(conn, app.registration())
            click.echo(f"registered {len(app.queues)} queues and {len(app.functions)} workflows, steps and transactions")


# ------------------------------------------------------------------------------------------------ running


@cli.command()
@click.argument("target", metavar="MODULE:APP")
@click.option("-w", "--workers", default=2, show_default=True, type=click.IntRange(1, 512), help="Worker processes.")
@click.option("-q", "--queues", default="", help="Serve only these queues, separated by commas.")
@click.option("--burst", is_flag=True, help="Leave when nothing is ready, running or due.")
@click.option("--drain-timeout", default="25s", show_default=True, type=DURATION, help="How long a stop waits for running jobs.")
@click.option("--lease", default="15s", show_default=True, type=DURATION, help="After how long without a beat a worker is dead.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("--dsn-first", is_flag=True, hidden=True)  # of pgqueue dev: PGQUEUE_DSN beats what the App says
@dsn_option
def work(
    target: str, workers: int, queues: str, burst: bool, drain_timeout: float, lease: float, verbose: bool, dsn_first: bool,
    dsn: str | None,
) -> int:  # fmt: skip
    """Run workers until told to stop (SIGTERM or Ctrl-C: drain; SIGQUIT: stop at once, giving jobs back)."""
    from pgqueue.supervisor.supervisor import Supervisor

    if lease < 1:
        raise BadValue(f"a lease of {lease:g} s is too short to tell a dead worker from a slow one: use at least 1s")
    log_to_stderr(10 if verbose else 20)
    settings = WorkSettings(
        target=target,
        dsn=dsn if dsn_first else _only_from_the_command_line(dsn),  # otherwise what the App says beats the environment
        workers=workers,
        queues=tuple(filter(None, (part.strip() for part in queues.split(",")))),
        drain_timeout=drain_timeout,
        burst=burst,
        lease=lease,
        beat=lease / 3,
    )
    return Supervisor(settings).run()


# ---------------------------------------------------------------------------------------------- producing


@cli.command()
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


@cli.command()
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
    rows = _ask(dsn, protocol.job_rows(state, workflow, queue, since, limit))
    if as_json:
        show(protocol.JOB_COLUMNS, rows, True)
    else:
        columns = ("id", "name", "queue", "state", "created_at")
        at = [protocol.JOB_COLUMNS.index(column) for column in columns]
        show(columns, [[row[i] for i in at] for row in rows], False)


@cli.command("show")
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


@cli.command()
@json_option
@dsn_option
def status(as_json: bool, dsn: str | None) -> None:
    """Queues and workers at a glance."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        queues = database.run(conn, protocol.stats())
        workers = database.run(conn, protocol.worker_rows())
    queue_columns = ("queue", "paused", "ready", "scheduled", "running", "waiting", "oldest_ready_seconds")
    worker_columns = ("worker", "host", "pid", "jobs", "started_at", "fenced_at")
    if as_json:
        show_json({
            "queues": [dict(zip(queue_columns, row, strict=True)) for row in queues],
            "workers": [dict(zip(worker_columns, row, strict=True)) for row in workers],
        })  # fmt: skip
        return
    show(queue_columns, queues, False)
    click.echo()
    show(worker_columns, workers, False)


# ----------------------------------------------------------------------------------------------- changing


@cli.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@dsn_option
def cancel(ids: tuple[str, ...], dsn: str | None) -> int:
    """Ask jobs to end. A running job ends before its next step."""
    return _change(dsn, ids, protocol.cancel, "requested")


@cli.command()
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
        ids = tuple(row[0] for row in _ask(dsn, protocol.job_rows("failed", None, queue, None, 100_000)))
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


@cli.command()
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


cli.add_command(bench_command)
cli.add_command(local.demo)
cli.add_command(local.dev)
