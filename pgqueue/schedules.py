"""When a schedule is due, and what becomes of ticks that are late. No I/O and no clock: moments come in, moments go out, in UTC.

Cron expressions are read by cronsim, which does what Debian's cron does, also when the clocks change. It is imported when the
first of them is met. The App uses this at the door, and whoever ticks (housekeeper/ticks.py) to know which ticks are due.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Any, Literal, Protocol

Misfire = Literal["skip", "once", "all"]
MISFIRES: tuple[Misfire, ...] = ("skip", "once", "all")
MOST_TICKS = 1000
"""Of one call: the others follow in the next."""
LONGEST_CRON = 256
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEAST = timedelta(microseconds=1)


class Times(Protocol):
    """The moments at which a schedule is due."""

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Those behind this moment, the earliest first."""


@dataclass(frozen=True)
class Cron:
    """The moments of a cron expression in a time zone."""

    expression: str
    zone: tzinfo

    def after(self, moment: datetime) -> Iterator[datetime]:
        from cronsim import CronSim

        last = moment.astimezone(UTC)
        try:
            for local in CronSim(self.expression, moment.astimezone(self.zone)):
                found = local.astimezone(UTC)
                if found > last:  # in the hour that comes twice, cronsim may begin with the first time of it
                    last = found
                    yield found
        except OverflowError:  # the year 10000
            return


@dataclass(frozen=True)
class Every:
    """The moments of an interval, counted from 1970-01-01 00:00 UTC: the same ones after every restart."""

    interval: timedelta

    def after(self, moment: datetime) -> Iterator[datetime]:
        number = (moment - _EPOCH) // self.interval + 1
        try:
            while True:
                yield _EPOCH + number * self.interval
                number += 1
        except OverflowError:
            return


def zone_of(name: str) -> tzinfo:
    """A time zone by its name. ValueError where this machine does not know it."""
    from zoneinfo import ZoneInfo

    if name == "UTC":
        return UTC
    try:
        if name in ("localtime", "posixrules"):  # files of this machine: another host has other ones
            raise ValueError
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone that this machine knows: use a name such as 'Europe/London' "
            "(where there are none at all, install tzdata, with apt or pip)"
        ) from None


def times_of(cron: str | None, every: float | None, timezone: str) -> Times:
    """The moments of a schedule: either a cron expression, or an interval in seconds. ValueError for what cannot be one."""
    if (cron is None) == (every is None):
        raise ValueError("give either a cron expression, such as '0 9 * * mon-fri', or every='30s'")
    if every is not None:
        if timezone != "UTC":
            raise ValueError(f"timezone={timezone!r}: an interval has no time zone, it is counted in UTC")
        interval = timedelta(microseconds=round(every * 1_000_000))
        if not SHORTEST <= interval <= LONGEST:
            raise ValueError(f"every={every:g} s: from 1 second to 366 days")
        return Every(interval)
    return _cron(str(cron), zone_of(timezone))


def _cron(expression: str, zone: tzinfo) -> Cron:
    from cronsim import CronSim, CronSimError

    try:
        if len(expression) > LONGEST_CRON:
            raise ValueError(f"longer than {LONGEST_CRON} characters")
        CronSim(expression, _EPOCH)
    except (CronSimError, ValueError) as error:
        raise ValueError(
            f"{expression[:LONGEST_CRON]!r} is no cron expression: {error}. It has five fields (minute hour day month weekday), "
            "or six with the seconds in front"
        ) from None
    return Cron(expression, zone)


def following(times: Times, moment: datetime) -> datetime | None:
    """The first tick behind this moment. None: there is none any more."""
    return next(times.after(moment), None)


def latest(times: Times, first: datetime, end: datetime) -> datetime:
    """The last tick up to ``end``, where ``first`` is a tick up to there. Asks for few, however many lie in between."""
    found, beyond = first, end
    while (behind := following(times, found)) is not None and behind <= end:
        found = behind
        middle = found + (beyond - found) / 2
        candidate = following(times, middle)
        if candidate is not None and candidate <= end:
            found = candidate
        else:
            beyond = middle
    return found


def between(times: Times, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The ticks from ``begin`` to ``end``, both included."""
    return takewhile(lambda tick: tick <= end, times.after(begin - _LEAST))


@dataclass(frozen=True)
class Plan:
    """What to do about a schedule now."""

    ticks: list[datetime]  #: they get a job
    until: datetime  #: up to here everything is dealt with then
    next: datetime | None  #: the tick behind that
    missed: datetime | None = None  #: the last one of those that get none, because they are too late
    since: datetime | None = None  #: the first one of those; or the first one of those that a single job stands for


def plan(times: Times, done_until: datetime, now: datetime, misfire: Misfire, grace: float) -> Plan:
    """Which of the ticks behind ``done_until`` run now.

    Late ticks run as long as they are not later than ``grace`` seconds: that is a slow moment, and no misfire. If the first of
    them is later than that, ``once`` makes one job for all that are due, ``skip`` leaves out those that are too late, and ``all``
    leaves out none. More than MOST_TICKS are done in several calls, the oldest first.
    """
    first = following(times, done_until)
    if first is None or first > now:
        return Plan([], done_until, first)
    on_time = now - timedelta(seconds=grace)
    begin, missed, since = done_until, None, None
    if first < on_time and misfire == "once":
        last = latest(times, first, now)
        return Plan([last], last, following(times, last), since=first if first < last else None)
    if first < on_time and misfire == "skip":
        begin = on_time - _LEAST
        missed, since = latest(times, first, begin), first
    ticks = list(islice(takewhile(lambda tick: tick <= now, times.after(begin)), MOST_TICKS))
    until = ticks[-1] if ticks else begin
    return Plan(ticks, until, following(times, until), missed, since)


@dataclass(frozen=True)
class Declared:
    """A schedule as the App declares it."""

    name: str
    workflow: str
    cron: str | None
    every: float | None  #: seconds
    timezone: str
    input: str  #: JSON
    queue: str | None
    priority: int | None
    misfire: Misfire
    grace: float  #: seconds
    overlap: bool

    def description(self) -> dict[str, Any]:
        """As ``register_schedules`` takes it."""
        return vars(self)


def dispute(name: str, other: str | None) -> tuple[str, str]:
    """What is wrong where a schedule of an App is that of another App too, or (None) of an operator; and what to do."""
    if other is None:
        return (
            f"schedule {name} is one that an operator has made: what this App declares under that name is ignored",
            f"give that of the App another name, or drop the operator's: select pgqueue.drop_schedule('{name}')",
        )
    return (
        f"schedule {name} is declared by the App {other} too: whichever is registered last has it, and the other one has none",
        "give one of them another name; where that App is this one under its former name, all is well",
    )


@dataclass(frozen=True)
class Due:
    """A schedule that is due, as the database knows it."""

    name: str
    revision: int
    cron: str | None
    every: float | None
    timezone: str
    misfire: Misfire
    grace: float
    done_until: datetime

    @property
    def times(self) -> Times:
        """ValueError where this machine cannot tell."""
        return times_of(self.cron, self.every, self.timezone)
