"""The four roles: what each may do, and that nothing else gets through. Real logins, no SET ROLE."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import conninfo, sql

from pgqueue import Client, migrate, protocol
from pgqueue.cli.commands import cli
from pgqueue.database import connect, run
from pgqueue.errors import BadValue, NotPermitted
from pgqueue.ids import new_job_id
from tests import test_kill
from tests.apps import bank
from tests.conftest import fresh_database
from tests.support import ROOT, Server, Workers, kill, states, violations, wait_for, worker_pids

PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
FOR_PRODUCERS = {"enqueue_workflow", "enqueue_workflows", "send_event", "send_message"}
FOR_READERS = {"stats", "limits", "metrics", "job_metrics", "rates", "last_failures", "youngest_jobs", "clock", "clock_bound"}
#: With the rights of the owner, whoever calls them.
DEFINERS = {"awaited"} | FOR_PRODUCERS | FOR_READERS - {"metrics", "clock", "clock_bound"}
READABLE = {
    "jobs",
    "children",
    "waits",
    "queues",
    "workers",
    "beats",
    "ticks",
    "violations",
    "migration",
    "retentions",
    "unclaimable",
    "running_jobs",
    "conflicts",
    "connections",
    "sessions",
    "server_settings",
    "table_stats",
    "xmin_holders",
    "public_rights",
}  # and some columns of schedules
WITH_PAYLOADS = {"attempts", "job_values", "steps", "schedules"}
#: Where inputs, results, errors and values are.
PAYLOADS = {"input", "result", "error", "policy", "value", "note", "context"}
ROLES = ("producer", "worker", "reader")
STATEMENTS = ("SELECT FROM {}", "SELECT * FROM {} FOR UPDATE", "DELETE FROM {}", "TRUNCATE {}", "COPY {} TO STDOUT")
NOT_FOR_VIEWS = (psycopg.errors.WrongObjectType, psycopg.errors.ObjectNotInPrerequisiteState)


class Cast:
    """A database with roles, and a login for each of them."""

    def __init__(self, dsn: str, names: dict[str, str]) -> None:
        self.dsn = dsn
        self.names = names

    def dsn_of(self, kind: str) -> str:
        return conninfo.make_conninfo(self.dsn, user=self.names[kind], password="secret")

    def connect(self, kind: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn_of(kind), autocommit=True)


@pytest.fixture(scope="module")
def cast(server: Server) -> Iterator[Cast]:
    """Everything made as an operator makes it, by one who is no superuser. One for all: making it takes a while."""
    with fresh_database(server) as dsn:
        yield from _cast(dsn)


def _cast(empty_dsn: str) -> Iterator[Cast]:
    suffix = uuid.uuid4().hex[:8]
    names = {kind: f"t_{kind}_{suffix}" for kind in ("admin", *ROLES, "stranger")}
    database = conninfo.conninfo_to_dict(empty_dsn)["dbname"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for kind, name in names.items():
            conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret' {'CREATEROLE' if kind == 'admin' else ''}")
        conn.execute(f"ALTER DATABASE {database} OWNER TO {names['admin']}")
        for role in ("owner", *ROLES):  # a server may have them from another database, made by somebody else
            if conn.execute("SELECT to_regrole(%s) IS NOT NULL", (f"pgqueue_{role}",)).fetchone() == (True,):
                conn.execute(f"GRANT pgqueue_{role} TO {names['admin']} WITH ADMIN OPTION")
    cast = Cast(empty_dsn, names)
    with connect(cast.dsn_of("admin"), "tests") as admin:
        migrate.migrate(admin, roles=True)
        for kind in ROLES:
            run(admin, protocol.grant_role(kind, names[kind]))
    yield cast
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")
        for name in names.values():
            conn.execute(f"DROP OWNED BY {name}")
        conn.execute("DROP OWNED BY pgqueue_owner CASCADE")
        for name in reversed(names.values()):
            conn.execute(f"DROP ROLE {name}")


def pgqueue(dsn: str, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", *arguments],
        env={**os.environ, "PGQUEUE_DSN": dsn},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, f"pgqueue {' '.join(arguments)}: {done.returncode}\n{done.stdout}"
    return done.stdout


def relations(conn: psycopg.Connection[Any], kinds: str) -> list[str]:
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace AND relkind = ANY (%s) ORDER BY 1",
        (list(kinds),),
    )
    return [row[0] for row in rows]


# ------------------------------------------------------------------------------------------------ what each may do


def test_every_table_and_every_privilege(cast: Cast) -> None:
    """Asked of the server for each login, and tried for each that must not."""
    with psycopg.connect(cast.dsn, autocommit=True) as conn:
        tables = relations(conn, "rv")
        for kind, table, privilege in itertools.product((*ROLES, "stranger"), tables, PRIVILEGES):
            allowed = conn.execute(
                "SELECT has_table_privilege(%s, %s, %s)", (cast.names[kind], f"pgqueue.{table}", privilege)
            ).fetchone()
            changes = privilege in ("INSERT", "UPDATE", "DELETE")
            expected = {
                "worker": privilege == "SELECT" or (changes and table not in ("migration", "installation")),
                "reader": privilege == "SELECT" and table in READABLE,
            }.get(kind, False)
            assert allowed == (expected,), (kind, table, privilege)
        for kind, sequence in itertools.product(ROLES, relations(conn, "S")):
            for privilege in ("USAGE", "SELECT", "UPDATE"):
                row = conn.execute(
                    "SELECT has_sequence_privilege(%s, %s, %s)", (cast.names[kind], f"pgqueue.{sequence}", privilege)
                ).fetchone()
                resets = sequence == "conflict" and privilege == "UPDATE"  # the counter that has to stay 0
                assert row == (kind == "worker" and not resets,), (kind, sequence, privilege)
    for kind in ("producer", "reader", "stranger"):
        with cast.connect(kind) as conn:
            for table in tables:
                if kind == "reader" and table in {*READABLE, "schedules"}:
                    continue
                name = sql.Identifier("pgqueue", table)
                for statement in STATEMENTS:
                    with pytest.raises((psycopg.errors.InsufficientPrivilege, *NOT_FOR_VIEWS)):
                        conn.execute(sql.SQL(statement).format(name))  # type: ignore[arg-type]


def test_every_function(cast: Cast) -> None:
    with psycopg.connect(cast.dsn, autocommit=True) as conn:
        functions = conn.execute(
            "SELECT oid::regprocedure::text, proname, prosecdef, proconfig, pg_get_userbyid(proowner), prosrc, proisstrict"
            " FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace"
        ).fetchall()
        for signature, name, definer, config, owner, source, _ in functions:
            assert owner == "pgqueue_owner", signature
            expected = {"producer": name in FOR_PRODUCERS, "worker": True, "reader": name in FOR_READERS, "stranger": False}
            for kind, may in expected.items():
                row = conn.execute("SELECT has_function_privilege(%s, %s, 'EXECUTE')", (cast.names[kind], signature)).fetchone()
                assert row == (may,), (kind, signature)
            assert definer == (name in DEFINERS), f"{name} runs with the rights of its owner, or not: need it?"
            if definer:
                assert "search_path=pg_catalog, pg_temp" in (config or []), signature
                assert not re.search(r"\b(EXECUTE|EXCEPTION)\b", source), signature
    for kind, allowed in (("producer", FOR_PRODUCERS), ("reader", FOR_READERS), ("stranger", set[str]())):
        with cast.connect(kind) as conn:
            for name in {row[1] for row in functions if not row[6]} - allowed:  # those are not called with nulls
                arguments = next(row[0] for row in functions if row[1] == name).partition("(")[2].rstrip(")")
                nulls = ", ".join(f"NULL::{one}" for one in arguments.split(",")) if arguments else ""
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match=name):
                    conn.execute(f"SELECT pgqueue.{name}({nulls})")  # type: ignore[arg-type]


def test_whom_each_function_and_each_view_is_for(cast: Cast) -> None:
    """A new one is a producer's or a reader's because the lists above say so. It is a worker's because a verb of ours calls it,
    or people by the reference: with the rights of its caller, it does nothing that a worker may not do to the tables. One that
    nobody calls is for nobody, and should not be there."""
    ours = "".join(path.read_text() for path in (*(ROOT / "pgqueue").rglob("*.py"), ROOT / "docs" / "reference" / "sql.md"))
    with psycopg.connect(cast.dsn) as conn:
        sources = dict(conn.execute(
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace UNION ALL"
            " SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace AND relkind = 'v'"
        ).fetchall())  # fmt: skip
        views = set(relations(conn, "v"))
    assert views == (READABLE - {"migration"}) | WITH_PAYLOADS
    named = {name: re.compile(rf"pgqueue\.{name}\b") for name in sources}
    reached, new = set[str](), {name for name in sources if named[name].search(ours)}
    while new:
        reached |= new
        new = {name for name in sources.keys() - reached if any(named[name].search(sources[other]) for other in reached)}
    assert sources.keys() - reached - views == set()


def test_readers_see_no_payloads(cast: Cast) -> None:
    with cast.connect("reader") as conn:
        columns = conn.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'pgqueue'"
            " AND has_column_privilege(format('pgqueue.%I', table_name), column_name, 'SELECT')"
        ).fetchall()
        assert {table for table, _ in columns} == READABLE | {"schedules"}
        assert not {column for _, column in columns} & PAYLOADS
        conn.execute("SELECT name, next_at FROM pgqueue.schedules")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT input FROM pgqueue.schedules")


def test_readers_can_look(cast: Cast) -> None:
    """With every command that is there to look; the values of one job are not for them."""
    with Client(cast.dsn_of("producer")) as producer:
        job = producer.enqueue("x", {"card": "4111-1111"}, queue="default")
    dsn = cast.dsn_of("reader")
    for command in ("status", "queues", "jobs", "schedules", "retention", "top --once", "migrate --check"):
        pgqueue(dsn, *command.split())
    assert "job_values" in pgqueue(dsn, "show", str(job.id), code=78)
    said = pgqueue(dsn, "doctor", code=1)  # there is no worker
    assert "could not be made" not in said
    assert "note: this role cannot do what workers do" in said, "and need not"
    with cast.connect("reader") as conn:
        assert ("pgqueue_queue_jobs",) in conn.execute("SELECT DISTINCT metric FROM pgqueue.metrics()").fetchall()


def test_nothing_can_be_made_in_the_schema_and_nobody_becomes_the_owner(cast: Cast) -> None:
    statements = (
        "CREATE TABLE pgqueue.mine ()",
        "CREATE FUNCTION pgqueue.clock(text) RETURNS text LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
        "ALTER FUNCTION pgqueue.enqueue_workflow OWNER TO CURRENT_USER",
        "ALTER FUNCTION pgqueue.enqueue_workflow RESET ALL",
        "ALTER TABLE pgqueue.job DISABLE TRIGGER ALL",
        "ALTER TABLE pgqueue.job ADD COLUMN mine text",
        "CREATE TRIGGER mine AFTER INSERT ON pgqueue.job EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE RULE mine AS ON INSERT TO pgqueue.job DO NOTHING",
        "CREATE INDEX ON pgqueue.job (name)",
        "CREATE POLICY mine ON pgqueue.job",
        "CREATE TABLE public_child () INHERITS (pgqueue.job)",
        "TRUNCATE pgqueue.ready",
        "DROP SCHEMA pgqueue CASCADE",
        "GRANT SELECT ON pgqueue.job TO PUBLIC",
        "SET ROLE pgqueue_owner",
        "SET SESSION AUTHORIZATION pgqueue_owner",
        "GRANT pgqueue_owner TO CURRENT_USER",
        "UPDATE pgqueue.migration SET number = 0",
        "UPDATE pgqueue.installation SET max_bytes = 1024",
    )
    for kind in (*ROLES, "stranger"):
        with cast.connect(kind) as conn:
            for statement in statements:
                try:
                    conn.execute(statement)  # type: ignore[arg-type]
                except psycopg.errors.InsufficientPrivilege:
                    continue
                # GRANT by who has no grant option is a warning, and grants nothing.
                assert statement.startswith("GRANT SELECT"), (kind, statement)
    with psycopg.connect(cast.dsn) as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace AND relacl::text LIKE '%{=r%'"
        ).fetchone()
        assert row == (0,)


def test_a_worker_ends_sessions_of_its_own_role_and_no_others(cast: Cast) -> None:
    worker = str(uuid.uuid4())
    name = f"pgqueue:{worker}:claims"
    with (
        connect(cast.dsn_of("worker"), "tests") as conn,
        connect(cast.dsn_of("worker"), name) as ours,
        connect(cast.dsn_of("producer"), name) as another,
        connect(cast.dsn, name) as superuser,
    ):
        assert run(conn, protocol.end_sessions(worker)) == 1
        with pytest.raises(psycopg.OperationalError):
            ours.execute("SELECT 1")
        for other in (another, superuser):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("SELECT pg_terminate_backend(%s)", (other.info.backend_pid,))
            other.execute("SELECT 1")


# ------------------------------------------------------------------------------------------------ attacks by producers


def hostile_schema(conn: psycopg.Connection[Any], sources: str) -> list[str]:
    """A schema with a function or an operator for each of PostgreSQL's that the sources may mean. They tell who runs them.
    Returns the names of the functions."""
    conn.execute("CREATE SCHEMA evil; CREATE TABLE evil.caught (who text, what text); GRANT ALL ON SCHEMA evil TO PUBLIC")
    conn.execute("GRANT INSERT ON evil.caught TO PUBLIC")
    words = list(set(re.findall(r"[a-z_]+", sources.lower())))
    made = []
    rows = conn.execute(
        "SELECT proname, pg_get_function_identity_arguments(oid), prorettype::regtype::text FROM pg_proc"
        " WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND proname = ANY (%s) AND NOT proretset"
        " AND prorettype NOT IN ('internal'::regtype, 'anyelement'::regtype, 'anyarray'::regtype)"
        " AND NOT EXISTS (SELECT FROM unnest(proargtypes) t WHERE t::regtype::text ~ '^any|internal|cstring')",
        (words,),
    ).fetchall()
    for name, arguments, returns in rows:
        types = re.sub(r"\b(IN|VARIADIC|OUT) ", "", arguments)
        body = f"BEGIN INSERT INTO evil.caught VALUES (current_user, {sql.Literal(name).as_string(conn)}); RETURN NULL; END"
        try:
            conn.execute(f'CREATE FUNCTION evil."{name}"({types}) RETURNS {returns} LANGUAGE plpgsql AS $${body}$$')  # type: ignore[arg-type]
            made.append(name)
        except psycopg.Error:
            continue  # with OUT parameters and the like
    conn.execute(
        "CREATE FUNCTION evil.caught_operator(text, text) RETURNS boolean LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO evil.caught VALUES (current_user, 'operator'); RETURN true; END$$"
    )
    for operator in ("=", "<>", "~", "!~", "<", ">", "<=", ">="):
        conn.execute(f"CREATE OPERATOR evil.{operator} (leftarg = text, rightarg = text, function = evil.caught_operator)")  # type: ignore[arg-type]
    return made


def decoys(conn: psycopg.Connection[Any], names: list[str]) -> None:
    """A temporary table for each of pgqueue's relations."""
    for name in names:
        conn.execute(
            sql.SQL("CREATE TEMP TABLE {} (only_row boolean, max_bytes integer, name text)").format(sql.Identifier(name))
        )


