"""What a producer says of jobs of which there is to be only one: Unique and Debounce. What comes of it is up to the database (see
sql/functions/uniqueness.sql)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgqueue.errors import BadValue
from pgqueue.retry import Duration, seconds

OnConflict = Literal["return", "replace", "error"]


@dataclass(frozen=True)
class Unique:
    """There is one job at a time of a function and its arguments. A second enqueue is given the handle of the one that is there.

    ``by``: only these arguments count. ``key``: a text that counts besides those of ``by``, or without ``by`` instead of all.
    ``until``: "ended", or "started": from then on there may be another one; the job that is there does not begin before the
    transaction that was given its handle has ended, so it sees what that has written. ``within``: so long after it was
    enqueued, in place of ``until``, whatever becomes of it.

    ``on_conflict``: "return" the job that is there, "replace" it by the new one (it keeps its id, and has not begun: ``until`` is
    "started"), or raise UniqueConflict ("error").

    >>> Unique(by=["customer"], within="1h").description()
    {'by': ['customer'], 'within': 3600.0, 'on_conflict': 'return'}
    """

    by: Sequence[str] | None = None
    until: Literal["ended", "started"] | None = None
    within: Duration | None = None
    on_conflict: OnConflict = "return"
    key: str | None = None

    def __post_init__(self) -> None:
        _check_by(self.by, self.key)
        if self.until not in (None, "ended", "started"):
            raise ValueError(f"until={self.until!r}: 'ended' or 'started'")
        if self.on_conflict not in ("return", "replace", "error"):
            raise ValueError(f"on_conflict={self.on_conflict!r}: 'return', 'replace' or 'error'")
        if self.within is not None and (self.until is not None or self.on_conflict == "replace"):
            raise ValueError("within is in place of until, and a job that is unique for a time is not replaced")
        if self.on_conflict == "replace" and self.until == "ended":
            raise ValueError("a job that has begun is not replaced: leave out until='ended'")
        if self.within is not None and not 0.001 <= seconds(self.within) <= 31622400:
            raise ValueError(f"within={self.within!r}: from a millisecond to a year")

    def description(self) -> dict[str, Any]:
        """As ``enqueue_workflows`` takes it."""
        within = None if self.within is None else seconds(self.within)
        return _said(by=self.by, key=self.key, until=self.until, within=within, on_conflict=self.on_conflict)


@dataclass(frozen=True)
class Debounce:
    """There is one job that has not begun of a function and its arguments. Each enqueue replaces its input, and puts it off until
    nothing has come for ``delay``, but at most until ``at_most`` after the first one. ``by``, ``key``: as in Unique.

    >>> Debounce("30s", at_most="5m", by=["document"]).description()
    {'by': ['document'], 'delay': 30.0, 'at_most': 300.0}
    """

    delay: Duration
    at_most: Duration | None = None
    by: Sequence[str] | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        _check_by(self.by, self.key)
        if not 0.001 <= seconds(self.delay) <= 31622400:
            raise ValueError(f"delay={self.delay!r}: from a millisecond to a year")
        if self.at_most is not None and not seconds(self.delay) <= seconds(self.at_most) <= 31622400:
            raise ValueError(f"at_most={self.at_most!r}: from the delay to a year")

    def description(self) -> dict[str, Any]:
        """As ``enqueue_workflows`` takes it."""
        at_most = None if self.at_most is None else seconds(self.at_most)
        return _said(by=self.by, key=self.key, delay=seconds(self.delay), at_most=at_most)


Uniqueness = bool | Sequence[str] | Unique | Debounce
"""True: by all arguments. Names: by these. False: not unique, whatever the function says."""


def described(said: Uniqueness) -> dict[str, Any] | bool:
    """As ``enqueue_workflows`` takes it. TypeError for what cannot be meant."""
    if isinstance(said, (Unique, Debounce)):
        return said.description()
    if isinstance(said, bool):
        return said and Unique().description()
    if isinstance(said, str) or not isinstance(said, Sequence):
        raise TypeError(f"unique={said!r}: True, False, a list of parameters, Unique(...) or Debounce(...)")
    return Unique(by=said).description()


def counted(said: dict[str, Any] | bool, parameters: Collection[str]) -> Collection[str]:
    """The parameters that have to be the same. BadValue for one that the function does not have."""
    if isinstance(said, bool):
        return ()
    if "by" not in said:
        return () if "key" in said else parameters
    unknown = [name for name in said["by"] if name not in parameters]
    if unknown:
        raise BadValue(f"unique by {unknown[0]!r}, which is not a parameter: {', '.join(parameters) or 'there are none'}")
    by: list[str] = said["by"]
    return by


def _check_by(by: Any, key: Any) -> None:
    if by is not None and (isinstance(by, str) or not all(isinstance(name, str) for name in by)):
        raise TypeError(f"by={by!r}: a list of parameters")
    if key is not None and (not isinstance(key, str) or not 1 <= len(key.encode()) <= 512):
        raise ValueError(f"key={key!r}: a text of 1 to 512 bytes")


def _said(by: Sequence[str] | None, **said: Any) -> dict[str, Any]:
    return {name: value for name, value in {"by": None if by is None else list(by), **said}.items() if value is not None}
