"""``pgqueue show``: the tree of a job, and where it is now, in every state; also of a job with thousands of children."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from typing import Any

import psycopg
import pytest

from pgqueue import App, Retry, current, gather, protocol, receive, sleep, wait_event
from pgqueue.cli.draw import line, span
from pgqueue.database import run
from tests.support import ROOT, Hand
from tests.test_cli import pgqueue, refused


@pytest.fixture
def show(dsn: str) -> Any:
    """What the command prints."""

    def show(job: Any, *options: str) -> str:
        done = pgqueue("show", job if isinstance(job, str) else job.id, *options, dsn=dsn)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return show


def now(shown: str) -> str:
    """The last line."""
    last = shown.splitlines()[-1]
    assert last.startswith("now: ")
    return last


def drain(worker: Hand) -> None:
    while worker.drain(due_now=False):
        pass


def document(show: Any, job: Any, *options: str) -> Any:
    return json.loads(show(job, "--json", *options))


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


# ---------------------------------------------------------------------------------------------------------- the tree


def test_the_whole_picture(app: App, show: Any, hand: Any) -> None:
    broken = [1]

    @app.step(name="charge", retry=Retry(3, backoff=0))
    def charge(order: int) -> str:
        if broken:
            broken.pop()
            raise ConnectionError("the bank\x1b[31m does\nnot answer")
        return f"ch_{order}"

    @app.workflow(name="pack")
    def pack(box: int) -> int:
        if box == 1:
            raise ValueError("no such box")
        return box

    @app.workflow(name="ship")
    def ship() -> None:
        sleep("1d")

    @app.workflow(name="order", version=3, key="order", timeout="30d")
    def order(order: int) -> None:
        charge(order)
        gather(*pack.map(range(3)), return_exceptions=True)
        ship()

    job = order.options(meta={"tenant": "ann"}).enqueue(7)
    worker = hand()
    drain(worker)
    shown = show(job)
    assert re.search(r"^version +3$", shown, re.MULTILINE)
    assert re.search(r"^state +waiting$", shown, re.MULTILINE)
    assert re.search(r"^key +7$", shown, re.MULTILINE)
    assert re.search(r'^meta +{"tenant": "ann"}$', shown, re.MULTILINE)
    assert re.search(rf"^deadline +{TIME[:10]}", shown, re.MULTILINE)
    assert "\x1b" not in shown
    tree = shown.partition("\nsteps\n")[2].splitlines()
    wanted = [
        rf'\|- 1 charge +ok +{TIME}  \+[\d.ms]+ +"ch_7"',
        rf"\|  `- error {TIME} on \S+: ConnectionError: the bank\\x1b\[31m does not answer",
        rf'\|- 2 pgqueue.start +ok +{TIME} .* \[\["pack",3\]\]',
        rf"\|- 3 pgqueue.children +ok +{TIME} .*",
        r"\|  \|- #0 pack [0-9a-f-]{36} succeeded after [\d.]+s",
        r"\|  \|- #1 pack [0-9a-f-]{36} failed after [\d.]+s: ValueError: no such box",
        rf"\|  \|  `- job: error {TIME} on \S+: ValueError: no such box",
        r"\|  `- #2 pack [0-9a-f-]{36} succeeded after [\d.]+s",
        rf'\|- 4 pgqueue.start +ok +{TIME} .* \[\["ship",1\]\]',
        r"`- 5 pgqueue.children +waiting +waiting for its children",
        rf"   `- #0 ship [0-9a-f-]{{36}} scheduled until {TIME}",
        rf"      `- 1 pgqueue.sleep +waiting +sleeping until {TIME}",
    ]
    assert len(tree) == len(wanted) + 2, shown
    for text, pattern in zip(tree, wanted, strict=False):
        assert re.fullmatch(pattern, text), (text, pattern)
    assert re.search(r"waiting for its children in step 5 \(pgqueue.children\) since .*, and the job has time until", now(shown))
    assert re.search(r": 1 of 1 have not ended \(1 scheduled\): #0 [0-9a-f-]{36} scheduled$", now(shown))
    child = re.search(r"#0 ship ([0-9a-f-]{36})", shown)
    assert child is not None
    assert re.search(rf"^parent +{job.id}, step 5, child 0$", show(child[1]), re.MULTILINE)
    assert "sleeping in step 1 (pgqueue.sleep) until" in now(show(child[1]))


def test_the_document_is_stable(app: App, show: Any, hand: Any) -> None:
    @app.workflow(name="child")
    def child(n: int) -> int:
        if n == 1:
            raise ValueError("no")
        return n

    @app.workflow(name="parent")
    def parent() -> None:
        gather(*child.map(range(2)), return_exceptions=True)
        wait_event("go", timeout="1h")

    job = parent.options(meta={"a": 1}).enqueue()
    drain(hand())
    said = document(show, job)
    assert list(said) == [
        *protocol.JOB_COLUMNS, "version", "parent", "parent_seq", "ordinal", "failed_seqs", "waiting_until", "cancel_by",
        "worker", "host", "pid", "paused", "meta", "deadline", "rerun_of", "input", "result", "error", "steps", "attempts",
        "waits", "children", "now",
    ]  # fmt: skip
    assert (said["version"], said["meta"], said["input"], said["state"]) == (1, {"a": 1}, {}, "waiting")
    assert [(s["seq"], s["name"], s["status"], s["error"]) for s in said["steps"]] == [
        (1, "pgqueue.start", "succeeded", None),
        (2, "pgqueue.children", "succeeded", None),
    ]
    [wait] = said["waits"]
    assert {**wait, "until": "", "began_at": ""} == {
        "seq": 3, "name": "pgqueue.event", "kind": "event", "key": "go", "until": "", "began_at": "",
    }  # fmt: skip
    [group] = said["children"]
    assert (group["seq"], group["counts"]) == (2, {"failed": 1, "succeeded": 1})
    assert list(group["jobs"][1]) == [
        "id", "name", "state", "ordinal", "created_at", "run_at", "started_at", "finished_at", "error", "steps", "children",
    ]  # fmt: skip
    assert [(c["ordinal"], c["state"], c["error"]) for c in group["jobs"]] == [
        (0, "succeeded", ""),
        (1, "failed", "ValueError: no"),
    ]
    assert list(said["now"]) == ["text", "state", "step", "since", "until", "missing"]
    assert (said["now"]["state"], said["now"]["step"], said["now"]["missing"]) == ("waiting", 3, {})


def test_depth(app: App, show: Any, hand: Any) -> None:
    @app.workflow(name="node")
    def node(depth: int) -> None:
        if depth:
            gather(node.call(depth - 1), node.call(depth - 1))

    job = node.enqueue(5)
    drain(hand())
    for depth, nodes in ((0, 0), (1, 2), (3, 14), (5, 62)):
        shown = show(job, "--depth", str(depth))
        assert shown.count(" node ") == nodes, shown
        assert shown.count("2 children: 2 succeeded") == (0 if depth == 5 else 2**depth)
    assert show(job) == show(job, "--depth", "3")
    first = document(show, job, "--depth", "2")["children"][0]["jobs"][0]["children"][0]
    assert first["jobs"][0]["children"] == [{"seq": 2, "counts": {"succeeded": 2}, "jobs": []}]


def test_ten_thousand_children(app: App, conn: psycopg.Connection[Any], show: Any, hand: Any) -> None:
    @app.workflow(name="child")
    def child() -> None:
        sleep("1d")

    @app.workflow(name="parent")
    def parent() -> None:
        gather(*[child.call()] * 10_000)

    job = parent.enqueue()
    worker = hand()
    [claimed] = worker.claim()
    settlement = worker.run(claimed)
    assert settlement is not None
    assert worker.settle(settlement) == {}
    # 9,970 have succeeded, 10 failed, 15 run, 5 are ready
    conn.execute("""
        CREATE TEMPORARY TABLE kid AS SELECT id, ordinal FROM pgqueue.job WHERE parent IS NOT NULL;
        DELETE FROM pgqueue.ready r USING kid k WHERE r.job_id = k.id AND k.ordinal < 9995;
        INSERT INTO pgqueue.outcome (job_id, status, error, finished_at)
            SELECT id, CASE WHEN ordinal % 1000 = 7 THEN 'failed' ELSE 'succeeded' END,
                   CASE WHEN ordinal % 1000 = 7 THEN '{"type": "E", "message": "m"}' END, clock_timestamp()
              FROM kid WHERE ordinal < 9980;
        INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at)
            SELECT id, 1, gen_random_uuid(), 'default', 11, ordinal, clock_timestamp()
              FROM kid WHERE ordinal BETWEEN 9980 AND 9994""")
    begin = time.monotonic()
    shown = show(job)
    assert time.monotonic() - begin < 10
    assert len(shown.splitlines()) < 60
    assert shown.count("child 0") + shown.count(" failed after") >= 10
    assert "#9007 child" in shown
    assert shown.count(" running since") == 10
    assert "... and 9,980 more: 9,970 succeeded, 5 running, 5 ready" in shown
    assert ": 20 of 10,000 have not ended (15 running, 5 ready): #9980 " in now(shown)
    assert now(shown).endswith(" running, ...")
    said = document(show, job)
    assert said["children"][0]["counts"] == {"succeeded": 9970, "failed": 10, "running": 15, "ready": 5}
    assert len(said["children"][0]["jobs"]) == 20
    assert said["now"]["missing"] == {"running": 15, "ready": 5}


def test_how_many_queries_does_not_depend_on_how_many_jobs(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    from pgqueue.cli import tree

    @app.workflow(name="node")
    def node(depth: int, width: int) -> None:
        if depth:
            gather(*[node.call(depth - 1, width)] * width)

    jobs = [node.enqueue(2, 2), node.enqueue(2, 12)]
    drain(hand())
    counts = []
    original = tree.run
    for job in jobs:
        row = run(conn, protocol.job_row(job.id))
        assert row is not None
        calls: list[str] = []

        def counted(conn: Any, call: Any, calls: list[str] = calls) -> Any:
            calls.append(call.sql)
            return original(conn, call)

        facts = dict(zip(protocol.JOB_COLUMNS, row, strict=True))
        root = tree.Job(job.id, "node", "succeeded", None, facts["created_at"], None, None, None, "")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree, "run", counted)
            tree.load(conn, root, 3)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 20


def test_a_rerun_shows_the_children_it_has_kept(app: App, show: Any, hand: Any) -> None:
    @app.workflow(name="child")
    def child(n: int) -> int:
        return n

    @app.workflow(name="parent")
    def parent() -> list[int]:
        return gather(*child.map(range(3)))

    job = parent.enqueue()
    worker = hand()
    drain(worker)
    again = job.rerun(from_step=2)
    shown = show(again)
    assert re.search(rf"^rerun of +{job.id}$", shown, re.MULTILINE)
    assert re.search(r"`- 2 \(children\)", shown), shown
    assert shown.count(" child ") == 3
    assert "ready in queue default: no worker has taken it yet; next is step 2" in now(shown)
    assert f"job: rerun {show(job).partition('job: rerun ')[2][:19]}: Rerun: as job {again.id} from step 2" in show(job)
    drain(worker)
    assert "succeeded at" in now(show(again))


# ---------------------------------------------------------------------------------------------------------------- now


def test_ready_and_paused(app: App, conn: psycopg.Connection[Any], show: Any) -> None:
    @app.workflow(name="w")
    def w() -> None: ...

    job = w.options(queue="default").enqueue()
    assert now(show(job)) == "now: ready in queue default: no worker has taken it yet; next is step 1"
    conn.execute("UPDATE pgqueue.queue SET paused = true")
    assert "ready in queue default, which is paused" in now(show(job))
    job.cancel()
    run(conn, protocol.cancel([job.id], by="ann"))
    assert "; its cancel was requested" in now(show(job))


def test_delayed_and_retried(app: App, conn: psycopg.Connection[Any], show: Any, hand: Any) -> None:
    @app.step(name="flaky", retry=Retry(5, backoff="1h", jitter=False))
    def flaky() -> None:
        raise ConnectionError("gone")

    @app.workflow(name="w")
    def w() -> None:
        flaky()

    late, job = w.options(delay="2h").enqueue(), w.enqueue()
    assert re.fullmatch(rf"now: delayed until {TIME} \(in 1h59m\); next is step 1", now(show(late)))
    worker = hand()
    worker.drain(due_now=False)
    conn.execute("UPDATE pgqueue.scheduled SET run_at = clock_timestamp() WHERE job_id = %s", (job.id,))
    run(conn, protocol.promote(10))
    worker.drain(due_now=False)
    shown = show(job)
    assert re.fullmatch(
        rf"now: put off until {TIME} \(in 59m\d\ds\); next is step 1, tried 2 times, the last time with ConnectionError: gone",
        now(shown),
    )
    assert shown.count("error ") == 2
    assert re.search(r"`- 1 +retrying", shown), shown


def test_running(app: App, show: Any, hand: Any) -> None:
    @app.step(name="s")
    def s() -> None: ...

    @app.workflow(name="w")
    def w() -> None:
        s()
        said.append(show(current().job_id))

    said: list[str] = []
    w.enqueue()
    worker = hand()
    worker.drain()
    host = os.uname().nodename
    assert re.fullmatch(
        rf"now: running on {re.escape(host)}, process {os.getpid()}, worker {worker.id} since {TIME} \([\d.]+s\), "
        "in or before step 2",
        now(said[0]),
    )
    assert re.search(rf"^started +{TIME}$", said[0], re.MULTILINE)


def test_waiting_for_this_and_that(app: App, show: Any, hand: Any) -> None:
    @app.workflow(name="event")
    def event() -> None:
        wait_event("it's", timeout="1h")

    @app.workflow(name="message")
    def message() -> None:
        receive("topic")

    @app.workflow(name="of_job")
    def of_job(other: str) -> None:
        app.job(other).result()

    first, second = event.enqueue(), message.enqueue()
    third = of_job.enqueue(second.id)
    strange = app.client.enqueue("nobody.knows", queue="default")
    drain(hand())
    assert re.search(rf"waiting for event \"it's\" until {TIME} in step 1 \(pgqueue.event\) since", now(show(first)))
    assert "waiting for a message of topic 'topic' in step 1" in now(show(second))
    assert f"waiting for job {second.id} in step 1" in now(show(third))
    assert "waiting for a worker that knows version 1 of nobody.knows" in now(show(strange))


def test_waiting_for_a_turn(app: App, show: Any, hand: Any) -> None:
    @app.step(name="s", key="who")
    def s(who: str) -> None:
        raise AssertionError("nobody runs it here")

    worker = hand()
    app.limit("default", per_key=1)
    s.enqueue("a/b")
    second = s.enqueue("a/b")
    assert len(worker.claim()) == 1
    assert now(show(second)) == "now: waiting for its turn in queue default: others of the key a/b come first"


def test_the_end(app: App, show: Any, hand: Any) -> None:
    @app.step(name="s", retry=Retry(1))
    def s() -> None:
        raise ValueError("no " + "x" * 5000)

    @app.workflow(name="bad")
    def bad() -> None:
        s()

    @app.workflow(name="good")
    def good(text: str) -> str:
        return text

    failed, succeeded, cancelled = bad.enqueue(), good.enqueue("x" * 10_000), good.options(delay="1h").enqueue("a")
    cancelled.cancel()
    worker = hand()
    worker.drain(due_now=False)
    shown = show(failed)
    assert re.fullmatch(
        rf'now: failed at {TIME} in step 1 \(s\) with .*\.\.\.; "pgqueue requeue {failed.id}" runs step 1 \(s\) again', now(shown)
    )
    assert max(map(len, shown.partition("\nsteps\n")[2].splitlines())) < 400, "errors are cut"
    shown = show(succeeded)
    assert re.search(r"now: succeeded at .*s after it was due$", shown)
    assert "x... (10,002 characters; --json shows all)" in shown
    assert document(show, succeeded)["result"] == "x" * 10_000
    assert f'before the end of step 1; "pgqueue requeue {cancelled.id}" goes on at step 1' in now(show(cancelled))


def test_transactions_and_steps_on_their_own(app: App, show: Any, hand: Any) -> None:
    @app.step(name="alone", retry=Retry(2, backoff="1h"))
    def alone() -> None:
        raise ValueError("no")

    job = alone.enqueue()
    hand().drain(due_now=False)
    shown = show(job)
    assert "`- job: error " in shown
    assert "tried once, the last time with ValueError: no" in now(shown)


# ------------------------------------------------------------------------------------------------------------ terminals


@pytest.mark.parametrize(("encoding", "boxes"), [("utf-8", True), ("ascii", False)])
def test_boxes_are_for_terminals_that_have_them(app: App, dsn: str, hand: Any, encoding: str, boxes: bool) -> None:
    @app.step(name="s")
    def s() -> str:
        return "Zoë " + "x" * 300

    @app.workflow(name="w")
    def w() -> None:
        s()
        s()

    job = w.enqueue()
    drain(hand())
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PGQUEUE_DSN": dsn, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    command = [sys.executable, "-m", "pgqueue", "show", job.id]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(10) == 0
    text = said.decode()
    assert ("├─ 1 s" in text and "└─ 2 s" in text) is boxes
    assert ("|- 1 s" in text and "`- 2 s" in text) is not boxes
    steps = [row for row in text.splitlines() if re.search(r"[12] s ", row)]
    assert len(steps) == 2
    assert max(map(len, steps)) <= 80


def test_words(dsn: str) -> None:
    assert [span(s) for s in (0, 0.5, 59.94, 60, 3599, 3600, 86_400, 10**7)] == [
        "0.000s", "0.500s", "59.9s", "1m00s", "59m59s", "1h00m", "1d00h", "115d17h",
    ]  # fmt: skip
    assert line("a\n\tb\x00" + "c" * 500, 12) == "a b\\x00cc..."
    refused(64, "show", "ff", "--depth", "-1", says="depth", dsn=dsn)
