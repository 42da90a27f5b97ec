"""The verbs of the protocol, as calls that are not yet made: SQL, parameters, and how to read the answer. No I/O here.

``database.run`` executes a Call on a connection. Verbs that change state are functions in ``sql/functions``; what people
query are views in ``sql/views``. Long, because it is the list of them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from pgqueue.errors import BadValue
from pgqueue.ids import Process
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.schedules import Due, Plan
from pgqueue.values import key_text

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One statement: a verb or a look at a view."""

    sql: str
    params: Sequence[Any]
    read: Callable[[Rows], T]


def _nothing(_: Rows) -> None:
    return None


def _first(rows: Rows) -> Any:
    return rows[0][0]


def _column(rows: Rows) -> list[Any]:
    return [row[0] for row in rows]


def _rows(rows: Rows) -> Rows:
    return rows


# ---------------------------------------------------------------------------------------------- producers


def enqueue_workflows(jobs: str) -> Call[list[str]]:
    """``jobs``: a JSON array of descriptions (see the SQL function). The ids, in the same order."""
    return Call("SELECT e::text FROM pgqueue.enqueue_workflows(%s::json) e", (jobs,), _column)


def cancel(ids: Sequence[str], hard: bool = False, by: str | None = None) -> Call[Rows]:
    """Rows of (job id, answer). ``by``: who asks."""
    return Call("SELECT job_id::text, answer FROM pgqueue.cancel(%s::uuid[], %s, %s)", (list(ids), hard, by), _rows)


def requeue(ids: Sequence[str], by: str | None = None) -> Call[Rows]:
    """Rows of (job id, answer). ``by``: who asks."""
    return Call("SELECT job_id::text, answer FROM pgqueue.requeue(%s::uuid[], %s)", (list(ids), by), _rows)


def rerun(job: str, from_step: int, new_id: str, by: str | None = None) -> Call[str]:
    """The id of the new job: ``new_id``, so that a repetition after a lost connection finds the same."""
    if isinstance(from_step, bool) or not isinstance(from_step, int):
        raise BadValue(f"from_step={from_step!r}: the number of a step")
    return Call("SELECT pgqueue.rerun(%s::uuid, %s::integer, %s, %s::uuid)::text", (job, from_step, by, new_id), _first)


def send_event(key: str, value: str) -> Call[bool]:
    """``value``: JSON. True: this was the first of its key, and counts."""
    return Call("SELECT pgqueue.send_event(%s, %s::json)", (key_text(key, "the key of an event"), value), _first)


def send_message(job: str, topic: str, value: str) -> Call[str]:
    """``sent``, ``ended`` or ``unknown``."""
    topic = key_text(topic, "the topic of a message")
    return Call("SELECT pgqueue.send_message(%s::uuid, %s, %s::json)", (job, topic, value), _first)


def prune(statuses: Sequence[str], seconds: float, amount: int) -> Call[int]:
    """How many jobs went."""
    return Call("SELECT pgqueue.prune(%s, make_interval(secs => %s), %s)", (list(statuses), seconds, amount), _first)


def prune_events(seconds: float, amount: int) -> Call[int]:
    """How many events went."""
    return Call("SELECT pgqueue.prune_events(make_interval(secs => %s), %s)", (seconds, amount), _first)


def prune_ticks(seconds: float, amount: int) -> Call[int]:
    """How many rows of ticks went."""
    return Call("SELECT pgqueue.prune_ticks(make_interval(secs => %s), %s)", (seconds, amount), _first)


def prune_due(amount: int) -> Call[tuple[int, float]]:
    """(how many jobs, events or ticks went, seconds until it makes sense to come again)."""
    return Call("SELECT pruned, next_look FROM pgqueue.prune_due(%s)", (amount,), lambda rows: (rows[0][0], rows[0][1]))


def retain(queue: str, what: str, seconds: float | None) -> Call[None]:
    """``queue``: empty for all; ``what``: an outcome, events or ticks; ``seconds``: None takes a queue's word back."""
    return Call("SELECT pgqueue.retain(%s, %s, %s::float8)", (queue, what, seconds), _nothing)


def retentions() -> Call[Rows]:
    """Rows of (queue, what, seconds); queue empty: of all that say nothing else."""
    return Call("SELECT queue, what, seconds FROM pgqueue.retentions ORDER BY queue, what", (), _rows)