def test_no_search_path_and_no_temporary_relation_gets_into_functions_of_the_owner(cast: Cast) -> None:
    with psycopg.connect(cast.dsn, autocommit=True) as conn:
        database = conninfo.conninfo_to_dict(cast.dsn)["dbname"]
        conn.execute(f"GRANT CREATE, TEMP ON DATABASE {database} TO PUBLIC")  # type: ignore[arg-type]
        sources = " ".join(row[0] for row in conn.execute(
            "SELECT prosrc FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace"
        ))  # fmt: skip
        tables = relations(conn, "rvS")
    with cast.connect("producer") as conn:
        made = hostile_schema(conn, sources)
        assert len(made) > 50
        decoys(conn, tables)
        conn.execute("CREATE DOMAIN pg_temp.text AS pg_catalog.int4; CREATE DOMAIN evil.uuid AS pg_catalog.int4")
        conn.execute("SET search_path = evil, pg_temp, pgqueue, pg_catalog")
        options = json.dumps({"retry": {"attempts": 2}, "meta": {}})
        calls: list[tuple[str, tuple[str, ...]]] = [
            (
                "SELECT pgqueue.enqueue_workflow('x', %s, 'default', 'one', key => 'k', delay => '1s', options => %s)",
                ('{"a": "\\u0041"}', options),
            ),
            ("SELECT pgqueue.enqueue_workflows(%s)", ('[{"name": "x", "queue": "default"}]',)),
            ("SELECT pgqueue.send_event('e', '1')", ()),
            ("SELECT pgqueue.send_message('00000000-0000-7000-8000-000000000000', 't', '1')", ()),
        ]
        for call, params in calls:
            conn.execute(call, params)  # type: ignore[arg-type]
        assert conn.execute("SELECT * FROM evil.caught").fetchall() == []
        conn.execute("SELECT strpos('it would have been seen'::pg_catalog.text, 'it'::pg_catalog.text)")
        assert conn.execute("SELECT DISTINCT who FROM evil.caught").fetchall() == [(cast.names["producer"],)]
    with cast.connect("reader") as conn:
        decoys(conn, tables)
        conn.execute("SET search_path = evil, pg_temp, pgqueue, pg_catalog")
        for name in DEFINERS & FOR_READERS:
            arguments = {"rates": "5", "last_failures": "5", "youngest_jobs": "'failed', NULL, NULL, NULL, 5"}.get(name, "")
            conn.execute(f"SELECT * FROM pgqueue.{name}({arguments})")  # type: ignore[arg-type]
        assert conn.execute("SELECT FROM pg_catalog.pg_class WHERE relname OPERATOR(pg_catalog.=) 'caught'").rowcount == 1
    with psycopg.connect(cast.dsn) as conn:
        assert conn.execute("SELECT who FROM evil.caught WHERE who <> %s", (cast.names["producer"],)).fetchall() == []
        assert conn.execute("SELECT count(*) FROM pgqueue.job WHERE name = 'x'").fetchone()[0] >= 2  # type: ignore[index]


