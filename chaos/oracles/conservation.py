"""What was enqueued is what ran: acknowledged ⊆ finished ⊆ attempted.

Fails where an acknowledged enqueue was lost (G1), where a job of a transaction that rolled back exists (G2), where one enqueue
became two jobs, and where a job and the row that its producer wrote in the same transaction are not both there or both absent.
Between attempted and acknowledged is what nobody knows: the producer was killed, or lost its connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from chaos.workloads import bank

_JOBS = """
SELECT (v.input::json ->> 'number')::int, count(*), bool_and(v.status <> 'active')
  FROM pgqueue.job_values v WHERE v.name = %s GROUP BY 1
"""


@dataclass
class Journal:
    """What producers did, by the number of the order."""

    attempted: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    with_a_row: set[int] = field(default_factory=set)  # in a transaction that writes a purchase too

    @classmethod
    def read(cls, file: Path) -> Journal:
        """Lines of ``what number``, as chaos/workloads/producer.py writes them."""
        journal = cls()
        for line in file.read_text().splitlines() if file.exists() else ():
            what, number = line.split()
            getattr(journal, what).add(int(number))
        return journal


#: What each finding is about, and the jobs that it was found of.
Findings = dict[str, set[int]] | dict[str, set[str]]
ABSENT, UNFINISHED = "acknowledged, and there is no such job", "acknowledged, and not finished"
TWICE = "enqueued once, and there several times"


def check(conn: psycopg.Connection[Any], journal: Journal, name: str = "chaos.workloads.bank.order") -> list[str]:
    """When all jobs have ended: does what is there agree with what was done?"""
    return in_words(of_orders(conn, journal, name))


def of_orders(conn: psycopg.Connection[Any], journal: Journal, name: str = "chaos.workloads.bank.order") -> dict[str, set[int]]:
    """The same, with the numbers of the orders."""
    jobs = {number: (times, ended) for number, times, ended in conn.execute(_JOBS, (name,)).fetchall()}
    rows = {row[0] for row in conn.execute("SELECT number FROM purchase").fetchall()}
    return {
        ABSENT: journal.acknowledged - jobs.keys(),
        UNFINISHED: {n for n in journal.acknowledged & jobs.keys() if not jobs[n][1]},
        "there, and nobody tried to enqueue them": jobs.keys() - journal.attempted,
        "rolled back, and there": journal.rolled_back & jobs.keys(),
        TWICE: {n for n, (times, _) in jobs.items() if times > 1},
        "rows without their job, or jobs without their row": (journal.with_a_row & jobs.keys()) ^ rows,
    }


_IDS = "SELECT j.id::text, o.job_id IS NOT NULL FROM pgqueue.job j LEFT JOIN pgqueue.outcome o ON o.job_id = j.id"
#: Those of schedules are the business of ticks.py.
_NOT_FROM_OUTSIDE = " WHERE j.parent IS NULL AND j.name <> ALL (%s) AND NOT coalesce(j.policy -> 'meta' ? 'schedule', false)"
_GRANTED = """
SELECT (SELECT count(*) FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id
         WHERE j.name = %s AND o.status = 'succeeded'),
       (SELECT count(*) FROM pgqueue.job j WHERE j.name = %s AND j.parent IS NOT NULL)
"""


def of_ids(
    conn: psycopg.Connection[Any], attempted: set[str], acknowledged: set[str], from_inside: tuple[str, ...], lossy: bool = False
) -> dict[str, set[str]]:
    """The same for jobs whose ids their producer has chosen. ``from_inside``: names of jobs that other producers enqueue.
    ``lossy``: a failover has lost acknowledged commits, as it may."""
    jobs = dict(conn.execute(_IDS + _NOT_FROM_OUTSIDE, (list(from_inside),)).fetchall())
    there = dict(conn.execute(_IDS).fetchall())
    return {
        ABSENT: set() if lossy else acknowledged - there.keys(),
        UNFINISHED: {job for job in acknowledged & there.keys() if not there[job]},
        "there, and nobody tried to enqueue them": jobs.keys() - attempted,
    }


def check_ids(
    conn: psycopg.Connection[Any], attempted: set[str], acknowledged: set[str], from_inside: tuple[str, ...], lossy: bool = False
) -> list[str]:
    """The same in words."""
    return in_words(of_ids(conn, attempted, acknowledged, from_inside, lossy))


def in_words(findings: Findings) -> list[str]:
    """A sentence for each kind of finding."""
    return [f"{what}: {len(jobs)}, among them {sorted(jobs)[:5]}" for what, jobs in findings.items() if jobs]


def figures(findings: Findings) -> dict[str, int]:
    """How many jobs were lost, and how many doubled."""
    return {"lost": len(findings[ABSENT]) + len(findings[UNFINISHED]), "doubled": len(findings.get(TWICE, ()))}


def check_grants(conn: psycopg.Connection[Any]) -> list[str]:
    """Each grant of the bank enqueues one job in its transaction, and nobody else does that inside of a job."""
    [(grants, told)] = conn.execute(_GRANTED, (bank.grant.name, bank.tell.name)).fetchall()
    return [f"{grants} grants have enqueued a job each, and there are {told} of these jobs"] if grants != told else []
