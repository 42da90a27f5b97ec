"""One claimed job, from its input to what becomes of it.

A run holds the job's claim. It calls the function, replays the steps that have a checkpoint, runs the next ones, and ends
with a Settlement. When the connection is lost it forgets what it knows and replays from the database: a reconnect is a
small crash. (Longer than other modules: all that can end a run, and must agree about it, is in one place.)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.context import active
from pgqueue.database import backoff
from pgqueue.errors import (
    BadValue,
    Cancel,
    ClaimLost,
    NonDeterministic,
    OutsideJob,
    PgQueueError,
    StepFailed,
)
from pgqueue.failpoints import failpoint
from pgqueue.functions import Definition, Function, Transaction
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.retry import Retry
from pgqueue.runtime.failure import describe, failed_steps
from pgqueue.runtime.history import History
from pgqueue.runtime.session import Restart, Session
from pgqueue.runtime.transact import Conflict, transact
from pgqueue.values import clean, read_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.app import App

log = logging.getLogger(__name__)


class Unwind(BaseException):
    """Leaves the user's code because the run is over for now, with what becomes of the job."""

    def __init__(self, settlement: Settlement | None) -> None:
        self.settlement = settlement


class JobRun:
    """One job, as long as this worker holds it. What user code sees of it is ``context.Run``."""

    def __init__(self, app: App, job: ClaimedJob, session: Session, max_bytes: int) -> None:
        self.job_id = job.id
        self.name = job.name
        self.queue = job.queue
        self.app = app
        self.job = job
        self._pid = os.getpid()
        self.session = session
        self.max_bytes = max_bytes
        self.history = History(session, job)
        self._ending: BaseException | None = None
        self._step: int | None = None  # the seq of the step whose code runs now
        self._thread: int | None = None  # the thread that it runs in
        self.tx: psycopg.Connection[Any] | None = None

    # ------------------------------------------------------------------------------------------ the whole job

    def execute(self) -> Settlement | None:
        """Run it. None: nothing is left to settle, because it committed with its own transaction, or the claim is lost."""
        tries = 0
        while True:
            try:
                with active(self):
                    return self._whole()
            except Unwind as unwind:
                return unwind.settlement
            except ClaimLost:
                self.session.discard()
                log.warning("job %s: the claim is lost, this run's results are discarded", self.job_id)
                return None
            except Restart:
                if self.session.resolve(self.job_id, self.job.token) != "held":
                    return None
                self.history = History(self.session, self.job, came_back=True)
                self._ending = self._step = self.tx = None
                tries += 1
                time.sleep(backoff(tries))

    def _whole(self) -> Settlement | None:
        failpoint("dispatch.before_run")
        function = self.app.functions[self.name]
        try:
            arguments = function.input.decode(self.job.input, f"the input of {self.name}")
        except BadValue as error:
            return self._ended_badly(error, None)
        try:
            if function.kind == "workflow":
                value = function.fn(**arguments)
                self._check_ending()
                self.history.check_complete()
            else:
                with self._inside(0):
                    if isinstance(function, Transaction):
                        self._as_transaction(function, 0, arguments, whole=True)
                        return None
                    value = function.fn(**arguments)
            self._check_ending()
            return Settlement(self.job, "succeeded", self.result_text(function, value), self.history.seen)
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit and the like: a job cannot end its worker that way
            self._check_ending()
            return self._ended_badly(error, function)

    def _ended_badly(self, error: BaseException, function: Function[Any, Any] | None) -> Settlement:
        """A job that raised: it is cancelled, tried again, or has failed."""
        detail: dict[str, Any] = {"error": msgspec.Raw(describe(error).encode()), "failed_seqs": failed_steps(error)}
        if isinstance(error, Cancel):
            return self._settlement("cancelled", detail)
        if function is not None:
            policy = self._policy(function)
            failed = self.session.run(protocol.attempts(self.job_id, None)) + 1
            if policy.again(failed, error):
                return self._settlement("retry", {**detail, "delay": policy.wait(failed)})
        log.warning("job %s (%s) failed: %s", self.job_id, self.name, type(error).__qualname__)  # the message may hold payload
        return self._settlement("failed", detail)

    def _policy(self, function: Function[Any, Any]) -> Retry:
        said = (self.job.policy or {}).get("retry")
        own = function.definition.retry
        return own if said is None else Retry(**said, only=own.only, never=own.never)

    def _settlement(self, how: Any, detail: dict[str, Any]) -> Settlement:
        return Settlement(self.job, how, None, self.history.seen, msgspec.json.encode(detail).decode())

    def only_in_the_worker(self) -> None:
        """Where a job's code forked and its child came back here: the child ends. The connection belongs to its parent."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _check_ending(self) -> None:
        self.only_in_the_worker()
        if self._ending is not None:
            raise self._ending

    def _end(self, ending: BaseException) -> NoReturn:
        """Leave the user's code for good: whatever it catches, its next call comes back here."""
        self._ending = ending
        raise ending

    # ------------------------------------------------------------------------------------- what the code calls

    @property
    def step_key(self) -> str:
        if self._step is None:
            raise OutsideJob("current().step_key is for the code of a step: in the body of a workflow there is none")
        return f"{self.job_id}:{self._step}"

    @property
    def transaction(self) -> psycopg.Connection[Any] | None:
        return self.tx

    def call(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """A step or transaction called by the job's code: replayed, or run and checkpointed."""
        self._check_ending()
        if function.kind == "workflow":
            raise PgQueueError(f"{function.name}: a workflow cannot be called from a job yet; enqueue it instead")
        if self._step is not None:
            return self._nested(function, arguments)
        seq, recorded = self._next(function)
        if recorded is not None:
            return self._replayed(function, seq, *recorded)
        failpoint("step.between")
        with self._inside(seq):
            if isinstance(function, Transaction):
                return self._as_transaction(function, seq, arguments, whole=False)
            return self._as_step(function, seq, arguments)

    def _next(self, function: Function[Any, Any]) -> tuple[int, tuple[str | None, str | None] | None]:
        try:
            return self.history.next(function)
        except NonDeterministic as error:  # must not be caught by the workflow, which would go on with wrong results
            self._end(Unwind(self._ended_badly(error, None)))
        except Restart as restart:
            self._end(restart)

    def _nested(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """Inside a step another one is a plain call: it is part of that step."""
        if self._thread != threading.get_ident():
            raise OutsideJob(f"{function.name} was called from a thread while step {self._step} was running in another")
        if not isinstance(function, Transaction):
            return function.fn(**arguments)
        if self.tx is None:
            raise OutsideJob(
                f"{function.name} is a transaction and was called inside a step, which has none: call it from the workflow"
            )
        return function.fn(self.tx, **arguments)

    def enqueue(self, descriptions: Sequence[dict[str, Any]]) -> list[str]:
        """Jobs enqueued by the job's code: in the open transaction, else (in a workflow's body) as a step of their own."""
        self._check_ending()
        if self.tx is not None:
            return self.app.client.send(descriptions, self.tx)
        if self._step is not None:
            return self.app.client.send(descriptions)
        result: list[str] = self.call(_enqueue_step(self.app), {"descriptions": descriptions})
        return result

    @contextmanager
    def _inside(self, seq: int) -> Iterator[None]:
        self._step, self._thread = seq, threading.get_ident()
        try:
            yield
        finally:
            self._step = self._thread = None

    # -------------------------------------------------------------------------------------------------- steps

    def _replayed(self, function: Function[Any, Any], seq: int, result: str | None, error: str | None) -> Any:
        if result is None:
            raise StepFailed(read_error(error), function.name, seq)
        return function.result.decode(result, f"the result of {function.name}")

    def _as_step(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any]) -> Any:
        failpoint("step.before_effect")
        try:
            text = self.result_text(function, function.fn(**arguments))
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit: it is the step that failed, not the worker
            self.only_in_the_worker()
            return self._step_failed(function, seq, error)
        self.only_in_the_worker()
        failpoint("step.after_effect")
        self._store(function, seq, text, None)
        failpoint("step.checkpointed")
        return function.result.decode(text, f"the result of {function.name}")

    def _as_transaction(self, function: Transaction[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> Any:
        tries = 0
        while True:
            try:
                text, cancelled = transact(self, function, seq, arguments, whole)
            except Conflict:
                tries += 1
                if tries > 10:  # hand the worker to another job for a while; this counts as nothing
                    self._end(Unwind(self._settlement("retry", {"delay": 1.0})))
                time.sleep(min(0.5, 0.005 * 2**tries))
            except (Unwind, Restart, ClaimLost) as ending:
                self._end(ending)
            except BaseException as error:
                if whole:
                    raise
                return self._step_failed(function, seq, error)
            else:
                if not whole:
                    self._stored(seq, cancelled)
                return function.result.decode(text, f"the result of {function.name}")

    def _step_failed(self, function: Function[Any, Any], seq: int, error: BaseException) -> NoReturn:
        """A try of a step failed: another one later, or the error becomes its checkpoint and is raised in the workflow."""
        text = describe(error)
        failpoint("failure.before_recorded")
        try:
            policy = function.definition.retry
            failed = self.session.run(protocol.attempts(self.job_id, seq)) + 1
            if policy.again(failed, error):
                detail = {"error": msgspec.Raw(text.encode()), "seq": seq, "delay": policy.wait(failed)}
                self._end(Unwind(self._settlement("retry", detail)))
            self._store(function, seq, None, text)
        except Restart as restart:
            self._end(restart)
        failpoint("failure.recorded")
        raise StepFailed(read_error(text), function.name, seq) from None

    def _store(self, function: Function[Any, Any], seq: int, result: str | None, error: str | None) -> None:
        call = protocol.store(self.job_id, self.job.token, self.history.seen, seq, function.name, result, error)
        try:
            stored = self.session.run(call)
        except Restart as restart:
            self._end(restart)
        except psycopg.errors.UniqueViolation as error:  # another run stored this step: read what it stored
            self._end(Restart(str(error)))
        if stored == "lost":
            self._end(ClaimLost())
        self._stored(seq, stored == "cancel")

    def _stored(self, seq: int, cancelled: bool) -> None:
        """The checkpoint is there. If somebody asked for it, the job ends here, before its next step."""
        self.history.stored(seq)
        if cancelled:
            self._end(Unwind(self._settlement("cancelled", {})))

    def result_text(self, function: Function[Any, Any], value: Any) -> str:
        """What is stored of a result. Characters that cannot be are replaced: the step has happened."""
        try:
            return function.encode_result(value, self.max_bytes)
        except BadValue as error:
            try:
                text = function.encode_result(clean(value), self.max_bytes)
            except BadValue:
                raise error from None
            log.warning("job %s: %s returned NUL or lone surrogates, stored as U+FFFD", self.job_id, function.name)
            return text


def _enqueue_step(app: App) -> Transaction[Any, Any]:
    """Enqueueing from the body of a workflow is a transaction like any other: the jobs and the checkpoint with their ids."""

    def enqueue(tx: psycopg.Connection[Any], descriptions: list[dict[str, Any]]) -> list[str]:
        return app.client.send(descriptions, tx)

    return Transaction(app, enqueue, Definition(name="pgqueue.enqueue"))
