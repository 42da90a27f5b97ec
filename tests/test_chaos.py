"""The chaos suite itself: its plans, its timetable, and that a storm is survived. Its oracles: tests/test_oracles.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from chaos import plan, suite, table
from chaos.arena import Arena, Setup
from chaos.case_round import Cases
from chaos.controller import Controller
from chaos.faults import faults
from chaos.guardian import MARK
from chaos.leftovers import PREFIX, clean
from chaos.nemesis import timetable
from chaos.outages import BACK, Outages
from chaos.processes import Host
from chaos.results import Report, Result
from chaos.server import GivenServer
from chaos.verdicts import NAMES, Verdict
from chaos.waiting import wait_for
from chaos.wire import MODES, Proxy
from pgqueue.config import Exit
from tests.support import ROOT, Server


def test_every_fault_says_what_it_is_and_is_seen_by_oracles_that_exist() -> None:
    known = faults()
    for number, fault in known.items():
        assert fault.broken, number
        assert fault.expected, number
        assert fault.seen_by, number
        assert set(fault.seen_by) <= set(NAMES), number


def test_no_case_of_a_sweep_is_there_twice() -> None:
    """They have a directory each, by their names."""
    [entry] = [entry for entry in plan.read("sweep").rounds if entry.pairs]
    for seed in range(20):
        cases = Cases(entry, cast("Server", None), Path(), str(seed), print).all()
        assert len(set(map(str, cases))) == len(cases), seed


def test_plans_name_faults_that_exist() -> None:
    for name in plan.names():
        for entry in plan.read(name).rounds:
            assert set(entry.every) <= set(faults()), f"{name}: {entry.name}"


def test_the_seed_decides_what_happens_when() -> None:
    every = {"F1": 0.5, "F8": 5.0}
    assert timetable(every, 60, "7") == timetable(every, 60, "7")
    assert timetable(every, 60, "7") != timetable(every, 60, "8")
    more = {**every, "F3": 2.0}
    assert [e for e in timetable(more, 60, "7") if e.fault != "F3"] == timetable(every, 60, "7"), "one fault moves no other"


def test_the_proxy_cuts_where_it_is_told(dsn: str) -> None:
    """Between a client and the server: every message of a query, in every mode."""
    with Proxy(dsn) as proxy:
        for mode in MODES:
            for at in (1, 3, 5):
                proxy.cut = None
                with psycopg.connect(proxy.dsn, autocommit=True, application_name="meant") as conn:
                    cut = proxy.arm(at, mode, lambda name: name == "meant")
                    try:
                        answer = conn.execute("SELECT 1", prepare=False).fetchone()
                    except psycopg.OperationalError:
                        answer = None
                    assert cut.done.is_set() or answer == (1,), (mode, at)
                    assert answer == (1,) or mode != "delay"
        with psycopg.connect(proxy.dsn, autocommit=True, application_name="other") as conn:
            proxy.arm(1, "drop", lambda name: name == "meant")
            assert conn.execute("SELECT 1").fetchone() == (1,)


# ------------------------------------------------------------------------------------------------ the suite's own trouble


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """Of a round that nobody has begun."""
    made = Arena(GivenServer("host=/nowhere"), "host=/nowhere", tmp_path, Setup(), "1")
    with made.chaos:
        yield made


def host(tmp_path: Path, code: int, says: str = "") -> Host:
    """A supervisor that says this, and ends so."""
    program = f"import sys; print({says!r}, flush=True); sys.exit({code})"
    ended = Host([sys.executable, "-c", program], dict(os.environ), tmp_path / "host.log")
    ended.wait()
    return ended


def keeping(arena: Arena, host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is found where this host has ended."""
    arena.hosts.append(host)
    arena.ways[host.pid] = None
    monkeypatch.setattr(arena, "start_host", lambda dsn: arena.over.set())
    arena.keep_hosts()
    return arena.findings


def test_a_thread_of_the_suite_that_dies_is_a_finding(arena: Arena) -> None:
    arena.threads.start("feeder", lambda: 1 / 0)  # type: ignore[arg-type]
    arena.threads.join()
    [finding] = arena.findings
    assert finding.startswith("suite: the thread 'feeder' died")
    assert "ZeroDivisionError" in (arena.directory / "events.jsonl").read_text()


def test_a_thread_of_the_suite_that_does_not_end_is_a_finding(arena: Arena) -> None:
    arena.threads.start("watch", lambda: arena.over.wait(60))  # type: ignore[arg-type]
    arena.threads.join(patience=0.1)
    arena.over.set()
    assert "suite: the thread 'watch' did not end" in arena.findings[0]


