"""Kills the processes of a queue while it works, and counts what was lost and what was done twice.

``python kills.py SYSTEM --jobs 300 --kills 10 --seed 1`` with SYSTEM a module beside this one, DSN in the environment, and the
peer installed. Each job takes 40 ms, and half way through it inserts a row into ``effect``, in which nothing is unique: through
the transaction that the system gives to it, if it does; otherwise it commits the row by itself. The victim is a process that runs
jobs. Where the system does not replace it, this program does so at once, as a service manager would.

Prints one line of JSON. What was not done ``--patience`` seconds after the last effect counts as lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).parent


class Victim:
    """The processes of the system under test."""

    def __init__(self, system: Any, number: int) -> None:
        self._system = system
        self._number = number
        self._log = open(f"/tmp/{system.__name__}.log", "ab")  # noqa: SIM115 -- as long as this program
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._system.COMMAND,
            cwd=HERE,
            env={**os.environ, "NUMBER": str(self._number)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def runners(self) -> list[int]:
        """Those that run jobs."""
        if not self._system.HAS_CHILDREN:
            return [self._process.pid]
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        except OSError:
            return []
        return self._system.runners([int(pid) for pid in children])

    def kill_one(self, rng: random.Random) -> bool:
        runners = self.runners()
        if not runners:
            return False
        os.kill(rng.choice(runners), signal.SIGKILL)
        if not self._system.HAS_CHILDREN:
            self._process.wait()
            self._process = self._start()
        return True

    def stop(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def effects(conn: psycopg.Connection[Any]) -> Counter[int]:
    return Counter(row[0] for row in conn.execute("SELECT job FROM effect"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds from an effect, the first or the first after a kill, to the next kill"
    )
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--host", action="store_true", help="two hosts; one is killed as a whole after a third, and not replaced")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    sys.path.insert(0, str(HERE))
    system = importlib.import_module(arguments.system)
    conn = psycopg.connect(os.environ["DSN"], autocommit=True)
    conn.execute("DROP TABLE IF EXISTS effect")
    conn.execute("CREATE TABLE effect (job int NOT NULL)")
    system.prepare()
    system.enqueue(arguments.jobs)
    victim, began, killed = Victim(system, 0), time.monotonic(), 0
    other = Victim(system, 1) if arguments.host else None
    last, changed, next_kill = 0, began, 0.0
    try:
        while True:
            done = effects(conn)
            now = time.monotonic()
            if sum(done.values()) != last:
                last, changed = sum(done.values()), now
                next_kill = next_kill or now + arguments.every  # it works (again)
            if other is not None and killed == 0 and len(done) > arguments.jobs // 3:
                victim.stop()
                killed = 1
            if other is None and next_kill and killed < arguments.kills and now >= next_kill and len(done) < arguments.jobs:
                killed += victim.kill_one(rng)
                next_kill = 0.0
            # When all is done, what was given to two workers still has time to show.
            if now - changed > (15 if len(done) == arguments.jobs else arguments.patience):
                break
            time.sleep(0.1)
    finally:
        for host in filter(None, (victim, other)):
            host.stop()
    done = effects(conn)
    print(
        json.dumps({
            "system": arguments.system, "jobs": arguments.jobs, "kills": killed, "lost": arguments.jobs - len(done),
            "doubled": sum(times > 1 for times in done.values()), "seconds": round(changed - began, 1), "seed": arguments.seed,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
