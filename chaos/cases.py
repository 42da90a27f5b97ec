"""The cases of the crash sweep: which fault, at which place, and what has to happen for somebody to come by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pgqueue
from chaos.processes import ROOT

WORKERS = 2
ACTIONS = ("kill9", "stop", "raise", "dropconn")
LEASE = "stop-past-lease"  # and another host goes on, by itself
HANG = "stop-and-fence"  # of one worker, while its host goes on

#: Failpoints of the main path, which many jobs pass: the second time that a process comes by, it has a history.
MANY_PASS = ("transaction.", "step.", "bank.", "settle.", "claim.", "dispatch.before_run", "enqueue.", "tick.")
#: Where processes are that have no connection to drop.
UNCONNECTED = ("supervisor.", "drain.signal", "dispatch.forked")
#: Where an exception is a bug of pgqueue's own, which must end the process: its supervisor, or service manager, starts another.
OWN = ("supervisor.", "drain.", "heartbeat.", "promote.", "tick.", "wake.", "reap.", "reconcile.")
#: Places inside the server, where a verb has done its work and not yet committed: table, event, whose, and from the nth row on.
UNCOMMITTED = {
    "claim.uncommitted": ("running", "INSERT", ":claims", 2),
    "settle.uncommitted": ("outcome", "INSERT", ":claims", 2),
    "step.uncommitted": ("checkpoint", "INSERT", ":step", 3),
    "transaction.uncommitted": ("outcome", "INSERT", ":step", 1),
    "heartbeat.uncommitted": ("worker", "UPDATE", "housekeeper", 3),
    "promote.uncommitted": ("scheduled", "DELETE", "housekeeper", 1),
    "reap.uncommitted": ("running", "DELETE", "housekeeper", 1),
    "suspend.uncommitted": ("wait", "INSERT", ":claims", 1),
    "wake.uncommitted": ("waiting", "DELETE", "housekeeper", 1),
    "tick.uncommitted": ("tick", "INSERT", "housekeeper", 2),
}
#: What has to happen first, so that anybody comes by.
FIRST = {
    "reap.": "transaction.user_code_done=kill9",
    "supervisor.child_reaped": "transaction.user_code_done=kill9",
    "resolve.": "transaction.user_code_done=dropconn",
}


def failpoint_names() -> list[str]:
    """All that exist, found in the sources."""
    files = [*Path(pgqueue.__file__).parent.rglob("*.py"), *(ROOT / "chaos" / "workloads").glob("*.py")]
    return sorted({name for file in files for name in re.findall(r'failpoint\("([a-z_.]+)"\)', file.read_text())})


@dataclass(frozen=True)
class Case:
    """One fault at one place. ``first``: another fault that comes before it."""

    failpoint: str
    action: str
    first: str = ""

    def __str__(self) -> str:
        return f"{self.failpoint}-{self.action}" + (f"-after-{self.first}" if self.first else "")

    @classmethod
    def of(cls, failpoint: str, action: str) -> Case:
        """With what has to happen first."""
        return cls(failpoint, action, next((first for prefix, first in FIRST.items() if failpoint.startswith(prefix)), ""))

    @property
    def setting(self) -> str:
        if self.failpoint in UNCOMMITTED:
            return self.first
        nth = 2 if self.failpoint.startswith(MANY_PASS) and not self.first else 1
        return ",".join(filter(None, (self.first, f"{self.failpoint}={self.action.partition('-')[0]}@{nth}")))

    @property
    def by_producer(self) -> bool:
        return self.failpoint.startswith("enqueue.")

    @property
    def workers_hit(self) -> int:
        """How many workers the faults can interrupt in the middle of a step: with their supervisor, all of them die."""
        faults = [f"{self.failpoint}={self.action}", self.first] if self.first else [f"{self.failpoint}={self.action}"]
        return sum(WORKERS if fault.endswith(("=stop", LEASE)) or fault.startswith(UNCONNECTED) else 1 for fault in faults)


def all_cases() -> list[Case]:
    """Every action at every failpoint."""
    return [
        Case.of(name, action)
        for name in failpoint_names()
        for action in ACTIONS
        if not (action == "dropconn" and name.startswith(UNCONNECTED))
    ] + [Case.of(name, action) for name in UNCOMMITTED for action in ("kill9", "stop")]