def register_app(queues: str, workflows: str, app: str | None = None, schedules: str | None = None) -> Call[None]:
    """JSON arrays of objects. Without ``app`` and ``schedules`` nothing is said of schedules."""
    return Call("SELECT pgqueue.register_app(%s::json, %s::json, %s, %s::json)", (queues, workflows, app, schedules), _nothing)


# ---------------------------------------------------------------------------------------------- schedules


def due_schedules(amount: int) -> Call[tuple[list[Due], datetime, float | None]]:
    """(what is due, the moment at which that was asked, seconds until the next of the others is due)."""

    def read(rows: Rows) -> tuple[list[Due], datetime, float | None]:
        due, moment, next_due = rows[0]
        return [Due(**{**row, "done_until": datetime.fromisoformat(row["done_until"])}) for row in due or ()], moment, next_due

    return Call("SELECT due, moment, next_due FROM pgqueue.due_schedules(%s)", (amount,), read)


def tick(due: Due, plan: Plan) -> Call[int | None]:
    """How many jobs were enqueued; None: somebody else has done it, or the schedule has changed."""
    return Call(
        "SELECT pgqueue.tick(%s, %s::bigint, %s::timestamptz[], %s::timestamptz, %s::timestamptz, %s::timestamptz,"
        " %s::timestamptz)",
        (due.name, due.revision, plan.ticks, plan.until, plan.next, plan.missed, plan.since),
        _first,
    )


def postpone_tick(due: Due, problem: str, due_for: float) -> Call[bool]:
    """Its ticks cannot be enqueued here now; why. False: for so many seconds it is left to others, who may do better."""
    return Call("SELECT pgqueue.postpone_tick(%s, %s::bigint, %s, %s)", (due.name, due.revision, problem, due_for), _first)


def schedule_problem(name: str) -> Call[str | None]:
    """Why the ticks of a schedule cannot be enqueued, as it was said last. None: nobody knows of a reason."""
    return Call("SELECT max(problem) FROM pgqueue.schedules WHERE name = %s", (name,), _first)


def pause_schedule(name: str, by: str | None = None) -> Call[bool]:
    """False: it was paused already. ``by``: who asks."""
    return Call("SELECT pgqueue.pause_schedule(%s, %s)", (name, by), _first)


def resume_schedule(name: str) -> Call[bool]:
    """False: it was not paused."""
    return Call("SELECT pgqueue.resume_schedule(%s)", (name,), _first)


def trigger_schedule(name: str, new_id: str) -> Call[str]:
    """The id of the job: ``new_id``, so that a repetition after a lost connection finds the same."""
    return Call("SELECT pgqueue.trigger_schedule(%s, %s::uuid)::text", (name, new_id), _first)


def backfill_schedule(name: str, ticks: Sequence[datetime], again: bool = False) -> Call[int]:
    """How many of these ticks got a job now. ``again``: also those of which nobody can tell any more whether they had one."""
    return Call("SELECT pgqueue.backfill_schedule(%s, %s::timestamptz[], %s)", (name, list(ticks), again), _first)


def disputed_schedules(app: str, names: Sequence[str]) -> Call[Rows]:
    """Rows of (name, App): which of these schedules of an App another one declares too; App null: an operator has made them."""
    return Call(
        "SELECT name, CASE origin WHEN 'app' THEN app END FROM pgqueue.schedules"
        " WHERE name = ANY (%s) AND (origin = 'operator' OR declared AND app <> %s) ORDER BY name",
        (list(names), app),
        _rows,
    )


SCHEDULE_COLUMNS = (
    "name", "workflow", "cron", "every", "timezone", "next_at", "last_at", "paused", "misfire", "overlap", "origin", "declared",
    "grace", "queue", "priority", "app", "paused_by", "problem",
)  # fmt: skip


def schedule_rows() -> Call[Rows]:
    """The columns SCHEDULE_COLUMNS of all schedules."""
    return Call(
        "SELECT name, workflow, cron, every, timezone, next_at, last_at, paused, misfire, overlap, origin, declared,"
        " grace, queue, priority, app, paused_by, problem FROM pgqueue.schedules ORDER BY name",
        (),
        _rows,
    )


