"""For producers: Client enqueues by name without having the code, and Job is the handle of one job.

Imports neither worker nor runtime.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, Unpack

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.database import Pool, errors_translated, run
from pgqueue.errors import BadValue, JobCancelled, JobFailed, ResultTimeout, UnknownJob
from pgqueue.functions import Options, describe_options
from pgqueue.ids import new_job_id
from pgqueue.model import AttemptRecord, State, StepRecord
from pgqueue.retry import Duration, seconds
from pgqueue.values import Codec, read_error

R = TypeVar("R")
_ANY = Codec(Any)


class Client:
    """A producer that does not need the application's code.

    ``Client(dsn).enqueue("shop.tasks.fulfil", {"order_id": 7}, queue="payments")``
    """

    def __init__(self, dsn: str | None = None) -> None:
        self.pool = Pool(dsn)

    def enqueue(
        self,
        name: str,
        input: dict[str, Any] | None = None,
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> Job[Any]:
        """Enqueue a job by name. ``input`` holds parameter names and values; with ``conn`` it joins that transaction.

        Errors: UnknownWorkflow where the name is not registered and no queue is given; UnknownQueue; BadValue; IdConflict.
        """
        if input is not None and not isinstance(input, dict):
            raise BadValue("the input of a job is a dict of parameter names and values")
        text = _ANY.encode(input or {}, f"the input of {name}")
        wanted = {"name": name, "input": msgspec.Raw(text.encode()), **describe_options(options)}
        return Job(self, self.send([wanted], conn)[0], _ANY)

    def send(self, descriptions: Sequence[dict[str, Any]], conn: psycopg.Connection[Any] | None = None) -> list[str]:
        """Enqueue what these descriptions ask for, all or none. The ids, in the same order.

        Ids are made here, not in the database: a repetition after a lost connection then finds the same jobs.
        """
        if not descriptions:
            return []
        jobs = msgspec.json.encode([{"job_id": new_job_id(), **d} for d in descriptions]).decode()
        call = protocol.enqueue_workflows(jobs)
        with errors_translated():
            return run(conn, call) if conn is not None else self.pool.run(call)

    def job(self, id: str) -> Job[Any]:
        """The handle of a job. Nothing is asked of the database yet."""
        try:
            return Job(self, str(uuid.UUID(id)), _ANY)
        except (ValueError, AttributeError, TypeError):
            raise UnknownJob(f"{id!r} is not the id of a job (a UUID)") from None

    def close(self) -> None:
        """Close the connections of this process."""
        self.pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Job(Generic[R]):
    """One job, from outside."""

    def __init__(self, client: Client, id: str, codec: Codec) -> None:
        self._client = client
        self._codec = codec
        self.id = id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def _ask(self, call: protocol.Call[Any]) -> Any:
        with errors_translated():
            return self._client.pool.run(call)

    def status(self) -> State:
        """Where the job is now: ready, scheduled, running, waiting, succeeded, failed or cancelled. UnknownJob if nowhere."""
        row = self._ask(protocol.job_row(self.id))
        if row is None:
            raise UnknownJob(f"there is no job {self.id}: its transaction did not commit (yet), or it was pruned")
        state: State = row[protocol.JOB_COLUMNS.index("state")]
        return state

    def result(self, timeout: Duration | None = None) -> R:
        """Wait for the job to end and return its result.

        Errors: ResultTimeout after ``timeout`` (None: wait for ever); JobFailed; JobCancelled; UnknownJob.
        """
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        pause = 0.005
        while True:
            row = self._ask(protocol.job_value(self.id))
            if row is None:
                raise UnknownJob(f"there is no job {self.id}: its transaction did not commit (yet), or it was pruned")
            name, status, _, result, error = row
            if status == "succeeded":
                value: R = self._codec.decode(result, f"the result of {name}")
                return value
            if status == "failed":
                raise JobFailed(read_error(error), f"job {self.id} ({name})")
            if status == "cancelled":
                raise JobCancelled(f"job {self.id} ({name}) was cancelled")
            if deadline is not None and time.monotonic() + pause > deadline:
                raise ResultTimeout(f"job {self.id} ({name}) has not ended after {timeout!r}; it goes on")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def steps(self) -> list[StepRecord]:
        """The checkpoints so far, in order."""
        rows = self._ask(protocol.steps(self.id))
        return [
            StepRecord(seq, name, status, None if result is None else _ANY.decode(result, name), error and read_error(error))
            for seq, name, status, result, error in rows
        ]

    def attempts(self) -> list[AttemptRecord]:
        """Every run that did not succeed, in order: failed attempts, crashes, and requeues."""
        rows = self._ask(protocol.attempt_rows(self.id))
        return [AttemptRecord(kind, seq, error and read_error(error), host, ended) for kind, seq, error, host, ended in rows]

    def cancel(self) -> bool:
        """Ask the job to end. True: requested; where it runs, it ends before its next step. False: it had ended already."""
        return self._answer(protocol.cancel([self.id])) == "requested"

    def requeue(self) -> bool:
        """Run a failed or cancelled job again, from where it stopped. False: it has not ended, or it succeeded."""
        return self._answer(protocol.requeue([self.id])) == "requeued"

    def _answer(self, call: protocol.Call[Any]) -> str:
        answer: str = dict(self._ask(call))[self.id]
        if answer == "unknown":
            raise UnknownJob(f"there is no job {self.id}")
        return answer
