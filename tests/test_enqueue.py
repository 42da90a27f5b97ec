"""Enqueueing: in the caller's transaction, from SQL, many at once, the same id twice; and what is refused at the door."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import App, Client, IdConflict, NotConfigured, Queue, Retry, UnknownJob
from pgqueue.database import connect, run
from pgqueue.errors import BadValue, DatabaseUnreachable, UnknownQueue, UnknownWorkflow, ValueTooLarge
from tests.support import states, violations, wait_for


@pytest.fixture
def app(dsn: str) -> App:
    app = App(dsn, queues=[Queue("mail")])

    @app.step(name="send", queue="mail", priority=3, key="to", aliases=["old_send"])
    def send(to: str, times: int = 1) -> str:
        return to * times

    @app.transaction(name="book")
    def book(tx: psycopg.Connection[Any], order: int) -> int:
        tx.execute("SELECT 1")
        return order

    with connect(dsn, "tests") as conn:
        run(conn, app.registration())
    yield app
    app.close()


def ids(conn: psycopg.Connection[Any]) -> list[str]:
    return [str(row[0]) for row in conn.execute("SELECT id FROM pgqueue.jobs")]


def test_own_transaction(app: App, conn: psycopg.Connection[Any]) -> None:
    job = app.functions["send"].enqueue("ann", times=2)
    assert job.status() == "ready"
    row = conn.execute("SELECT name, queue, priority, input, key FROM pgqueue.job").fetchone()
    assert row == ("send", "mail", 3, '{"to":"ann","times":2}', "ann")


def test_callers_transaction_commits(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    with psycopg.connect(dsn) as mine:
        job = app.functions["send"].using(mine).enqueue("ann")
        assert ids(conn) == []
    assert ids(conn) == [job.id]


def test_rolled_back_transaction_leaves_nothing(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    with psycopg.connect(dsn) as mine:
        job = app.functions["send"].using(mine).enqueue("ann")
        mine.rollback()
    assert ids(conn) == []
    with pytest.raises(UnknownJob, match="did not commit"):
        job.status()


def test_rolled_back_savepoint_leaves_nothing(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    send = app.functions["send"]
    with psycopg.connect(dsn) as mine:
        kept = send.using(mine).enqueue("kept")
        with mine.transaction(force_rollback=True):
            send.using(mine).enqueue("lost")
    assert ids(conn) == [kept.id]
    assert violations(conn) == []


def test_from_a_trigger_as_a_role_that_may_only_enqueue(app: App, direct_dsn: str, conn: psycopg.Connection[Any]) -> None:
    conn.execute("""
        CREATE TABLE orders (id int PRIMARY KEY);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pgqueue.enqueue_workflow('send', json_build_object('to', 'order ' || NEW.id), id => 'order-' || NEW.id);
            RETURN NEW;
        END $$;
        CREATE TRIGGER tell AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell();
        DROP ROLE IF EXISTS shop_producer;
        CREATE ROLE shop_producer;
        GRANT USAGE ON SCHEMA pgqueue TO shop_producer;
        GRANT EXECUTE ON FUNCTION pgqueue.enqueue_workflow TO shop_producer;
        GRANT INSERT ON orders TO shop_producer;
    """)
    try:
        with psycopg.connect(direct_dsn) as producer:
            producer.execute("SET ROLE shop_producer")
            producer.execute("INSERT INTO orders VALUES (7), (8)")
            for forbidden in (
                "SELECT * FROM pgqueue.job", "DELETE FROM pgqueue.ready", "SELECT * FROM pgqueue.jobs",
                "SELECT pgqueue.enqueue_workflows('[]')", "SELECT pgqueue.reap(gen_random_uuid(), '{}', 'crash', '')",
                "SELECT nextval('pgqueue.position')", "TRUNCATE pgqueue.job", "SELECT pgqueue.clock()",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege), producer.transaction():
                    producer.execute(forbidden)
        rows = conn.execute("SELECT input::json ->> 'to', queue FROM pgqueue.job ORDER BY 1").fetchall()
        assert rows == [("order 7", "mail"), ("order 8", "mail")]
    finally:
        conn.execute("DROP OWNED BY shop_producer; DROP ROLE shop_producer")


def test_nothing_is_for_everybody(conn: psycopg.Connection[Any]) -> None:
    open_functions = conn.execute("""
        SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         WHERE p.pronamespace = 'pgqueue'::regnamespace AND a.grantee = 0""").fetchall()
    assert open_functions == []


def test_search_path_tricks_do_not_reach_the_definer(dsn: str, app: App) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TEMP TABLE job (LIKE pgqueue.job); SET search_path = pg_temp, pgqueue, public")
        conn.execute("SELECT pgqueue.enqueue_workflow('send', '{\"to\": \"x\"}')")
        assert conn.execute("SELECT count(*) FROM pg_temp.job").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (1,)


def test_ten_thousand_in_one_statement(app: App, conn: psycopg.Connection[Any]) -> None:
    jobs = app.enqueue_many(app.functions["send"].map([f"a{i}" for i in range(10_000)]))
    assert len({job.id for job in jobs}) == 10_000
    assert states(conn) == {"ready": 10_000}
    order = conn.execute("SELECT input::json ->> 'to' FROM pgqueue.ready JOIN pgqueue.job ON id = job_id ORDER BY pos").fetchall()
    assert [row[0] for row in order] == [f"a{i}" for i in range(10_000)]
    conn.execute("SELECT pgqueue.enqueue_workflow('send', json_build_object('to', g)) FROM generate_series(1, 10000) g")
    assert states(conn) == {"ready": 20_000}
    assert violations(conn) == []


def test_many_is_all_or_none(app: App, conn: psycopg.Connection[Any]) -> None:
    send, book = app.functions["send"], app.functions["book"]
    with pytest.raises(UnknownQueue):
        app.enqueue_many([send.call("a"), book.options(queue="nowhere").call(1)])
    assert ids(conn) == []


def test_same_id_is_the_same_job(app: App, conn: psycopg.Connection[Any]) -> None:
    send = app.functions["send"]
    first = send.options(id="order-7").enqueue("ann")
    assert send.options(id="order-7").enqueue("ann").id == first.id
    assert ids(conn) == [first.id]
    with pytest.raises(IdConflict, match="another name or input"):
        send.options(id="order-7").enqueue("bob")
    # from SQL, with other white space and through another name of the same function: the derived id is the same
    row = conn.execute("SELECT pgqueue.enqueue_workflow('send', '{ \"to\" : \"ann\" }', id => 'order-7')::text").fetchone()
    assert row == (first.id,)
    assert first.id[14] == "8", "a derived id is a UUID of version 8"
    assert send.enqueue("x").id[14] == "7"


@pytest.mark.parametrize("same", [True, False])
def test_same_id_from_two_sessions_at_once(app: App, dsn: str, conn: psycopg.Connection[Any], same: bool) -> None:
    """The second waits for the first, and then sees it."""
    send = app.functions["send"].options(id="order-7")
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two, ThreadPoolExecutor(1) as pool:
        first = send.using(one).enqueue("ann")
        waiting = pool.submit(send.using(two).enqueue, "ann" if same else "bob")
        wait_for(lambda: blocked(conn), what="the second session to wait for the first")
        one.commit()
        if same:
            assert waiting.result(30).id == first.id
        else:
            with pytest.raises(IdConflict):
                waiting.result(30)
    assert ids(conn) == [first.id]
    assert violations(conn) == []


def test_same_id_when_the_first_rolls_back(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    send = app.functions["send"].options(id="order-7")
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two, ThreadPoolExecutor(1) as pool:
        send.using(one).enqueue("ann")
        waiting = pool.submit(send.using(two).enqueue, "bob")
        wait_for(lambda: blocked(conn), what="the second session to wait for the first")
        one.rollback()
        second = waiting.result(30)
        two.commit()
    assert ids(conn) == [second.id]
    assert violations(conn) == []


def blocked(conn: psycopg.Connection[Any]) -> bool:
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    ).fetchone()
    return bool(row and row[0])


def test_delay_and_at(app: App, conn: psycopg.Connection[Any]) -> None:
    send = app.functions["send"]
    assert send.options(delay="10m").enqueue("a").status() == "scheduled"
    assert send.options(delay=0).enqueue("a").status() == "ready"
    assert send.options(at=datetime.now(UTC) + timedelta(hours=1)).enqueue("a").status() == "scheduled"
    assert send.options(at=datetime.now(UTC) - timedelta(hours=1)).enqueue("a").status() == "ready"
    due = conn.execute("SELECT extract(epoch FROM max(run_at) - clock_timestamp()) / 3600 FROM pgqueue.scheduled").fetchone()
    assert due is not None
    assert 0.9 < due[0] <= 1.0


def test_wrong_arguments_are_type_errors_of_the_producer(app: App, conn: psycopg.Connection[Any]) -> None:
    send, book = app.functions["send"], app.functions["book"]
    for wrong in (
        lambda: send.enqueue(),
        lambda: send.enqueue("a", 1, 2),
        lambda: send.enqueue(toto="a"),
        lambda: book.enqueue(),
    ):
        with pytest.raises(TypeError):
            wrong()
    for value in ("7", None, 7.5, [7]):
        with pytest.raises(BadValue, match="does not fit its type"):
            book.enqueue(value)
    assert book.enqueue(7).status() == "ready"  # without the connection, which the worker gives


@pytest.mark.parametrize(
    "options",
    [
        {"delay": "-1s"}, {"delay": -1}, {"delay": "soon"}, {"at": datetime(2030, 1, 1)}, {"priority": 10},  # noqa: DTZ001
        {"priority": -1}, {"max_crashes": 0}, {"retry": 3}, {"nonsense": 1}, {"id": ""}, {"id": "x" * 600}, {"key": "k" * 600},
        {"at": datetime(9999, 6, 1, tzinfo=UTC)}, {"cost": 0}, {"cost": 1_000_001},
        {"delay": 5, "at": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
)  # fmt: skip
def test_bad_options(app: App, conn: psycopg.Connection[Any], options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        app.functions["send"].options(**options).enqueue("a")
    assert ids(conn) == []


@pytest.mark.parametrize("options", [{"priority": 10}, {"cost": 0}, {"max_crashes": 0}, {"at": datetime(2030, 1, 1, tzinfo=UTC)}])
def test_options_that_cannot_be_are_refused_where_they_are_said(app: App, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"a whole number from|give one of them"):
        app.functions["send"].options(delay=5).options(**options)


def test_too_large(app: App, conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(ValueTooLarge, match="the limit is 1048576"):
        app.functions["send"].enqueue("x" * (2 << 20))
    with pytest.raises(psycopg.Error, match="limit"):
        conn.execute("SELECT pgqueue.enqueue_workflow('send', json_build_object('to', repeat('x', 2 << 20)))")
    assert ids(conn) == []


@pytest.mark.parametrize("text", [r'{"to": "\u0000"}', r'{"to": "\ud800"}', "[1]", "1", '"x"'])
def test_bad_input_from_sql(app: App, conn: psycopg.Connection[Any], text: str) -> None:
    with pytest.raises(psycopg.Error):
        conn.execute("SELECT pgqueue.enqueue_workflow('send', %s::json)", (text,))
    assert ids(conn) == []


def test_infinite_times_from_sql(app: App, conn: psycopg.Connection[Any]) -> None:
    for when in ("infinity", "-infinity", "10000-01-01"):
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT pgqueue.enqueue_workflow('send', '{}', run_at => %s::timestamptz)", (when,))
    assert ids(conn) == []


def test_client_without_the_code(dsn: str, app: App, conn: psycopg.Connection[Any]) -> None:
    with Client(dsn) as client:
        assert client.enqueue("send", {"to": "ann"}).status() == "ready"
        assert client.enqueue("unheard_of", {}, queue="mail").status() == "ready"
        with pytest.raises(UnknownWorkflow, match="pgqueue migrate"):
            client.enqueue("unheard_of")
        with pytest.raises(UnknownQueue, match="Declare it"):
            client.enqueue("send", queue="nowhere")
        with pytest.raises(BadValue):
            client.enqueue("not a name", queue="mail")
        with pytest.raises(BadValue):
            client.enqueue("send", ["ann"])  # type: ignore[arg-type]
        with pytest.raises(UnknownJob):
            client.job("order-7")
        with psycopg.connect(dsn) as mine:
            client.enqueue("send", {"to": "x"}, conn=mine)
            mine.rollback()
    assert states(conn) == {"ready": 2}


def test_no_dsn_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQUEUE_DSN", raising=False)
    app = App()
    with pytest.raises(NotConfigured, match="PGQUEUE_DSN"):
        app.job("01920000-0000-7000-8000-000000000000").status()
    client = Client("postgresql://me:hunter2@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnreachable) as caught:
        client.enqueue("x", queue="default")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(client.pool)


def test_options_reach_the_row(app: App, conn: psycopg.Connection[Any]) -> None:
    app.functions["send"].options(retry=Retry(2, backoff="1s"), max_crashes=9, key="k", queue="default", priority=0).enqueue("a")
    row = conn.execute("SELECT policy, key, queue, priority FROM pgqueue.job").fetchone()
    assert row is not None
    assert row[0]["max_crashes"] == 9
    assert row[0]["retry"]["attempts"] == 2
    assert row[1:] == ("k", "default", 0)


def test_sql_options(app: App, conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT pgqueue.enqueue_workflow('send', '{\"to\": \"a\"}', options => '{\"max_crashes\": 9}')")
    assert conn.execute("SELECT policy, input FROM pgqueue.job").fetchone() == ({"max_crashes": 9}, '{"to": "a"}')
    with pytest.raises(psycopg.Error, match="not an option"):
        conn.execute("SELECT pgqueue.enqueue_workflow('send', options => '{\"max_crashs\": 9}')")


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_higher_isolation_levels_of_the_producer(app: App, dsn: str, conn: psycopg.Connection[Any], level: str) -> None:
    with psycopg.connect(dsn) as mine:
        mine.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        app.functions["send"].using(mine).enqueue("a")
    assert states(conn) == {"ready": 1}


def test_commit_is_raised_to_durable_and_never_lowered(app: App, dsn: str) -> None:
    for given, seen in (("off", "on"), ("remote_apply", "remote_apply"), ("local", "local"), ("on", "on")):
        with psycopg.connect(dsn) as mine:
            mine.execute(f"SET synchronous_commit = '{given}'")
            app.functions["send"].using(mine).enqueue("a")
            assert mine.execute("SHOW synchronous_commit").fetchone() == (seen,)


def test_pool_belongs_to_its_process(app: App, conn: psycopg.Connection[Any]) -> None:
    import os

    send = app.functions["send"]
    send.enqueue("parent")
    pid = os.fork()
    if pid == 0:
        try:
            send.enqueue("child")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    send.enqueue("parent again")
    assert states(conn) == {"ready": 3}


def test_enqueue_from_many_threads(app: App, conn: psycopg.Connection[Any]) -> None:
    send = app.functions["send"]
    barrier = threading.Barrier(8)

    def produce(i: int) -> None:
        barrier.wait()
        for k in range(10):
            send.enqueue(f"{i}-{k}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(produce, range(8)))
    assert states(conn) == {"ready": 80}
    assert violations(conn) == []


def test_json_of_descriptions_refuses_what_it_does_not_know(conn: psycopg.Connection[Any]) -> None:
    for jobs in ("{}", "null", '[{"name": "send", "que": "mail"}]', "[1]"):
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT pgqueue.enqueue_workflows(%s::json)", (jobs,))
    assert conn.execute("SELECT count(*) FROM pgqueue.enqueue_workflows(%s::json)", (json.dumps([]),)).fetchone() == (0,)


@pytest.mark.parametrize(
    "retry", ["3", '{"attemps": 3}', '{"attempts": "x"}', '{"attempts": 0}', '{"backoff": -1}', '{"jitter": 1}']
)
def test_bad_retry_from_sql_is_refused_at_the_door(app: App, conn: psycopg.Connection[Any], retry: str) -> None:
    with pytest.raises(psycopg.Error, match="retry"):
        conn.execute("SELECT pgqueue.enqueue_workflow('send', options => %s::jsonb)", (f'{{"retry": {retry}}}',))
    assert ids(conn) == []


def test_the_database_says_how_large_an_input_may_be(app: App, conn: psycopg.Connection[Any]) -> None:
    conn.execute("UPDATE pgqueue.installation SET max_bytes = 4000000")
    with Client(app.dsn) as client:
        client.enqueue("any", {"a": "x" * 3_000_000}, queue="default")
        with pytest.raises(ValueTooLarge):
            client.enqueue("any", {"a": "x" * 5_000_000}, queue="default")
