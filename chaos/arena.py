"""One round: a database, the hosts that work on it, and all that a fault or an oracle has to know about them.

Faults (chaos/faults) break what is in here. Several of them do at the same time, each lane in a thread of its own.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import psycopg

from chaos import history
from chaos.controller import Controller
from chaos.outages import Outages
from chaos.pooler import Pooler
from chaos.processes import Host, send_signal, session
from chaos.server import Server
from chaos.threads import Threads
from chaos.waiting import wait_for
from chaos.wire import Proxy
from chaos.workloads import bank, town, unruly
from pgqueue.config import Exit
from pgqueue.database import is_lost
from pgqueue.errors import DatabaseUnreachable
from pgqueue.functions import Call
from pgqueue.ids import new_job_id

T = TypeVar("T")
TARGET = "chaos.workloads.everything:app"
#: Seconds that a worker has lived before it is killed. Where none ends a job before it dies, its supervisor takes that for one
#: that cannot work, and waits longer and longer before it starts the next.
GROWN = 1.2


class Worker(NamedTuple):
    """A worker as the database knows it."""

    id: str
    pid: int
    jobs: int


class Loss(NamedTuple):
    """Jobs that somebody held when it was broken, and when, in the server's time: what recovery is measured by."""

    kind: str
    at: float
    jobs: list[str]


@dataclass(frozen=True)
class Specimen:
    """A job that has to end in a certain way."""

    name: str
    status: str
    says: tuple[str, ...] = ()  # all of this is in its error
    dies: str = ""  # so its worker dies each time, until the job fails because of that


@dataclass
class Setup:
    """How large a round is."""

    hosts: int = 2
    workers: int = 2
    lease: float = 2.0  # seconds
    active: int = 150  # jobs that are under way at once
    preload: bool = False  # two of three hosts import the App before they fork
    strikes: bool = True  # a schedule that is due each second
    load: dict[str, int] = field(default_factory=dict)  # what is enqueued how often


def send(conn: psycopg.Connection[Any], calls: Mapping[str, Call[Any]]) -> bool:
    """Enqueue under these ids; False where nobody knows whether that was committed."""
    try:
        bank.app.client.send([{"job_id": job, **call.description()} for job, call in calls.items()], conn)
    except (DatabaseUnreachable, psycopg.Error) as error:
        if isinstance(error, psycopg.Error) and not is_lost(error):
            raise
        conn.close()
        return False
    return True