def schedule_inputs() -> Call[dict[str, str]]:
    """What the jobs of each schedule are given, as JSON: not for readers."""
    return Call("SELECT name, input FROM pgqueue.schedules", (), dict)


# ------------------------------------------------------------------------------------------------ workers


def register_worker(worker: str, process: Process) -> Call[int]:
    """The size limit of results in bytes."""
    return Call(
        "SELECT pgqueue.register_worker(%s::uuid, %s, %s, %s, %s, %s)",
        (worker, process.host, process.boot_id, process.pid_ns, process.pid, process.start_ticks),
        _first,
    )


def claim(
    worker: str,
    token: int,
    queues: Sequence[str],
    names: Sequence[str],
    amount: int,
    hints: Sequence[int],
    backwards: bool = False,
    at_once: int = 1,
) -> Call[list[tuple[ClaimedJob, int]]]:
    """The jobs claimed, each with its position, in the order in which to run them. ``at_once``: how many could begin now."""

    def read(rows: Rows) -> list[tuple[ClaimedJob, int]]:
        if len(rows) > 1:
            rows.sort(key=lambda row: (-row[4] if backwards else row[4], row[5]))
        jobs = [(ClaimedJob(row[0], token, row[1], row[2], row[3], row[4], row[6], row[7], row[8]), row[5]) for row in rows]
        for (job, _), row in zip(jobs, rows, strict=True):
            job.waited = row[10]
            if row[9] is not None:
                job.starts_at = time.monotonic() + row[9]
        return jobs

    return Call(
        "SELECT * FROM pgqueue.claim(%s::uuid, %s::bigint, %s::text[], %s::text[], %s::integer, %s::bigint[], %s, %s::integer)",
        (
            worker,
            token,
            _array(_quoted(queue) for queue in queues),
            _array(_quoted(name) for name in names),
            amount,
            _array(map(str, hints)),
            backwards,
            at_once,
        ),
        read,
    )


def was_begun_again(job: str) -> Call[bool]:
    """Has this job been requeued, or tried again as a whole? What ended it was forgotten then."""
    return Call("SELECT pgqueue.was_begun_again(%s::uuid)", (job,), _first)


def newest_position(queues: Sequence[str]) -> Call[int]:
    """The position that was last given out. 0 where one of these queues is paused or has limits: then a claim that brings nothing
    has not looked at all that is ready."""
    return Call("SELECT pgqueue.newest_position(%s::text[])", (_array(_quoted(queue) for queue in queues),), _first)


def settle(batch: Sequence[Settlement]) -> Call[dict[str, str]]:
    """What was not settled: job id -> ``lost`` or ``busy``."""
    return Call(
        "SELECT * FROM pgqueue.settle(%s::uuid[], %s::bigint[], %s::text[], %s::text[], %s::integer[], %s::json[])",
        (
            _array(s.job.id for s in batch),
            _array(str(s.job.token) for s in batch),
            _array(s.how for s in batch),
            _array(_quoted(s.result) for s in batch),
            _array(str(s.seen) for s in batch),
            _array(_quoted(s.detail) for s in batch),
        ),
        dict,
    )


def _array(elements: Iterable[str]) -> str:
    """The literal of an array: a sixth of the work of psycopg's adaptation of a list."""
    return "{" + ",".join(elements) + "}"


def _quoted(text: str | None) -> str:
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fence(job: str, token: int, seen: int, idle_seconds: float) -> Call[Any]:
    """The id of this transaction as text; None where the claim is lost."""
    return Call("SELECT pgqueue.fence(%s::uuid, %s::bigint, %s::integer, %s)::text", (job, token, seen, idle_seconds), _first)


def continues(job: str, seen: int) -> Call[bool]:
    """Is the last checkpoint that this run saw still there?"""
    return Call("SELECT pgqueue.continues(%s::uuid, %s::integer)", (job, seen), _first)


def checkpoint(job: str, token: int, seq: int, name: str, result: str, xid: str) -> Call[bool]:
    """The last statement of a transactional step. True: the job is to be cancelled."""
    return Call(
        "SELECT pgqueue.checkpoint(%s::uuid, %s::bigint, %s::integer, %s, %s, NULL, %s::xid8)",
        (job, token, seq, name, result, xid),
        _first,
    )


