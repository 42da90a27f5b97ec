"""``pgqueue bench``."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import click

from pgqueue.cli.output import show_fields, show_json

WHAT = ("noop", "steps", "transaction", "latency", "recovery", "hostage", "idle", "control", "limits", "snapshot")


@click.command("bench")
@click.argument("what", type=click.Choice(WHAT))
@click.option("-n", "--jobs", type=click.IntRange(1), help="How many jobs (kills, long jobs, changes).")
@click.option("-w", "--workers", type=click.IntRange(1, 512), help="How many worker processes.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@click.option("--dsn", envvar="PGQUEUE_DSN", help="A server to create a database on; without it an embedded one.")
def bench_command(what: str, jobs: int | None, workers: int | None, as_json: bool, dsn: str | None) -> None:
    """Measure this pgqueue on this server, in a database of its own."""
    from pgqueue.bench.harness import bench
    from pgqueue.bench.measures import MEASURES

    signal.signal(signal.SIGTERM, _leave)
    measure, usual_jobs, usual_workers = MEASURES[what]
    with bench(dsn) as made:
        figures = {"bench": what, **measure(made, jobs or usual_jobs, workers or usual_workers)}
    if as_json:
        show_json(figures)
    else:
        show_fields({name: in_words(value) for name, value in figures.items()})


def _leave(number: int, _: FrameType | None) -> None:
    """As after Ctrl-C: stop the workers, drop the database."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def in_words(figure: Any) -> str:
    """A figure for people: ``-`` where it could not be measured."""
    if isinstance(figure, list):
        return " ".join(map(in_words, figure))
    return "-" if figure is None else str(figure)
