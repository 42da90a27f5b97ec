"""A storm: load, faults at random moments, then a liveness phase without any. All must end by itself; then the oracles look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg import conninfo

from chaos import history
from chaos.arena import Arena
from chaos.databases import copy_of
from chaos.faults import faults
from chaos.feeder import Feeder
from chaos.nemesis import Nemesis, timetable
from chaos.one_by_one import OneByOne, late
from chaos.oracles import invariant, ledger, ticks
from chaos.plan import Round
from chaos.pooler import Pooler, program
from chaos.results import Result, measured
from chaos.server import Server
from chaos.verdicts import Verdict, verdicts, with_findings
from chaos.waiting import wait_for
from chaos.wire import Proxy
from pgqueue import migrate
from pgqueue.config import Exit
from pgqueue.database import connect

LONGER = 30.0  # seconds by which a storm may last longer, until each of its faults has happened once
LIVENESS = 60.0  # seconds without any progress, when the faults have stopped: then something is stuck
TICKS_LATE = 30.0  # seconds after which ticks are missing: whoever sees to them was just killed, and is started again
LOOK = 0.5  # seconds between two looks at what holds in every snapshot
_LEFT = "SELECT name, state, waiting_for, count(*) FROM pgqueue.jobs WHERE finished_at IS NULL GROUP BY 1, 2, 3"
#: Schedules go on when the faults have stopped. What they enqueue then (behind a moment; null: there is none) is not waited for,
#: and no progress: a job that is lost is not made good by others that come and end each second.
_ACTIVE = """
SELECT count(*) FROM pgqueue.job_values v WHERE v.status = 'active'
   AND NOT EXISTS (SELECT FROM pgqueue.tick t WHERE t.job_id = v.id AND t.due_at > %s)
"""
_PROGRESS = """
SELECT (SELECT count(*) FROM pgqueue.checkpoint),
       (SELECT count(*) FROM pgqueue.outcome)
     - (SELECT count(*) FROM pgqueue.tick t JOIN pgqueue.outcome o ON o.job_id = t.job_id WHERE t.due_at > %s)