def store(job: str, token: int, seen: int, seq: int, name: str, result: str | None, error: str | None) -> Call[str]:
    """Fence and checkpoint at once: ``stored``, ``cancel`` (stored, and the job is to be cancelled) or ``lost``."""
    return Call(
        "SELECT pgqueue.store(%s::uuid, %s::bigint, %s::integer, %s::integer, %s, %s, %s)",
        (job, token, seen, seq, name, result, error),
        _first,
    )


def finish(job: str, token: int, result: str, xid: str) -> Call[bool]:
    """End a job inside its own transaction. Always True."""
    return Call("SELECT pgqueue.finish(%s::uuid, %s::bigint, %s, %s::xid8)", (job, token, result, xid), _first)


def proceed(
    job: str, token: int, seen: int, seq: int, name: str, kind: str, key: str
) -> Call[tuple[str, str | None, float | None]]:
    """At a wait: (``stored``, ``cancel``, ``wait`` or ``lost``; the result; the seconds left)."""
    return Call(
        "SELECT * FROM pgqueue.proceed(%s::uuid, %s::bigint, %s::integer, %s::integer, %s, %s, %s)",
        (job, token, seen, seq, name, kind, key),
        lambda rows: (rows[0][0], rows[0][1], rows[0][2]),
    )


def children(parent: str, seq: int, after: int) -> Call[Rows]:
    """Rows of (ordinal, result) of up to 500 jobs of a step of this parent that succeeded, those behind ``after``."""
    return Call("SELECT * FROM pgqueue.child_results(%s::uuid, %s::integer, %s::integer)", (parent, seq, after), _rows)


def history(job: str, after: int) -> Call[Rows]:
    """Rows of (seq, name, result, error): some checkpoints after ``after``; none means that there are no more."""
    return Call("SELECT * FROM pgqueue.history(%s::uuid, %s::integer)", (job, after), _rows)


def attempts(job: str, seq: int | None) -> Call[int]:
    """How often that step (None: the job itself) has failed since the last requeue."""
    return Call("SELECT pgqueue.attempts(%s::uuid, %s::integer)", (job, seq), _first)


def resolve(job: str, token: int) -> Call[str]:
    """After a lost connection: ``held``, ``settled`` or ``lost``."""
    return Call("SELECT pgqueue.resolve(%s::uuid, %s::bigint)", (job, token), _first)


# -------------------------------------------------------------------------------------------- housekeeper


def heartbeat(workers: Sequence[str]) -> Call[list[str]]:
    """The workers that are still alive."""
    return Call("SELECT h::text FROM pgqueue.heartbeat(%s::uuid[]) h", (list(workers),), _column)


def beats() -> Call[Rows]:
    """Rows of (worker, beat, boot id, pid namespace, pid, start ticks)."""
    return Call("SELECT id::text, beat, boot_id, pid_ns, pid, start_ticks FROM pgqueue.beats", (), _rows)


def fence_worker(
    worker: str, beat: int | None, reason: str, started: Sequence[str] | None = None, overdue: int | None = None
) -> Call[bool]:
    """True where this call took the lease. ``started``: the jobs that the worker had begun; None: nobody knows. ``overdue``: the
    step of the one job whose time was over (0: the whole job's)."""
    ids = None if started is None else list(started)
    return Call(
        "SELECT pgqueue.fence_worker(%s::uuid, %s::bigint, %s, %s::uuid[], %s::integer)",
        (worker, beat, reason, ids, overdue),
        _first,
    )


def end_sessions(worker: str, part: str = "") -> Call[int]:
    """How many sessions were told to end."""
    return Call("SELECT pgqueue.end_sessions(%s::uuid, %s)", (worker, part), _first)


def reap(
    worker: str, started: Sequence[str], kind: str, reason: str | None, step: int | None = None
) -> Call[tuple[int, int, int]]:
    """(given back, failed, still held)."""
    return Call(
        "SELECT * FROM pgqueue.reap(%s::uuid, %s::uuid[], %s, %s, %s)",
        (worker, list(started), kind, reason, step),
        lambda rows: (rows[0][0], rows[0][1], rows[0][2]),
    )


def lapsed_workers() -> Call[Rows]:
    """Rows of (worker, reason)."""
    return Call("SELECT worker::text, reason FROM pgqueue.lapsed_workers()", (), _rows)


