"""The command line as a whole, and the commands about the schema and the processes."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from pgqueue import database, migrate, protocol
from pgqueue._version import __version__
from pgqueue.cli import jobs, local, queues, repair
from pgqueue.cli.bench import bench_command
from pgqueue.cli.chaos import chaos
from pgqueue.cli.config import config_command
from pgqueue.cli.doctor import doctor_command
from pgqueue.cli.options import ask, dsn_for, dsn_option, json_option, setting_options, typed
from pgqueue.cli.output import one_line_errors, show, show_json, until_nobody_reads
from pgqueue.cli.probes import exporter, health
from pgqueue.cli.retention import retention
from pgqueue.cli.schedules import schedules
from pgqueue.cli.show import show_command
from pgqueue.cli.top import top
from pgqueue.config import Exit
from pgqueue.context import process
from pgqueue.errors import SchemaMissing
from pgqueue.loading import load_app
from pgqueue.logs import hide, log_to_stderr
from pgqueue.schedules import dispute
from pgqueue.settings import work_settings


class Commands(click.Group):
    """The commands. One whose output nobody reads any more (``pgqueue jobs | head``) has done its work."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with until_nobody_reads():  # --help
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with until_nobody_reads():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


@cli.command("migrate")
@click.argument("target", required=False, metavar="[MODULE:APP]")
@click.option("--check", is_flag=True, help="Change nothing; exit with 78 unless everything is up to date.")
@click.option("--sql", is_flag=True, help="Change nothing; print the SQL for a fresh database.")
@click.option(
    "--roles", is_flag=True, help="Make the roles pgqueue_owner, _producer, _worker and _reader, or let them fit again."
)
@dsn_option
def migrate_command(target: str | None, check: bool, sql: bool, roles: bool, dsn: str | None) -> None:
    """Install or upgrade the schema, and register the queues and workflows of an App."""
    if sql:
        click.echo("BEGIN;\nSET LOCAL check_function_bodies = off;")
        for name, text in migrate.script(roles=roles):
            click.echo(f"-- {name}\n{text}")
        click.echo("COMMIT;")
        return
    app = load_app(target) if target else None
    with database.connect(dsn_for(app, dsn), "pgqueue:migrate") as conn:
        if check:
            pending = migrate.pending(conn)
            if pending:
                raise SchemaMissing(f'{len(pending)} schema migrations are to be applied: run "pgqueue migrate"')
            click.echo("the schema is up to date")
            return
        applied = migrate.migrate(conn, roles)
        click.echo(f"applied migrations: {', '.join(map(str, applied))}" if applied else "the schema was up to date")
        if app:
            for name, other in database.run(conn, protocol.disputed_schedules(app.name, list(app.schedules))):
                click.echo(f"warning: {'; '.join(dispute(name, other))}", err=True)
            database.run(conn, app.registration(exact=True))
            click.echo(f"registered {len(app.queues)} queues and {len(app.functions)} workflows, steps and transactions")


@cli.command()
@click.argument("kind", type=click.Choice(("producer", "worker", "reader")))
@click.argument("role")
@dsn_option
def grant(kind: str, role: str, dsn: str | None) -> None:
    """Let a database role enqueue (producer), work and operate (worker), or look (reader).

    \b
    producer  enqueue, send events and messages; no access to any table or view
    worker    pgqueue work, and what operators do: show, cancel, requeue,
              rerun, pause, limit, retention, prune; pgqueue exporter
    reader    status, top, jobs, queues, schedules, retention, doctor in part:
              no inputs, results or errors

    \b
    A producer that waits for results (enqueue --wait, job.result()) needs also:
    GRANT SELECT ON pgqueue.job_values TO ROLE;
    GRANT EXECUTE ON FUNCTION pgqueue.awaited TO ROLE;

    More in docs/operations.md, "Roles and grants".
    """
    ask(dsn, protocol.grant_role(kind, role))
    click.echo(f"{role} is a member of pgqueue_{kind}")


@cli.command()
@click.argument("target", metavar="MODULE:APP")
@setting_options
@click.option("--burst", is_flag=True, help="Leave when nothing is ready, running or due.")
@click.option("--check", is_flag=True, help="Start nothing; exit with 0 if the App can be worked for.")
@click.option("--dsn-first", is_flag=True, hidden=True)  # of pgqueue dev: PGQUEUE_DSN beats what the App says
@dsn_option
def work(target: str, burst: bool, check: bool, dsn_first: bool, **given: Any) -> int:
    """Run workers until told to stop (SIGTERM or Ctrl-C: drain; SIGQUIT: stop at once, giving jobs back; SIGHUP: reload)."""
    from pgqueue.supervisor.fork import die_with_parent
    from pgqueue.supervisor.probe import check_only
    from pgqueue.supervisor.supervisor import Supervisor

    said = typed(given)
    if dsn_first:
        die_with_parent(signal.SIGTERM)  # its workers must not stay behind
        said["dsn"] = given["dsn"]
    settings = work_settings(target, said, burst)
    log_to_stderr(10 if settings.verbose else 20, settings.log_format)
    hide(settings.dsn, settings.listen_dsn)
    process.role = "supervisor"
    return check_only(settings) if check else Supervisor(settings).run()


@cli.command()
@json_option
@dsn_option
def status(as_json: bool, dsn: str | None) -> None:
    """Queues and workers at a glance."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        rows = database.run(conn, protocol.stats())
        workers = database.run(conn, protocol.worker_rows())
    queue_columns = ("queue", "paused", "ready", "scheduled", "running", "waiting", "oldest_ready_seconds")
    worker_columns = ("worker", "host", "pid", "jobs", "started_at", "fenced_at")
    if as_json:
        show_json({
            "queues": [dict(zip(queue_columns, row, strict=True)) for row in rows],
            "workers": [dict(zip(worker_columns, row, strict=True)) for row in workers],
        })  # fmt: skip
        return
    show(queue_columns, rows, False)
    click.echo()
    show(worker_columns, workers, False)


for command in (
    jobs.enqueue, jobs.event, jobs.send, jobs.jobs, show_command, repair.cancel, repair.requeue, repair.rerun, repair.prune,
    queues.queues, queues.limit, queues.pause, queues.resume, schedules, config_command, doctor_command, health, top, exporter,
    bench_command, retention,
    chaos, local.demo, local.dev,
):  # fmt: skip
    cli.add_command(command)
