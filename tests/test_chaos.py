"""The chaos suite itself: its plans, its timetable, and that a storm is survived. Its oracles: tests/test_oracles.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from chaos import plan
from chaos.faults import faults
from chaos.nemesis import timetable
from chaos.verdicts import NAMES
from chaos.wire import MODES, Proxy
from tests.support import ROOT


def test_every_fault_says_what_it_is_and_is_seen_by_oracles_that_exist() -> None:
    known = faults()
    for number, fault in known.items():
        assert fault.broken, number
        assert fault.expected, number
        assert fault.seen_by, number
        assert set(fault.seen_by) <= set(NAMES), number


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
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