@pytest.mark.parametrize("code", [Exit.OK, Exit.FAILED, Exit.UNREACHABLE, Exit.CRASH_LOOP])
def test_a_supervisor_that_no_fault_has_ended_is_a_finding(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert f"ended with {code}, by no fault" in keeping(arena, host(tmp_path, code), monkeypatch)[0]


def test_a_supervisor_that_began_while_the_server_was_away_is_none(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with arena.outages.under_way():
        began = host(tmp_path, Exit.UNREACHABLE)
    assert keeping(arena, began, monkeypatch) == []
    worked = host(tmp_path, Exit.UNREACHABLE, says="2 workers for default")
    arena.ways[worked.pid] = None
    assert not arena.forgiven(worked, Exit.UNREACHABLE), "it had found the server"


def test_outages_are_of_one_way_or_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    outages, now = Outages(), time.time()
    with outages.under_way("proxy"):
        assert outages.since(now, "proxy")
        assert not outages.since(now, None)
    with outages.under_way():
        assert outages.since(now + 1000, None), "it is under way"
    assert not outages.since(time.time() + BACK, None), "it is over"


# -------------------------------------------------------------------------------------------------- what a report says


def report(*rounds: Result) -> Report:
    return Report("smoke", 1, time.time(), {}, {}, rounds=list(rounds))


def storm(injected: dict[str, int], **verdicts: Verdict) -> Result:
    return Result(
        "storm", "everything", "1/0", injected=injected, planned={"F1": 18, "F2": 2}, empty={"F2": 1}, verdicts=verdicts
    )


def test_nothing_is_proved_where_nothing_was_done() -> None:
    fine = Verdict([], "effects", seen=3)
    assert report(storm({"F1": 1}, effects=fine)).good
    for empty in (report(), report(storm({}, effects=fine)), report(storm({"F1": 1}, suite=Verdict(["a thread died"])))):
        assert not empty.good
        assert not empty.broken
        assert next(line for line in table.lines(empty) if line.startswith("NOTHING IS PROVED"))
    assert report(storm({}, effects=Verdict(["a step has 2 effects"]))).broken


def test_a_report_says_what_was_planned_and_did_not_happen() -> None:
    said = "\n".join(table.lines(report(storm({"F1": 1}, expectations=Verdict([], "bad jobs")))))
    assert "DID NOT HAPPEN, although planned: F2" in said
    rows = {line.split()[0]: line.split()[-3:] for line in said.splitlines() if line.startswith("F")}
    assert rows["F1"] == ["1", "18", "0"]
    assert rows["F2"] == ["0", "2", "1"]
    assert "oracle expectations                          -  0 bad jobs" in said, "nothing was there to judge"


def test_a_report_says_above_all_what_could_not_be_judged() -> None:
    blind = Verdict([], "not judged: wal_level is not logical", judged=False, needs="wal_level = logical")
    lines = list(table.lines(report(storm({"F1": 1}, atomicity=blind, rates=blind))))
    assert lines.index("NOT JUDGED: atomicity, rates: wal_level = logical") < 4


def test_jobs_are_counted_and_not_sentences() -> None:
    lost = Verdict(["acknowledged, and there is no such job: 4000, among them ..."], figures={"lost": 4000, "doubled": 0})
    phantoms = Verdict(["there, and nobody tried to enqueue them: 1"], figures={"lost": 0, "doubled": 0})
    totals = report(storm({"F1": 1}, conservation=lost), storm({"F1": 1}, conservation=phantoms)).totals()
    assert (totals["lost"], totals["doubled"], totals["findings of oracles"]) == (4000, 0, 2)


def test_the_length_of_a_round_follows_from_plan_and_minutes_alone() -> None:
    """On a machine that is slower there are fewer rounds, and those have the same timetables."""

    def seconds(took: float, minutes: float | None, name: str = "soak") -> tuple[list[tuple[int, float]], dict[str, str]]:
        going = report()
        found = []
        for number, long in suite._times(plan.read(name), minutes, going):
            found.append((number, long))
            going.rounds.append(storm({"F1": 1}))
            going.began -= took + long
        return found, going.skipped

    fast, slow = seconds(1, 60)[0], seconds(100, 60)[0]
    assert len(fast) > len(slow) > 4
    assert fast[: len(slow)] == slow
    once, skipped = seconds(3, 0.2, "smoke")
    assert once == [(0, 12.0)]
    assert skipped.keys() == {"failovers", "one at a time", "wire cuts"}
    assert [number for number, _ in seconds(1, None, "smoke")[0]] == [0, 1, 2, 3]


# -------------------------------------------------------------------------------------------------- as a user runs it


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "chaos", "run", "--out", str(out), *options],
        cwd=out.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_faults_that_cannot_be_injected_are_no_success(tmp_path: Path, server: Server) -> None:
    run = start(tmp_path / "out", "--dsn", server.dsn, "--faults", "F5,F9", "--minutes", "0.1")
    _, said = run.communicate()
    assert run.returncode == Exit.UNPROVEN
    assert "none of the faults that were asked for can be injected" in said
    assert "F5: it needs a server that the suite has started itself" in said


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out" / "round-0").mkdir(parents=True)
    run = start(tmp_path / "out")
    assert "choose a new directory" in run.communicate()[1]
    assert run.returncode == Exit.USAGE


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "/proc/x"], "--out /proc/x: "),
        (["--dsn", "host=/nowhere", "--embedded", "18"], "--dsn is a server of yours, --embedded the version"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: list[str], says: str) -> None:
    run = start(tmp_path / "out", *options)
    said = run.communicate()[1]
    assert says in said
    assert "Traceback" not in said
    assert run.returncode == Exit.USAGE
    assert not (tmp_path / "out").exists()