HOSTILE = (
    "'; DROP TABLE pgqueue.job; --",
    'x"; SELECT pg_sleep(9); --',
    "$$; DELETE FROM pgqueue.job; $$",
    "pg_catalog.pg_sleep(9)",
    "\\'; --",
    "%s %I %L",
    "x\ny",
    "",
    "x" * 129,
    "ё",
    "__import__('os').system('true')",
)


def test_hostile_names_are_refused_or_just_texts(cast: Cast) -> None:
    with cast.connect("worker") as conn, Client(cast.dsn_of("producer")) as producer:
        before = sum(states(conn).values())
        for name in HOSTILE:
            offer(producer, conn, name)
        assert sum(states(conn).values()) == before + sum(map(bool, HOSTILE))
        assert violations(conn) == []


def offer(producer: Client, conn: psycopg.Connection[Any], name: str) -> None:
    """As the name of a workflow, a queue, a parameter, an id, a key, an event and a role."""
    with pytest.raises((BadValue, ValueError)):
        producer.enqueue(name, {}, queue="default")
    with pytest.raises(Exception, match="queue"):
        producer.enqueue("x", {}, queue=name)
    if name:
        producer.enqueue("x", {name: name}, queue="default", id=name, key=name, meta={name: name})
        producer.send_event(name, name)
    for kind in ROLES:
        with pytest.raises(psycopg.Error, match="there is no role"):
            run(conn, protocol.grant_role(kind, name))


