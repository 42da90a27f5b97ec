"""The list of all metrics: name, meaning and labels of each. This is the one place: what is counted refers to it, what is shown
to Prometheus is made from it, and the guide, the alerts and the board are held against it by tests.

How they are counted is in meter.py, how they are shown in housekeeper/collector.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Values = Mapping["Family", Mapping[tuple[str, ...], list[float]]]
"""Metrics with their series, by the values of the labels: the numbers of each (see Family.words)."""
Kind = Literal["counter", "gauge", "histogram"]
Combine = Literal["sum", "max", "min", "latest"]

#: Seconds. From a job that is one short transaction to one that takes an hour.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
AMOUNTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
OTHER = "other"
"""The value of all labels of what has found no room: see meter.py."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its labels. ``combine``: what becomes of a gauge that several processes set. ``source``: who knows it, each
    supervisor for itself (``local``), or the database for all of them."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    combine: Combine = "sum"
    source: Literal["local", "database"] = field(default="local")

    @property
    def words(self) -> int:
        """How many numbers a series of it has: a counter one; a histogram one for each bucket, that for the rest, and the sum; a
        gauge its value and when it was set."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.buckets) + 2}[self.kind]

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which Prometheus sees it."""
        return tuple(self.name + end for end in ("_bucket", "_count", "_sum")) if self.kind == "histogram" else (self.name,)


def _local(kind: Kind, name: str, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> Family:
    return Family("pgqueue_" + name, kind, help, labels, buckets)


def _database(name: str, help: str, *labels: str, kind: Kind = "gauge") -> Family:
    return Family("pgqueue_" + name, kind, help, labels, source="database")


# ----------------------------------------------------------------------- of each supervisor, counted by its processes

JOBS = _local("counter", "jobs_total", "Jobs that have ended, by outcome.", "queue", "workflow", "outcome")
RUNS = _local(
    "counter", "unfinished_runs_total", "Runs of jobs that ended without an outcome: retry, suspend, release.",
    "queue", "workflow", "how",
)  # fmt: skip
DURATION = _local("histogram", "job_duration_seconds", "How long runs of jobs took.", "queue", "workflow", buckets=SECONDS)
WAIT = _local(
    "histogram", "job_wait_seconds", "From the moment a job was due to the beginning of its first run.",
    "queue", "workflow", buckets=SECONDS,
)  # fmt: skip
STEPS = _local(
    "counter", "steps_total", "Steps of workflows: run, tried in vain, or replayed.", "workflow", "step", "kind", "outcome"
)
CLAIM_LOST = _local("counter", "claim_lost_total", "Writes refused because their run had lost its job.", "op")
IN_DOUBT = _local(
    "counter", "commit_in_doubt_total", "Commits whose answer was lost, by what the database said afterwards.", "resolved"
)
CLAIMS = _local("counter", "claims_total", "Claims that workers made.", "result")
CLAIM_BATCH = _local("histogram", "claim_batch", "How many jobs a claim brought, if it brought any.", buckets=AMOUNTS)
WORKERS = _local("gauge", "workers", "Worker processes of this supervisor.", "state")
WORKER_EXITS = _local("counter", "worker_exits_total", "Worker processes that ended.", "reason")
RECOVERED = _local("counter", "recovered_jobs_total", "Jobs taken back from workers that were gone.", "reason")
RECOVERY = _local(
    "histogram", "recovery_seconds", "From the death of a worker process to its jobs being ready again.", buckets=SECONDS
)
DB_ERRORS = _local("counter", "db_errors_total", "Lost or refused connections to the database.", "op")
LOG_DROPPED = _local("counter", "log_records_dropped_total", "Log records dropped because stderr took no more.")
INFO = _local("gauge", "info", "Always 1: what a supervisor is, and works for.", "version", "app", "queues")

# ----------------------------------------------------------- of the database: shown by one supervisor, or by ``pgqueue exporter``

QUEUE_JOBS = _database("queue_jobs", "Jobs in each state, counted up to 10,000: 10001 means more.", "queue", "state")
OLDEST_READY = _database("queue_oldest_ready_seconds", "For how long the oldest ready job has been waiting.", "queue")
OLDEST_RUNNING = _database("queue_oldest_running_seconds", "For how long the oldest running job has been running.", "queue")
QUEUE_LIMIT = _database("queue_limit", "The concurrency limit of a queue, where it has one.", "queue")
QUEUE_USED = _database("queue_used", "How much of the concurrency limit is in use.", "queue")
NEXT_START = _database(
    "queue_next_start_seconds", "In how many seconds the next job may begin, by the rate of a queue, where it has one.", "queue"
)
QUEUE_PAUSED = _database("queue_paused", "1 where an operator has paused the queue.", "queue")
UNCLAIMABLE = _database(
    "unclaimable_jobs", "Jobs put aside because no worker that looked at them has their workflow.", "workflow"
)
SCHEDULE_LAST = _database(
    "schedule_last_run_timestamp_seconds", "The last tick of a schedule that became a job, in Unix time.", "schedule"
)
SCHEDULE_NEXT = _database(
    "schedule_next_run_timestamp_seconds", "The next tick of a schedule, in Unix time; absent while it is paused.", "schedule"
)
TABLE_BYTES = _database("table_bytes", "The size of a table with its indexes.", "table")
DEAD_TUPLES = _database("dead_tuples", "Dead rows of a table that vacuum has not removed yet.", "table")
XMIN_AGE = _database("xmin_horizon_age_seconds", "For how long the oldest transaction has kept dead rows from vacuum.")
CONFLICTS = _database("conflicts_total", "Jobs that were found in two places. Must stay 0.", kind="counter")

METRICS: tuple[Family, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Family))
"""All of them."""