def test_the_command_that_does_it_again_is_the_same() -> None:
    from pgqueue.cli.chaos import _again

    dsn = "postgresql://me:secret@host/db"
    assert _again("smoke", 7, None, (), None, 18) == "pgqueue chaos replay 7 --plan smoke --embedded 18"
    again = _again(plan="soak", seed=7, minutes=0.5, faults=("F1", "F8"), dsn=dsn, version=None)
    assert again == ("pgqueue chaos replay 7 --plan soak --minutes 0.5 --faults F1,F8 --dsn 'user=me dbname=db host=host'")


def test_no_password_is_in_the_events(tmp_path: Path) -> None:
    with Controller("host=/nowhere", tmp_path, "x:app") as chaos:
        chaos.start("-w", "1", dsn="host=/nowhere password=secret")
        assert "secret" not in (tmp_path / "events.jsonl").read_text()


def databases(admin: psycopg.Connection[Any]) -> set[str]:
    found = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{PREFIX}%",)).fetchall()
    return {name for (name,) in found}


def marked(run: str) -> list[int]:
    """The processes of a run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={run}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("how", ["kill -9", "a terminal that is closed"])
def test_whoever_is_killed_leaves_nothing_behind(tmp_path: Path, server: Server, how: str) -> None:
    """On a server of somebody else, where another run is under way."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {PREFIX}00000000")
        with psycopg.connect(server.dsn, application_name=f"{PREFIX}00000000"):  # as another run has it
            run = start(tmp_path / "out", "--dsn", server.dsn, "--faults", "F1")
            try:
                names = wait_for(lambda: len(now := databases(admin)) == 3 and now, "the databases of a run")
                name = min(names, key=lambda name: (name == f"{PREFIX}00000000", len(name)))
                wait_for(lambda: (len(marked(name)) > 5 and _slots(admin)) or run.poll(), "its hosts to work")
                number = signal.SIGKILL if how == "kill -9" else signal.SIGHUP
                run.send_signal(number)
                assert run.wait(60) == (-number if how == "kill -9" else 128 + number)
                wait_for(lambda: databases(admin) == {f"{PREFIX}00000000"}, lambda: f"{databases(admin)} to be dropped")
                wait_for(lambda: not marked(name), "its processes to be gone")
                assert _slots(admin) == 0
            finally:
                run.kill()
                run.communicate()
        wait_for(lambda: clean(server.dsn).dropped == [f"{PREFIX}00000000"], "the session of the other run to be gone")


def _slots(admin: psycopg.Connection[Any]) -> int:
    [(count,)] = admin.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE database LIKE %s AND slot_name LIKE 'chaos%%'", (f"{PREFIX}%",)
    ).fetchall()
    return int(count)


def test_what_another_role_has_left_is_named(server: Server) -> None:
    name = f"{PREFIX}11111111"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        admin.execute("CREATE ROLE chaos_stranger LOGIN CREATEDB PASSWORD 'x'")
        try:
            cleaned = clean(psycopg.conninfo.make_conninfo(server.dsn, user="chaos_stranger", password="x"))
            assert cleaned.dropped == []
            assert "another role made it" in cleaned.kept[name]
        finally:
            admin.execute(f"DROP DATABASE {name}")
            admin.execute("DROP ROLE chaos_stranger")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smoke(tmp_path: Path) -> None:
    """The plan ``smoke`` as a user runs it, also from another directory."""
    seed = os.environ.get("SEED", "2026")
    run = subprocess.run(
        [sys.executable, "-m", "pgqueue", "chaos", "run", "--seed", seed, "--out", str(tmp_path / "out"), "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    report = json.loads(run.stdout)
    assert report["good"]
    assert report["lost"] == report["doubled"] == report["limit_violations"] == 0
    assert report["oracles"]["atomicity"]["judged"]
    planned = {fault for entry in plan.read("smoke").rounds for fault in (*entry.every, *entry.times)} | {"F5"}
    assert report["planned"].keys() == planned
    assert report["skipped"] == {}
    assert [fault for fault in planned if fault not in report["faults"]] == [], "each happened, and found something to break"
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