"""


class Storm:
    """One round, on a database of its own."""

    def __init__(self, entry: Round, server: Server, directory: Path, seed: str, say: Callable[[str], None]) -> None:
        self._round = entry
        self._server = server
        self._directory = directory
        self._seed = seed
        self._say = say

    def run(self, seconds: float) -> Result:
        """For so long; and then until everything has ended."""
        with copy_of(self._server.dsn, self._server.name) as dsn:
            arena = Arena(self._server, dsn, self._directory, self._round.setup, self._seed)
            with arena.chaos, ExitStack() as stack:
                if self._round.proxy and self._server.own:
                    arena.proxy = stack.enter_context(Proxy(dsn))
                if self._round.pooler and self._server.own and program():
                    arena.pooler = stack.enter_context(Pooler(dsn))
                try:
                    arena.open()
                    nemesis = self._nemesis(arena, seconds)
                    self._blow(arena, nemesis, seconds)
                    return self._judge(arena, nemesis.planned)
                finally:
                    arena.over.set()
                    if (slot := arena.slot) is not None:
                        arena.snapshot(lambda conn: history.end(conn, slot))

    def _nemesis(self, arena: Arena, seconds: float) -> Nemesis | OneByOne:
        possible = {number for number, fault in faults().items() if not fault.left_out(self._server)}
        if self._round.times:
            return OneByOne(arena, {n: times for n, times in self._round.times.items() if n in possible}, self._seed)
        chosen = {number: mean for number, mean in self._round.every.items() if number in possible}
        entries = timetable(chosen, seconds, self._seed)
        arena.chaos.note("plan", seed=self._seed, entries=entries)
        return Nemesis(arena, entries, faults())

    def _blow(self, arena: Arena, nemesis: Nemesis | OneByOne, seconds: float) -> None:
        feeder = Feeder(arena)
        arena.threads.start("feeder", feeder.feed)
        arena.threads.start("keep hosts", arena.keep_hosts)
        arena.threads.start("watch", lambda: self._watch(arena))
        began = time.monotonic()
        nemesis.start()
        while not nemesis.done.is_set() and (
            (passed := time.monotonic() - began) < seconds or (passed < seconds + LONGER and nemesis.owes())
        ):
            self._say(f"{self._round.name}: {passed:.0f}/{seconds:.0f} s · {sum(arena.injected.values())} faults")
            if passed >= seconds:
                nemesis.hurry()
            time.sleep(min(LOOK, abs(seconds - passed) + 0.01))
        arena.feeding_is_over.set()
        nemesis.stop()
        arena.chaos.note("faults have stopped")
        arena.calm = time.time()
        if arena.ticking:
            arena.ticking.append(arena.full_second("floor"))
        if self._drain(arena):
            self._let_tick(arena)
        arena.drained = time.time() - arena.calm
        arena.over.set()
        arena.threads.join()
        if not feeder.acknowledged:
            arena.findings.append("suite: no job was enqueued: there was no load")

    def _drain(self, arena: Arena) -> bool:
        """Until all has ended by itself. A backlog takes as long as the machine needs for it: what is stuck does not move. Has
        all ended?"""
        before, moved = self._progress(arena), time.monotonic()
        while self._left(arena):
            time.sleep(0.1)
            if (now := self._progress(arena)) != before:
                before, moved = now, time.monotonic()
            elif time.monotonic() - moved > LIVENESS:
                left = arena.chaos.query(_LEFT)
                arena.findings.append(f"liveness: nothing has moved for {LIVENESS:g} s without faults, and there are {left}")
                return False
        return True

    def _let_tick(self, arena: Arena) -> None:
        """What was due before the faults stopped has its time too. Where it does not come, the oracle says so."""
        if not arena.ticking:
            return
        try:
            wait_for(
                lambda: not arena.snapshot(lambda conn: ticks.missing(conn, ticks.Span(*arena.ticking))), "ticks", TICKS_LATE
            )
        except AssertionError:
            arena.chaos.note("ticks are missing")
        self._drain(arena)  # their jobs

    def _left(self, arena: Arena) -> int:
        left = int(arena.chaos.query(_ACTIVE, self._until(arena))[0][0])
        self._say(f"{self._round.name}: faults have stopped, {left} jobs are left")
        return left

    def _progress(self, arena: Arena) -> tuple[int, ...]:
        return arena.chaos.query(_PROGRESS, self._until(arena))[0]

    def _until(self, arena: Arena) -> datetime | None:
        """The last moment for which schedules have to tick."""
        return arena.ticking[-1] if arena.ticking else None

    def _watch(self, arena: Arena) -> None:
        """What must hold in every snapshot."""
        while not arena.over.wait(LOOK):
            for name, check in (("invariant", invariant.check), ("ledger", ledger.check)):
                arena.findings += [f"{name}: while it ran: {what}" for what in arena.snapshot(check)]
            arena.looks += 1

    def _judge(self, arena: Arena, planned: Mapping[str, int]) -> Result:
        self._say(f"{self._round.name}: judging")
        for host in list(arena.hosts):
            code = host.drain()
            arena.findings += not_drained(code, host.processes(), arena.forgiven(host, code))
        found = verdicts(arena)
        result = measured(arena, self._round.name, self._seed)
        result.planned = dict(planned)
        result.verdicts = found
        if arena.bounds:
            seen = sum(len(result.recoveries.get(kind, ())) for kind in arena.bounds)
            judged = Verdict(late(arena.bounds, result.recoveries), "recoveries", seen=seen)
            result.verdicts["recovery"] = with_findings({"recovery": judged}, arena.findings)["recovery"]
        return result


def not_drained(code: int, left: list[int], forgiven: bool = False) -> list[str]:
    """Of a host that nobody disturbs. ``forgiven``: it was begun while the server was away, and would be started again."""
    if (code == Exit.OK or forgiven) and not left:
        return []
    return [f"drain: a calm host ended with {code}, and left the processes {left}"]


@contextmanager
def template(server: Server) -> Iterator[None]:
    """The database that those of all rounds are copies of, as long as the block lasts."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {server.name} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        with connect(conninfo.make_conninfo(server.dsn, dbname=server.name), "chaos") as conn:
            migrate.migrate(conn)
        yield
    finally:
        if not server.own:
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute(f"DROP DATABASE IF EXISTS {server.name} WITH (FORCE)")
