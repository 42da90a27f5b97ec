"""Waiting inside a workflow: for a time, an event, a message, another job, or children. No process is held meanwhile.

A wait is a step without code. Either what it waits for is there, and is stored as its checkpoint; or the job is suspended: it
leaves its worker, and when it is woken it replays up to here and looks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from pgqueue import protocol
from pgqueue.context import Wait
from pgqueue.errors import BadValue, ClaimLost, JobCancelled, JobFailed, OutsideJob, UnknownJob, WaitTimeout
from pgqueue.failpoints import failpoint
from pgqueue.model import Settlement
from pgqueue.runtime.counting import count_step
from pgqueue.runtime.history import Recorded, Wanted
from pgqueue.values import Codec, read_error

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun

SHORT = 0.1
"""Seconds of a sleep that is not worth leaving the worker for."""


async def wait(run: JobRun, seq: int, wait: Wait, fresh: bool = False) -> dict[str, Any]:
    """What the wait has come to. Does not return where the job is suspended. ``fresh``: it cannot be over yet."""
    run.check_free(wait.what)
    with run.inside(seq):
        [recorded] = await run.find([Wanted(seq, wait.name, frozenset({wait.name}))])
        if recorded is None or recorded.pending:
            return await _come(run, seq, wait, recorded, fresh)
        await run.ground.others_first()
        count_step(run, wait.name, wait.kind, "replayed")
        return _read(recorded.result, wait.what)


async def _come(run: JobRun, seq: int, wait: Wait, recorded: Recorded | None, fresh: bool) -> dict[str, Any]:
    if recorded is None and wait.kind == "sleep" and wait.seconds is not None:
        if wait.seconds > SHORT:
            await suspend(run, seq, wait)
        await run.ground.sessions.pause(wait.seconds)
        await run.store(seq, wait.name, '{"timeout":true}')
        count_step(run, wait.name, wait.kind, "succeeded")
        return {"timeout": True}
    while not (recorded is None and fresh):  # also a sleep_until(), whose moment may have passed
        call = protocol.proceed(run.job_id, run.job.token, run.history.seen, seq, wait.name, wait.kind, wait.key)
        answer, result, left = await run.ask(call)
        if answer == "lost":
            run.end(ClaimLost("proceed"))
        if answer != "wait":
            count_step(run, wait.name, wait.kind, "succeeded")
            run.stored(seq, answer == "cancel")
            return _read(result, wait.what)
        if left is None or left > SHORT:
            break
        await run.ground.sessions.pause(max(0.0, left))
    return await suspend(run, seq, wait)


async def suspend(run: JobRun, seq: int, wait: Wait) -> NoReturn:
    """Leave the worker."""
    await run.flush()
    failpoint("suspend.before")
    detail = {"seq": seq, "name": wait.name, "kind": wait.kind, "key": wait.key, "seconds": wait.seconds}
    run.unwind(Settlement(run.job, "suspend", None, run.history.seen, msgspec.json.encode(detail).decode()))


def _read(text: str | None, what: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError) as error:  # SQL may have sent what JSON allows and Python cannot read
        raise BadValue(f"what came for {what} cannot be read: {error}") from None
    return value


def value_of(came: dict[str, Any], wait: Wait) -> Any:
    """The value of an event or a message. WaitTimeout if it did not come."""
    if "timeout" in came:
        raise WaitTimeout(f"{wait.what} did not come within {wait.seconds:g} s")
    return came["value"]


def result_of(ending: dict[str, Any], job: str, name: str, codec: Codec, seq: int) -> Any:
    """The result of a job that has ended, or the error that its end is."""
    where = f"job {job} ({name})" if name else f"job {job}"
    if ending["status"] == "succeeded":
        return codec.decode(msgspec.json.encode(ending["result"]).decode(), f"the result of {where}")
    if ending["status"] == "failed":
        raise JobFailed(ending["error"], where, seq)
    if ending["status"] == "cancelled":
        raise JobCancelled(f"{where} was cancelled", seq)
    raise UnknownJob(f"there is no {where}: it was pruned, or never enqueued")


async def job_result(run: JobRun, seq: int, job: str, codec: Codec) -> Any:
    """What ``job.result()`` does in a workflow."""
    if job == run.job_id:
        raise OutsideJob(f"job {job} asks for its own result, which is what it returns: it would wait for ever")
    ending = await wait(run, seq, Wait("job", job, None, f"the result of job {job}"))
    return result_of(ending, job, "", codec, seq)


async def patched(run: JobRun, name: str) -> bool:
    """Is this the new code? True is noted, so that a replay says the same. Not where an older run has gone on from here."""
    run.check_free("patched()")
    marker = f"pgqueue.patched:{name}"
    following = await run.peek()
    if following is not None and following.name != marker:
        return False
    seq = run.history.give()
    with run.inside(seq):
        [recorded] = await run.find([Wanted(seq, marker, frozenset({marker}))])
        if recorded is None:
            await run.store(seq, marker, "true")
    return True


async def child_results(run: JobRun, parent: str, seq: int) -> dict[int, str]:
    """The results, as JSON, of the children of a step that succeeded."""
    results: dict[int, str] = {}
    after = -1
    while True:
        page = await run.ask(protocol.children(parent, seq, after))
        if not page:
            return results
        results.update(page)
        after = page[-1][0]


def read_failure(error: Any) -> dict[str, Any]:
    """The description of an error, which may be of any shape where SQL wrote it."""
    return error if isinstance(error, dict) else read_error(str(error))
