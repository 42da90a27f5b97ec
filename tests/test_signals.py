"""The signal table of the supervisor, case by case, with real processes: exit codes, jobs lost 0, attempts used by drains 0."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.databases import COPY
from chaos.processes import state
from pgqueue import protocol
from pgqueue.database import connect, run
from tests.apps import bank
from tests.conftest import fresh_database
from tests.shop import Shop
from tests.support import Server, Workers, kill, nothing_is_lost, states, wait_for, worker_pids
from tests.test_exposition import free_port, samples, value
from tests.test_processes import alive, attempts, housekeeper_pid, ready, started

pytestmark = pytest.mark.usefixtures("bank_db")


# ------------------------------------------------------------------------------------------------------- stopping


def test_term_while_a_worker_is_inside_commit(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, dsn: str
) -> None:
    """A deferred constraint keeps the worker's COMMIT waiting. It ends within the deadline, so the job is done; once."""
    bank_db.execute("""
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()
    """)
    bank_db.execute("SELECT pg_advisory_lock(7)")
    job = bank.deposit.enqueue(1, 5)
    work = workers.start("tests.apps.bank:app", "-w", "1")
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'advisory' AND query ILIKE '%%commit%%'"
    wait_for(lambda: bank_db.execute(waiting).fetchall(), what=f"a COMMIT under way\n{work.log()}")
    work.signal(signal.SIGTERM)
    wait_for(lambda: "draining" in work.log())
    bank_db.execute("SELECT pg_advisory_unlock(7)")
    assert work.wait() == 0, work.log()
    assert job.result(timeout=1) == "told 1"
    assert bank_db.execute("SELECT balance FROM account WHERE id = 1").fetchone() == (1,)
    nothing_is_lost(bank_db, 1)


def test_term_again_and_again_until_the_end(workers: Workers) -> None:
    """Also while Python ends, which takes the handlers away before the process is gone."""
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(lambda: "1 worker for" in work.log(), what="the supervisor to have started")
    while work.process.poll() is None:
        work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()


@pytest.mark.parametrize("where", ["probe", "import"])
def test_term_while_it_boots_is_a_clean_end_at_once(shop: Shop, bank_db: psycopg.Connection[Any], where: str) -> None:
    mark = shop.path / "importing"
    slow = f"\nopen({str(mark)!r}, 'a').write('x')\nimport time\n"
    slow += "time.sleep(600)" if where == "probe" else f"time.sleep(600 if len(open({str(mark)!r}).read()) > 1 else 0)"
    shop.write("slow", slow)
    job = shop.enqueue()
    work = shop.start("-w", "1")
    wait_for(lambda: mark.exists() and len(mark.read_text()) == (1 if where == "probe" else 2), what="the import")
    children = work.children()
    work.signal(signal.SIGTERM)
    assert work.wait(30) == 0, work.log()
    assert not any(map(alive, children))
    assert shop.result(job) is None
    nothing_is_lost(bank_db, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_stopping_while_the_database_is_down(
    server: Server, bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, number: int, dsn: str
) -> None:
    """What was running cannot be given back by this host; the next one does it. Nothing is lost, nobody is charged."""
    if server.embedded is None:
        pytest.skip("the server was given: it is not ours to stop")
    job = bank.slow.enqueue(600)
    work = workers.start("tests.apps.bank:app", "-w", "2", "--drain-timeout", "1s", "--lease", "1s")
    wait_for(started(bank_file, "nap"))
    server.embedded.stop("immediate")
    try:
        work.signal(number)
        assert work.wait() == 75, work.log()
    finally:
        server.embedded.start()
    bank_file.unlink()
    again = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    wait_for(started(bank_file, "nap"), what=f"the job to run again\n{again.log()}")
    with psycopg.connect(dsn, autocommit=True) as conn:
        again.signal(signal.SIGQUIT)
        assert again.wait() == 75
        assert job.status() == "ready"
        nothing_is_lost(conn, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGTSTP,
                                    signal.SIGTTIN, signal.SIGTTOU])  # fmt: skip
def test_children_obey_nobody_but_their_supervisor(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, number: int
) -> None:
    """Whatever is sent to the whole group by a terminal or a service manager. Here the supervisor is left out."""
    job = bank.slow.enqueue(1.0)
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(started(bank_file, "nap"))
    children = work.children()
    for pid in children:
        kill(pid, number)
    assert job.result(timeout=30) == "awake"
    assert work.children() == children
    assert attempts(bank_db) == []


# -------------------------------------------------------------------------------------------------- other signals


