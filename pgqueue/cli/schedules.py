"""``pgqueue schedules``: what is due when, and what operators do about it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
import psycopg

from pgqueue import database, protocol
from pgqueue.cli.options import ask, asker, confirm, dsn_option, json_option
from pgqueue.cli.output import length, show, show_json
from pgqueue.config import Exit
from pgqueue.errors import BadValue, UnknownSchedule
from pgqueue.ids import new_job_id
from pgqueue.schedules import MOST_TICKS, between, times_of, zone_of

MOST = 100_000  # ticks of one backfill
_COLUMNS = ("name", "workflow", "times", "timezone", "next", "last", "state", "misfire", "overlap", "origin", "problem")


@click.group(invoke_without_command=True)
@json_option
@dsn_option
@click.pass_context
def schedules(ctx: click.Context, as_json: bool, dsn: str | None) -> None:
    """List schedules; or pause, resume, trigger or backfill one."""
    ctx.obj = dsn
    if ctx.invoked_subcommand is not None:
        return
    rows = [dict(zip(protocol.SCHEDULE_COLUMNS, row, strict=True)) for row in ask(dsn, protocol.schedule_rows())]
    if as_json:
        inputs = ask(dsn, protocol.schedule_inputs())
        show_json([{**row, "input": json.loads(inputs.get(row["name"], "null"))} for row in rows])
        return
    show(_COLUMNS, [_line(row) for row in rows], False)


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    times = row["cron"] if row["every"] is None else f"every {length(row['every'])}"
    state = "not declared" if not row["declared"] else "paused" if row["paused"] else "on"
    next_at, last_at = (_there(row[at], row["timezone"]) for at in ("next_at", "last_at"))
    return (
        row["name"], row["workflow"], times, row["timezone"], next_at, last_at, state, row["misfire"],
        "yes" if row["overlap"] else "no", row["origin"], row["problem"],
    )  # fmt: skip


def _there(moment: datetime | None, timezone: str) -> str | None:
    """A moment as the schedule sees it: in its time zone and with the offset, so that it can be given back to a command."""
    if moment is None:
        return None
    try:
        return moment.astimezone(zone_of(timezone)).isoformat()
    except ValueError:  # a time zone that this machine does not know
        return moment.astimezone(UTC).isoformat()


@schedules.command()
@click.argument("name")
@dsn_option
@click.pass_obj
def pause(group_dsn: str | None, name: str, dsn: str | None) -> None:
    """Let a schedule rest: what comes due meanwhile is left out. No registration of the App changes that."""
    paused = ask(dsn or group_dsn, protocol.pause_schedule(name, asker("schedules pause")))
    click.echo("paused" if paused else "it was paused")


@schedules.command()
@click.argument("name")
@dsn_option
@click.pass_obj
def resume(group_dsn: str | None, name: str, dsn: str | None) -> None:
    """Let a paused schedule go on, with the ticks that come due from now on."""
    click.echo("resumed" if ask(dsn or group_dsn, protocol.resume_schedule(name)) else "it was not paused")


@schedules.command()
@click.argument("name")
@dsn_option
@click.pass_obj
def trigger(group_dsn: str | None, name: str, dsn: str | None) -> None:
    """Enqueue the job of a schedule now, beside its plan. Prints the id of the job."""
    click.echo(ask(dsn or group_dsn, protocol.trigger_schedule(name, new_job_id())))


@schedules.command()
@click.argument("name")
@click.option("--from", "begin", required=True, metavar="TIME", help="From this moment on: 2026-03-01, 2026-03-01T09:00.")
@click.option("--to", "end", metavar="TIME", help="Up to this moment. [default: now]")
@click.option("--again", is_flag=True, help="Also ticks whose rows were pruned, whether they had a job or not.")
@click.option("--dry-run", is_flag=True, help="Change nothing; list the ticks.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dsn_option
@click.pass_obj
def backfill(
    group_dsn: str | None, name: str, begin: str, end: str | None, again: bool, dry_run: bool, yes: bool, dsn: str | None
) -> int:
    """Enqueue a job for each tick of the past that got none. A TIME without an offset is of the schedule's time zone; a date is
    its first moment."""
    with database.connect(database.dsn_from(dsn or group_dsn), "pgqueue:cli") as conn:
        ticks, timezone = _ticks(conn, name, begin, end)
        if dry_run:
            show(("due_at",), [(_there(tick, timezone),) for tick in ticks], False)
            return Exit.OK
        if ticks:
            first, last = (_there(tick, timezone) for tick in (ticks[0], ticks[-1]))
            confirm(f"backfill {len(ticks):,} ticks of {name}, from {first} to {last}?", yes)
        new = 0
        for at in range(0, len(ticks), MOST_TICKS):
            new += database.run(conn, protocol.backfill_schedule(name, ticks[at : at + MOST_TICKS], again))
            if sys.stderr.isatty():
                click.echo(
                    f"\r{min(at + MOST_TICKS, len(ticks)):,} of {len(ticks):,}", nl=at + MOST_TICKS >= len(ticks), err=True
                )
    click.echo(f"{len(ticks):,} ticks, {new:,} of them new")
    return Exit.OK


def _ticks(conn: psycopg.Connection[Any], name: str, begin: str, end: str | None) -> tuple[list[datetime], str]:
    """The ticks from one moment to the other, and the time zone of the schedule."""
    rows = [dict(zip(protocol.SCHEDULE_COLUMNS, row, strict=True)) for row in database.run(conn, protocol.schedule_rows())]
    found = next((row for row in rows if row["name"] == name), None)
    if found is None:
        raise UnknownSchedule(f'there is no schedule {name!r}: "pgqueue schedules" lists them')
    now = database.run(conn, protocol.now())
    try:
        times = times_of(found["cron"], found["every"], found["timezone"])
        first = _moment(begin, found["timezone"])
        last = now if end is None else _moment(end, found["timezone"])
    except ValueError as error:
        raise BadValue(str(error)) from None
    if first > last:
        raise BadValue(f"--from ({begin}) is later than --to ({end or 'now'})")
    if last > now:
        raise BadValue("a backfill is for ticks of the past: --to is in the future")
    ticks = list(islice(between(times, first, last), MOST + 1))
    if len(ticks) > MOST:
        raise BadValue(f"these are more than {MOST:,} ticks: backfill them in smaller parts, with --to")
    return ticks, found["timezone"]


def _moment(text: str, timezone: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: give it as 2026-03-01, 2026-03-01T09:00 or 2026-03-01T09:00:00+01:00") from None
    if not 1900 <= moment.year <= 9000:
        raise ValueError(f"{text!r} is no time of a backfill: from the year 1900 on")
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone_of(timezone))).astimezone(UTC)