def take_duty(name: str, holder: str, seconds: float, force: bool = False) -> Call[bool]:
    """Is this work ours to do, for so many seconds?"""
    return Call("SELECT pgqueue.take_duty(%s, %s::uuid, %s, %s)", (name, holder, seconds, force), _first)


def statement_limit(seconds: float) -> Call[None]:
    """The statements of this transaction may take so long."""
    return Call("SELECT pgqueue.statement_limit(%s)", (seconds,), _nothing)


def metrics() -> Call[Rows]:
    """Rows of (metric, values of its labels, number): see metrics.py."""
    return Call("SELECT metric, labels, value FROM pgqueue.metrics()", (), _rows)


def job_names(jobs: Sequence[str]) -> Call[Rows]:
    """Rows of (id, name, queue, state)."""
    return Call("SELECT id::text, name, queue, state FROM pgqueue.jobs WHERE id = ANY (%s::uuid[])", (list(jobs),), _rows)


def is_writable() -> Call[bool]:
    """Does the server accept writes?"""
    return Call("SELECT pgqueue.is_writable()", (), _first)


def end_stalled(worker: str) -> Call[bool]:
    """Was the worker's claiming session in the middle of a message, and told to end?"""
    return Call("SELECT pgqueue.end_stalled(%s::uuid)", (worker,), _first)


def held_claims(workers: Sequence[str]) -> Call[Rows]:
    """Rows of (job id, token, worker)."""
    return Call("SELECT job_id::text, claim, worker::text FROM pgqueue.held_claims(%s::uuid[])", (list(workers),), _rows)


def hard_cancelled(workers: Sequence[str]) -> Call[Rows]:
    """Rows of (job id, token, worker): jobs that are to be cancelled by killing the worker that runs them."""
    return Call("SELECT job_id::text, claim, worker::text FROM pgqueue.hard_cancelled(%s::uuid[])", (list(workers),), _rows)


def promote(amount: int) -> Call[tuple[int, float | None]]:
    """(how many were moved, seconds until the next is due)."""
    return Call("SELECT * FROM pgqueue.promote(%s)", (amount,), lambda rows: (rows[0][0], rows[0][1]))


def wake(amount: int, after: str | None = None) -> Call[tuple[int, bool, str | None]]:
    """(how many went on, whether there may be more at once, how far it looked: the next ``after``)."""
    return Call(
        "SELECT moved, more, reached::text FROM pgqueue.wake(%s, coalesce(%s::uuid, '00000000-0000-0000-0000-000000000000'))",
        (amount, after),
        lambda rows: (rows[0][0], rows[0][1], rows[0][2]),
    )


def next_wake() -> Call[float | None]:
    """In how many seconds the first wait is over of those that have an end."""
    return Call("SELECT pgqueue.next_wake()", (), _first)


def cancel_waiting() -> Call[int]:
    """How many jobs that nobody held were cancelled."""
    return Call("SELECT pgqueue.cancel_waiting()", (), _first)


class Seen(NamedTuple):
    """What a housekeeper has to do: see the SQL function."""

    work_in: float | None
    promote_in: float | None
    tick_in: float | None
    waits: bool
    cancels: bool


def look(queues: Sequence[str], listen: float | None) -> Call[Seen]:
    """``listen``: ask producers to notify, for so many seconds."""
    return Call("SELECT * FROM pgqueue.look(%s, %s)", (list(queues), listen), lambda rows: Seen(*rows[0]))


def listen_idle(seconds: float) -> Call[None]:
    """Ask producers to notify, for so long."""
    return Call("SELECT pgqueue.listen_idle(%s)", (seconds,), _nothing)


def has_work(queues: Sequence[str]) -> Call[float | None]:
    """Is anything ready in these queues?"""
    return Call("SELECT pgqueue.has_work(%s)", (list(queues),), _first)


def remaining(queues: Sequence[str]) -> Call[int]:
    """How many jobs are ready, running or due in these queues, counted up to 1,000."""
    return Call("SELECT pgqueue.remaining(%s)", (list(queues),), _first)


# -------------------------------------------------------------------------------------------------- views


def awaited(jobs: Sequence[str], seconds: float) -> Call[list[str]]:
    """Those of these jobs that have ended, or do not exist. The ends of others are announced for so many seconds."""
    return Call("SELECT pgqueue.awaited(%s::uuid[], %s)", (list(jobs), seconds), _column)


