"""The chaos suite itself: its plans, its timetable, and that a storm is survived. Its oracles: tests/test_oracles.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import plan
from chaos.faults import faults
from chaos.nemesis import timetable
from chaos.verdicts import NAMES
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
