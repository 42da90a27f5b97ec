"""Random workflow programs, with crashes at random moments, come to the same as without. In both colours: see both.py."""

from __future__ import annotations

import difflib
import uuid
from pprint import pformat
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from chaos.programs import bury_all, everything, history, live, programs
from pgqueue import (
    App,
    Retry,
    StepFailed,
    WaitTimeout,
    current,
    gather,
    patched,
    receive,
    sleep,
    stream,
    wait_event,
)
from pgqueue.database import run
from tests import both
from tests.support import Hand, violations

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests


def build(dsn: str) -> App:
    """An App whose workflow does what a program says."""
    app = App(dsn)

    def outside(tag: str) -> int:
        """An effect that no transaction holds. How often it has happened."""
        with psycopg.connect(dsn, autocommit=True) as conn:
            row = conn.execute(
                "INSERT INTO outside VALUES (%s, 1) ON CONFLICT (tag) DO UPDATE SET times = outside.times + 1 RETURNING times",
                (current().step_key + tag,),
            ).fetchone()
            assert row is not None
            return int(row[0])

    @app.step(name="step", max_crashes=1000)
    def step(tag: str) -> str:
        outside(tag)
        return f"step {tag}"

    @app.step(name="bad", retry=Retry(2, backoff=0.001))
    def bad(tag: str) -> None:
        raise LookupError(tag)

    @app.step(name="flaky", retry=Retry(1000, backoff=0.001))
    def flaky(tag: str) -> str:
        if outside(tag) < 2:
            raise ValueError(tag)
        return f"flaky {tag}"

    @app.transaction(name="tx")
    def in_tx(tx: psycopg.Connection[Any], tag: str) -> str:
        tx.execute("INSERT INTO effect VALUES (%s, %s)", (current().job_id, tag))
        stream.write(tag)
        return f"tx {tag}"

    kinds = {"step": step, "tx": in_tx, "bad": bad}

    @app.workflow(name="interpret", max_crashes=1000)
    def interpret(root: str, operations: list[dict[str, Any]]) -> list[Any]:
        results: list[Any] = []
        for operation in operations:
            do, tag = operation["do"], operation["tag"]
            if do in ("step", "tx"):
                results.append(kinds[do](tag))
            elif do == "bad":
                try:
                    bad(tag)
                except StepFailed as error:
                    results.append(error.type)
            elif do == "flaky":
                results.append(flaky(tag))
            elif do == "sleep":
                sleep("1h")
            elif do == "nap":
                sleep(0.001)
            elif do in ("event", "early event"):
                results.append(wait_event(f"{root}:{tag}"))
            elif do == "no event":
                try:
                    wait_event(f"{root}:{tag}", timeout=0.001)
                except WaitTimeout:
                    results.append("no event")
            elif do == "message":
                tell(current().job_id, tag)
                results.append(receive(tag))
            elif do == "stream":
                stream.write(tag)
            elif do == "patched":
                results.append(patched(tag))
            elif do == "enqueue":
                job = step.enqueue(tag)
                results.append(job.result())
            elif do == "child":
                results.append(interpret(root, operation["operations"]))
            elif do == "gather":
                calls = [
                    interpret.call(root, [{"do": "tx", "tag": b["tag"]}]) if b["do"] == "child" else kinds[b["do"]].call(b["tag"])
                    for b in operation["branches"]
                ]
                got = gather(*calls, return_exceptions=True)
                results.append([type(g).__name__ if isinstance(g, Exception) else g for g in got])
            else:
                raise RuntimeError(tag)
        return results

    @app.transaction(name="tell")
    def tell(tx: psycopg.Connection[Any], job: str, tag: str) -> None:
        app.job(job).send(tag, f"message {tag}", conn=tx)

    return app


@pytest.fixture
def tables(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    conn.execute("CREATE TABLE effect (job_id uuid, tag text)")  # nothing is unique in it: doubles must show
    conn.execute("CREATE TABLE outside (tag text PRIMARY KEY, times integer)")
    conn.execute("CREATE TABLE IF NOT EXISTS known (program text)")
    return conn


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs(), kills=st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_crashes_change_nothing(
    dsn: str, tables: psycopg.Connection[Any], program: list[dict[str, Any]], kills: list[int]
) -> None:
    conn = tables
    app = build(dsn)
    run(conn, app.registration())

    def work() -> None:
        hand = Hand(build(dsn), dsn)
        hand.drain()
        hand.close()

    def come_to_an_end(kills: list[int]) -> tuple[Any, ...]:
        """Run the program: the events that it waits for come before, or when nothing else is left to do."""
        root = str(uuid.uuid4())
        job = app.functions["interpret"].enqueue(root, program)
        for operation in everything(program):
            if operation["do"] == "early event":
                app.send_event(f"{root}:{operation['tag']}", "early")
        crashes, left = 0, list(kills)
        for late in [o for o in everything(program) if o["do"] == "event"] + [None]:
            while live(work, left.pop(0) if left else None) is None:
                crashes += 1
                bury_all(dsn)
            if late is not None:
                app.send_event(f"{root}:{late['tag']}", "late")
        bury_all(dsn)
        effects = conn.execute("SELECT tag, count(*) FROM effect GROUP BY tag ORDER BY tag").fetchall()
        most = conn.execute("SELECT coalesce(max(times), 0) FROM outside").fetchone()
        conn.execute("DELETE FROM effect")
        conn.execute("DELETE FROM outside")
        assert violations(conn) == []
        assert most is not None
        assert most[0] <= 2 + crashes
        return history(conn, job.id), effects

    expected = come_to_an_end([])
    for tag, times in expected[1]:
        assert times == 1, tag
    got = come_to_an_end(kills)
    note(f"{program}\n{kills}")
    assert got == expected, "\n".join(difflib.ndiff(pformat(expected).splitlines(), pformat(got).splitlines()))
    app.close()
