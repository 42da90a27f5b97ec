"""The one error tree of pgqueue. Every message says what happened and what to do next."""

from __future__ import annotations

from typing import Any


class PgQueueError(Exception):
    """Base of all errors that pgqueue raises to its users."""


class NotConfigured(PgQueueError):
    """No database was named: neither ``App(dsn)`` nor ``PGQUEUE_DSN`` nor variables of libpq."""


class DatabaseUnreachable(PgQueueError):
    """The database does not answer, or refuses us. The message carries no password."""


class SchemaMissing(PgQueueError):
    """The database has no pgqueue schema, or an older one than this version needs: run ``pgqueue migrate``."""


class NotPermitted(PgQueueError):
    """The database role that asks may not do this. See ``pgqueue grant``."""


class UnknownWorkflow(PgQueueError):
    """Nobody registered a workflow of that name, and no queue was given."""


class UnknownQueue(PgQueueError):
    """A queue that was never declared."""


class UnknownSchedule(PgQueueError):
    """There is no schedule of that name."""


class UnknownJob(PgQueueError):
    """There is no job with that id (or it was pruned)."""


class IdConflict(PgQueueError):
    """A job with that id exists already, with another name or input."""


class UniqueConflict(PgQueueError):
    """There is a job already of which there may be only one, and the producer asked for an error then; or an ended job cannot run
    again, because another is the one of its kind now."""


class BadValue(PgQueueError, ValueError):
    """A value cannot be stored and read back unchanged; the message says which and where."""


class ValueTooLarge(BadValue):
    """An input or result over the size limit (1 MiB unless configured)."""


class TransactionMisused(PgQueueError):
    """A step tried to end the transaction that it was given."""


class OutsideJob(PgQueueError):
    """Something that only works inside a running job was called outside of one, or in a thread that has none."""


class WrongColour(PgQueueError):
    """A ``def`` function was called where it would block the event loop, or an ``async def`` one where nobody could await it."""


class NonDeterministic(PgQueueError):
    """A workflow called another step than the one its checkpoint was stored for: its code has changed."""


class Configuration(PgQueueError):
    """A module, an App or a setting cannot be used as given."""


class TransactionTimeout(PgQueueError):
    """The server ended a transaction that was silent for too long (``idle_timeout``), or took too long. A failed try, as any."""


class ResultTimeout(PgQueueError, TimeoutError):
    """The job did not end within the time that ``result(timeout=...)`` allowed. It goes on."""


class _Ended(PgQueueError):
    """An error read back from the database: never an object of the original class, only its description."""

    def __init__(self, description: dict[str, Any], where: str) -> None:
        self.type: str = str(description.get("type", "Exception"))
        self.message: str = str(description.get("message", ""))
        self.traceback: str = str(description.get("traceback", ""))
        super().__init__(f"{where} failed: {self.type}: {self.message}")


class StepFailed(_Ended):
    """A step used up its attempts. Raised in the workflow, the same on every replay.

    ``type``, ``message`` and ``traceback`` describe the original error; ``seq`` is the number of the step.
    """

    def __init__(self, description: dict[str, Any], name: str, seq: int) -> None:
        super().__init__(description, f"step {seq} ({name})")
        self.seq = seq


class JobFailed(_Ended):
    """A job failed whose result was asked for, by ``job.result()`` or by the workflow whose child it is.

    ``type``, ``message``, ``traceback`` describe its error.
    """

    def __init__(self, description: dict[str, Any], where: str, seq: int | None = None) -> None:
        super().__init__(description, where)
        self.seq = seq  # the step of the workflow that waited for it


class JobCancelled(PgQueueError):
    """A job was cancelled whose result was asked for."""

    def __init__(self, message: str, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class StepTimeout(PgQueueError, TimeoutError):
    """A try of a step took longer than its ``timeout``."""


class JobTimeout(PgQueueError, TimeoutError):
    """A job took longer than its ``timeout``, which includes the time that it slept or waited."""


class WaitTimeout(PgQueueError, TimeoutError):
    """What a workflow waited for (an event, a message) did not come in time. The same on every replay."""


class Cancel(Exception):  # an instruction, not an error
    """Raise it in a job to end it for good, without further attempts: ``raise Cancel("bad address")``."""


class Snooze(Exception):  # an instruction, not an error
    """Raise it in a step or a job to have it run again later, which is no failure and uses no attempt: ``raise Snooze("1m")``."""

    def __init__(self, delay: Any) -> None:
        from pgqueue.retry import seconds

        super().__init__(delay)
        self.delay = seconds(delay)  # what is no duration is an error here, where it was written


class ClaimLost(BaseException):
    """This run no longer holds its job: another worker does, or it has ended. Nothing more it does can be stored.

    A BaseException, so that ``except Exception`` in user code does not carry a lost run on. ``op`` is what was refused.
    """

    def __init__(self, op: str = "fence") -> None:
        super().__init__()
        self.op = op


#: SQLSTATEs of pgqueue's own functions (see sql/functions) and what they become in Python.
BY_SQLSTATE: dict[str, type[PgQueueError]] = {
    "PQ001": UnknownWorkflow,
    "PQ002": UnknownQueue,
    "PQ003": IdConflict,
    "PQ004": BadValue,
    "PQ005": ValueTooLarge,
    "PQ006": UnknownJob,
    "PQ007": PgQueueError,
    "PQ008": TransactionMisused,
    "PQ009": PgQueueError,
    "PQ010": UnknownSchedule,
    "PQ011": UniqueConflict,
    "22P05": BadValue,  # \u0000 in JSON
    "22P02": BadValue,  # not JSON, or a lone surrogate
    "3F000": SchemaMissing,
    "42P01": SchemaMissing,
    "42501": NotPermitted,
    "42883": SchemaMissing,
}
