"""Every wire cut of a recorded workflow, in every mode: a round of the plan ``sweep`` (fault F5).

A host works through the proxy. First without a cut, to count the messages of its workers; then a job for each message and each
mode, and the connection is broken there. The job must end by itself, charged with nothing, and the oracles must have nothing to
say. Several such hosts work at a time, each with a database and a proxy of its own: most of the time they wait.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from chaos.controller import Controller
from chaos.databases import copy_of
from chaos.oracles import claim_history, conservation, effects, invariant, ledger, plain_steps
from chaos.plan import Round
from chaos.processes import Host
from chaos.results import Result
from chaos.server import OwnServer, Server
from chaos.verdicts import Verdict
from chaos.waiting import wait_for
from chaos.wire import MODES, Proxy
from chaos.workloads import bank

AT_ONCE = 4
BOUND = 60.0  # seconds for a job to end, whatever was cut
SOME_MORE = 5  # messages behind the last that was counted: another run may send a few more
_ENDED = "SELECT 1 FROM pgqueue.outcome WHERE job_id::text = %s"
Case = tuple[int, str]  # message, mode


def of_workers(name: str) -> bool:
    """Is this a connection on which jobs are claimed, settled, or run?"""
    return name.startswith("pgqueue:") and (":step" in name or name.endswith(":claims"))


class Place:
    """One host, its database and its proxy."""

    def __init__(self, server: Server, directory: Path, stack: ExitStack) -> None:
        directory.mkdir()
        dsn = stack.enter_context(copy_of(server.dsn, server.name))
        self._proxy = stack.enter_context(Proxy(dsn))
        self._outside = directory / "outside.txt"
        self._chaos = stack.enter_context(
            Controller(dsn, directory, "chaos.workloads.bank:app", {"BANK_FILE": str(self._outside)})
        )
        bank.install(self._chaos.conn)
        claim_history.install(self._chaos.conn)
        self._host: Host = self._chaos.start("-w", "1", "--lease", "5s", dsn=self._proxy.dsn)
        wait_for(self._chaos.workers, self._chaos.story)
        self.hits: Counter[str] = Counter()
        self.times: list[float] = []
        self._left: list[str] = []
        self._jobs = 0

    def record(self) -> int:
        """How many messages a job is. (Some runs have greetings of new connections among them, and looks for work.)"""
        counts = [self._one(10**9, "delay") for _ in range(4)]
        self._chaos.note("recorded", counts=counts)
        return min(counts)

    def cut(self, cases: Sequence[Case], say: Callable[[], None]) -> None:
        """One after the other."""
        for at, mode in cases:
            say()
            self._one(at, mode)

    def _one(self, at: int, mode: str) -> int:
        """One job, and one cut. How many messages came by until the job had ended."""
        began = time.monotonic()
        cut = self._proxy.arm(at, mode, of_workers)
        [job] = bank.app.enqueue_many([bank.transfer.call(1, 2, 3)], conn=self._chaos.conn)
        self._jobs += 1
        try:
            wait_for(lambda: self._chaos.query(_ENDED, job.id), "", BOUND)
        except AssertionError:
            self._left.append(f"a job did not end within {BOUND:g} s, where message {at} ({cut.what}) met {mode}")
        self._chaos.note("cut", at=at, mode=mode, what=cut.what, job=job.id)
        if cut.done.is_set():
            self.hits[mode] += 1
            self.times.append(time.monotonic() - began)
        return cut.passed

    def judge(self) -> dict[str, list[str]]:
        """What the oracles say, and whether the host ends as it should."""
        self._proxy.cut = None
        code, conn = self._host.drain(), self._chaos.conn
        attempts = self._chaos.query("SELECT kind, error FROM pgqueue.attempts")
        return {
            "effects": effects.check(conn),
            "ledger": ledger.check(conn),
            "conservation": conservation.check(conn, conservation.Journal()),
            "claim history": claim_history.check(conn),
            "invariant": invariant.check(conn),
            "plain steps": plain_steps.check(conn, self._outside, faults=self._jobs),
            "expectations": [f"a job was charged with {kind}: {error}" for kind, error in attempts],
            "liveness": self._left,
            "drain": [] if code == 0 else [f"the host ended with {code}"],
        }

    def steps(self) -> int:
        """That were committed."""
        return int(self._chaos.query("SELECT count(*) FROM pgqueue.checkpoint")[0][0])


class Cuts:
    """One round."""

    def __init__(self, entry: Round, server: Server, directory: Path, seed: str, say: Callable[[str], None]) -> None:
        self._round, self._server, self._directory, self._seed, self._say = entry, server, directory, seed, say
        self._done = 0

    def run(self, seconds: float) -> Result:
        """All of them, or a sample; however long it takes."""
        result = Result("cuts", self._round.name, self._seed)
        if not isinstance(self._server, OwnServer):
            result.verdicts["wire"] = Verdict([], "not judged: the proxy talks to servers of the suite", judged=False)
            return result
        began = time.time()
        hosts = AT_ONCE if self._round.sample == 0 or self._round.sample > 10 * AT_ONCE else 1
        with ExitStack() as stack, ThreadPoolExecutor(hosts) as pool:
            places = [Place(self._server, self._directory / f"place-{number}", stack) for number in range(hosts)]
            cases = self._cases(places[0].record())
            shares = [(place, cases[number::hosts]) for number, place in enumerate(places)]
            list(pool.map(lambda share: share[0].cut(share[1], lambda: self._tell(len(cases))), shares))
            judged = [place.judge() for place in places]
            result.step_commits = sum(place.steps() for place in places)
        hits = sum((place.hits for place in places), Counter[str]())
        result.seconds, result.jobs, result.cases = time.time() - began, len(cases), dict(hits)
        result.injected, result.planned = {"F5": hits.total()}, {"F5": len(cases)}
        result.empty = {"F5": len(cases) - hits.total()}  # the job had fewer messages than that
        result.recoveries = {"wire": [took for place in places for took in place.times]}
        result.verdicts = {name: Verdict([what for found in judged for what in found[name]]) for name in judged[0]}
        return result

    def _cases(self, messages: int) -> list[Case]:
        cases = [(at, mode) for at in range(1, messages + SOME_MORE + 1) for mode in MODES]
        return random.Random(self._seed).sample(cases, min(self._round.sample or len(cases), len(cases)))

    def _tell(self, count: int) -> None:
        self._done += 1
        self._say(f"{self._round.name}: {self._done} of {count}")
