"""The two stories: the bank credit, and the order with its warehouse. Each is told twice, and killed where it hurts.

Nothing is staged beyond the moment of the kill: real processes, a real kill -9, and what the tables say afterwards.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.demo import shop
from pgqueue.demo.processes import Program, Supervisor, environment, program
from pgqueue.demo.programs import atomic_shop
from pgqueue.demo.screen import Screen
from pgqueue.demo.signals import Signals

CREDIT = 10_000  # cents
PATIENCE = 60.0  # seconds for one job, with two deaths on the way
KILLS = "transaction.user_code_done=kill9,transaction.committed=kill9"
"""Before the COMMIT of a transaction, and right after it, when nobody knows yet: each once."""


@dataclass(frozen=True)
class Ending:
    """What the tables said at the end of the stories."""

    credited: int  # cents
    stored: int
    told: int  # orders that the warehouse knows of
    crashes: int = 0  # workers killed on the way

    @property
    def good(self) -> bool:
        """Credited once, and nothing lost."""
        return self.credited == CREDIT and self.stored == self.told == 1


@dataclass(frozen=True)
class Stories:
    """Tells them in one database."""

    conn: psycopg.Connection[Any]
    dsn: str
    where: Path
    screen: Screen
    signals: Signals

    def without(self) -> Ending:
        """How it is done without pgqueue."""
        self.screen.title("1  Without pgqueue: an effect, and the note of it, are two transactions")
        credited = self._naive_bank()
        return Ending(credited, *self._naive_shop())

    def told_again(self) -> Ending:
        """The same with pgqueue."""
        self.screen.title("2  With pgqueue: an effect, and the note of it, are one transaction")
        credited, crashes = self._bank()
        return Ending(credited, *self._shop(), crashes)

    # ------------------------------------------------------------------------------------- without pgqueue

    def _naive_bank(self) -> int:
        screen = self.screen
        self.conn.execute("INSERT INTO bank VALUES ('Ann', 0)")
        self.conn.execute("INSERT INTO bank_task VALUES ('Ann', %s)", (CREDIT,))
        screen.say()
        screen.say(f"A worker adds {dollars(CREDIT)} to Ann's account. Then it notes that it did.")
        with self._program("naive_worker") as worker:
            worker.until("credited")
            screen.happened(_name("worker", worker), "update bank set cents = cents + 10000; commit")
            worker.kill()
            screen.happened(_name("worker", worker), "kill -9, before it could note that", killed=True)
        with self._program("naive_worker") as worker:
            worker.until("credited")
            screen.happened(_name("worker", worker), "not done?  update bank set cents = cents + 10000; commit")
            worker.go_on()
            worker.finish()
        credited = self._number("SELECT cents FROM bank WHERE name = 'Ann'")
        screen.verdict(credited == CREDIT, f"Ann has {dollars(credited)}")
        return credited

    def _naive_shop(self) -> tuple[int, int]:
        screen = self.screen
        screen.say()
        screen.say("A shop stores an order. Then it tells the warehouse.")
        with self._program("naive_shop") as seller:
            seller.until("stored")
            screen.happened(_name("shop", seller), "insert into shop_order …; commit")
            seller.kill()
            screen.happened(_name("shop", seller), "kill -9, before it could tell the warehouse", killed=True)
        stored, told = self._in("shop_order", 1), self._in("warehouse", 1)
        screen.verdict(stored == told, f"{stored} order is stored, and the warehouse knows of {told}: it is never packed")
        return stored, told

    # ---------------------------------------------------------------------------------------- with pgqueue

    def _bank(self) -> tuple[int, int]:
        screen = self.screen
        self.conn.execute("INSERT INTO bank VALUES ('Bob', 0)")
        screen.say()
        screen.code(_source(shop.credit.fn))
        with self.conn.transaction():
            job = shop.deposit.using(self.conn).enqueue("Bob", CREDIT)
        self._work("two workers are being killed …", killed=True)
        rows = self.conn.execute(
            "SELECT checkpoints FROM pgqueue.attempts WHERE job_id = %s AND kind = 'crash' ORDER BY ended_at", (job.id,)
        ).fetchall()
        screen.say()
        for (checkpoints,) in rows:
            screen.happened("worker", f"kill -9, {'after' if checkpoints else 'before'} the commit", killed=True)
            screen.happened("next worker", "finds the note: nothing to do" if checkpoints else "finds nothing done: does it")
        credited = self._number("SELECT cents FROM bank WHERE name = 'Bob'")
        screen.verdict(credited == CREDIT, f"Bob has {dollars(credited)}, after {len(rows)} killed workers")
        return credited, len(rows)

    def _shop(self) -> tuple[int, int]:
        screen = self.screen
        screen.say()
        screen.code(_source(atomic_shop))
        screen.say()
        for moment, when in (("enqueued", "before"), ("committed", "after")):
            with self._program("atomic_shop") as seller:
                seller.until("enqueued")
                if moment == "committed":
                    seller.go_on()
                    seller.until("committed")
                seller.kill()
                screen.happened(_name("shop", seller), f"kill -9, {when} the commit", killed=True)
            jobs = self._number("SELECT count(*) FROM pgqueue.jobs WHERE name = %s", shop.tell_warehouse.name)
            screen.happened("", f"orders stored: {self._in('shop_order', 2)}, jobs for the warehouse: {jobs}")
        self._work("a worker tells the warehouse …")
        stored, told = self._in("shop_order", 2), self._in("warehouse", 2)
        screen.verdict(stored == told == 1, f"{stored} order is stored, and the warehouse knows of {told}")
        return stored, told

    # ---------------------------------------------------------------------------------------------- inside

    def _program(self, name: str) -> AbstractContextManager[Program]:
        return program(name, environment(self.dsn, self.where), self.signals)

    def _work(self, text: str, killed: bool = False) -> None:
        """Workers, until there is nothing left to do."""
        self.screen.working(text)
        variables = {"PGQUEUE_FAILPOINTS": KILLS, "PGQUEUE_FAILPOINTS_ONCE": str(self.where)} if killed else {}
        supervisor = Supervisor(self.dsn, self.where, "-w", "1", "--burst", **variables)
        try:
            supervisor.start()
            supervisor.wait(PATIENCE, self.signals)
        finally:
            supervisor.stop()
            self.screen.clear()

    def _number(self, query: str, *parameters: Any) -> int:
        row = self.conn.execute(query, parameters).fetchone()
        return int(row[0]) if row else 0

    def _in(self, table: str, number: int) -> int:
        return self._number(f"SELECT count(*) FROM {table} WHERE number = %s", number)  # noqa: S608 -- a name of ours


def dollars(cents: int) -> str:
    """An amount as people write it."""
    return f"${cents // 100:,}" + (f".{cents % 100:02}" if cents % 100 else "")


def _name(role: str, process: Program) -> str:
    return f"{role} {process.pid}"


def _source(function: Any) -> str:
    """The lines of a function that matter: without its docstring, and without the places where we wait to be killed."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    kept = [line for line in lines if '"""' not in line and "worst_moment" not in line]
    if kept[0].startswith("def"):  # not decorated: only what is inside
        kept = textwrap.dedent("\n".join(kept[1:])).splitlines()
    return "\n".join(kept)
