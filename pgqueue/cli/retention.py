"""``pgqueue retention``: for how long what has ended is kept."""

from __future__ import annotations

import math
from typing import Any

import click

from pgqueue import database, protocol
from pgqueue.cli.options import DURATION, confirm, dsn_option, json_option
from pgqueue.cli.output import length, show, show_json
from pgqueue.model import ENDED

FOREVER, DEFAULT = "forever", "default"
COLUMNS = ("queue", *ENDED, "events", "ticks")


class _Age(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return {FOREVER: math.inf, DEFAULT: DEFAULT}.get(value) or DURATION.convert(value, param, ctx)


@click.command()
@click.option("-q", "--queue", default="", help="Jobs of this queue only.")
@click.option("--succeeded", type=_Age(), help="How long succeeded jobs are kept.")
@click.option("--failed", type=_Age(), help="Failed ones.")
@click.option("--cancelled", type=_Age(), help="Cancelled ones.")
@click.option("--events", type=_Age(), help="Events that no job waits for.")
@click.option("--ticks", type=_Age(), help="What schedules have done, once the jobs are gone.")
@click.option("--yes", is_flag=True, help="Do not ask where nothing is kept any more.")
@json_option
@dsn_option
def retention(queue: str, yes: bool, as_json: bool, dsn: str | None, **ages: Any) -> None:
    """Show or set for how long jobs are kept when they have ended. "forever"; "default", of a queue: what holds for all."""
    if gone := [what for what, age in ages.items() if age == 0]:  # elsewhere 0 means never
        of = f" of queue {queue}" if queue else ""
        confirm(f'keep no {" and ".join(gone)}{of}, and delete those there are? ("{FOREVER}" keeps all.)', yes)
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn, conn.transaction():
        for what, age in ages.items():
            if age is not None:
                database.run(conn, protocol.retain(queue, what, None if age == DEFAULT else age))
        rows = database.run(conn, protocol.retentions())
    said: dict[str, dict[str, float]] = {}
    for of_queue, what, seconds in rows:
        said.setdefault(of_queue, {})[what] = seconds
    if as_json:
        show_json(
            [{"queue": of_queue or None, **{what: _finite(s) for what, s in kept.items()}} for of_queue, kept in said.items()]
        )
        return
    show(
        COLUMNS,
        [(of_queue or "(all)", *(_text(kept.get(what)) for what in COLUMNS[1:])) for of_queue, kept in said.items()],
        False,
    )


def _finite(seconds: float) -> float | str:
    return FOREVER if math.isinf(seconds) else seconds


def _text(seconds: float | None) -> str | None:
    if seconds is None or math.isinf(seconds):
        return None if seconds is None else FOREVER
    return length(seconds)
