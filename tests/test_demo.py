"""``pgqueue demo`` and ``pgqueue dev``: they do what they say, the ledger's check can fail, and nothing is left."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgqueue import Client
from pgqueue.cli.commands import cli
from pgqueue.database import connect
from pgqueue.demo import carrier, journal, ledger, orders, play, shop
from pgqueue.demo.journal import Kill
from pgqueue.demo.ledger import Ledger
from pgqueue.demo.place import furnish
from pgqueue.demo.processes import Supervisor, parents
from pgqueue.demo.report import Result, show
from pgqueue.demo.screen import Screen
from pgqueue.demo.signals import Signals, Stopped
from pgqueue.demo.stories import Ending
from pgqueue.demo.storm import Storm
from pgqueue.embedded import Embedded
from tests.support import ROOT, Hand, Server, wait_for

Connection = psycopg.Connection[Any]
SMALL = ("--orders", "60", "--seconds", "4", "--kills", "12")
_PR_SET_CHILD_SUBREAPER = 36

# ------------------------------------------------------------------------------------------------ the check


@pytest.fixture
def told(dsn: str, conn: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[orders.Order]:
    """Eight orders that went as they should, the first rolled back. The seven that count."""
    monkeypatch.setenv(journal.DIRECTORY, str(tmp_path))
    monkeypatch.setattr(shop, "pretend_to_work", lambda _: None)
    lines = orders.read(8)
    furnish(conn, lines)
    for order in lines[1:]:
        with conn.transaction():
            conn.execute(
                "INSERT INTO orders VALUES (%s, %s, %s, %s, %s)",
                (order.number, order.customer, order.item, order.quantity, order.cents),
            )
            shop.fulfil.using(conn).enqueue(order.number)
    hand = Hand(shop.app, dsn)
    hand.drain()
    hand.close()
    return lines[1:]


def checked(conn: Connection, told: list[orders.Order], tmp_path: Path) -> Ledger:
    return ledger.check(conn, told, carrier.bookings(tmp_path))


def test_a_ledger_that_balances(conn: Connection, told: list[orders.Order], tmp_path: Path) -> None:
    found = checked(conn, told, tmp_path)
    assert found.problems == []
    assert found.balances
    assert found.succeeded == found.charged_once == found.shipped_once == 7
    assert found.carrier_calls >= 7


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("INSERT INTO ledger SELECT * FROM ledger WHERE number = {a}", "doubled"),
        ("INSERT INTO shipment SELECT * FROM shipment WHERE number = {a}", "doubled"),
        ("DELETE FROM ledger WHERE number = {a}", "lost"),
        ("DELETE FROM shipment WHERE number = {a}", "lost"),
        ("DELETE FROM orders WHERE number = {a}", "lost"),
        ("UPDATE pgqueue.outcome SET status = 'failed', error = '{{}}', result = NULL"
         " WHERE job_id = (SELECT id FROM pgqueue.job WHERE key = '{a}')", "lost"),
        ("DELETE FROM pgqueue.outcome WHERE job_id = (SELECT id FROM pgqueue.job WHERE key = '{a}')", "lost"),
        ("INSERT INTO ledger VALUES ({phantom}, 'Nobody', 1)", "phantoms"),
        ("INSERT INTO shipment VALUES ({phantom}, 'nothing', 1, 'PX')", "phantoms"),
        ("INSERT INTO orders VALUES ({phantom}, 'Nobody', 'nothing', 1, 1)", "phantoms"),
        ("SELECT pgqueue.enqueue_workflow('pgqueue.demo.shop.fulfil', '{{\"order_id\": 1}}', key => '{phantom}')", "phantoms"),
        ("UPDATE account SET cents = cents - 1 WHERE customer = (SELECT customer FROM orders WHERE number = {a})", None),
        ("UPDATE stock SET quantity = quantity + 1 WHERE item = (SELECT item FROM orders WHERE number = {a})", None),
        ("UPDATE ledger SET cents = cents + 1 WHERE number = {a}", None),
        ("UPDATE shipment SET parcel = 'PX0' WHERE number = {a}", None),
        ("UPDATE orders SET quantity = quantity + 1 WHERE number = {a}", None),
        ("DELETE FROM account WHERE customer = (SELECT customer FROM orders WHERE number = {a})", None),
    ],
)  # fmt: skip
def test_every_damage_is_found(conn: Connection, told: list[orders.Order], tmp_path: Path, damage: str, kind: str | None) -> None:
    victim, phantom = told[3].number, told[0].number - 1
    conn.execute(damage.format(a=victim, phantom=phantom).encode())
    found = checked(conn, told, tmp_path)
    assert not found.balances
    assert found.problems
    suspects = {"lost": found.lost, "doubled": found.doubled, "phantoms": found.phantoms}
    expected = {name: {phantom if name == "phantoms" else victim} if name == kind else set() for name in suspects}
    assert suspects == expected


@pytest.mark.parametrize("how", ["never asked", "another key", "the key of another", "nobody's order"])
def test_a_wrong_carrier_is_found(conn: Connection, told: list[orders.Order], tmp_path: Path, how: str) -> None:
    file = tmp_path / carrier.FILE
    lines = [line for line in file.read_text().splitlines() if line.startswith("booked")]
    number, phantom = told[2].number, told[0].number - 1
    mine = [line for line in lines if line.endswith(f" {number}")]
    others = [line for line in lines if line not in mine]
    changed = {
        "never asked": others,
        "another key": [*lines, f"booked 0:1 {number}"],
        "the key of another": [*others, others[0].rsplit(" ", 1)[0] + f" {number}"],
        "nobody's order": [*lines, f"booked 0:2 {phantom}"],
    }
    file.write_text("\n".join(changed[how]) + "\n")
    assert not checked(conn, told, tmp_path).balances


def result(conn: Connection, told: list[orders.Order], found: Ledger) -> Result:
    storm = Storm(conn, Supervisor("", Path()), told, set(), 1.0, 0, 1, committed=told)
    return Result("PostgreSQL", 1.0, Ending(20_000, 1, 0), Ending(10_000, 1, 1, 2), storm, found, [], clean_stop=True)


def test_what_does_not_balance_is_said_and_fails(
    conn: Connection, told: list[orders.Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = result(conn, told, checked(conn, told, tmp_path))
    conn.execute("INSERT INTO ledger SELECT * FROM ledger")
    bad = result(conn, told, checked(conn, told, tmp_path))
    lost_run = journal.Hit(Kill(0, 1, with_supervisor=False), "job", "charge", None)
    cases = [
        (good, 0),
        (bad, 1),
        (replace(good, clean_stop=False), 1),
        (replace(good, told_again=Ending(20_000, 1, 1)), 1),
        (replace(good, hits=[lost_run]), 1),
    ]
    for case, code in cases:
        monkeypatch.setattr(play, "play", lambda *_, case=case: case)
        assert CliRunner().invoke(cli, ["demo", "--json"], standalone_mode=False).return_value == code
        text = io.StringIO()
        show(case, Screen(text))
        assert ("every line balances" in text.getvalue()) == (code == 0)
    text = io.StringIO()
    show(bad, Screen(text))
    assert f"order {told[0].number}: charged 2 times" in text.getvalue()


# ------------------------------------------------------------------------------------------------- its parts


def test_orders_come_again_under_other_numbers() -> None:
    lines = orders.read(900)
    assert len({order.number for order in lines}) == 900
    assert lines[400].customer == lines[0].customer
    assert all(order.cents > 0 and order.quantity > 0 for order in lines)
    back = orders.rolled_back(lines, 7)
    assert len(back) == 90
    assert back == orders.rolled_back(lines, 7) != orders.rolled_back(lines, 8)


def test_what_kills_hit(tmp_path: Path) -> None:
    second = 1_000_000_000
    notes = [
        (1.0, 11, "a", "begin"), (1.1, 11, "a", "charge"),  # killed at 1.2, runs again at 1.5
        (1.0, 12, "b", "begin"), (1.1, 12, "b", "end"),  # had ended when it was killed
        (1.5, 13, "a", "begin"), (1.6, 13, "a", "end"),
        (2.0, 13, "c", "begin"), (2.1, 13, "c", "ask_carrier"),  # killed at 2.2, never runs again
        (9.0, 11, "d", "begin"),  # the number 11 came again
    ]  # fmt: skip
    (tmp_path / journal.FILE).write_text("".join(f"{int(at * second)} {pid} {job} {what}\n" for at, pid, job, what in notes))
    kills = [Kill(int(at * second), pid, with_supervisor=False) for at, pid in [(1.2, 11), (1.2, 12), (2.2, 13), (2.2, 99)]]
    found = journal.hits(tmp_path, kills)
    assert [(hit.job, hit.doing) for hit in found] == [("a", "charge"), ("c", "ask_carrier")]
    assert found[0].recovery == pytest.approx(0.3)
    assert found[1].recovery is None


class Terminal(io.TextIOWrapper):
    """A terminal that remembers."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode(self.encoding)


