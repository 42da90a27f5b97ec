"""What a workflow's body can do besides calling steps: wait, run things at once, tell new code from old.

Each is a function with a twin for ``async def`` workflows: ``sleep("3d")``, ``await sleep.aio("3d")``. Waiting holds no
process: the job leaves its worker, and when it goes on, its code runs again from its first line and comes back here. A ``with``
or ``finally`` around it is left when the job leaves, and entered again.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, overload

from pgqueue.context import Run, Wait, joined_run
from pgqueue.errors import BadValue, OutsideJob
from pgqueue.functions import Call
from pgqueue.retry import Duration, seconds
from pgqueue.values import Codec, key_text

T = TypeVar("T")
LAST_YEAR = 9999


def _run(what: str) -> Run:
    run = joined_run()
    if run is None:
        raise OutsideJob(f"{what} was called outside of a running job: it is for the body of a workflow")
    return run


class Sleep:
    """``sleep(duration)``: go on after so much time, however long. No process waits."""

    def __call__(self, duration: Duration) -> None:
        """Sleep in a workflow: seconds, a ``timedelta``, or a text such as ``"3d"``. OutsideJob elsewhere."""
        _run("sleep()").wait(self._wait(duration))

    def aio(self, duration: Duration) -> Coroutine[Any, Any, None]:
        """The same in an ``async def`` workflow, to be awaited."""
        return _run("sleep()").await_(self._wait(duration))

    @staticmethod
    def _wait(duration: Duration) -> Wait:
        return Wait("sleep", "", seconds(duration), "sleep()")


class SleepUntil:
    """``sleep_until(moment)``: go on at this moment, or at once if it has passed."""

    def __call__(self, moment: datetime) -> None:
        """Sleep in a workflow until this moment, which must have a time zone."""
        _run("sleep_until()").wait(self._wait(moment))

    def aio(self, moment: datetime) -> Coroutine[Any, Any, None]:
        """The same in an ``async def`` workflow, to be awaited."""
        return _run("sleep_until()").await_(self._wait(moment))

    @staticmethod
    def _wait(moment: datetime) -> Wait:
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            raise BadValue(f"sleep_until({moment!r}): give a datetime with a time zone, such as datetime.now(timezone.utc)")
        if moment.year >= LAST_YEAR:
            raise BadValue(f"sleep_until({moment!r}): before the year {LAST_YEAR}")
        return Wait("sleep", moment.astimezone(UTC).isoformat(), None, "sleep_until()")  # whose clock is the database's


class WaitEvent:
    """``wait_event(key)``: the value of an event, which ``send_event`` gives."""

    def __call__(self, key: str, timeout: Duration | None = None) -> Any:
        """Wait in a workflow until somebody has sent this event, before or after. WaitTimeout after ``timeout``."""
        return _run("wait_event()").wait(self._wait(key, timeout))

    def aio(self, key: str, timeout: Duration | None = None) -> Coroutine[Any, Any, Any]:
        """The same in an ``async def`` workflow, to be awaited."""
        return _run("wait_event()").await_(self._wait(key, timeout))

    @staticmethod
    def _wait(key: str, timeout: Duration | None) -> Wait:
        return Wait("event", key_text(key, "the key"), None if timeout is None else seconds(timeout), f"wait_event({key!r})")


class Receive:
    """``receive(topic)``: the next message that was sent to this job."""

    def __call__(self, topic: str, timeout: Duration | None = None) -> Any:
        """Wait in a workflow for the next message of this topic. Each is received once. WaitTimeout after ``timeout``."""
        return _run("receive()").wait(self._wait(topic, timeout))

    def aio(self, topic: str, timeout: Duration | None = None) -> Coroutine[Any, Any, Any]:
        """The same in an ``async def`` workflow, to be awaited."""
        return _run("receive()").await_(self._wait(topic, timeout))

    @staticmethod
    def _wait(topic: str, timeout: Duration | None) -> Wait:
        return Wait("message", key_text(topic, "the topic"), None if timeout is None else seconds(timeout), f"receive({topic!r})")


class Gather:
    """``gather(f.call(1), g.call(2), *h.map(xs))``: run calls at once, and have their results in the order of the arguments."""

    @overload
    def __call__(self, *calls: Call[T], return_exceptions: Literal[False] = False) -> list[T]: ...
    @overload
    def __call__(self, *calls: Call[T], return_exceptions: bool) -> list[T | BaseException]: ...
    def __call__(self, *calls: Call[Any], return_exceptions: bool = False) -> list[Any]:
        """Run calls at once in a workflow. Steps and transactions run in threads of this worker, up to ten at a time; workflows
        are children: jobs of their own, on any worker, and this job waits for them without holding a process.

        All are waited for. Then the first failure in the order of the arguments is raised (a step's StepFailed, a child's
        JobFailed or JobCancelled), or, with ``return_exceptions``, stands in its place.
        """
        return _run("gather()").gather(_checked(calls), return_exceptions)

    @overload
    def aio(self, *calls: Call[T], return_exceptions: Literal[False] = False) -> Coroutine[Any, Any, list[T]]: ...
    @overload
    def aio(self, *calls: Call[T], return_exceptions: bool) -> Coroutine[Any, Any, list[T | BaseException]]: ...
    def aio(self, *calls: Call[Any], return_exceptions: bool = False) -> Coroutine[Any, Any, list[Any]]:
        """The same in an ``async def`` workflow, to be awaited: its ``async def`` steps run as tasks."""
        return _run("gather()").agather(_checked(calls), return_exceptions)


def _checked(calls: Iterable[Any]) -> list[Call[Any]]:
    calls = list(calls)
    for call in calls:
        if not isinstance(call, Call):
            raise TypeError(f"gather takes calls, made with f.call(...) or f.map(...), not {call!r}")
    return calls


class Patched:
    """``if patched("name"):`` new code, ``else:`` the old one, for the jobs that were beyond this place before the change."""

    def __call__(self, name: str) -> bool:
        """Is this job to run the new code? True for one that comes here for the first time, and from then on."""
        return _run("patched()").patched(key_text(name, "the name"))

    def aio(self, name: str) -> Coroutine[Any, Any, bool]:
        """The same in an ``async def`` workflow, to be awaited."""
        return _run("patched()").apatched(key_text(name, "the name"))


class Stream:
    """``stream.write(value)``: values that ``job.stream()`` reads while the job runs."""

    def write(self, value: Any, name: str = "default") -> None:
        """Append a value to a stream of this job. In a transaction it is written if and only if that commits, and in the body of
        a workflow as a step of its own: exactly once. In a step it is sent within a second or so, and again if the step is.

        Errors: BadValue for what cannot be stored, ValueTooLarge above the limit (1 MiB); OutsideJob outside of a job.
        """
        _run("stream.write()").write(key_text(name, "the name of a stream"), _json(value))

    def awrite(self, value: Any, name: str = "default") -> Coroutine[Any, Any, None]:
        """The same in async code, to be awaited."""
        return _run("stream.awrite()").awrite(key_text(name, "the name of a stream"), _json(value))


def _json(value: Any) -> str:
    return _ANY.encode(value, "a value of a stream")


_ANY = Codec(Any)
sleep, sleep_until, wait_event, receive = Sleep(), SleepUntil(), WaitEvent(), Receive()
gather, patched, stream = Gather(), Patched(), Stream()