class Arena:
    """What faults break, and what they note."""

    def __init__(self, server: Server, dsn: str, directory: Path, setup: Setup, seed: str) -> None:
        self.server = server
        self.dsn = dsn
        self.directory = directory
        self.setup = setup
        self.seed = seed
        environment = {"BANK_FILE": str(self.outside), "PYTHONHASHSEED": "0"}
        if setup.strikes:
            environment["BANK_STRIKES"] = "1"
        self.chaos = Controller(dsn, directory, TARGET, environment)
        self.hosts: list[Host] = []
        self.killed: set[int] = set()  # processes that a fault has killed, or is about to
        self.counts: Counter[str] = Counter()  # SIGKILLs, pauses, crashes: what is asked of a soak
        self.ways: dict[int, str | None] = {}  # of each host: the DSN that it was given, if it was
        self.injected: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()  # faults that found nothing to break
        self.events: list[tuple[float, str, str]] = []  # when, which fault, what was done
        self.losses: list[Loss] = []
        self.specimens: dict[str, Specimen] = {}
        self.cancelled: set[str] = set()  # or nearly
        self.proxy: Proxy | None = None  # where one host works through it
        self.pooler: Pooler | None = None  # the same
        self.enqueued: set[str] = set()  # acknowledged
        self.attempted: set[str] = set()
        self.interrupted = 0  # steps that a fault can have interrupted
        self.lossy = 0  # times that acknowledged commits may have been lost
        self.lost_commits: list[int] = []  # how many steps and outcomes were lost each time; perhaps none
        self.asked_to_end: dict[str, float] = {}  # workflows that were under way, and when that was committed
        self.clock_set: list[tuple[float, float]] = []  # not before and not after that, by the server's own
        self.outages = Outages()
        self.accepted: list[tuple[str, float]] = []  # moments at which the server answered again, after it was down
        self.bounds: dict[str, float] = {}  # of kinds of losses: seconds within which their jobs are to run again
        self.logs = 0  # of servers that followed each other
        self.slot: str | None = None  # of the server's log, where that can be read
        self.findings: list[str] = []  # what is wrong, and is nobody's oracle
        self.threads = Threads(self.findings, self.chaos.note)
        self.began = time.time()
        self.calm = 0.0  # when the faults had stopped
        self.ticking: list[datetime] = []  # since when there is a schedule, and until when it has to tick
        self.drained = 0.0  # seconds from then until everything had ended
        self.looks = 0  # at what holds in every snapshot
        self.over = threading.Event()
        self.feeding_is_over = threading.Event()
        self._started = 0  # hosts
        self._lock = threading.Lock()

    @property
    def journal(self) -> Path:
        """Where producers write down what they know."""
        return self.directory / "journal.txt"

    @property
    def outside(self) -> Path:
        """Where plain steps leave a line."""
        return self.directory / "outside.txt"

    def open(self) -> None:
        """Furnish the database and start the hosts."""
        town.install(self.chaos.conn)
        self.chaos.conn.execute(unruly.TABLES)
        self.begin_log()
        for _ in range(self.setup.hosts):
            self.start_host()
        if self.proxy is not None:
            self.start_host(self.proxy.dsn)
        if self.pooler is not None:
            self.start_host(self.pooler.dsn(self.dsn))
        count = len(self.hosts) * self.setup.workers
        wait_for(lambda: len(self.workers(0)) >= count, lambda: f"{count} workers\n{self.chaos.story()}")
        if self.setup.strikes:
            self.ticking.append(self.full_second("ceil"))

    def full_second(self, way: str) -> datetime:
        """The server's time, ``ceil`` or ``floor``."""
        [(moment,)] = self.chaos.query(f"SELECT to_timestamp({way}(extract(epoch FROM clock_timestamp())))")
        return cast(datetime, moment)

    def server_time(self) -> float:
        """Of its own clock, which no fault sets."""
        return float(self.chaos.query("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    # ------------------------------------------------------------------------------------------------- hosts

    def start_host(self, dsn: str | None = None) -> Host:
        """Another ``pgqueue work``. ``dsn``: if it reaches the database on another way."""
        options = ["-w", str(self.setup.workers), "--concurrency", "3", "--lease", f"{self.setup.lease}s"]
        with self._lock:
            self._started += 1
            preloads = self.setup.preload and self._started % 3 != 0
        host = self.chaos.start(*options, *(["--preload"] if preloads else []), dsn=dsn)
        with self._lock:
            self.hosts.append(host)
            self.ways[host.pid] = dsn
        return host

    def forget(self, host: Host) -> bool:
        """A host that is to end: nobody is to start it again. False where somebody else has forgotten it already."""
        with self._lock:
            if host not in self.hosts:
                return False
            self.hosts.remove(host)
            return True

    def keep_hosts(self) -> None:
        """As a service manager: whatever has ended is started again, and what no fault has ended is a finding. In a thread, until
        the round is over."""
        while not self.over.wait(0.1):
            for host in list(self.hosts):
                if not host.alive and self.forget(host):
                    code = host.wait()
                    self.chaos.note("a supervisor has ended", pid=host.pid, code=code)
                    if not self.forgiven(host, code):
                        said = host.text()[-500:]
                        self.findings.append(f"liveness: the supervisor {host.pid} ended with {code}, by no fault: {said}")
                    self.over.wait(0.5 if code == Exit.UNREACHABLE else 0)
                    if not self.over.is_set():
                        self.start_host(self.ways[host.pid])

    def forgiven(self, host: Host, code: int) -> bool:
        """May a supervisor have ended so by what the faults have done? One was killed; or it could not reach the database when it
        began, and that was away then."""
        if host.pid in self.killed and code == -signal.SIGKILL:
            return True
        away = self.outages.since(host.began, self.ways[host.pid])
        return code == Exit.UNREACHABLE and host.booting and away

    def workers(self, age: float = GROWN, order: str = "jobs DESC, id") -> list[Worker]:
        """The workers of our hosts that have a lease, and are at least so old, the busiest first."""
        rows = self.chaos.query(
            "SELECT id::text, pid, jobs FROM pgqueue.workers WHERE fenced_at IS NULL"
            "   AND started_at <= pgqueue.clock() - make_interval(secs => %s) ORDER BY " + order,
            age,
        )
        ours = {host.pid for host in list(self.hosts)}
        return [Worker(*row) for row in rows if session(row[1]) in ours]

    def victim(self, chance: random.Random) -> Worker | None:
        """A worker to break: mostly one that has jobs."""
        found = self.workers()
        busy = [worker for worker in found if worker.jobs]
        return chance.choice(busy if busy and chance.random() < 0.9 else found) if found else None

    def held(self, *workers: Worker) -> Loss:
        """What these workers hold now. Queues with limits are left out: there a job has to wait for its turn."""
        rows = self.chaos.query(
            "SELECT extract(epoch FROM clock_timestamp())::float8, array(SELECT r.job_id::text FROM pgqueue.running r"
            " WHERE r.worker::text = ANY (%s) AND r.limited IS NULL AND r.queue <> 'zoo')",
            [worker.id for worker in workers],
        )
        return Loss("", *rows[0])

    def kill(self, worker: Worker, kind: str = "worker") -> Loss | None:
        """SIGKILL to a worker, and take the time of its jobs."""
        loss = self.held(worker)._replace(kind=kind)
        if not self.sigkill(worker.pid):
            return None
        self.interrupt(1)
        self.losses.append(loss)
        return loss

    def sigkill(self, *pids: int) -> int:
        """Kill these processes. How many there were."""
        self.killed.update(pids)
        there = sum(map(send_signal, pids))
        self.count("SIGKILLs", there)
        return there

    def count(self, what: str, times: int = 1) -> None:
        """One more of what the report counts."""
        with self._lock:
            self.counts[what] += times

    def interrupt(self, workers: int) -> None:
        """So many workers were broken in the middle of what they did."""
        with self._lock:
            self.interrupted += workers

    def interrupt_all(self) -> None:
        """All workers were."""
        self.interrupt(len(self.hosts) * self.setup.workers)

    # -------------------------------------------------------------------------------------------------- jobs

    def add(self, call: Call[Any], specimen: Specimen | None = None) -> str:
        """Enqueue a job, again and again until that is acknowledged; its id is chosen before, so there is one of it."""
        job = new_job_id()
        self.attempted.add(job)
        wait_for(lambda: send(self.chaos.conn, {job: call}), "an enqueue to be acknowledged")
        self.enqueued.add(job)
        if specimen is not None:
            self.specimens[job] = specimen
        return job

    # ---------------------------------------------------------------------------------------------- the server

    def accepting(self, kind: str = "server") -> None:
        """The server was away, and is back."""
        self.accepted.append((kind, self.server.accepting_since))

    def begin_log(self) -> None:
        """Keep the server's log of changes from now on: a server that takes over has none of the one before. On a server of
        somebody else as long as this session lasts: whoever is killed leaves nothing there that keeps its log for ever."""
        if self.snapshot(history.impossible) is None:
            self.logs += 1
            self.slot = self.snapshot(lambda conn: history.begin(conn, temporary=not self.server.own))

    def snapshot(self, check: Callable[[psycopg.Connection[Any]], T]) -> T:
        """What an oracle says now; it is asked again where the server has ended our session."""
        while True:
            conn = self.chaos.conn
            try:
                return check(conn)
            except psycopg.Error as error:
                if not is_lost(error):
                    raise
                conn.close()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or for the end of the round."""
        wait_for(lambda: condition() or self.feeding_is_over.is_set(), "what a fault waits for")

    def found_nothing(self, fault: str) -> None:
        """A fault came, and there was nothing that it could have broken."""
        with self._lock:
            self.empty[fault] += 1
        self.chaos.note("nothing to break", fault=fault)

    def note(self, fault: str, what: str) -> None:
        """A fault was injected."""
        with self._lock:
            self.injected[fault] += 1
            self.events.append((time.time() - self.began, fault, what))
        self.chaos.note("fault", fault=fault, what=what)