def test_a_terminal_has_one_living_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    screen = Screen(terminal)
    screen.progress(3, 4, "x" * 200)
    assert "\n" not in terminal.text(), "it would scroll"
    assert len(re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", terminal.text())) <= 39, "it would wrap"
    screen.say("told")
    assert terminal.text().endswith("\r\x1b[2K   told\n")
    screen.verdict(False, "forged\x1b[31m\nline")
    assert "\\x1b[31m" in terminal.text()


def test_elsewhere_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    screen = Screen(text)
    for done in range(100):
        screen.progress(done, 100, f"{done} orders")
    screen.working("a moment")
    screen.table([("lost", "0", True), ("doubled", "12  times", False), ("killed", "3", None)])
    assert text.getvalue() == "   0 orders\n   ✓ lost      0\n   ✗ doubled  12  times\n     killed    3\n"
    ascii_only = Terminal("ascii")
    monkeypatch.setenv("NO_COLOR", "1")
    Screen(ascii_only).verdict(True, "Jürgen · ok …")
    assert ascii_only.text() == "   + J?rgen | ok .\n"


def test_what_fails_because_of_ctrl_c_is_not_an_error() -> None:
    def fails(number: int | None) -> None:
        with Signals() as signals:
            if number is not None:
                os.kill(os.getpid(), number)
                wait_for(lambda: signals.count)
            raise OSError("a child of ours died")

    with pytest.raises(OSError, match="a child"):
        fails(None)
    with pytest.raises(Stopped) as stopped:
        fails(signal.SIGTERM)
    assert stopped.value.code == 143


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ------------------------------------------------------------------------------------------- the whole commands


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory, which is also where everything temporary of the commands is made."""
    with tempfile.TemporaryDirectory(prefix="pgqueue-tests-") as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        (path / "tmp").mkdir()
        yield path


@pytest.fixture
def nothing_left(place: Path) -> Iterator[None]:
    """Whatever the test starts, its orphans come to us (Linux): at the end there must be none. And no temporary file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = children()
    try:
        yield
        assert children() <= before
        assert list((place / "tmp").iterdir()) == []
    finally:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)


