"""Each fault at each failpoint, one by one: kill -9, a pause past the lease, an exception, lost connections. All is exact then.

The cases run several at a time, each with a database and processes of its own; each test waits for its case.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from chaos.case_round import pairs
from chaos.cases import HANG, LEASE, Case, all_cases
from chaos.databases import copy_of
from chaos.sweep import Sweep
from pgqueue import failpoints
from tests.support import Server

AT_ONCE = 6

SINGLE = all_cases()

#: A worker is killed, and then again the one that runs its job next, or whoever deals with the death: some pairs of many.
TWICE = random.Random(os.environ.get("SEED", "2026")).sample(pairs(), 40)

HUNG = [
    Case(name, HANG)
    for name in ("transaction.fenced", "transaction.committing", "step.after_effect", "settle.before", "claim.before")
]

LAPSED = [
    Case.of(name, LEASE)
    for name in ("transaction.fenced", "transaction.committing", "step.after_effect", "settle.before", "heartbeat.before")
]

#: What the ordinary run does. ``make sweep`` does everything.
SMOKE = {
    Case.of("claim.committed", "kill9"),
    Case.of("transaction.fenced", "kill9"),
    Case.of("transaction.committing", "kill9"),
    Case.of("step.after_effect", "kill9"),
    Case.of("settle.before", "kill9"),
    Case.of("claim.uncommitted", "kill9"),
    Case.of("settle.uncommitted", "kill9"),
    Case.of("reap.selected", "kill9"),
    Case.of("supervisor.before_fork", "kill9"),
    Case.of("enqueue.inserted", "kill9"),
    Case.of("transaction.user_code_done", "stop"),
    Case.of("step.after_effect", "stop"),
    Case.of("settle.before", LEASE),
    Case.of("transaction.committing", "dropconn"),
    Case.of("claim.committed", "dropconn"),
    Case.of("dispatch.before_run", "raise"),
    Case("step.after_effect", HANG),
}


@pytest.fixture(scope="module")
def run(
    request: pytest.FixtureRequest, server: Server, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Case], None]]:
    """Runs a case; or waits for it, because all that were selected are run ahead of their tests, several at once. Not where xdist
    does that: then nobody knows here which tests are for this process."""
    place = tmp_path_factory.mktemp("sweep")

    def play(case: Case) -> None:
        directory = place / str(case)
        directory.mkdir()
        with copy_of(server.dsn, template) as dsn:
            Sweep(case, dsn, directory).run()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ahead: dict[Case, Future[None]] = {}
        if "PYTEST_XDIST_WORKER" not in os.environ:
            cases = [item.callspec.params["case"] for item in request.session.items if "run" in getattr(item, "fixturenames", ())]
            ahead = {case: pool.submit(play, case) for case in dict.fromkeys(cases)}
        yield lambda case: ahead[case].result() if case in ahead else play(case)
        pool.shutdown(cancel_futures=True)


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """A test for each case, marked as what it is."""
    parameters = [pytest.param(case, id=str(case), marks=() if case in SMOKE else pytest.mark.sweep) for case in cases]
    return pytest.mark.parametrize("case", parameters)


@each(SINGLE)
def test_every_failpoint(run: Callable[[Case], None], case: Case) -> None:
    run(case)


@each(TWICE)
def test_killed_again_while_recovering(run: Callable[[Case], None], case: Case) -> None:
    run(case)


@each(HUNG)
def test_a_stopped_worker_is_overtaken(run: Callable[[Case], None], case: Case) -> None:
    """One worker stands still. Somebody fences it, as a hang detector would, and its job goes on elsewhere."""
    run(case)


@each(LAPSED)
def test_a_stopped_host_is_overtaken(run: Callable[[Case], None], case: Case) -> None:
    """A whole host stands still. Another takes its jobs when the lease is over, and finishes them. Then the first wakes up."""
    run(case)


def test_the_smoke_test_is_part_of_the_sweep() -> None:
    assert set(SINGLE + HUNG + LAPSED) >= SMOKE


def test_failpoints_are_nothing_unless_they_are_asked_for() -> None:
    assert "PGQUEUE_FAILPOINTS" not in os.environ
    assert failpoints.failpoint is failpoints._off


def test_a_typo_in_a_failpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown failpoint action 'kill8'"):
        failpoints._On("transaction.fenced=kill8", None, None)
    with pytest.raises(ValueError, match="needs PGQUEUE_FAILPOINTS_DIR"):
        failpoints._On("transaction.fenced=park", None, None)
