"""What came out of the demo: for people, and for machines."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pgqueue.demo.journal import Hit
from pgqueue.demo.ledger import Ledger
from pgqueue.demo.screen import Screen
from pgqueue.demo.stories import Ending
from pgqueue.demo.storm import Storm

PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Result:
    """What came out of it."""

    server: str
    seconds: float
    without: Ending
    told_again: Ending
    storm: Storm
    ledger: Ledger
    hits: list[Hit]
    clean_stop: bool

    @property
    def good(self) -> bool:
        """Did pgqueue keep all of its promises?"""
        recovered = all(hit.recovery is not None for hit in self.hits)
        return self.told_again.good and self.ledger.balances and recovered and self.clean_stop

    def recovery(self, with_supervisor: bool) -> dict[str, float | int]:
        """Seconds from a kill to the next run of the job that it hit."""
        times = [hit.recovery for hit in self.hits if hit.recovery is not None and self._waited(hit) == with_supervisor]
        if not times:
            return {"hits": 0}
        return {"hits": len(times), "p50": round(statistics.median(times), 3), "max": round(max(times), 3)}

    def _waited(self, hit: Hit) -> bool:
        """Did the job have to wait for another supervisor? Also where the old one was killed just after the worker."""
        until = hit.kill.at + (hit.recovery or 0) * 1e9
        return hit.kill.with_supervisor or any(hit.kill.at <= at <= until for at in self.storm.supervisor_killed_at)

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "ok": self.good,
            "server": self.server,
            "seconds": round(self.seconds, 1),
            "without_pgqueue": {"credited_cents": self.without.credited, "orders": self.without.stored,
                                "orders_the_warehouse_knows": self.without.told},
            "with_pgqueue": {"credited_cents": self.told_again.credited, "orders": self.told_again.stored,
                             "orders_the_warehouse_knows": self.told_again.told, "workers_killed": self.told_again.crashes},
            "orders_committed": len(self.storm.committed),
            "orders_rolled_back": len(self.storm.rolled_back),
            "jobs_succeeded": self.ledger.succeeded,
            "workers_killed": sum(not kill.with_supervisor for kill in self.storm.killed),
            "supervisors_killed": self.storm.supervisors,
            "kills_that_hit_a_run": dict(Counter(hit.doing for hit in self.hits)),
            "charged_once": self.ledger.charged_once,
            "shipped_once": self.ledger.shipped_once,
            "carrier_calls": self.ledger.carrier_calls,
            "lost": len(self.ledger.lost),
            "doubled": len(self.ledger.doubled),
            "phantoms": len(self.ledger.phantoms),
            "recovery_seconds": self.recovery(with_supervisor=False),
            "recovery_seconds_supervisor": self.recovery(with_supervisor=True),
            "clean_stop": self.clean_stop,
            "problems": self.ledger.problems,
        }  # fmt: skip


def show(result: Result, screen: Screen) -> None:
    """The table at the end."""
    ledger, storm = result.ledger, result.storm
    committed = len(storm.committed)
    workers = sum(not kill.with_supervisor for kill in storm.killed)
    where = Counter(hit.doing for hit in result.hits if not hit.kill.with_supervisor)
    hit = ", ".join(f"{step} {where[step]}" for step in ("charge", "ask_carrier", "book_shipment") if where[step])
    screen.title("4  The ledger, line by line")
    screen.say()
    screen.table([
        ("orders committed", f"{committed}", None),
        ("orders rolled back", f"{len(storm.rolled_back)}", None),
        ("jobs succeeded", f"{ledger.succeeded}", ledger.succeeded == committed),
        ("charged exactly once", f"{ledger.charged_once}", ledger.charged_once == committed),
        ("shipped exactly once", f"{ledger.shipped_once}", ledger.shipped_once == committed),
        ("carrier was asked", f"{ledger.carrier_calls}  times: at least once, always with the same key",
         ledger.carrier_calls >= committed),
        ("lost", f"{len(ledger.lost)}", not ledger.lost),
        ("doubled", f"{len(ledger.doubled)}", not ledger.doubled),
        ("phantom", f"{len(ledger.phantoms)}  things done for an order that rolled back", not ledger.phantoms),
        ("workers killed", f"{workers}" + (f"  hit: {hit}" if hit else ""), None),
        ("supervisors killed", f"{storm.supervisors}  with all of its workers", None),
    ])  # fmt: skip
    _show_recovery(result, screen)
    screen.say()
    for problem in ledger.problems[:PROBLEMS_SHOWN]:
        screen.verdict(False, problem)
    if len(ledger.problems) > PROBLEMS_SHOWN:
        screen.verdict(False, f"and {len(ledger.problems) - PROBLEMS_SHOWN} more")
    if not result.clean_stop:
        screen.verdict(False, "the last supervisor did not stop cleanly")
    if result.good:
        screen.verdict(True, f"every line balances, to the cent · {result.seconds:.0f} s")
    elif not ledger.problems:
        screen.verdict(False, "the ledger balances, but not everything went as promised")


def _show_recovery(result: Result, screen: Screen) -> None:
    screen.say()
    screen.say("Recovery: from a kill -9 to the next run of the job it hit, as the runs note")
    for who, with_supervisor in (("workers", False), ("supervisor", True)):
        found = result.recovery(with_supervisor)
        if found["hits"]:
            figures = f"p50 {found['p50']:.2f} s, max {found['max']:.2f} s"
            screen.say(f"  {who.ljust(12)}{figures}   ({found['hits']} jobs)")
    lost = sum(hit.recovery is None for hit in result.hits)
    if lost:
        screen.verdict(False, f"{lost} jobs that were hit did not run again")
