"""Random workflow programs, for runs with crashes that must come to the same as a run without.

A program is a list of operations, each a dictionary with ``do``. What they do is written in the App that interprets them (see
tests/test_programs.py); here they are made, run in processes that die at chosen moments, and looked at.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from hypothesis import strategies as st

from chaos.waiting import wait_for
from pgqueue import protocol
from pgqueue.database import connect, run
from pgqueue.housekeeper.recovery import reap_all

Operation = dict[str, Any]
_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE 'pgqueue:' || %s || ':%%'"""

# ------------------------------------------------------------------------------------------------------- making them

_SIMPLE = st.sampled_from(
    ["step", "tx", "bad", "flaky", "sleep", "nap", "event", "early event", "no event", "message", "stream", "patched", "enqueue"]
).map(lambda do: {"do": do})
_PARALLEL = st.lists(st.sampled_from(["step", "tx", "bad", "child"]), min_size=1, max_size=4).map(
    lambda branches: {"do": "gather", "branches": [{"do": do} for do in branches]}
)
_RAISE = st.just({"do": "raise"})


def _nested(inner: st.SearchStrategy[list[Operation]]) -> st.SearchStrategy[list[Operation]]:
    child = inner.map(lambda operations: {"do": "child", "operations": operations})
    return st.lists(_SIMPLE | _PARALLEL | child, min_size=1, max_size=5)


def programs() -> st.SearchStrategy[list[Operation]]:
    """Programs of a few operations, with children that are programs too. Every operation has a name of its own."""
    body = st.recursive(st.lists(_SIMPLE | _PARALLEL, min_size=1, max_size=4), _nested, max_leaves=6)
    ending = st.lists(_RAISE, max_size=1)
    return st.tuples(body, ending).map(lambda parts: named(parts[0] + parts[1]))


def named(operations: Sequence[Operation], prefix: str = "") -> list[Operation]:
    """The same, each with a ``tag`` that says where it stands."""
    result = []
    for number, operation in enumerate(operations):
        tag = f"{prefix}{number}"
        inner = {key: named(operation[key], f"{tag}.") for key in ("operations", "branches") if key in operation}
        result.append({**operation, **inner, "tag": tag})
    return result


def everything(operations: Sequence[Operation]) -> Iterator[Operation]:
    """All operations, also those inside of others."""
    for operation in operations:
        yield operation
        yield from everything(operation.get("operations", []))
        yield from everything(operation.get("branches", []))


# ------------------------------------------------------------------------------------------------- running with crashes


def live(work: Callable[[], None], dies_after: int | None) -> int | None:
    """Run this in a process of its own, which is killed when it comes to its ``dies_after``-th failpoint. None: it was killed;
    else how many failpoints it has passed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _in_the_child(work, dies_after, write)
    os.close(write)
    with os.fdopen(read) as answers:
        said = answers.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    assert status == 0, said
    return int(said)


def _in_the_child(work: Callable[[], None], dies_after: int | None, answer: int) -> None:
    passed = 0

    def count(name: str) -> None:
        nonlocal passed
        passed += 1
        if passed == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        for name, module in list(sys.modules.items()):
            if name.startswith("pgqueue.") and hasattr(module, "failpoint"):
                module.failpoint = count  # type: ignore[attr-defined]
        work()
        os.write(answer, str(passed).encode())
        os._exit(0)
    except BaseException:  # noqa: BLE001 -- told to the parent
        os.write(answer, traceback.format_exc().encode())
        os._exit(1)


def bury_all(dsn: str) -> None:
    """What housekeepers do when all workers have died, until nothing of them is left: neither a claim nor a session, which may
    still be committing what it was sent."""
    with connect(dsn, "pgqueue:chaos") as conn:
        for worker, *_ in run(conn, protocol.beats()):
            held = [job for job, _, _ in run(conn, protocol.held_claims([worker]))]
            run(conn, protocol.fence_worker(worker, None, "killed", held))

            def buried(worker: str = worker, held: Sequence[str] = held) -> bool:
                reap_all(conn, worker, held, "crash", "killed")
                return not run(conn, protocol.held_claims([worker])) and conn.execute(_SESSIONS, (worker,)).fetchone() == (0,)

            wait_for(buried, f"the sessions of {worker} to end")


# -------------------------------------------------------------------------------------------------- what came of it


def history(conn: psycopg.Connection[Any], job: str) -> dict[str, Any]:
    """All that can be seen of a job that has ended, and of its children, without ids and times."""
    row = conn.execute(
        "SELECT name, status, result, error::json ->> 'type' FROM pgqueue.job_values WHERE id = %s", (job,)
    ).fetchone()
    assert row is not None
    steps = conn.execute(
        "SELECT seq, name, result, error::json ->> 'type' FROM pgqueue.checkpoint WHERE job_id = %s ORDER BY seq", (job,)
    ).fetchall()
    children = conn.execute(
        "SELECT id, parent_seq, ordinal FROM pgqueue.job WHERE parent = %s ORDER BY parent_seq, ordinal", (job,)
    ).fetchall()
    values = conn.execute("SELECT value FROM pgqueue.stream WHERE job_id = %s ORDER BY value", (job,)).fetchall()
    return {
        "job": row,
        # the ids of jobs are others in every run
        "steps": [(seq, name, None if name.startswith("pgqueue.") else result, error) for seq, name, result, error in steps],
        "children": [(seq, ordinal, history(conn, child)) for child, seq, ordinal in children],
        "stream": values,
    }
