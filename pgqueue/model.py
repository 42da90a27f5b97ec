"""The vocabulary in types: what a worker is given, what it answers, what a producer asks for. No behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pgqueue.retry import Duration, seconds

Kind = Literal["workflow", "step", "transaction"]
Isolation = Literal["read committed", "repeatable read", "serializable"]
How = Literal["succeeded", "failed", "cancelled", "retry", "release", "suspend", "nothing"]
State = Literal["ready", "scheduled", "running", "waiting", "succeeded", "failed", "cancelled"]

ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
LANES = 20
"""Two for each of the ten priorities: jobs that come back, and behind them fresh ones."""


@dataclass(frozen=True)
class Rate:
    """At most ``n + burst - 1`` starts in any time of this length, in the whole cluster, by the clock of the database. Without
    ``burst`` starts are evenly spaced; with it so many may come at once after a quiet time.

    >>> Rate(100, per="1m")
    Rate(n=100, per=60.0, burst=1)
    """

    n: int
    per: float  # seconds; may be given as any duration
    burst: int = 1

    def __init__(self, n: int, per: Duration, burst: int = 1) -> None:
        if not _whole(n) or not _whole(burst):
            raise ValueError(f"Rate({n!r}, per={per!r}, burst={burst!r}): n and burst are whole numbers from 1 to 1000000")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "per", seconds(per))
        object.__setattr__(self, "burst", burst)
        if not 0.001 <= self.per <= 31622400:
            raise ValueError(f"Rate(per={per!r}): from a millisecond to a year")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000


@dataclass(frozen=True)
class Queue:
    """A named stream of jobs. The queue ``default`` always exists.

    Limits hold in the whole cluster. ``concurrency``: so many jobs run at once (their costs, if they have any). ``per_key``: so
    many of one key; 1 runs the jobs of a key one after the other. ``rate``, ``rate_per_key``: so many begin in a time.
    ``fair_by``: the name of a parameter; whoever it says a job is for gets as much of the queue as everybody else in it.
    ``weights``: so many shares for those that have more than one: ``{"acme": 3}``. ``aging``: a job counts as much as one of the
    next priority that is so much younger.

    >>> Queue("mail", concurrency=20, rate=Rate(100, per="1m")).limits()
    {'concurrency': 20, 'rate': {'n': 100, 'per': 60.0, 'burst': 1}}
    """

    name: str
    concurrency: int | None = None
    rate: Rate | None = None
    per_key: int | None = None
    rate_per_key: Rate | None = None
    fair_by: str | None = None
    aging: Duration | None = None
    weights: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a queue: 1 to 128 letters, digits and _ . : -")
        for limit in ("concurrency", "per_key"):
            if getattr(self, limit) is not None and not _whole(getattr(self, limit)):
                raise ValueError(f"Queue({self.name!r}, {limit}={getattr(self, limit)!r}): a whole number from 1 to 1000000")
        for limit in ("rate", "rate_per_key"):
            if getattr(self, limit) is not None and not isinstance(getattr(self, limit), Rate):
                raise ValueError(f"Queue({self.name!r}, {limit}=...): give a Rate, such as Rate(100, per='1m')")

        for who, weight in (self.weights or {}).items():
            if not isinstance(who, str) or len(who) > 512 or not _whole(weight) or weight > 1000:
                raise ValueError(
                    f"Queue({self.name!r}, weights={{{who!r}: {weight!r}}}): a text, and a whole number from 1 to 1000"
                )
        if self.aging is not None and not 0.001 <= seconds(self.aging) <= 31622400:
            raise ValueError(f"Queue({self.name!r}, aging={self.aging!r}): from a millisecond to a year")

    def limits(self) -> dict[str, Any]:
        """What it declares, as the database stores it."""
        said = asdict(self)
        del said["name"]
        said["aging"] = None if self.aging is None else seconds(self.aging)
        return {limit: value for limit, value in said.items() if value is not None}


def chosen_limits(queue: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    """What an operator chooses of these limits of a queue, as the database takes it: None and 0 are said there."""
    known = [f.name for f in fields(Queue) if f.name != "name"]
    unknown = [limit for limit in limits if limit not in known]
    if unknown or not limits:
        raise TypeError(
            f"{f'{unknown[0]!r} is no limit of' if unknown else 'no limit is said for'} queue {queue!r}: {', '.join(known)}"
        )
    weights = limits.get("weights") or {}
    some = {**limits, "weights": {who: weight for who, weight in weights.items() if weight}}
    said = Queue(queue, **{limit: value or None for limit, value in some.items()}).limits()
    return {**limits, **said, **({"weights": dict(weights)} if weights else {})}


@dataclass(slots=True)
class ClaimedJob:
    """A job that this worker holds. ``(id, token)`` is the fence of everything it writes."""

    id: str
    token: int = field(repr=False)
    name: str
    input: str = field(repr=False)  # error reporters show what they meet
    queue: str
    lane: int
    policy: dict[str, Any] | None
    suspect: bool = False  # its last worker died
    seconds_left: float | None = None  # of its time limit, when it was claimed
    starts_at: float = 0.0  # by the monotonic clock: of a queue with a rate; not before that
    place: int = -1  # where shared memory remembers it
    waited: float | None = None  # seconds from when it was due to its begin; None: it is not its first run
    took: float | None = None  # seconds of this run; None: it has not begun
    ended: str | None = None  # how, where it ended with its own transaction

    @property
    def came_back(self) -> bool:
        """Did it run before? Fresh jobs have no history worth asking for."""
        return self.lane % 2 == 0


@dataclass(slots=True)
class Settlement:
    """How a claim ends (``nothing``: it has ended already).

    ``seen`` is the last checkpoint the run knows of; ``detail`` is JSON about what did not succeed."""

    job: ClaimedJob
    how: How
    result: str | None = field(default=None, repr=False)
    seen: int = 0
    detail: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Failure:
    """A job that has failed, as the parameter ``failure`` of what ``on_failure`` names.

    ``error`` has ``type``, ``message`` and ``traceback``; ``input`` is empty where it was larger than 256 KiB.
    """

    job_id: str
    name: str
    input: dict[str, Any]
    error: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a job is, by its own account: ``fraction`` from 0 to 1, a ``note``, and when it said so."""

    fraction: float | None
    note: str | None
    at: Any = field(compare=False)


@dataclass(frozen=True)
class StepRecord:
    """One checkpoint of a job, as ``job.steps()`` shows it."""

    seq: int
    name: str
    status: Literal["succeeded", "failed"]
    result: Any
    error: dict[str, Any] | None


@dataclass(frozen=True)
class AttemptRecord:
    """One run that did not succeed, or a requeue or rerun, as ``job.attempts()`` shows it.

    ``seq`` is the step; None: the job itself. ``by`` is who asked for a requeue or rerun, where that was said. The ``error`` of a
    rerun has the ``job_id`` of the new job.
    """

    kind: Literal["error", "crash", "timeout", "lost", "requeue", "rerun"]
    seq: int | None
    error: dict[str, Any] | None
    host: str | None
    ended_at: Any = field(compare=False)
    by: str | None = None
