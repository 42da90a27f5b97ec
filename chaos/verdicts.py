"""What each oracle says about a round, when its faults have stopped and its jobs have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from chaos import history
from chaos.arena import Arena
from chaos.oracles import (
    atomicity,
    cancels,
    charges,
    claim_history,
    concurrency,
    conservation,
    effects,
    expectations,
    invariant,
    key_order,
    ledger,
    plain_steps,
    rates,
    ticks,
    values,
    waits,
)
from chaos.workloads import bank, town, unruly, zoo

FROM_THE_LOG = ("atomicity", "concurrency", "rates", "key order")
#: Each job's place in the order of the enqueues: the argument of `serve`.
_PLACES = "SELECT id::text, (input::json ->> 'n')::int FROM pgqueue.job_values WHERE name = 'chaos.workloads.town.serve'"
AT_ONCE = 4  # jobs that a worker can be running: one def, and three on the event loop
#: Jobs that kill the process that they run in.
KILLERS = (unruly.changes.name, *(getattr(zoo, name).name for name, (_, _, dies) in zoo.EXPECTED.items() if dies))
#: Jobs whose code raises nothing, whatever is broken.
BLAMELESS = tuple(job.name for job in (town.chain, town.errands, town.stroll, town.visit, town.serve, town.child, bank.tell))
#: Jobs that producers with a journal of their own enqueue.
FROM_INSIDE = (bank.order.name,)


@dataclass(frozen=True)
class Verdict:
    """Of one oracle. ``wrong`` is empty where all is well; ``note`` says what was judged, or why nothing was; ``seen`` how many
    of these."""

    wrong: list[str]
    note: str = ""
    judged: bool = True
    seen: int = 0
    needs: str = ""  # where it could not judge, because somebody has to allow it first: what
    figures: dict[str, int] | None = None  # how many jobs or steps are "lost" and "doubled", where it counts them
    most: int = 0  # of a limit: how near anybody came to it

    @property
    def idle(self) -> bool:
        """Was there nothing that it could have judged?"""
        return not self.judged or bool(self.note and not self.seen)


def verdicts(arena: Arena) -> dict[str, Verdict]:
    """Of all oracles. What was found while the round was under way is added to the oracle that found it."""
    conn = arena.chaos.conn
    conn.execute("ANALYZE")  # a round makes hundreds of thousands of rows in minutes, and oracles join them
    found = {name: judge(arena, conn) for name, judge in JUDGES.items()} | _log(arena, conn)
    return with_findings(found, arena.findings)


def with_findings(found: Mapping[str, Verdict], findings: Iterable[str]) -> dict[str, Verdict]:
    """Each finding begins with the name of the oracle that it belongs to."""
    result = dict(found)
    for finding in findings:
        name, _, what = finding.partition(": ")
        before = result.get(name, Verdict([]))
        result[name] = replace(before, wrong=[*before.wrong, what])
    return result


def _log(arena: Arena, conn: psycopg.Connection[Any]) -> dict[str, Verdict]:
    """The oracles that judge PostgreSQL's own log."""
    if arena.slot is None:
        why = history.impossible(conn)
        needs = f"PostgreSQL's log cannot be read: {why}. It takes wal_level = logical, and a role with REPLICATION"
        return dict.fromkeys(FROM_THE_LOG, Verdict([], f"not judged: {why}", judged=False, needs=needs))
    try:
        log = list(history.read(conn, arena.slot))
    except psycopg.errors.UndefinedObject:
        return dict.fromkeys(FROM_THE_LOG, Verdict([], "not judged: the session that kept the log was lost", judged=False))
    names = dict(conn.execute("SELECT id::text, name FROM pgqueue.job").fetchall())
    since = "; after a failover, those since then" if arena.logs > 1 else ""
    few, even = history.starts(log, "few"), [(start.stamp, start.cost) for start in history.starts(log, "even")]
    within = town.PER_SECOND + town.BURST - 1
    seen = sum(len(commit.effects) for commit in log)
    found = {
        "atomicity": Verdict(atomicity.check(log, names, town.names("transaction")), f"effects{since}", seen=seen),
        "concurrency": limited(
            concurrency.check(log, "few", limit=town.FEW) + concurrency.check(log, "keys", per_key=1),
            f"{town.FEW} of a queue may run at once",
            concurrency.most(log, "few"),
            town.FEW,
            len(few),
        ),
        # Whatever the clock does: the stamps are those by which the rate was kept, and a start that a failover lost is in no log.
        "rates": limited(
            rates.check(even, town.PER_SECOND, 1.0, town.BURST),
            f"{town.PER_SECOND} may begin in a second, {within} with a burst",
            rates.busiest(even, 1.0)[0],
            town.PER_SECOND,
            len(even),
        ),
    }
    if arena.lossy:  # what was committed there is in no log any more
        found["key order"] = Verdict([], "not judged: starts were lost in failovers", judged=False)
    else:
        places = dict(conn.execute(_PLACES).fetchall())
        found["key order"] = Verdict(key_order.check(log, "keys", places), "jobs with a key", seen=len(places))
    return found


