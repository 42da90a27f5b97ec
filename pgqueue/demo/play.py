"""The demo from its beginning to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from pgqueue import database
from pgqueue.config import Exit
from pgqueue.demo import carrier, journal, ledger, orders, shop
from pgqueue.demo.place import Place, furnish, place
from pgqueue.demo.processes import Supervisor
from pgqueue.demo.report import Result, show
from pgqueue.demo.screen import Screen
from pgqueue.demo.signals import Signals
from pgqueue.demo.stories import Stories
from pgqueue.demo.storm import Storm


@dataclass(frozen=True)
class Settings:
    """What the command line said."""

    dsn: str | None
    orders: int
    seconds: float
    kills: int
    workers: int
    seed: int
    keep: bool


def play(settings: Settings, screen: Screen, signals: Signals) -> Result:
    """All of it. Stopped, where somebody wants us to stop; everything is cleaned up in any case."""
    began = time.monotonic()
    lines = orders.read(settings.orders)
    screen.working("starting PostgreSQL …")
    with place(settings.dsn, settings.keep) as found:
        with database.connect(found.dsn, "pgqueue:demo") as conn:
            server = f"PostgreSQL {furnish(conn, lines)}, {found.description}"
            screen.title(f"pgqueue demo · {server}")
            stories = Stories(conn, found.dsn, found.directory, screen, signals)
            without, told_again = stories.without(), stories.told_again()
            storm, clean_stop = _storm(conn, found, lines, settings, screen, signals)
            screen.working("checking every line …")
            checked = ledger.check(conn, storm.committed, carrier.bookings(found.directory))
            hits = journal.hits(found.directory, storm.killed)
        result = Result(server, time.monotonic() - began, without, told_again, storm, checked, hits, clean_stop)
        show(result, screen)
        screen.working("cleaning up …")
    screen.clear()
    _farewell(found, screen)
    return result


def _storm(
    conn: psycopg.Connection[Any],
    found: Place,
    lines: list[orders.Order],
    settings: Settings,
    screen: Screen,
    signals: Signals,
) -> tuple[Storm, bool]:
    """The third chapter: what happened, and whether the workers left cleanly at the end."""
    supervisor = Supervisor(found.dsn, found.directory, "-w", str(settings.workers), "--lease", "2s")
    rolled_back = orders.rolled_back(lines, settings.seed)
    storm = Storm(conn, supervisor, lines, rolled_back, settings.seconds, settings.kills, settings.seed)
    screen.title("3  A shop in a storm")
    for text in (
        "",
        f"{len(lines)} orders come in, each in one transaction with its job; {len(rolled_back)} roll back.",
        "charge (transaction) → ask_carrier (flaky) → book_shipment (transaction)",
        f"{settings.workers} workers are at it. kill -9 for {settings.kills} of them, and once for their supervisor.",
        "",
    ):
        screen.say(text)
    try:
        supervisor.start()
        storm.run(screen, signals)
    finally:
        screen.working("stopping the workers …")
        code = supervisor.stop()
    screen.say(storm.summary(storm.taken))
    return storm, code == Exit.OK


def _farewell(found: Place, screen: Screen) -> None:
    """Where to go from here."""
    screen.title("What next")
    screen.say()
    screen.say(f"the shop that you saw   {shop.__file__}")
    screen.say("one of your own         pgqueue dev MODULE:APP, with a PostgreSQL in .pgqueue")
    screen.say("in your database        pgqueue migrate, pgqueue work MODULE:APP; README.md")
    for text in found.kept:
        screen.say(f"kept, as you asked      {text}")
    screen.say()