def report(rows: Sequence[tuple[str, int, float | None, str | None]]) -> Call[None]:
    """The progress of jobs: rows of (job, token, fraction, note)."""
    columns = (
        _array(job for job, _, _, _ in rows),
        _array(str(token) for _, token, _, _ in rows),
        _array("NULL" if fraction is None else str(fraction) for _, _, fraction, _ in rows),
        _array(_quoted(note) for _, _, _, note in rows),
    )
    return Call("SELECT pgqueue.report(%s::uuid[], %s::bigint[], %s::float8[], %s::text[])", columns, _nothing)


def write_stream(job: str, token: int | None, name: str, values: Sequence[str]) -> Call[bool]:
    """Append JSON texts to a stream of a job. With a token only while that claim holds it; False: it does not."""
    return Call(
        "SELECT pgqueue.write_stream(%s::uuid, %s::bigint, %s, %s::text[])",
        (job, token, name, _array(map(_quoted, values))),
        _first,
    )


def read_stream(job: str, name: str, after: int, amount: int) -> Call[Rows]:
    """Rows of (position, JSON text)."""
    name = key_text(name, "the name of a stream")
    return Call("SELECT pos, value FROM pgqueue.read_stream(%s::uuid, %s, %s, %s)", (job, name, after, amount), _rows)


def progress(job: str) -> Call[tuple[Any, ...] | None]:
    """(fraction, note, when); None: it has said nothing."""
    return Call(
        "SELECT fraction, note, reported_at FROM pgqueue.progress WHERE job_id = %s::uuid",
        (job,),
        lambda rows: rows[0] if rows else None,
    )


def session(pid: int) -> Call[tuple[bool, bool]]:
    """(is the session that of the process ``pid``, does it begin transactions at READ COMMITTED). One that is not ours alone, but
    lent by a pooler, loses the name of a worker that the pooler may have given it: sessions of dead workers are found by that."""
    return Call(
        "SELECT pid = %s::integer, current_setting('default_transaction_isolation') = 'read committed',"
        " CASE WHEN pid <> %s::integer THEN set_config('application_name', 'pgqueue', false) END FROM pg_backend_pid() AS pid",
        (pid, pid),
        lambda rows: (rows[0][0], rows[0][1]),
    )


def backend_pid() -> Call[int]:
    """The process that serves this session."""
    return Call("SELECT pg_backend_pid()", (), _first)


def name_transaction(name: str) -> Call[Any]:
    """Until its end the session has this name."""
    return Call("SELECT set_config('application_name', %s, true)", (name,), _first)


def job_value(job: str) -> Call[tuple[Any, ...] | None]:
    """(name, status, input, result, error, state); None for an unknown id. Status is ``active`` until the job ended."""
    return Call(
        "SELECT name, status, input, result, error FROM pgqueue.job_values WHERE id = %s::uuid",
        (job,),
        lambda rows: rows[0] if rows else None,
    )


JOB_COLUMNS = (
    "id", "name", "queue", "priority", "state", "key", "created_at", "run_at", "started_at", "finished_at",
    "waiting_for", "waiting_key", "cancel_requested",
)  # fmt: skip
_JOBS = "SELECT id::text, name, queue, priority, state, key, created_at, run_at, started_at, finished_at, \
waiting_for, waiting_key, cancel_requested FROM pgqueue.jobs"


def job_row(job: str) -> Call[tuple[Any, ...] | None]:
    """The columns JOB_COLUMNS of one job."""
    return Call(_JOBS + " WHERE id = %s::uuid", (job,), lambda rows: rows[0] if rows else None)


def job_rows(state: str | None, name: str | None, queue: str | None, since_seconds: float | None, limit: int) -> Call[Rows]:
    """The columns JOB_COLUMNS of the youngest jobs that fit; of those that have ended, of those that ended last."""
    return Call(
        _JOBS + " j JOIN pgqueue.youngest_jobs(%s, %s, %s, %s, %s) y ON y.job_id = j.id ORDER BY y.place",
        (state, name, queue, since_seconds, limit),
        _rows,
    )


def queue_names() -> Call[list[str]]:
    return Call("SELECT name FROM pgqueue.queues", (), _column)


