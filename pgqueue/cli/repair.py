"""The commands that change jobs: cancel, requeue, rerun, prune. One by one, or all that fit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import psycopg

from pgqueue import database, protocol
from pgqueue.cli.options import DURATION, asker, check_queue, confirm, dsn_option
from pgqueue.cli.output import length, show
from pgqueue.cli.show import whole_id
from pgqueue.cli.tree import ACTIVE
from pgqueue.config import Exit
from pgqueue.ids import new_job_id
from pgqueue.model import ENDED

BATCH = 1000  # jobs of one transaction
UNSUCCESSFUL = ("failed", "cancelled")
_Verb = Callable[[Sequence[str]], protocol.Call[list[tuple[Any, ...]]]]


def _filters(states: Sequence[str], age: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that choose jobs, instead of naming them."""
    options = [
        click.option("--state", "states", multiple=True, type=click.Choice(states), help="All jobs in this state that fit."),
        click.option("--workflow", help="Only jobs of this name."),
        click.option("-q", "--queue", help="Only jobs of this queue."),
        click.option("--since", type=DURATION, help=f"Only jobs that {age} at most so long ago."),
        click.option("--until", type=DURATION, help=f"Only jobs that {age} at least so long ago."),
        click.option("-n", "--limit", default=100_000, show_default=True, type=click.IntRange(1, 1_000_000), help="The oldest."),
        click.option("--dry-run", is_flag=True, help="Change nothing; list the jobs."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True)
class Filter:
    """Which jobs, where they are not named."""

    states: tuple[str, ...]
    workflow: str | None
    queue: str | None
    since: float | None
    until: float | None
    error: str | None = None

    def check(self, ids: Sequence[str], hint: str) -> None:
        """UsageError unless jobs are either named or chosen."""
        chosen = [self.workflow, self.queue, self.since, self.until, self.error]
        if bool(ids) == bool(self.states):
            raise click.UsageError(f"name the jobs, or say {hint}")
        if ids and chosen != [None] * len(chosen):
            raise click.UsageError(f"name the jobs, or choose them with {hint} and filters: not both")

    def find(self, conn: psycopg.Connection[Any], limit: int) -> list[tuple[Any, ...]]:
        call = protocol.found_jobs(self.states, self.workflow, self.queue, self.error, self.since, self.until, limit)
        return database.run(conn, call)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--hard", is_flag=True, help="Kill the workers that run them, and those that run their children.")
@_filters(ACTIVE, "were enqueued")
@dsn_option
def cancel(
    ids: tuple[str, ...], hard: bool, states: tuple[str, ...], workflow: str | None, queue: str | None, since: float | None,
    until: float | None, limit: int, dry_run: bool, yes: bool, dsn: str | None,
) -> int:  # fmt: skip
    """Ask jobs to end: those named, or all that fit. A running job ends before its next step; with --hard at once."""
    chosen = Filter(states, workflow, queue, since, until)
    chosen.check(ids, "--state")
    by = asker("cancel")
    return _change(dsn, ids, chosen, limit, dry_run, yes, lambda jobs: protocol.cancel(jobs, hard, by), ("cancel", "requested"))


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--failed", is_flag=True, help="All failed jobs that fit: the same as --state failed.")
@click.option("--error", help="Only jobs with this text in the type or message of their error.")
@_filters(UNSUCCESSFUL, "ended")
@dsn_option
def requeue(
    ids: tuple[str, ...], failed: bool, error: str | None, states: tuple[str, ...], workflow: str | None, queue: str | None,
    since: float | None, until: float | None, limit: int, dry_run: bool, yes: bool, dsn: str | None,
) -> int:  # fmt: skip
    """Run failed or cancelled jobs again, from where they stopped: those named, or all that fit."""
    chosen = Filter(tuple(dict.fromkeys((*states, *["failed"] * failed))), workflow, queue, since, until, error)
    chosen.check(ids, "--failed (or --state)")
    by = asker("requeue")
    return _change(dsn, ids, chosen, limit, dry_run, yes, lambda jobs: protocol.requeue(jobs, by), ("requeue", "requeued"))


@click.command()
@click.argument("id")
@click.option("--from-step", default=1, show_default=True, type=click.IntRange(1, 50_000), help="The first step to run again.")
@dsn_option
def rerun(id: str, from_step: int, dsn: str | None) -> None:
    """Run an ended job again as a new job, which keeps the checkpoints before a step. Prints the id of the new job."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        job = whole_id(conn, id)
        click.echo(database.run(conn, protocol.rerun(job, from_step, new_job_id(), asker("rerun"))))


def _change(
    dsn: str | None, ids: Sequence[str], chosen: Filter, limit: int, dry_run: bool, yes: bool, verb: _Verb, words: tuple[str, str]
) -> int:
    """Named jobs: an answer for each. Chosen ones: how many got which answer."""
    name, good = words
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        if ids and not dry_run:
            answers = database.run(conn, verb([whole_id(conn, id) for id in ids]))
            show(("id", "answer"), answers, False)
            return _code(Counter(answer for _, answer in answers), good)
        if ids:
            show(("id",), [(whole_id(conn, id),) for id in ids], False)
            return Exit.OK
        found = chosen.find(conn, limit)
        if dry_run:
            show(("id", "name", "queue", "state", "at", "error"), [_short(row) for row in found], False)
        if not found:
            check_queue(conn, chosen.queue)
            click.echo(f"no {' or '.join(chosen.states)} jobs" + (" fit" if any(vars(chosen).values()) else ""), err=dry_run)
        if dry_run or not found:
            return Exit.OK
        more = f" (the oldest: there may be more, the limit is {limit:,})" if len(found) == limit else ""
        confirm(f"{name} {len(found):,} {' and '.join(chosen.states)} jobs{more}?", yes)
        counts = _in_batches(conn, [row[0] for row in found], verb)
    show(("answer", "jobs"), sorted(counts.items()), False)
    return _code(counts, good)


def _in_batches(conn: psycopg.Connection[Any], ids: Sequence[str], verb: _Verb) -> Counter[str]:
    """How many got which answer. Each batch is a transaction, so an interrupted command has done a part."""
    counts: Counter[str] = Counter()
    for begin in range(0, len(ids), BATCH):
        counts.update(answer for _, answer in database.run(conn, verb(ids[begin : begin + BATCH])))
        if sys.stderr.isatty():
            click.echo(f"\r{min(begin + BATCH, len(ids)):,} of {len(ids):,}", nl=begin + BATCH >= len(ids), err=True)
    return counts


def _short(row: tuple[Any, ...]) -> tuple[Any, ...]:
    *facts, error = row
    text = " ".join((error or "").split())
    return (*facts, text if len(text) <= 100 else text[:97] + "...")


def _code(counts: Counter[str], good: str) -> int:
    return Exit.OK if set(counts) <= {good} else Exit.FAILED


@click.command()
@click.option("--older", required=True, type=DURATION, help="Only jobs that ended longer ago than this.")
@click.option("--state", "states", multiple=True, type=click.Choice(ENDED), help="Only these (default: all).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dsn_option
def prune(older: float, states: tuple[str, ...], yes: bool, dsn: str | None) -> None:
    """Delete ended jobs with everything about them, and, unless --state says which jobs, events and ticks that are as old."""
    confirm(f"delete the {' and '.join(states or ('ended',))} jobs that ended more than {length(older)} ago?", yes)
    total = events = ticks = 0
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        while gone := database.run(conn, protocol.prune(states or ENDED, older, 1000)):
            total += gone
        while not states and (gone := database.run(conn, protocol.prune_events(older, 1000))):
            events += gone
        while not states and (gone := database.run(conn, protocol.prune_ticks(older, 1000))):
            ticks += gone
    others = [f"{count} {what}" for count, what in ((events, "events"), (ticks, "ticks of schedules")) if count]
    click.echo(" and ".join([f"pruned {total} jobs", *others]))