def test_pause_resume_more_and_fewer(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    port = free_port()
    work = workers.start("tests.apps.bank:app", "-w", "1", "--metrics", str(port))
    [first] = ready(bank_db, work, 1)
    work.signal(signal.SIGTSTP)
    wait_for(lambda: "paused" in work.log())
    job = bank.noop.enqueue()
    work.signal(signal.SIGTTIN)
    wait_for(lambda: len(worker_pids(bank_db, work)) == 2, what=f"another worker, paused too\n{work.log()}")
    wait_for(lambda: value(samples(port), "pgqueue_workers", state="paused") == 2, what="that to be seen")
    assert job.status() == "ready"
    work.signal(signal.SIGUSR2)
    job.result(timeout=30)
    work.signal(signal.SIGTTOU)
    wait_for(lambda: worker_pids(bank_db, work) == [first], what="the younger one to leave")
    work.signal(signal.SIGTTOU)
    wait_for(lambda: work.log().count("1 worker from now on") == 2, what="the last one to stay")
    assert bank.deposit.enqueue(1, 1).result(timeout=30) == "told 1"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 2)


@pytest.mark.parametrize("how", [(), ("--preload",)], ids=["in place", "executed again"])
def test_what_signals_have_asked_for_holds_through_a_reload(
    shop: Shop, bank_db: psycopg.Connection[Any], how: tuple[str, ...]
) -> None:
    """A pause, and one worker more; until the setting itself is another one."""
    said = "\napp.settings['workers'] = {}\n"
    shop.write("first", said.format(1))
    work = shop.start(*how)
    [first] = ready(bank_db, work, 1)
    work.signal(signal.SIGTSTP)
    work.signal(signal.SIGTTIN)
    old = ready(bank_db, work, 2)
    assert first in old
    job = shop.enqueue()

    def reload(answer: str, workers: int, wanted: int, replaced: list[int]) -> list[int]:
        shop.write(answer, said.format(workers))
        work.signal(signal.SIGHUP)
        wait_for(
            lambda: len(worker_pids(bank_db, work)) == wanted and not set(worker_pids(bank_db, work)) & set(replaced),
            what=f"{wanted} new workers\n{work.log()}",
        )
        return worker_pids(bank_db, work)

    new = reload("second one", 1, 2, old)
    work.signal(signal.SIGUSR1)
    wait_for(lambda: re.search("status: 2 workers, .*, paused", work.log()), what=f"the pause\n{work.log()}")
    assert shop.result(job) is None
    work.signal(signal.SIGUSR2)
    assert wait_for(lambda: shop.result(job)) == '"second one"'
    if not how:
        reload("the third one", 3, 3, new)
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 1)


def test_usr1_logs_status_and_all_stacks(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    bank.hog.enqueue(8.0)  # also of a worker whose interpreter is held by C code
    work = workers.start("tests.apps.bank:app", "-w", "1", "--threads", "16", "--log-format", "text")
    wait_for(started(bank_file, "hog"))
    work.signal(signal.SIGUSR1)
    wait_for(lambda: "stacks of the housekeeper" in work.log(), what=f"stacks\n{work.log()}")
    log = work.log()
    assert "status: 1 worker, 1 busy" in log, log
    assert log.count("Current thread") == 2, "of each process one"
    assert "[...]" not in log
    assert "busy, 0 jobs run, 1 held" in log
    assert "bank.py" in log[log.index("stacks of worker") :]
    assert "_keep_house" in log[log.index("stacks of the housekeeper") :]
    numbers = re.findall(r"stacks of worker \S+ \((\d+) of (\d+)\)\n    (?:Current t|T)hread", log)
    assert len(numbers) >= 16, "a record for each thread"


# --------------------------------------------------------------------------------------------------------- reload


def test_hup_replaces_all_workers_by_new_code_and_loses_nothing(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    work = shop.start("-w", "2")
    assert shop.answer() == "first"
    before = ready(bank_db, work, 2)
    long = shop.enqueue("nap", '{"seconds": 3}')
    wait_for(lambda: states(bank_db).get("running"), what="the long one to begin")
    shop.write("second one")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded: all workers are of generation 2" in work.log(), what=f"the reload\n{work.log()}")
    assert shop.answer() == "second one"
    assert wait_for(lambda: shop.result(long)) == '"first"', "what ran went on to its end"
    wait_for(lambda: not any(map(alive, before)), what="the old ones to leave")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 3)


@pytest.mark.parametrize(
    ("more", "says"),
    [("\nimport nowhere_to_be_found\n", "importing shop failed"),
     ("\ndef broken(:\n", "SyntaxError"),
     ("\nimport os\nos.kill(os.getpid(), 11)\n", "killed by SIGSEGV"),
     ("\n@app.on('worker_start')\ndef fails():\n    raise ValueError('not today')\n", "no worker of generation 2 starts")],
)  # fmt: skip
def test_hup_with_code_that_cannot_be_worked_with_keeps_the_old_generation(
    shop: Shop, bank_db: psycopg.Connection[Any], more: str, says: str
) -> None:
    work = shop.start("-w", "1")
    assert shop.answer() == "first"
    before = ready(bank_db, work, 1)
    shop.write("broken", more)
    work.signal(signal.SIGHUP)
    wait_for(lambda: "not reloaded" in work.log() and says in work.log(), 120, f"the failure\n{work.log()}")
    assert shop.answer() == "first"
    assert worker_pids(bank_db, work) == before
    shop.write("third")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded: all workers" in work.log(), what=f"the reload\n{work.log()}")
    assert shop.answer() == "third"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 3)