def job_ids(prefix: str) -> Call[list[str]]:
    """At most two ids that begin with this prefix: enough to see whether it is unique."""
    low = (prefix + "00000000-0000-0000-0000-000000000000"[len(prefix) :])[:36]
    high = (prefix + "ffffffff-ffff-ffff-ffff-ffffffffffff"[len(prefix) :])[:36]
    return Call("SELECT id::text FROM pgqueue.jobs WHERE id BETWEEN %s::uuid AND %s::uuid LIMIT 2", (low, high), _column)


def steps(job: str) -> Call[Rows]:
    """Rows of (seq, name, status, result, error)."""
    return Call("SELECT seq, name, status, result, error FROM pgqueue.steps WHERE job_id = %s::uuid ORDER BY seq", (job,), _rows)


def attempt_rows(job: str) -> Call[Rows]:
    """Rows of (kind, seq, error, host, ended_at, by)."""
    return Call(
        'SELECT kind, seq, error, host, ended_at, "by" FROM pgqueue.attempts WHERE job_id = %s::uuid ORDER BY ended_at',
        (job,),
        _rows,
    )


# ---------------------------------------------------------------------------------- what people look at, and choose


def found_jobs(
    states: Sequence[str],
    name: str | None,
    queue: str | None,
    error: str | None,
    since_seconds: float | None,
    until_seconds: float | None,
    limit: int,
) -> Call[Rows]:
    """Rows of (id, name, queue, state, when it ended or was created, error), the oldest first: see the SQL function."""
    return Call(
        "SELECT job_id::text, name, queue, state, at, error FROM pgqueue.find_jobs(%s::text[], %s, %s, %s,"
        " make_interval(secs => %s::float8), make_interval(secs => %s::float8), %s)",
        (list(states), name, queue, error, since_seconds, until_seconds, limit),
        _rows,
    )


PLACE_COLUMNS = (
    "version", "parent", "parent_seq", "ordinal", "policy", "failed_seqs", "waiting_until", "cancel_by", "worker", "host", "pid",
    "paused",
)  # fmt: skip


def job_place(job: str) -> Call[tuple[Any, ...] | None]:
    """The columns PLACE_COLUMNS of one job: what it was enqueued with, who runs it, and whether its queue is paused."""
    return Call(
        "SELECT j.version, j.parent::text, j.parent_seq, j.ordinal, v.policy, v.failed_seqs, j.waiting_until, j.cancel_by,"
        " j.worker::text, w.host, w.pid, q.paused"
        " FROM pgqueue.jobs j JOIN pgqueue.job_values v ON v.id = j.id LEFT JOIN pgqueue.workers w ON w.id = j.worker"
        " LEFT JOIN pgqueue.queues q ON q.name = j.queue WHERE j.id = %s::uuid",
        (job,),
        lambda rows: rows[0] if rows else None,
    )


def step_lines(jobs: Sequence[str], each: int) -> Call[Rows]:
    """Rows of (job id, seq, name, status, beginning of the result, error, created_at): the last ``each`` steps of each job."""
    return Call(
        "SELECT job_id::text, seq, name, status, left(result, 200), error, created_at"
        " FROM (SELECT s.*, row_number() OVER (PARTITION BY job_id ORDER BY seq DESC) AS number FROM pgqueue.steps s"
        " WHERE job_id = ANY (%s::uuid[])) s WHERE number <= %s ORDER BY job_id, seq",
        (list(jobs), each),
        _rows,
    )


def attempt_lines(jobs: Sequence[str], each: int) -> Call[Rows]:
    """Rows of (job id, kind, seq, error, host, ended_at, by): the last ``each`` of each job."""
    return Call(
        'SELECT job_id::text, kind, seq, error, host, ended_at, "by"'
        " FROM (SELECT a.*, row_number() OVER (PARTITION BY job_id ORDER BY ended_at DESC) AS number FROM pgqueue.attempts a"
        " WHERE job_id = ANY (%s::uuid[])) a WHERE number <= %s ORDER BY ended_at",
        (list(jobs), each),
        _rows,
    )


def open_waits(jobs: Sequence[str]) -> Call[Rows]:
    """Rows of (job id, seq, name, kind, key, until, began_at): the waits that have no answer yet."""
    return Call(
        "SELECT job_id::text, seq, name, kind, key, until, began_at FROM pgqueue.waits"
        " WHERE job_id = ANY (%s::uuid[]) AND open ORDER BY job_id, seq",
        (list(jobs),),
        _rows,
    )