def children() -> set[int]:
    return {pid for pid, parent in parents().items() if parent == os.getpid()}


def start(place: Path, *arguments: str, dsn: str | None = None) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PGQUEUE_") or k == "PGQUEUE_PG_BIN"}
    environment |= {"TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT)} | ({"PGQUEUE_DSN": dsn} if dsn else {})
    return subprocess.Popen(
        [sys.executable, "-m", "pgqueue", *arguments],
        env=environment,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it says, up to the line with these words. One that does not say them in time is killed, and says nothing more."""
    assert process.stdout is not None
    said = ""
    deadline = threading.Timer(180, process.kill)
    deadline.start()
    try:
        for line in process.stdout:
            said += line
            if words in line:
                return said
    finally:
        deadline.cancel()
    raise AssertionError(f"it never said {words!r}:\n{said}")


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_the_demo(place: Path) -> None:
    code, out, err = finish(start(place, "demo", "--json", *SMALL))
    assert code == 0, (out, err)
    assert err == ""
    told = json.loads(out)
    assert told["ok"]
    assert told["problems"] == []
    assert told["without_pgqueue"] == {"credited_cents": 20_000, "orders": 1, "orders_the_warehouse_knows": 0}
    assert told["with_pgqueue"] == {
        "credited_cents": 10_000, "orders": 1, "orders_the_warehouse_knows": 1, "workers_killed": 2,
    }  # fmt: skip
    assert told["orders_committed"] == told["jobs_succeeded"] == told["charged_once"] == told["shipped_once"] == 54
    assert told["orders_rolled_back"] == 6
    assert told["carrier_calls"] >= 54
    assert told["lost"] == told["doubled"] == told["phantoms"] == 0
    assert told["workers_killed"] >= 1
    assert told["supervisors_killed"] == 1
    for who in ("recovery_seconds", "recovery_seconds_supervisor"):
        if told[who]["hits"]:
            assert 0 < told[who]["p50"] <= told[who]["max"] < 60


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "pgqueue demo"), (signal.SIGTERM, "Bob has"), (signal.SIGINT, "1 supervisor"), (signal.SIGHUP, "4  The")],
)
def test_the_demo_can_be_stopped_at_any_time(place: Path, number: int, moment: str) -> None:
    process = start(place, "demo", *SMALL)
    said = read_until(process, moment)
    assert "\x1b" not in said, "not a terminal: plain lines"
    substitutes = [Path(file.read_text().strip()) for file in place.rglob("location")]  # where root's servers really are
    process.send_signal(number)
    code, _, err = finish(process)
    assert code in ((0, 128 + number) if moment == "4  The" else (128 + number,)), err
    assert err == ""
    assert not [home for home in substitutes if home.exists()]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_the_demo_on_a_named_server_has_a_database_of_its_own(place: Path, server: Server) -> None:
    with connect(server.dsn, "tests") as conn:
        before = conn.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
        code, out, err = finish(start(place, "demo", "--orders", "20", "--seconds", "1", dsn=server.dsn))
        assert code == 0, (out, err)
        assert "every line balances" in out
        assert conn.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall() == before
        assert conn.execute("SELECT to_regnamespace('pgqueue')").fetchone() == (None,)


@pytest.mark.usefixtures("nothing_left")
def test_the_demo_says_in_one_line_why_not(place: Path, server: Server) -> None:
    def refused(code: int, says: str, *arguments: str, dsn: str | None = None) -> None:
        found, out, err = finish(start(place, "demo", *arguments, dsn=dsn))
        assert found == code, err
        assert says in err
        assert out == ""
        assert len(err.splitlines()) == 1 or code == 64

    refused(69, "cannot connect", dsn="postgresql://postgres:hunter2@127.0.0.1:1/shop")
    refused(78, "cannot be parsed", "--dsn", "shop://")
    refused(64, "--orders", "--orders", "0")
    with connect(server.dsn, "tests") as conn:
        conn.execute("DROP ROLE IF EXISTS pgqueue_test_poor")
        conn.execute("CREATE ROLE pgqueue_test_poor LOGIN PASSWORD 'poor'")
        try:
            poor = psycopg.conninfo.make_conninfo(server.dsn, user="pgqueue_test_poor", password="poor")
            refused(78, "cannot create a database", dsn=poor)
        finally:
            conn.execute("DROP ROLE pgqueue_test_poor")


@pytest.mark.slow
def test_what_is_kept_can_be_looked_at_with_dev(place: Path, request: pytest.FixtureRequest) -> None:
    code, out, err = finish(start(place, "demo", "--keep", "--orders", "20", "--seconds", "1"))
    assert code == 0, err
    found = re.search(r"pgqueue dev --data (\S+)", out)
    assert found is not None, out
    data = Path(found[1])
    request.addfinalizer(lambda: Embedded(data).remove())
    server, dsn = dev(place, "--data", str(data))
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM ledger").fetchone() == (18,)
    stop(server)
    assert not (data / ".gitignore").exists(), "not a directory that dev made"


# ------------------------------------------------------------------------------------------------------ dev

TASKS = """
from pgqueue import App

app = App("postgresql://nobody@127.0.0.1:1/elsewhere")


@app.workflow
def greet(name: str) -> str:
    return "hello " + name
"""


@pytest.fixture
def removed(place: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts ``pgqueue dev``; afterwards it and its server are gone."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        process, dsn = dev(place, *arguments)
        started.append(process)
        return process, dsn

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            finish(process, 60)
    Embedded(place / ".pgqueue").remove()


def dev(place: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = start(place, "dev", *arguments)
    said = read_until(process, "Ctrl-C")
    exported = next(line.strip() for line in said.splitlines() if "export " in line)
    return process, shlex.split(exported)[1].removeprefix("PGQUEUE_DSN=")


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    process.send_signal(number)
    code, out, err = finish(process, 60)
    assert code == 0, err
    return out + err


def test_dev_keeps_its_data_and_stops_its_server(place: Path, removed: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    first, dsn = removed()
    assert (place / ".pgqueue" / ".gitignore").read_text() == "*\n"
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 7 AS seven")
    second, same = removed()
    assert same == dsn, "two of them in one directory share the server"
    stop(second)
    psycopg.connect(dsn).close()
    assert "stopped" in stop(first, signal.SIGINT)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    third, dsn = removed()
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT seven FROM kept").fetchone() == (7,)
    stop(third)


def command_lines() -> str:
    """What other users of the machine see of all processes."""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown.append(path.read_text(errors="replace").replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass  # it has ended
    return "\n".join(shown)


def test_dev_works_in_its_own_database_whatever_the_app_says(
    place: Path, removed: Callable[..., tuple[subprocess.Popen[str], str]]
) -> None:
    (place / "tasks.py").write_text(TASKS)
    process, dsn = removed("tasks:app", "-w", "1")
    with Client(dsn) as client:
        assert client.enqueue("tasks.greet", {"name": "Ann"}, queue="default").result(timeout=60) == "hello Ann"
    commands = Path("/proc") / str(process.pid)
    if commands.exists():
        shown = command_lines()
        assert dsn not in shown
        assert re.search(r"postgres:([^@]+)@", dsn).group(1) not in shown  # type: ignore[union-attr]
    workers = [pid for pid, parent in parents().items() if parent == process.pid]
    said = stop(process)
    assert "draining" in said
    assert not set(workers) & set(parents())


def test_dev_ends_with_its_workers_and_with_its_server(
    place: Path, removed: Callable[..., tuple[subprocess.Popen[str], str]]
) -> None:
    process, _ = removed("no_such_module:app")
    code, _, err = finish(process, 60)
    assert code == 78
    assert "no module 'no_such_module'" in err
    process, _ = removed()
    Embedded(place / ".pgqueue").stop("immediate")
    code, _, err = finish(process, 60)
    assert code == 69
    assert "PostgreSQL has stopped" in err
