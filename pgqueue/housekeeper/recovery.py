"""Giving back the jobs of workers that are dead, fenced, or do not know that they hold them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from pgqueue import ids, protocol
from pgqueue.database import run
from pgqueue.descriptors import readable
from pgqueue.failpoints import failpoint
from pgqueue.ids import digest
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.slots import Slot

log = logging.getLogger(__name__)
HOSTAGE_AFTER = 0.75  # seconds that a claimed job may wait in its worker; the worker itself allows less: see worker/inbox.py
PATIENCE = 2.0  # seconds to wait for the sessions of a dead worker; what they still hold is reaped in the next round


def settle_kept(conn: psycopg.Connection[Any], worker: str, kept: Mapping[int, tuple[str, int]]) -> list[str]:
    """Settle what a worker has finished, from shared memory. It may do so itself at the same moment: that is safe. Which jobs
    these were."""
    held = {digest(job, token): (job, token) for job, token, _ in run(conn, protocol.held_claims([worker]))}
    finished = [
        Settlement(ClaimedJob(*held[key], "", "", "", 0, None), "succeeded", result, seen)
        for key, (result, seen) in kept.items()
        if key in held
    ]
    if finished and "busy" in run(conn, protocol.settle(finished)).values():
        run(conn, protocol.end_stalled(worker))  # it holds them itself, in a message that it does not get to finish
    return [settlement.job.id for settlement in finished]


def bury(
    conn: psycopg.Connection[Any],
    worker: str,
    slot: Slot | None,
    started: Sequence[int],
    reason: str | None,
    overdue: int | None = None,
) -> tuple[int, list[str]]:
    """A worker of this host has died: what it had finished is settled, its other jobs are ready again. ``started``: the jobs it
    was running, which are charged. ``overdue``: it was killed because of the time limit of this step of the one job. How many
    jobs were given back, and which may have ended here."""
    kept = slot.kept() if slot is not None else {}
    finished: list[str] = []
    if kept:
        finished = settle_kept(conn, worker, kept)  # before the fence: from then on other hosts reap, and know nothing of these
    held = {digest(job, token): (job, token) for job, token, _ in run(conn, protocol.held_claims([worker]))}
    charged = [held[key][0] for key in started if key in held and key not in kept]
    run(conn, protocol.fence_worker(worker, None, reason or "ended by its supervisor", charged, overdue))
    given_back = reap_all(conn, worker, charged, "crash" if overdue is None else "timeout", reason, overdue)
    return given_back, finished + charged


def reap_all(
    conn: psycopg.Connection[Any], worker: str, started: Sequence[str], kind: str, reason: str | None, step: int | None = None
) -> int:
    """Take everything from a fenced worker. Its sessions are ended first: they may hold jobs in the middle of a step. How many
    jobs were given back."""
    all_given_back = 0
    run(conn, protocol.end_sessions(worker))
    deadline = time.monotonic() + PATIENCE
    while True:
        failpoint("reap.selected")
        given_back, failed, still_held = run(conn, protocol.reap(worker, started, kind, reason, step))
        failpoint("reap.committed")
        all_given_back += given_back
        if given_back or failed:
            log.info("worker %s: %d jobs given back, %d failed (%s)", worker, given_back, failed, reason or "no charge")
        if still_held == 0 or time.monotonic() > deadline:
            return all_given_back
        time.sleep(0.01)


def reap_lapsed(conn: psycopg.Connection[Any], except_for: Sequence[str] = ()) -> int:
    """Everything that belongs to a fenced or missing worker, whoever fenced it and whenever. ``except_for``: deaths that are
    about to be reported in detail. How many jobs were given back."""
    lapsed = [(worker, reason) for worker, reason in run(conn, protocol.lapsed_workers()) if worker not in except_for]
    return sum(reap_all(conn, worker, [], "lost", reason) for worker, reason in lapsed)


def fence_vanished(conn: psycopg.Connection[Any], ours: Sequence[str]) -> None:
    """At start: workers of this very machine and boot whose process no longer exists. A restarted supervisor finds the jobs of
    the killed one this way, and does not wait for the lease. Not ``ours``: their supervisor tells of their deaths, and what they
    were running."""
    here = (ids.boot_id(), ids.pid_namespace())
    for worker, _, boot_id, pid_ns, pid, ticks in run(conn, protocol.beats()):
        if (boot_id, pid_ns) == here and ticks and worker not in ours and ids.start_ticks(pid) != ticks:
            run(conn, protocol.fence_worker(worker, None, "its process is gone"))


def running_cancelled(conn: psycopg.Connection[Any], slots: Sequence[Slot]) -> list[str]:
    """Workers that are in the middle of a job that somebody wants to end at once."""
    busy = {slot.worker: slot.started for slot in slots if slot.worker and slot.started}
    claims = run(conn, protocol.hard_cancelled(list(busy))) if busy else []
    return [worker for job, token, worker in claims if digest(job, token) in busy[worker]]


def release_unknown(conn: psycopg.Connection[Any], slots: Sequence[Slot]) -> None:
    """Give back claims that their worker does not know of, because the reply to its claim was lost.

    The order matters: the table first, the workers' memory second. What is in the table and was already settled when we look
    into the memory is gone by then, and the release finds nothing.
    """
    by_worker = {slot.worker: slot for slot in slots if slot.registered}
    claims = run(conn, protocol.held_claims([worker for worker in by_worker if worker]))
    failpoint("reconcile.between")
    held = {worker: slot.held() for worker, slot in by_worker.items()}
    unknown = [
        (job, token)
        for job, token, worker in claims
        if digest(job, token) not in held[worker] and by_worker[worker].inflight != token and by_worker[worker].worker == worker
    ]
    if unknown:  # look again: most were settled in between
        there = {(job, token) for job, token, _ in run(conn, protocol.held_claims([worker for worker in by_worker if worker]))}
        unknown = [claim for claim in unknown if claim in there]
    if unknown:
        log.warning("%d claims are not known to their workers (a reply was lost): given back", len(unknown))
        run(conn, protocol.settle([Settlement(ClaimedJob(job, token, "", "", "", 0, None), "release") for job, token in unknown]))


def free_hostages(conn: psycopg.Connection[Any], slots: Sequence[Slot]) -> None:
    """Give back what a worker claimed and cannot begin, because the job before it takes long. The worker's own thread does that
    sooner, unless that job keeps the whole interpreter. A worker never begins what has waited for so long."""
    for slot in slots:
        if (worker := slot.worker) is None:
            continue
        claims = run(conn, protocol.held_claims([worker]))
        waiting = slot.waiting(HOSTAGE_AFTER)
        hostages = [ClaimedJob(job, token, "", "", "", 0, None) for job, token, _ in claims if digest(job, token) in waiting]
        if hostages:
            log.warning("worker %s: %d jobs behind one that blocks it: given back", worker, len(hostages))
            run(conn, protocol.settle([Settlement(job, "release") for job in hostages]))


def revoke(conn: psycopg.Connection[Any], slot: Slot, token: int) -> None:
    """Give back what a claim has brought, because the worker does not get to read the answer."""
    if slot.worker is None:
        return
    claims = run(conn, protocol.held_claims([slot.worker]))
    jobs = [ClaimedJob(job, token, "", "", "", 0, None) for job, claim, _ in claims if claim == token]
    if jobs and slot.revoke(token):
        log.warning("worker %s: %d jobs behind one that blocks it: given back", slot.worker, len(jobs))
        run(conn, protocol.settle([Settlement(job, "release") for job in jobs]))


def wait_for_exit(pids: Sequence[int], seconds: float) -> None:
    """Wait until these processes, which are not our children, are gone."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, AttributeError):
            continue
        readable([descriptor], deadline - time.monotonic())
        os.close(descriptor)
