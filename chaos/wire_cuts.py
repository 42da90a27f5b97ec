"""Every wire cut of a recorded workflow, in every mode: a round of the plan ``sweep`` (fault F5).

One host works through the proxy. Once without a cut, to count the messages of its workers; then a job for each message and each
mode, and the connection is broken there. The job must end by itself, and the oracles must have nothing to say.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from chaos.controller import Controller
from chaos.databases import copy_of
from chaos.oracles import claim_history, conservation, effects, invariant, ledger, plain_steps
from chaos.plan import Round
from chaos.results import Result
from chaos.server import OwnServer, Server
from chaos.storm import TEMPLATE
from chaos.verdicts import Verdict
from chaos.waiting import wait_for
from chaos.wire import MODES, Proxy
from chaos.workloads import bank

BOUND = 30.0  # seconds for a job to end, whatever was cut
SOME_MORE = 5  # messages behind the last that was counted: another run may send a few more
_ENDED = "SELECT 1 FROM pgqueue.outcome WHERE job_id::text = %s"


def of_workers(name: str) -> bool:
    """Is this a connection on which jobs are claimed, settled, or run?"""
    return name.startswith("pgqueue:") and (":step" in name or name.endswith(":claims"))


class Cuts:
    """One round."""

    def __init__(self, entry: Round, server: Server, directory: Path, seed: str, say: Callable[[str], None]) -> None:
        self._round, self._server, self._directory, self._seed, self._say = entry, server, directory, seed, say
        self._recoveries: list[float] = []
        self._left: list[str] = []
        self._hits: Counter[str] = Counter()

    def run(self, seconds: float) -> Result:
        """All of them, or a sample."""
        if not isinstance(self._server, OwnServer):
            return Result("cuts", self._round.name, self._seed)  # the proxy talks to a socket of ours
        began = time.time()
        with ExitStack() as stack:
            dsn = stack.enter_context(copy_of(self._server.dsn, TEMPLATE))
            proxy = stack.enter_context(Proxy(dsn))
            environment = {"BANK_FILE": str(self._directory / "outside.txt")}
            chaos = stack.enter_context(Controller(dsn, self._directory, "chaos.workloads.bank:app", environment))
            bank.install(chaos.conn)
            claim_history.install(chaos.conn)
            host = chaos.start("-w", "1", "--lease", "5s", "--dsn", proxy.dsn)
            wait_for(chaos.workers, chaos.story)
            jobs = self._cut_all(chaos, proxy)
            proxy.cut = None
            code = host.drain()
            drained = [] if code == 0 else [f"the host ended with {code}"]
            verdicts = self._judge(chaos, len(jobs))
            verdicts["drain"] = Verdict(drained)
            [(steps,)] = chaos.query("SELECT count(*) FROM pgqueue.checkpoint")
        return Result(
            "cuts", self._round.name, self._seed, time.time() - began, {"F5": sum(self._hits.values())},
            jobs=len(jobs), step_commits=steps, cases=dict(self._hits), recoveries={"wire": self._recoveries}, verdicts=verdicts,
        )  # fmt: skip

    def _cut_all(self, chaos: Controller, proxy: Proxy) -> list[str]:
        counts = [self._one(chaos, proxy, 10**9, "delay")[1] for _ in range(4)]
        chaos.note("recorded", counts=counts)
        count = min(counts)  # the others have greetings of new connections among them, and looks for work
        cases = [(at, mode) for at in range(1, count + SOME_MORE + 1) for mode in MODES]
        if self._round.sample:
            cases = random.Random(self._seed).sample(cases, min(self._round.sample, len(cases)))
        jobs = []
        for number, (at, mode) in enumerate(cases):
            self._say(f"{self._round.name}: message {at} of {count}, {mode} ({number}/{len(cases)})")
            began = time.monotonic()
            job, _ = self._one(chaos, proxy, at, mode)
            jobs.append(job)
            if proxy.cut is not None and proxy.cut.done.is_set():
                self._hits[mode] += 1
                self._recoveries.append(time.monotonic() - began)
        return jobs

    def _one(self, chaos: Controller, proxy: Proxy, at: int, mode: str) -> tuple[str, int]:
        """One job, and one cut. The job, and how many messages came by."""
        cut = proxy.arm(at, mode, of_workers)
        [job] = bank.app.enqueue_many([bank.transfer.call(1, 2, 3)], conn=chaos.conn)
        try:
            wait_for(lambda: chaos.query(_ENDED, job.id), "", BOUND)
        except AssertionError:
            self._left.append(f"a job did not end within {BOUND:g} s, where message {at} ({cut.what}) met {mode}")
        chaos.note("cut", at=at, mode=mode, what=cut.what, job=job.id)
        return job.id, cut.passed

    def _judge(self, chaos: Controller, cuts: int) -> dict[str, Verdict]:
        conn = chaos.conn
        attempts = chaos.query("SELECT kind, error FROM pgqueue.attempts")
        return {
            "liveness": Verdict(self._left),
            "effects": Verdict(effects.check(conn)),
            "ledger": Verdict(ledger.check(conn)),
            "invariant": Verdict(invariant.check(conn)),
            "claim history": Verdict(claim_history.check(conn)),
            "plain steps": Verdict(plain_steps.check(conn, self._directory / "outside.txt", faults=cuts)),
            "conservation": Verdict(conservation.check(conn, conservation.Journal())),
            "expectations": Verdict(list(_charged(attempts)), f"{cuts} cuts, none of them anybody's failure"),
        }


def _charged(attempts: list[tuple[str, str]]) -> Iterator[str]:
    """No cut is a failure of the job."""
    for kind, error in attempts:
        yield f"a job was charged with {kind}: {error}"
