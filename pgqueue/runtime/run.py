"""One claimed job, from its input to what becomes of it.

A run holds the job's claim. It calls the function, replays the steps that have a checkpoint, runs the next ones, and ends
with a Settlement. When the connection is lost it forgets what it knows and replays from the database: a reconnect is a
small crash. What its code can call is in calls.py, what a step is in steps.py.

Written once, as coroutines, for ``def`` and ``async def`` (see colour.py). A little long: what is here shares the run's state.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.context import Current, active
from pgqueue.database import backoff
from pgqueue.errors import BadValue, Cancel, ClaimLost, JobTimeout, NonDeterministic, OutsideJob, PgQueueError, Snooze
from pgqueue.failpoints import failpoint
from pgqueue.functions import Function
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.retry import Retry, seconds
from pgqueue.runtime import steps
from pgqueue.runtime.calls import Calls
from pgqueue.runtime.counting import count_in_doubt, count_lost
from pgqueue.runtime.endings import Unwind
from pgqueue.runtime.failure import described, failed_steps
from pgqueue.runtime.ground import Ground
from pgqueue.runtime.history import History, Recorded, Wanted
from pgqueue.runtime.limits import Limits
from pgqueue.runtime.open_steps import Inside, OpenStep, chosen_thread, open_step
from pgqueue.runtime.session import Begin, Restart
from pgqueue.values import clean

if TYPE_CHECKING:
    from pgqueue.app import App

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_RESTARTS = 4
"""In a row; then the job is given back for a second."""


class JobRun:
    """One job, as long as this worker holds it."""

    def __init__(
        self,
        app: App,
        job: ClaimedJob,
        ground: Ground,
        max_bytes: int,
        upcoming: Callable[[], Begin | None] = lambda: None,
        came_back: bool | None = None,
    ) -> None:
        self.job_id = job.id
        self.claim = (job.id, job.token)
        self.name = job.name.partition("@")[0]  # without its version
        self.queue = job.queue
        self.app = app
        self.job = job
        self.ground = ground
        self.max_bytes = max_bytes
        self.upcoming = upcoming  # asked at the end of a job that is one transaction: how does the next one begin?
        self.history = History(ground.sessions, job, came_back)
        self._pid = os.getpid()
        self.limits = Limits(job, ground)
        self.calls = Calls(self)
        self._ending: BaseException | None = None
        self.open_steps: set[OpenStep] = set()
        self.in_parallel = False  # steps run at once, and how the run ends is said when all of them have

    async def execute(self) -> Settlement | None:
        """Run it. None: nothing is left to settle, because it committed with its own transaction, or the claim is lost."""
        run, tries = self, 0
        while True:
            try:
                run.limits.begin()
                with active(run.calls):
                    return await run._whole()
            except Unwind as unwind:
                return unwind.settlement
            except ClaimLost as lost_claim:
                count_lost(run, lost_claim.op)
                log.warning("job %s: the claim is lost, this run's results are discarded", self.job_id)
                return None
            except Restart as lost:
                answer = await self.ground.sessions.resolve(self.job_id, self.job.token, lost.session)
                await count_in_doubt(run, lost, answer)
                if answer != "held":
                    self.job.ended = "succeeded" if answer == "settled" else None
                    return None
                tries += 1
                log.warning(
                    "job %s (%s): the connection was lost, and the job begins again: %s", self.job_id, self.name, lost.__cause__
                )
                if tries > MOST_RESTARTS:  # others may run meanwhile, and somebody may want to cancel it; this counts as nothing
                    return run.settlement("retry", {"delay": 1.0})
                await self.ground.sessions.pause(backoff(tries))
            finally:
                run.limits.end()
                run._ending = OutsideJob(f"job {self.job_id} has ended, or begun again: a thread or a task has outlived its run")
            run = JobRun(self.app, self.job, self.ground, self.max_bytes, self.upcoming, came_back=True)

    async def _whole(self) -> Settlement | None:
        failpoint("dispatch.before_run")
        function = self.app.functions[self.job.name]
        try:
            arguments = function.input.decode(self.job.input, f"the input of {self.name}")
        except BadValue as error:
            return await self._ended_badly(error, None)
        try:
            wrapped = self._wrapped if self.app.middlewares else self._body
            value = await wrapped(function, arguments)
            self.check_ending()
            if function.kind == "transaction":
                self.job.ended = "succeeded"
                return None
            await self.flush()
            try:
                return Settlement(self.job, "succeeded", self.result_text(function, value), self.history.seen)
            except BadValue as error:
                return await self._ended_badly(error, None)  # it has happened, and is not to be repeated for that
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit and the like: a job cannot end its worker that way
            self.check_ending()
            return await self._ended_badly(error, function)

    async def _wrapped(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        ended = False
        with ExitStack() as middlewares:
            for middleware in self.app.middlewares:
                middlewares.enter_context(middleware(Current(self.calls)))
            value = await self._body(function, arguments)
            ended = True
        self.check_ending()
        if not ended:
            raise PgQueueError("a middleware has swallowed the error of this job: let it out, or raise another")
        return value

    async def _body(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        if function.kind == "workflow":
            value = await self.invoke(function, **arguments)
            self.check_ending()
            for step in self.open_steps:
                raise OutsideJob(f"the workflow returned while step {step.seq} was running: await every step")
            await self.history.check_complete()
            return value
        with self.inside(0):
            await steps.check_tries(self, function, 0)
            if function.kind == "transaction":
                return await steps.as_transaction(self, function, 0, arguments, whole=True)
            return await self.limits.within(function, 0, self.invoke(function, **arguments))

    async def _ended_badly(self, error: BaseException, function: Function[Any, Any] | None) -> Settlement:
        """A job that raised: it is cancelled, tried again, or has failed."""
        await self.flush()
        if isinstance(error, Snooze):
            return self.settlement("retry", {"delay": seconds(error.delay)})
        detail: dict[str, Any] = {"errors": [described(error)], "failed_seqs": failed_steps(error)}
        if isinstance(error, Cancel):
            return self.settlement("cancelled", detail)
        if function is not None:
            policy = self.policy(function)
            failed = await self.ground.sessions.run(protocol.attempts(self.job_id, None)) + 1
            if policy.again(failed, error):
                return self.settlement("retry", {**detail, "delay": policy.wait(failed)})
        kind = type(error).__qualname__  # the message may hold payload
        log.warning('job %s (%s) failed: %s (see "pgqueue show %s")', self.job_id, self.name, kind, self.job_id)
        return self.settlement("failed", detail)

    def policy(self, function: Function[Any, Any]) -> Retry:
        said = (self.job.policy or {}).get("retry")
        own = function.definition.retry
        return own if said is None else Retry(**said, only=own.only, never=own.never, retry_if=own.retry_if)

    def settlement(self, how: Any, detail: dict[str, Any]) -> Settlement:
        return Settlement(self.job, how, None, self.history.seen, msgspec.json.encode(detail).decode())

    # ------------------------------------------------------------------------------------------- endings

    def only_in_the_worker(self) -> None:
        """Where a job's code forked and its child came back here: the child ends. The connection belongs to its parent."""
        if os.getpid() != self._pid:
            os._exit(0)

    def check_ending(self) -> None:
        self.only_in_the_worker()
        if self._ending is not None:
            raise self._ending

    def check_free(self, what: str) -> None:
        """The workflow's own code calls something. OutsideJob while a step runs."""
        self.check_ending()
        if self.limits.passed:
            error = described(JobTimeout("the time limit of the job is over"))
            self.unwind(self.settlement("failed", {"errors": [{**error, "kind": "timeout"}], "failed_seqs": []}))
        for step in self.open_steps:
            raise OutsideJob(
                f"{what} was called while step {step.seq} was running: a workflow runs one step at a time, or several in gather()"
            )

    def unwind(self, settlement: Settlement) -> NoReturn:
        """Leave the user's code, because this is what becomes of the job now."""
        self.end(Unwind(settlement))

    def end(self, ending: BaseException) -> NoReturn:
        """Leave the user's code for good: whatever it catches, its next call comes back here."""
        if not self.in_parallel:
            self._ending = ending
        raise ending

    # -------------------------------------------------------------------------------------------- inside

    def own_step(self, what: str) -> OpenStep:
        """The step that the caller is a part of, if it is still open."""
        step = open_step.get()
        if step is None or step not in self.open_steps:
            raise OutsideJob(f"{what} was called from a thread or a task that outlived its step: end it before the step returns")
        return step

    def inside(self, seq: int) -> Inside:
        """A block in which the code of this step runs."""
        return Inside(self.open_steps, OpenStep(seq, threading.get_ident()))

    def lend(self, connection: Any) -> None:
        """The open step has this connection."""
        self.only_in_the_worker()
        step = open_step.get()
        assert step is not None  # noqa: S101 -- a transaction runs inside a step
        step.tx = connection

    async def invoke(self, function: Function[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        """The user's function where it belongs: on the event loop, in this thread, or, out of async code, in one for it."""
        if function.is_async:
            return await function.fn(*args, **kwargs)
        if not self.ground.on_loop:
            return function.fn(*args, **kwargs)

        def in_thread() -> Any:
            chosen_thread.set(threading.get_ident())
            return function.fn(*args, **kwargs)

        return await self.ground.in_thread(in_thread)

    def inherited(self) -> dict[str, Any]:
        """What children have of their parent, where nothing else is said."""
        return {"meta": self.meta} if self.meta else {}

    @property
    def meta(self) -> dict[str, Any]:
        """What the producer attached."""
        meta: dict[str, Any] = (self.job.policy or {}).get("meta", {})
        return meta

    # ------------------------------------------------------------------------------------ what is stored

    async def find(self, steps: Sequence[Wanted]) -> list[Recorded | None]:
        """What is stored of these steps, which begin now."""
        try:
            return await self.history.find_all(steps)
        except NonDeterministic as error:
            await self.contradict(error)
        except Restart as restart:
            self.end(restart)

    async def contradict(self, error: NonDeterministic) -> NoReturn:
        """The code does not fit what is stored. Not for the workflow to catch, which would go on with wrong results."""
        self.end(Unwind(await self._ended_badly(error, None)))

    async def peek(self) -> Recorded | None:
        """The next step that is stored, if this run has not come to it yet."""
        try:
            return await self.history.peek()
        except Restart as restart:
            self.end(restart)

    async def store(self, seq: int, name: str, result: str | None, error: str | None = None) -> None:
        """Store what a step has come to."""
        stored = await self.ask(protocol.store(self.job_id, self.job.token, self.history.seen, seq, name, result, error))
        if stored == "lost":
            self.end(ClaimLost("store"))
        self.stored(seq, stored == "cancel")

    async def ask(self, call: protocol.Call[T]) -> T:
        """A verb of this run, in a transaction of its own."""
        try:
            return await self.ground.sessions.run(call)
        except Restart as restart:
            self.end(restart)
        except psycopg.errors.UniqueViolation:  # another run stored this step: read what it stored
            self.end(Restart())

    def stored(self, seq: int, cancelled: bool) -> None:
        """The checkpoint is there. If somebody asked for it, the job ends here, before its next step."""
        self.history.stored(seq)
        if cancelled:
            self.end(Unwind(self.settlement("cancelled", {})))

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

    async def flush(self) -> None:
        """Send what the job has said of itself: before the checkpoint of the step that said it."""
        if self.ground.reports.has(self.claim):
            try:
                await self.ground.in_thread(lambda: self.ground.reports.flush(self.claim))
            except Restart as restart:
                self.end(restart)