def limited(wrong: list[str], what: str, most: int, limit: int, seen: int) -> Verdict:
    """Of an oracle that looks at a limit. One that nobody has reached was not tried: then nothing is judged."""
    if most < limit and not wrong:
        return Verdict([], f"not judged: {what}, and never more than {most} did", judged=False, most=most)
    return Verdict(wrong, f"starts: {what}", seen=seen, most=most)


def _plain_steps(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    if arena.lossy:
        return Verdict([], "not judged: checkpoints of steps were lost in failovers, so steps may run again", judged=False)
    fenced = int(conn.execute("SELECT count(DISTINCT worker) FROM pgqueue.attempts WHERE kind = 'lost'").fetchone()[0])  # type: ignore[index]
    crashed, again = bool(arena.counts["PostgreSQL crashes"]), plain_steps.begun_again(arena.directory)
    found = plain_steps.judge(conn, arena.outside, arena.interrupted + fenced, AT_ONCE, crashed, again)
    arena.count(plain_steps.AGAIN, found.again)
    arena.count(plain_steps.LATE, found.late)
    return Verdict(found.wrong, "runs", seen=found.runs)


def _conservation(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    ids = conservation.of_ids(conn, arena.attempted, arena.enqueued, FROM_INSIDE, lossy=bool(arena.lossy))
    journal = conservation.Journal.read(arena.journal)
    if arena.lossy:
        journal.acknowledged.clear()  # they were, by a server that is no more
    orders = conservation.of_orders(conn, journal)
    wrong = conservation.in_words(ids) + conservation.in_words(orders) + conservation.check_grants(conn)
    figures = Counter(conservation.figures(ids)) + Counter(conservation.figures(orders))
    seen = len(arena.enqueued) + len(journal.acknowledged)
    return Verdict(wrong, "acknowledged enqueues", seen=seen, figures=dict(figures))


def _effects(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    [(count,)] = conn.execute("SELECT count(*) FROM effect").fetchall()
    return Verdict(effects.check(conn), "effects", seen=count, figures=effects.figures(conn))


def _claim_history(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    [(count,)] = conn.execute("SELECT count(*) FROM claim_history WHERE event = '1 claimed'").fetchall()
    return Verdict(claim_history.check(conn), "claims", seen=count)


def _ticks(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    if not arena.ticking:
        return Verdict(ticks.check(conn), "no schedule in this round", judged=False)
    [(count,)] = conn.execute("SELECT count(*) FROM pgqueue.tick").fetchall()
    return Verdict(ticks.check(conn, ticks.Span(*arena.ticking)), "ticks", seen=count)


def _values(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    return Verdict(values.check(conn), "jobs", seen=values.judged(conn))


def _waits(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    return Verdict(waits.check(conn, arena.clock_set), "waits with an end", seen=waits.judged(conn))


def _cancels(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    if arena.lossy:
        return Verdict([], "not judged: requests may have been lost in failovers", judged=False)
    return Verdict(cancels.check(conn, arena.asked_to_end), "jobs that were asked to end", seen=len(arena.asked_to_end))


def _charges(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    [(count,)] = conn.execute("SELECT count(*) FROM pgqueue.attempt WHERE kind = 'crash'").fetchall()
    wrong = charges.check(conn, arena.killed, KILLERS, AT_ONCE) + charges.errors(conn, BLAMELESS)
    return Verdict(wrong, "crashes", seen=count)


def _snapshots(check: Callable[[psycopg.Connection[Any]], list[str]]) -> Callable[[Arena, psycopg.Connection[Any]], Verdict]:
    return lambda arena, conn: Verdict(check(conn), "looks, most of them while it ran", seen=arena.looks + 1)


def _nothing(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    """Found while the round was under way, or not at all."""
    return Verdict([])


def _prefix(arena: Arena, conn: psycopg.Connection[Any]) -> Verdict:
    if not arena.lossy:
        return Verdict([], "no failover in this round", judged=False)
    return Verdict([], "failovers and restores that lost commits", seen=sum(lost > 0 for lost in arena.lost_commits))


JUDGES: dict[str, Callable[[Arena, psycopg.Connection[Any]], Verdict]] = {
    "effects": _effects,
    "ledger": _snapshots(ledger.check),
    "conservation": _conservation,
    "claim history": _claim_history,
    "invariant": _snapshots(invariant.check),
    "plain steps": _plain_steps,
    "ticks": _ticks,
    "expectations": lambda arena, conn: Verdict(
        expectations.check(conn, arena.specimens, arena.cancelled), "bad jobs", seen=len(arena.specimens)
    ),
    "charges": _charges,
    "values": _values,
    "waits": _waits,
    "cancels": _cancels,
    "prefix": _prefix,
    "liveness": _nothing,
    "drain": _nothing,
    "migration": _nothing,
    "suite": _nothing,
}

#: All oracles of a storm.
NAMES = (*JUDGES, *FROM_THE_LOG)
