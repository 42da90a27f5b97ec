"""The crash sweep: one fault at one place, while the bank works; then everything must have ended, exactly.

A case starts a host with two workers, lets the process that comes by the place die, stop, fail or lose its connections, and waits
until all jobs have ended by themselves. What is checked are the promises G1 to G6, by the oracles.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from chaos.cases import HANG, LEASE, OWN, UNCOMMITTED, UNCONNECTED, WORKERS, Case
from chaos.commits import HeldCommits
from chaos.controller import Controller
from chaos.oracles import all_wrong, claim_history, invariant, ledger
from chaos.processes import Host, Program, send_signal, state
from chaos.stand_in import StandIn
from chaos.waiting import wait_for
from chaos.workloads import bank
from pgqueue import protocol
from pgqueue.database import connect, run

OPTIONS = ("-w", str(WORKERS), "--lease", "1s")
FAIL = 2  # jobs that one exception can fail: a child, and the parent that waits for it
TRANSFERS, ON_THE_LOOP, GRANTS, ORDERS = 3, 3, 8, 6
AT_ONCE = 1 + ON_THE_LOOP  # jobs that a worker can be running


class Sweep:
    """Runs one case on a fresh database. ``run()`` raises AssertionError, with the whole story, where a promise was broken."""

    def __init__(self, case: Case, dsn: str, directory: Path) -> None:
        self._case = case
        self._directory = directory
        environment = {"BANK_FILE": str(directory / "outside.txt"), "BANK_STRIKES": "1"}
        self._chaos = Controller(dsn, directory, "chaos.workloads.bank:app", environment)
        self._looked = 0.0

    def run(self) -> None:
        with self._chaos, ExitStack() as stack:
            try:
                conn = self._chaos.conn
                bank.install(conn)
                claim_history.install(conn)
                self._jobs = bank.enqueue(conn, TRANSFERS, ON_THE_LOOP, GRANTS)
                if self._case.failpoint in UNCOMMITTED:
                    table, event, who, nth = UNCOMMITTED[self._case.failpoint]
                    self._held = HeldCommits(stack.enter_context(connect(self._chaos.dsn, "holder")))
                    self._held.hold(f"pgqueue.{table}", event, who, nth)
                ways = {"stop": self._take_over, LEASE: self._outlive_the_lease, HANG: self._replace}
                ways.get(self._case.action, self._work_to_the_end)()
                self._requeue_failed()
                self._check()
            except Exception as error:  # whatever it was, it cannot be understood without the story
                raise AssertionError(f"{self._case}: {error!r}\n{self._chaos.story()}") from error

    # ------------------------------------------------------------------------------------------ what happens

    def _work_to_the_end(self, host: Host | None = None) -> None:
        """Until all jobs have ended. Starts a host if there is none, and another where its supervisor was the one that died."""
        producer = None
        for _ in range(3):
            if host is None:
                host, producer = self._start()
                self._provoke(host)
                self._own_exceptions_are_fatal()
            how = wait_for(lambda host=host: "over" if self._over() else "" if host.alive else "dead", self._missing)
            if producer is not None:
                producer.wait()
                wait_for(self._all_ended, self._missing)
            if how == "over":  # not to be asked again: the next tick of the schedule may have come
                code = host.drain()
                assert code == 0 or self._case.failpoint.startswith(UNCONNECTED), f"the last host ended with {code}"
                return
            host = None
        raise AssertionError(f"the supervisor has ended three times, without {self._missing()}")

    def _take_over(self) -> None:
        """A process stops, and with it its host. Somebody else takes its jobs and holds them. Then it wakes up, and does what it
        was about to do."""
        host, producer = self._start()
        zombie, stopped = self._pause(host)
        if stopped is host:
            workers = self._chaos.workers()
            with StandIn(self._chaos.dsn, bank.app) as other:
                self._chaos.note("take over", jobs=other.take_over())
                host.resume(first=[zombie])
                wait_for(lambda: not set(workers) & set(host.processes()), "the fenced workers to end")
                robbed = other.robbed()
                other.give_back()
            assert not robbed, f"a zombie has touched {robbed}"
        else:
            stopped.resume()
        if producer is not None:
            producer.wait()
        self._work_to_the_end(host)

    def _outlive_the_lease(self) -> None:
        """A process stops, and with it its host. Another host goes on when the lease is over. Then the first wakes up."""
        first, _ = self._start()
        zombie, _ = self._pause(first)
        second = self._chaos.start(*OPTIONS)
        wait_for(self._all_ended, self._missing)
        first.resume(first=[zombie])
        for host in (first, second):
            assert host.drain() in (0, 75), "a host did not end well"
        wait_for(lambda: not first.processes(), f"the processes of the first host to be gone: {first.processes()}")

    def _pause(self, host: Host) -> tuple[int, Program]:
        """Wait for the process that stops itself, and stop all of its program. Both."""
        self._provoke(host)
        zombie = self._chaos.arrival(self._case.failpoint)
        self._chaos.wait_until_stopped(zombie)
        stopped = self._chaos.owner(zombie)
        stopped.pause()
        self._chaos.note("pause", zombie=zombie, all=stopped.processes())
        return zombie, stopped

    def _replace(self) -> None:
        """A worker stops, and somebody who thinks that it hangs takes its lease. Its supervisor kills it and starts another."""
        host, _ = self._start()
        zombie = self._chaos.arrival(self._case.failpoint)
        self._chaos.wait_until_stopped(zombie)
        fence = "UPDATE pgqueue.worker SET fenced_at = clock_timestamp(), reason = 'hung' WHERE pid = %s RETURNING id"
        assert len(self._chaos.query(fence, zombie)) == 1
        wait_for(self._over, self._missing)
        assert host.drain() == 0
        assert zombie not in host.processes()

    def _start(self) -> tuple[Host, Program | None]:
        setting = self._case.setting
        if not self._case.by_producer:
            return self._chaos.start(*OPTIONS, failpoints=setting), None
        host = self._chaos.start(*OPTIONS)
        journal = str(self._directory / "journal.txt")
        return host, self._chaos.run("chaos.workloads.producer", journal, str(ORDERS), failpoints=setting)

    def _provoke(self, host: Host) -> None:
        """What some failpoints need before anybody comes by."""
        if self._chaos.passed(self._case.failpoint):
            return
        if self._case.failpoint in UNCOMMITTED:
            self._strike_inside_commit(host)
        if self._case.failpoint.startswith("drain."):
            wait_for(lambda: self._chaos.query("SELECT 1 FROM pgqueue.outcome"), self._missing)
            host.signal(signal.SIGTERM)
        elif self._case.failpoint == "supervisor.before_kill":
            wait_for(lambda: self._chaos.query("SELECT 1 FROM pgqueue.running"), self._missing)
            self._chaos.query("UPDATE pgqueue.worker SET fenced_at = clock_timestamp(), reason = 'hung' RETURNING id")

    def _strike_inside_commit(self, host: Host) -> None:
        """The server holds a commit while its client is killed or stopped. Then it goes on, and nobody hears of it."""
        session = wait_for(self._held.waiting, self._missing)[0]
        pid = self._chaos.client(session, host)
        send_signal(pid, signal.SIGKILL if self._case.action == "kill9" else signal.SIGSTOP)
        self._chaos.reached(self._case.failpoint, pid)
        if self._case.action == "stop":
            self._chaos.wait_until_stopped(pid)
            host.pause()
        self._held.release()

    def _own_exceptions_are_fatal(self) -> None:
        """A bug in a process of pgqueue's own must not leave half a process behind."""
        if self._case.action == "raise" and self._case.failpoint.startswith(OWN):
            pid = self._chaos.arrival(self._case.failpoint)
            wait_for(lambda: state(pid) in "ZX", f"process {pid} to end with its exception", seconds=10)

    def _requeue_failed(self) -> None:
        """An exception inside a job may have failed it: then it says so, and goes on from where it stopped."""
        failed = [row[0] for row in self._chaos.query("SELECT id::text FROM pgqueue.jobs WHERE state = 'failed'")]
        assert len(failed) <= FAIL * (self._case.action == "raise"), f"failed: {failed}"
        if failed:
            self._chaos.note("requeue", jobs=failed)
            run(self._chaos.conn, protocol.requeue(failed))
            host = self._chaos.start(*OPTIONS)
            wait_for(self._over, self._missing)
            assert host.drain() == 0

    # --------------------------------------------------------------------------------------- what must be so

    def _over(self) -> bool:
        return self._all_ended() and bool(self._chaos.passed(self._case.failpoint))

    def _all_ended(self) -> bool:
        """Looked at again and again: what must hold in every snapshot is checked here."""
        if time.monotonic() - self._looked > 0.1:
            self._looked = time.monotonic()
            _none(invariant.check(self._chaos.conn) + ledger.check(self._chaos.conn))
        return not self._chaos.query("SELECT 1 FROM pgqueue.job_values WHERE status = 'active' LIMIT 1")

    def _missing(self) -> str:
        states = self._chaos.query("SELECT state, count(*) FROM pgqueue.jobs GROUP BY 1")
        passed = self._chaos.passed(self._case.failpoint)
        return f"all jobs to end ({states}), and somebody to come by {self._case.failpoint} ({passed or 'nobody did'})"

    def _check(self) -> None:
        case = self._case
        _none(all_wrong(self._chaos.conn, self._directory, case.workers_hit, AT_ONCE))
        succeeded = {row[0] for row in self._chaos.query("SELECT id::text FROM pgqueue.jobs WHERE state = 'succeeded'")}
        assert not set(self._jobs) - succeeded, "a job was lost"
        [(children,)] = self._chaos.query("SELECT count(*) FROM pgqueue.jobs WHERE name LIKE '%%.tell'")
        assert children == GRANTS + 1, "each grant enqueues one job, and one was enqueued by us"
        self._check_attempts()

    def _check_attempts(self) -> None:
        """Nobody is charged for what was not a failure of the job."""
        kinds = Counter(row[0] for row in self._chaos.query("SELECT kind FROM pgqueue.attempts"))
        kinds["error"] -= 2  # those of insist()
        injected = [self._case.action, self._case.first.partition("=")[2]]
        fenced = self._case.action in ("stop", LEASE, HANG) or self._case.failpoint == "supervisor.before_kill"
        most = {  # where several jobs ran in a worker that died, nobody knows which one it was
            "crash": AT_ONCE * sum(action in ("kill9", "raise") for action in injected) + (WORKERS if fenced else 0),
            "error": FAIL * (self._case.action == "raise"),
            "requeue": FAIL * (self._case.action == "raise"),
            "lost": len(self._jobs) + GRANTS if fenced else 0,
        }
        too_many = {kind: times for kind, times in kinds.items() if times > most.get(kind, 0)}
        assert not too_many, f"attempts were counted: {kinds}"


def _none(wrong: list[str]) -> None:
    assert not wrong, "\n".join(wrong)
