"""One step of a job: replayed from its checkpoint, or run and checkpointed."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.errors import BadValue, ClaimLost, Snooze, StepFailed, StepTimeout
from pgqueue.failpoints import failpoint
from pgqueue.functions import Function
from pgqueue.retry import seconds
from pgqueue.runtime.counting import count_step
from pgqueue.runtime.endings import Unwind
from pgqueue.runtime.failure import describe, described
from pgqueue.runtime.history import Recorded
from pgqueue.runtime.open_steps import chosen_thread
from pgqueue.runtime.session import Restart
from pgqueue.runtime.transact import Conflict, transact
from pgqueue.values import read_error

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun

log = logging.getLogger(__name__)


async def perform(
    run: JobRun, function: Function[Any, Any], seq: int, arguments: dict[str, Any], recorded: Recorded | None
) -> Any:
    """A step: replayed, or run and checkpointed."""
    if recorded is not None:
        await run.ground.others_first()  # also so that a second step beside it is an error in a replay too
        count_step(run, function.name, function.kind, "replayed")
        return _replayed(function, seq, recorded)
    failpoint("step.between")
    try:
        await check_tries(run, function, seq)
    except StepTimeout as error:
        return await _step_failed(run, function, seq, error, over=True)
    if function.kind == "transaction":
        return await as_transaction(run, function, seq, arguments, whole=False)
    return await _as_step(run, function, seq, arguments)


def _replayed(function: Function[Any, Any], seq: int, recorded: Recorded) -> Any:
    if recorded.result is None:
        raise StepFailed(read_error(recorded.error), function.name, seq)
    return function.result.decode(recorded.result, f"the result of {function.name}")


async def _as_step(run: JobRun, function: Function[Any, Any], seq: int, arguments: dict[str, Any]) -> Any:
    failpoint("step.before_effect")
    unstorable = False
    try:
        result = await run.limits.within(function, seq, run.invoke(function, **arguments))
        try:
            text = run.result_text(function, result)
        except BadValue:
            unstorable = True  # its effect is not to be repeated for that
            raise
        await run.flush()
    except (Unwind, Restart, ClaimLost):
        raise
    except BaseException as error:  # noqa: BLE001 -- also SystemExit: it is the step that failed, not the worker
        run.only_in_the_worker()
        return await _step_failed(run, function, seq, error, over=unstorable)
    run.only_in_the_worker()
    failpoint("step.after_effect")
    await run.store(seq, function.name, text)
    failpoint("step.checkpointed")
    count_step(run, function.name, function.kind, "succeeded")
    return function.result.decode(text, f"the result of {function.name}")


async def as_transaction(run: JobRun, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> Any:
    tries = 0
    while True:
        try:
            text, cancelled = await run.limits.within(function, seq, _transact(run, function, seq, arguments, whole))
        except Conflict:
            tries += 1
            if tries > 10:  # hand the worker to another job for a while; this counts as nothing
                log.warning("job %s: %s meets another transaction's locks or writes again and again", run.job_id, function.name)
                run.end(Unwind(run.settlement("retry", {"delay": 1.0})))
            await run.ground.sessions.pause(min(0.5, 0.005 * 2**tries))
        except (Unwind, Restart, ClaimLost) as ending:
            run.end(ending)
        except BaseException as error:
            if whole:
                raise
            return await _step_failed(run, function, seq, error)
        else:
            if whole:
                return None
            count_step(run, function.name, function.kind, "succeeded")
            run.stored(seq, cancelled)
            return function.result.decode(text, f"the result of {function.name}")


async def _transact(
    run: JobRun, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool
) -> tuple[str, bool]:
    if function.is_async or not run.ground.on_loop:
        return await transact(run, run.ground.sessions, function, seq, arguments, whole)
    # A def in async code: all of the transaction happens in a thread, on a connection that blocks.

    def in_thread() -> tuple[str, bool]:
        chosen_thread.set(threading.get_ident())
        return blocking(transact(run, run.ground.blocking_sessions, function, seq, arguments, whole))

    return await run.ground.in_thread(in_thread)


async def check_tries(run: JobRun, function: Function[Any, Any], seq: int) -> None:
    """What follows a try that was killed because of its time limit: nobody was left to say so then. StepTimeout if it was the
    last one; otherwise the job is put off first, as after any failed try."""
    if not run.job.suspect or function.definition.timeout is None:
        return
    failed, policy = await run.ask(protocol.attempts(run.job_id, seq or None)), run.policy(function)
    if failed and not policy.again(failed, StepTimeout()):
        raise StepTimeout(f"{function.name} took longer than {function.definition.timeout:g} s, {failed} times")
    past = await run.ask(protocol.attempt_rows(run.job_id))
    if not past or past[-1][:2] != ("timeout", seq or None):
        return
    run.end(Unwind(run.settlement("retry", {"delay": policy.wait(failed)})))


async def _step_failed(run: JobRun, function: Function[Any, Any], seq: int, error: BaseException, over: bool = False) -> NoReturn:
    """A try of a step failed: another one later, or the error becomes its checkpoint and is raised in the workflow."""
    if isinstance(error, Snooze):
        run.end(Unwind(run.settlement("retry", {"delay": seconds(error.delay)})))
    text = describe(error)
    await run.flush()
    failpoint("failure.before_recorded")
    try:
        policy = function.definition.retry
        failed = await run.ground.sessions.run(protocol.attempts(run.job_id, seq)) + 1
        if not over and policy.again(failed, error):
            kind = "timeout" if isinstance(error, StepTimeout) else "error"
            detail = {"errors": [{**described(error), "seq": seq, "kind": kind}], "delay": policy.wait(failed)}
            count_step(run, function.name, function.kind, "retry")
            run.end(Unwind(run.settlement("retry", detail)))
        await run.store(seq, function.name, None, text)
    except Restart as restart:
        run.end(restart)
    failpoint("failure.recorded")
    count_step(run, function.name, function.kind, "failed")
    raise StepFailed(read_error(text), function.name, seq) from None
