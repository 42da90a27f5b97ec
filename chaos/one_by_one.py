"""One fault at a time, on hosts that have recovered from the one before: what recovery takes, against what is promised.

A storm calls this in place of its nemesis where the plan says ``times``. Each fault leaves a Loss; chaos/results.py looks when
its jobs ran again.
"""

from __future__ import annotations

import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping

from chaos.arena import Arena, Loss
from chaos.processes import send_signal, session
from chaos.server import OwnServer
from chaos.waiting import wait_for
from chaos.workloads import town

WORKER, HOST, SERVER, FROZEN = "one worker", "one host", "one server", "one transaction"
FAULTS = {"F1": WORKER, "F16": HOST, "F8": SERVER, "F3": FROZEN}
PATIENCE = 60.0  # seconds until jobs run again: then something is stuck
LATE = 10  # times the bound: a finding. Less than that says how busy the machine was

#: The jobs of a loss that nobody has claimed again.
_WAITING = """
SELECT 1 FROM unnest(%s::uuid[]) lost(id)
 WHERE NOT EXISTS (SELECT 1 FROM pgqueue.outcome o WHERE o.job_id = lost.id)
   AND NOT EXISTS (SELECT 1 FROM claim_history h WHERE h.event = '1 claimed' AND h.job_id = lost.id AND h.at > to_timestamp(%s))
"""
_CLAIMED = "SELECT 1 FROM claim_history WHERE event = '1 claimed' AND at > to_timestamp(%s) LIMIT 1"
_LOOKS = (
    "SELECT queue, lane, count(*), min(pos), max(pos) FROM pgqueue.ready GROUP BY 1, 2",
    "SELECT worker, queue, count(*), min(started_at), clock_timestamp() FROM pgqueue.running GROUP BY 1, 2",
    "SELECT id, pid, started_at, beat, fenced_at, reason FROM pgqueue.worker",
    "SELECT pid, application_name, state, wait_event, clock_timestamp() - state_change, left(query, 80) FROM pg_stat_activity"
    " WHERE application_name LIKE 'pgqueue:%%'",
)
_IN_TRANSACTION = """
SELECT w.pid FROM pgqueue.running r JOIN pgqueue.worker w ON w.id = r.worker
  JOIN pg_stat_activity a ON a.application_name LIKE 'pgqueue:' || w.id || ':step%%' AND a.state = 'idle in transaction'
 WHERE r.job_id = %s
"""


class OneByOne:
    """Injects so many of each fault, in an order that follows from the seed."""

    def __init__(self, arena: Arena, times: Mapping[str, int], seed: str) -> None:
        self._arena = arena
        self._plan = [fault for fault, count in times.items() for _ in range(count)]
        random.Random(seed).shuffle(self._plan)
        self.planned = Counter(self._plan)
        self._over = threading.Event()
        self._hurry = threading.Event()
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._walk, name="one by one", daemon=True)
        lease = arena.setup.lease
        arena.bounds = {WORKER: 1.0, HOST: lease + 5, SERVER: 2.0, FROZEN: town.IDLE + 5}

    def start(self) -> None:
        """Now is the beginning."""
        self._thread.start()

    def owes(self) -> bool:
        """Is there a fault that has not happened once?"""
        return any(not self._arena.injected[fault] for fault in self.planned)

    def hurry(self) -> None:
        """From now on only what is owed."""
        self._hurry.set()

    def stop(self) -> None:
        """No new faults."""
        self._over.set()
        self._thread.join(2 * PATIENCE)

    def _walk(self) -> None:
        ways: dict[str, Callable[[], str | None]] = {
            WORKER: self._worker, HOST: self._host, SERVER: self._server, FROZEN: self._frozen
        }  # fmt: skip
        for number, fault in enumerate(self._plan):
            if self._over.is_set():
                return
            if self._hurry.is_set() and self._arena.injected[fault]:
                continue
            try:
                self._wait_until_all_work()
                what = ways[FAULTS[fault]]()
                if what is None:
                    self._arena.found_nothing(fault)
                else:
                    self._arena.note(fault, f"{number + 1} of {len(self._plan)}: {what}")
            except Exception as error:  # noqa: BLE001 -- the suite's own trouble, or a job that is stuck: seen either way
                self._arena.chaos.note("injecting failed", fault=fault, trace=traceback.format_exc())
                self._arena.findings.append(f"recovery: {fault}: {error!r}")
        self.done.set()

    def _wait_until_all_work(self) -> None:
        arena = self._arena
        count = arena.setup.hosts * arena.setup.workers
        wait_for(lambda: sum(worker.jobs > 0 for worker in arena.workers(0)) >= count, self._who_works)

    def _who_works(self) -> str:
        """What is to be known of workers that have no jobs although there are some. Their stacks: in the logs of their hosts."""
        ask, idle = self._arena.chaos.query, [worker for worker in self._arena.workers(0) if not worker.jobs]
        for worker in idle:
            send_signal(worker.pid, signal.SIGUSR1)
        return f"all workers to have jobs: {idle} have none; {[[str(row) for row in ask(look)] for look in _LOOKS]}"

    def _until_claimed(self, loss: Loss) -> None:
        query = self._arena.chaos.query
        wait_for(lambda: not query(_WAITING, loss.jobs, loss.at), f"the jobs {loss.jobs} to run again", PATIENCE)

    def _worker(self) -> str | None:
        [worker] = self._arena.workers(0, order="started_at")[:1]  # the oldest, of whom nobody thinks that it cannot work
        loss = self._arena.kill(worker, WORKER)
        if loss is None:
            return None
        self._until_claimed(loss)
        return f"killed worker {worker.pid}"

    def _host(self) -> str:
        arena = self._arena
        host = arena.hosts[0]
        workers = [worker for worker in arena.workers(0) if session(worker.pid) == host.pid]
        arena.interrupt(len(workers))
        loss = arena.held(*workers)._replace(kind=HOST)
        arena.losses.append(loss)
        arena.sigkill(*host.processes())
        self._until_claimed(loss)
        return f"killed host {host.pid}"

    def _server(self) -> str:
        arena = self._arena
        assert isinstance(arena.server, OwnServer)
        arena.interrupt_all()
        with arena.outages.under_way():
            arena.server.restart("immediate")
        arena.count("PostgreSQL crashes")
        arena.accepting(SERVER)
        wait_for(lambda: arena.chaos.query(_CLAIMED, arena.server.accepting_since), "the first job", PATIENCE)
        return "crashed the server"

    def _frozen(self) -> str:
        """With all of its host, while it is silent in a transaction: its session keeps its locks."""
        arena = self._arena
        job = arena.add(town.dwell.call(0))
        [(pid,)] = wait_for(lambda: arena.chaos.query(_IN_TRANSACTION, job), f"{job} to be in its transaction", PATIENCE)
        host = next(host for host in arena.hosts if host.pid == session(pid))
        arena.interrupt(arena.setup.workers)
        host.pause()
        arena.count("pauses")
        loss = Loss(FROZEN, time.time(), [job])
        arena.losses.append(loss)
        try:
            self._until_claimed(loss)
        finally:
            host.resume(first=[pid])
        return f"froze worker {pid} in a transaction"


def late(bounds: Mapping[str, float], recoveries: Mapping[str, list[float]]) -> list[str]:
    """What took many times as long as it may."""
    return [
        f"{kind}: {seconds:.1f} s, promised are {bounds[kind]:g} s"
        for kind, found in recoveries.items()
        for seconds in found
        if kind in bounds and seconds > LATE * bounds[kind]
    ]