def child_counts(parents: Sequence[str]) -> Call[Rows]:
    """Rows of (parent, seq of the step, state, how many)."""
    return Call("SELECT parent::text, parent_seq, state, amount FROM pgqueue.child_counts(%s::uuid[])", (list(parents),), _rows)


CHILD_COLUMNS = (
    "parent", "parent_seq", "ordinal", "id", "name", "state", "created_at", "run_at", "started_at", "finished_at", "error",
)  # fmt: skip


def child_rows(parents: Sequence[str], each: int, limit: int, states: Sequence[str]) -> Call[Rows]:
    """The columns CHILD_COLUMNS of up to ``each`` children of each step, and ``limit`` in all, failed and running ones first."""
    return Call(
        "SELECT parent::text, parent_seq, ordinal, id::text, name, state, created_at, run_at, started_at, finished_at, error"
        " FROM pgqueue.child_jobs(%s::uuid[], %s, %s, %s::text[])",
        (list(parents), each, limit, list(states)),
        _rows,
    )


def now() -> Call[datetime]:
    """What time it is for the database."""
    return Call("SELECT pgqueue.clock()", (), _first)


def limits() -> Call[Rows]:
    """Rows of (queue, paused, in force, declared, chosen, used, jobs that wait for a key, seconds to the next start, tokens)."""
    return Call("SELECT * FROM pgqueue.limits()", (), _rows)


def limit_queue(queue: str, chosen: dict[str, Any]) -> Call[dict[str, Any]]:
    """What an operator chooses (None: what the App declares; 0: no limit). What is in force then."""
    return Call("SELECT pgqueue.limit_queue(%s, %s::jsonb)", (queue, msgspec.json.encode(chosen).decode()), _first)


def pause(queue: str) -> Call[None]:
    return Call("SELECT pgqueue.pause(%s)", (queue,), _nothing)


def resume(queue: str) -> Call[None]:
    return Call("SELECT pgqueue.resume(%s)", (queue,), _nothing)


def grant_role(kind: str, role: str) -> Call[None]:
    """``kind``: producer, worker or reader."""
    return Call("SELECT pgqueue.grant_role(%s, %s)", (kind, role), _nothing)


def stats() -> Call[Rows]:
    """Rows of (queue, paused, ready, scheduled, running, waiting, oldest_ready_seconds)."""
    return Call("SELECT * FROM pgqueue.stats()", (), _rows)


def rates(seconds: float) -> Call[Rows]:
    """Rows of (queue, jobs that ended per second, and failed ones): of the last so many seconds."""
    return Call("SELECT queue, ended, failed FROM pgqueue.rates(%s)", (seconds,), _rows)


def last_failures(amount: int) -> Call[Rows]:
    """Rows of (job id, name, queue, when, type of the error), the last one first."""
    return Call("SELECT job_id::text, name, queue, finished_at, error FROM pgqueue.last_failures(%s)", (amount,), _rows)


def worker_rows() -> Call[Rows]:
    """Rows of (id, host, pid, jobs, started_at, fenced_at)."""
    return Call("SELECT id::text, host, pid, jobs, started_at, fenced_at FROM pgqueue.workers ORDER BY host, pid", (), _rows)


def read_committed() -> Call[None]:
    """Verbs run at this level, whatever the default of the database or the role is."""
    return Call(
        "SELECT set_config('default_transaction_isolation', 'read committed', false)"
        " WHERE current_setting('default_transaction_isolation') <> 'read committed'",
        (),
        _nothing,
    )


def limit_time(seconds: float) -> Call[None]:
    """The statements of this transaction are ended when they take longer."""
    return Call("SELECT set_config('statement_timeout', %s, true)", (f"{int(seconds * 1000)}ms",), _nothing)


def this_database() -> Call[str]:
    """What tells this database from all others, also where several addresses lead to it."""
    return Call("SELECT pgqueue.this_database()", (), _first)


def schema_version() -> Call[int]:
    """The number of the last table file that was applied."""
    return Call("SELECT coalesce(max(number), 0) FROM pgqueue.migration", (), _first)