def test_hostile_options(cast: Cast) -> None:
    """What belongs to workers is not for producers: no child of somebody else's job, no id that another job will have."""
    parent = new_job_id()
    hostile: list[dict[str, Any]] = [
        {"parent": parent},
        {"parent": parent, "parent_seq": 1, "ordinal": 0},
        {"job_id": "00000000-0000-8000-8000-000000000000"},
        {"job_id": "7; DROP TABLE pgqueue.job"},
        {"status": "succeeded"},
        {"claim": 1},
        {"retry": {"attempts": "1; DROP"}},
        {"retry": []},
        {"max_crashes": -1},
        {"version": 0},
        {"cost": -1},
        {"timeout": "NaN"},
        {"meta": "x" * 9000},
        {"priority": 10},
        {"run_at": "infinity"},
        {"delay": "-1 day"},
        {"key": "k" * 513},
        {"id": "i" * 513},
    ]
    with cast.connect("worker") as conn:
        before = sum(states(conn).values())
    with cast.connect("producer") as conn:
        for options in hostile:
            with pytest.raises(psycopg.Error) as error:
                conn.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default', options => %s)", (json.dumps(options),))
            assert not isinstance(error.value, psycopg.errors.InternalError), options
        for broken in (
            "null",
            "{}",
            '"x"',
            "[1]",
            "[null]",
            "[[]]",
            '[{"name": null}]',
            '[{"name": {}}]',
            "[" * 5000 + "]" * 5000,
        ):
            with pytest.raises(psycopg.Error):
                conn.execute("SELECT pgqueue.enqueue_workflows(%s)", (broken,))
    with cast.connect("worker") as conn:
        assert sum(states(conn).values()) == before
        conn.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default', options => %s)", (json.dumps({"parent": parent}),))


