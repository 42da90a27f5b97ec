"""The commands about queues: look at them, pause and resume them, and change their limits."""

from __future__ import annotations

import re
from typing import Any

import click

from pgqueue import database, protocol
from pgqueue.cli.options import ask, dsn_option, json_option
from pgqueue.cli.output import show, show_json
from pgqueue.database import errors_translated
from pgqueue.model import Rate
from pgqueue.retry import seconds

COLUMNS = (
    "queue",
    "paused",
    "limits",
    "chosen",
    "used",
    "waiting_for_key",
    "next_start_seconds",
    "tokens",
    "ready",
    "oldest_ready_seconds",
)
OFF, DEFAULT = "off", "default"


@click.command()
@json_option
@dsn_option
def queues(as_json: bool, dsn: str | None) -> None:
    """Queues with their limits: what is in force, what of it an operator has chosen, and how much is in use."""
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        limits = database.run(conn, protocol.limits())
        stats = {row[0]: row for row in database.run(conn, protocol.stats())}
    rows = [
        (name, paused, in_force, chosen, used, waiting, soon, tokens, stats[name][2], stats[name][6])
        for name, paused, in_force, _, chosen, used, waiting, soon, tokens in limits
    ]
    if as_json:
        declared = {row[0]: row[3] for row in limits}
        show_json([{**dict(zip(COLUMNS, row, strict=True)), "declared": declared[row[0]]} for row in rows])
        return
    show(COLUMNS, [(row[0], row[1], _text(row[2]), _text(row[3]), *row[4:]) for row in rows], False)


def _text(limits: dict[str, Any]) -> str:
    """Limits as they are given to ``pgqueue limit``."""

    def one(value: Any) -> str:
        if isinstance(value, dict) and "per" not in value:
            return " ".join(f"{who}={weight}" for who, weight in value.items())
        if isinstance(value, dict):
            return f"{value['n']}/{value['per']:g}s" + (f" burst {value['burst']}" if value["burst"] > 1 else "")
        return OFF if value is None else str(value)

    order = [
        limit for limit in ("concurrency", "rate", "per_key", "rate_per_key", "fair_by", "weights", "aging") if limit in limits
    ]
    return ", ".join(f"{limit.replace('_', '-')} {one(limits[limit])}{'s' * (limit == 'aging')}" for limit in order) or "-"


class _Count(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (OFF, DEFAULT):
            return value
        if not re.fullmatch(r"[1-9]\d{0,6}", str(value)):
            self.fail(f'{value!r}: a whole number from 1 on, "{OFF}" or "{DEFAULT}"')
        return int(value)


class _Time(click.ParamType):  # type: ignore[type-arg]
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (OFF, DEFAULT):
            return value
        try:
            return seconds(float(value) if re.fullmatch(r"[\d.]+", str(value)) else value)
        except ValueError as error:
            self.fail(str(error))


class _Weight(click.ParamType):  # type: ignore[type-arg]
    name = "WHO=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        who, equals, weight = str(value).rpartition("=")
        if not equals or not (weight == DEFAULT or (re.fullmatch(r"[1-9]\d{0,3}", weight) and int(weight) <= 1000)):
            self.fail(f"{value!r}: acme=3, a whole number from 1 to 1000, or acme={DEFAULT}")
        return who, None if weight == DEFAULT else int(weight)


class _Rate(click.ParamType):  # type: ignore[type-arg]
    name = "N/TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (OFF, DEFAULT):
            return value
        match = re.fullmatch(r"(\d+)/([^:]+)(?::(\d+))?", str(value))
        if not match:
            self.fail(f'{value!r}: 100/1m, 100/1m:20 (with a burst of 20), "{OFF}" or "{DEFAULT}"')
        n, per, burst = match.groups()
        try:
            return Rate(int(n), per=f"1{per}" if per.isalpha() else per, burst=int(burst or 1))
        except ValueError as error:
            self.fail(str(error))


@click.command()
@click.argument("queue")
@click.option("--concurrency", type=_Count(), help="Jobs that run at once.")
@click.option("--per-key", type=_Count(), help="Jobs of one key that run at once.")
@click.option("--rate", type=_Rate(), help="Jobs that begin in a time: 100/1m; 100/1m:20 allows bursts of 20.")
@click.option("--rate-per-key", type=_Rate(), help="The same for each key.")
@click.option("--aging", type=_Time(), help="How much older a job is that counts as much as one of the priority before it.")
@click.option("--fair-by", help="The argument whose value says for whom a job is: all get as much.")
@click.option("--weight", type=_Weight(), multiple=True, help="Shares of one of those whom fair_by tells apart; can be repeated.")
@dsn_option
def limit(queue: str, dsn: str | None, weight: Any, **given: Any) -> None:
    """Change the limits of a queue, for the whole cluster and at once. "off": no such limit; "default": what the App declares."""
    chosen = {name: _value(value) for name, value in given.items() if value is not None}
    if weight:
        chosen["weights"] = dict(weight)
    if not chosen:
        raise click.UsageError("say which: --concurrency, --per-key, --rate, --rate-per-key, --aging, --fair-by or --weight")
    with errors_translated():
        in_force = ask(dsn, protocol.limit_queue(queue, chosen))
    click.echo(f"{queue}: {_text(in_force)}")
    if given["fair_by"] not in (None, OFF, DEFAULT):
        click.echo("jobs without this argument all count as those of one; pgqueue doctor MODULE:APP names who lacks it", err=True)
    if any(value is not None for _, value in weight) and "fair_by" not in in_force:
        click.echo("the weights count when the queue is fair: --fair-by ARGUMENT", err=True)


def _value(value: Any) -> Any:
    if isinstance(value, Rate):
        return {"n": value.n, "per": value.per, "burst": value.burst}
    return {OFF: 0, DEFAULT: None}.get(value, value)


@click.command()
@click.argument("queue")
@dsn_option
def pause(queue: str, dsn: str | None) -> None:
    """Stop claiming from a queue, everywhere. What runs goes on."""
    ask(dsn, protocol.pause(queue))
    click.echo(f"{queue} is paused")


@click.command()
@click.argument("queue")
@dsn_option
def resume(queue: str, dsn: str | None) -> None:
    """Claim from a paused queue again."""
    ask(dsn, protocol.resume(queue))
    click.echo(f"{queue} goes on")