def test_hup_follows_the_settings(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    shop.write("one", "\napp.settings['workers'] = 1\n")
    work = shop.start()
    first = ready(bank_db, work, 1)
    housekeeper = housekeeper_pid(bank_db, work)
    shop.write("two", "\napp.settings['workers'] = 2\nfrom pgqueue import Queue\napp.queues['new'] = Queue('new')\n")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in work.log(), what=f"the reload\n{work.log()}")
    assert len(wait_for(lambda: (pids := set(worker_pids(bank_db, work)) - set(first)) and len(pids) == 2 and pids)) == 2
    wait_for(lambda: not alive(housekeeper), what="the housekeeper to be replaced: it serves another queue")
    assert shop.answer() == "two"


def test_hup_to_another_password_goes_on_and_to_another_database_begins_again(
    shop: Shop, bank_db: psycopg.Connection[Any], server: Server, template: str, dsn: str
) -> None:
    """What runs ends where it began, and its worker is never without a housekeeper for its database."""

    def lead_to(where: str, answer: str) -> None:
        shop.write(answer, f"\napp.dsn = {where!r}\n")

    with fresh_database(server, f"TEMPLATE {template} {COPY}") as other, connect(other, "tests") as there:
        lead_to(dsn, "first")
        work = shop.start("-w", "1", "--lease", "3s")
        ready(bank_db, work, 1)
        lead_to(dsn + " connect_timeout=9", "second")
        work.signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: all" in work.log(), what=f"the reload\n{work.log()}")
        assert shop.answer() == "second"
        shop.enqueue("nap", '{"seconds": 6}')
        wait_for(lambda: states(bank_db).get("running"), what="the job to begin")
        lead_to(other, "third")
        run(there, protocol.enqueue_workflows('[{"name": "answer", "queue": "default"}]'))
        work.signal(signal.SIGHUP)
        wait_for(lambda: states(there) == {"succeeded": 1}, what=f"work there\n{work.log()}")
        assert work.process.poll() is None, "the same process id"
        nothing_is_lost(bank_db, 2)
        assert set(states(bank_db)) == {"succeeded"}
        assert "another database" in work.log()
        assert "lost its lease" not in work.log()
        work.signal(signal.SIGTERM)
        assert work.wait() == 0, work.log()


# ------------------------------------------------------------------------------------------ KILL and STOP of each


def test_a_stopped_housekeeper_is_replaced(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "1")
    ready(bank_db, work, 1)
    first = housekeeper_pid(bank_db, work)
    kill(first, signal.SIGSTOP)
    wait_for(lambda: not alive(first) and len(work.children()) == 2, 30, f"another housekeeper\n{work.log()}")
    job = bank.deposit.options(delay=0.2).enqueue(1, 1)  # only a housekeeper moves it
    assert job.result(timeout=30) == "told 1"
    assert attempts(bank_db) == []


@pytest.mark.parametrize("busy", [False, True])
def test_a_stopped_worker_is_killed_and_its_job_runs_again(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, busy: bool
) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "1", "--hang-timeout", "1s", "--lease", "600s")
    [first] = ready(bank_db, work, 1)
    job = bank.slow.enqueue(1.0) if busy else None
    if busy:
        wait_for(started(bank_file, "nap"))
    kill(first, signal.SIGSTOP)
    wait_for(lambda: not alive(first), 30, f"the stopped worker to be killed\n{work.log()}")
    assert (job or bank.slow.enqueue(0.1)).result(timeout=30) == "awake"
    assert "it was stopped" in work.log()
    assert attempts(bank_db) == [], "nobody is charged"


def test_a_stopped_supervisor_goes_on_where_it_was(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    """Workers and housekeeper do not need it for their work."""
    work = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "2s")
    ready(bank_db, work, 1)
    children = work.children()
    kill(work.pid, signal.SIGSTOP)
    wait_for(lambda: state(work.pid) == "T")
    beat = bank_db.execute("SELECT max(beat) FROM pgqueue.worker").fetchone()
    assert bank.deposit.enqueue(1, 1).result(timeout=30) == "told 1"
    wait_for(lambda: bank_db.execute("SELECT max(beat) FROM pgqueue.worker").fetchone() != beat, what="heartbeats")
    work.signal(signal.SIGTERM)
    kill(work.pid, signal.SIGCONT)
    assert work.wait() == 0, work.log()
    assert not any(map(alive, children))
    nothing_is_lost(bank_db, 1)