# ------------------------------------------------------------------------------------------------ making and granting


def test_without_the_right_to_make_roles_the_error_says_what_to_run(server: Server, empty_dsn: str) -> None:
    user = f"t_plain_{uuid.uuid4().hex[:8]}"
    database = conninfo.conninfo_to_dict(empty_dsn)["dbname"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")  # type: ignore[arg-type]
        dsn = conninfo.make_conninfo(empty_dsn, user=user, password="secret")
        assert "GRANT CREATE ON DATABASE" in pgqueue(dsn, "migrate", code=78)
        conn.execute(f"GRANT CREATE ON DATABASE {database} TO {user}")  # type: ignore[arg-type]
        said = pgqueue(dsn, "migrate", "--roles", code=78)
        assert "CREATE ROLE pgqueue_owner NOLOGIN" in said
        assert "WITH ADMIN OPTION" in said
        assert conn.execute("SELECT to_regnamespace('pgqueue')").fetchone() == (None,)

        # As an ordinary owner, without the roles; then an administrator does what the error says.
        with connect(dsn, "tests") as plain:
            migrate.migrate(plain)
        assert "this database has no role" in pgqueue(dsn, "grant", "worker", user, code=1)
        for role in ("owner", *ROLES):
            if conn.execute("SELECT to_regrole(%s)", (f"pgqueue_{role}",)).fetchone() == (None,):
                conn.execute(f"CREATE ROLE pgqueue_{role} NOLOGIN")  # type: ignore[arg-type]
        conn.execute(f"GRANT pgqueue_owner, pgqueue_producer, pgqueue_worker, pgqueue_reader TO {user} WITH ADMIN OPTION")  # type: ignore[arg-type]
        pgqueue(dsn, "migrate", "--roles")
        assert conn.execute(
            "SELECT count(*) FROM pg_class c, pg_namespace n WHERE n.nspname = 'pgqueue' AND c.relnamespace = n.oid"
            " AND pg_get_userbyid(c.relowner) <> 'pgqueue_owner'"
        ).fetchone() == (0,)
        pgqueue(dsn, "grant", "producer", user)
        conn.execute(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")  # type: ignore[arg-type]
        conn.execute("DROP OWNED BY pgqueue_owner CASCADE")
        conn.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")  # type: ignore[arg-type]


def test_migrating_again_keeps_grants_and_the_owner(cast: Cast) -> None:
    """By a superuser too: what it makes is not its own."""
    with psycopg.connect(cast.dsn, autocommit=True) as conn:
        conn.execute(f"GRANT SELECT ON pgqueue.job_values TO {cast.names['stranger']}")  # type: ignore[arg-type]
        before = rights(conn)
        conn.execute("DROP FUNCTION pgqueue.claim; GRANT EXECUTE ON FUNCTION pgqueue.reap TO pgqueue_producer")  # an upgrade may
        for dsn in (cast.dsn, cast.dsn_of("admin")):
            with connect(dsn, "tests") as migrator:
                migrate.migrate(migrator)
        assert rights(conn) == before


def rights(conn: psycopg.Connection[Any]) -> list[Any]:
    """Of all relations and functions: which it is, whose, and who may do what."""
    rows = conn.execute(
        "SELECT c.relname, c.relowner, c.relacl::text FROM pg_class c WHERE relnamespace = 'pgqueue'::regnamespace UNION ALL"
        " SELECT p.proname, p.proowner, p.proacl::text FROM pg_proc p WHERE pronamespace = 'pgqueue'::regnamespace"
    )
    return sorted((name, owner, sorted((acl or "").strip("{}").split(","))) for name, owner, acl in rows)


def test_two_migrations_at_once_make_the_roles_once(cast: Cast) -> None:
    def one(_: int) -> None:
        with connect(cast.dsn_of("admin"), "tests") as conn:
            migrate.migrate(conn, roles=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))


def test_a_role_without_its_right_gets_one_clear_line(cast: Cast) -> None:
    said = pgqueue(cast.dsn_of("producer"), "jobs", code=78)
    assert said.count("\n") == 1
    assert "permission denied for view jobs" in said
    assert "pgqueue grant" in said
    assert "permission denied" in pgqueue(cast.dsn_of("reader"), "work", "tests.apps.bank:app", code=78)
    with Client(cast.dsn_of("producer")) as client, pytest.raises(NotPermitted, match="pgqueue grant"):
        client.job(new_job_id()).status()


def test_the_help_that_the_error_names_says_what_to_grant(cast: Cast) -> None:
    producer = cast.dsn_of("producer")
    said = pgqueue(producer, "enqueue", "jobs.waited", "-q", "default", "--wait", "1s", code=78)
    assert "pgqueue grant --help" in said
    helped = pgqueue(producer, "grant", "--help")
    for kind in ROLES:
        assert re.search(rf"^ +{kind}  +\w", helped, re.MULTILINE), helped
    role = cast.names["producer"]
    grants = [line.strip() for line in helped.splitlines() if line.strip().startswith("GRANT ")]
    with connect(cast.dsn_of("admin"), "tests") as conn:
        for grant in grants:
            conn.execute(grant.replace("TO ROLE;", f"TO {role}"))
    waited = pgqueue(producer, "enqueue", "jobs.waited", "-q", "default", "--wait", "0.5", code=1)
    assert "has not ended within 0.5 s, and goes on" in waited
    assert "permission denied" not in waited
    with connect(cast.dsn_of("admin"), "tests") as conn:
        for grant in grants:
            conn.execute(grant.replace("GRANT", "REVOKE").replace("TO ROLE;", f"FROM {role}"))


# ------------------------------------------------------------------------------------------------ at work


def test_four_roles_at_work(server: Server, tmp_path: Path, bank_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workload from end to end: enqueued by a producer, done by workers one of which is killed, looked at by a reader."""
    with fresh_database(server) as dsn:
        for cast in _cast(dsn):
            work_as(cast, tmp_path, monkeypatch)


def work_as(cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = 200
    with psycopg.connect(cast.dsn, autocommit=True) as conn:
        conn.execute(bank.TABLES)  # type: ignore[arg-type]
        conn.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {cast.names['worker']}")  # type: ignore[arg-type]
    with cast.connect("admin") as admin:
        run(admin, bank.app.registration())
    monkeypatch.setenv("PGQUEUE_DSN", cast.dsn_of("producer"))
    started = Workers(cast.dsn_of("worker"), tmp_path)
    try:
        bank.app.enqueue_many([bank.deposit.call(1 + n % 20, 5) for n in range(jobs)])
        work = started.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
        with cast.connect("reader") as reader:
            finished = "SELECT count(*) FROM pgqueue.jobs WHERE state = 'succeeded'"
            wait_for(lambda: reader.execute(finished).fetchone()[0] > 20, what="a part of the jobs")  # type: ignore[index]
            kill(worker_pids(reader, work)[0])
            wait_for(lambda: reader.execute(finished).fetchone() == (jobs,), what="all jobs")
            assert reader.execute("SELECT * FROM pgqueue.violations").fetchall() == []
            for command in ("status", "queues", "jobs"):
                monkeypatch.setenv("PGQUEUE_DSN", cast.dsn_of("reader"))
                assert "payments" in CliRunner().invoke(cli, [command], catch_exceptions=False).output
        assert "permission denied" not in work.log()
        with cast.connect("worker") as conn:
            test_kill.check_ledger(conn, jobs)
    finally:
        started.stop_all()
        bank.app.close()
