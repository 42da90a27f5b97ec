"""When to try again: the retry policy of steps and jobs, and the notation for durations."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgqueue.errors import Cancel, TransactionMisused

log = logging.getLogger(__name__)

Duration = timedelta | float | str
"""A length of time: a timedelta, a number of seconds, or a text such as ``"90s"``, ``"10m"``, ``"1h30m"``, ``"7d"``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
MAX_SECONDS = 1000 * 366 * 86400.0


def seconds(duration: Duration) -> float:
    """The number of seconds in a duration.

    >>> seconds("1h30m"), seconds(timedelta(minutes=2)), seconds(0.5)
    (5400.0, 120.0, 0.5)
    >>> seconds("soon")
    Traceback (most recent call last):
    ValueError: 'soon' is not a duration: use seconds, a timedelta, or a text such as "90s", "10m", "1h30m", "7d"
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        text = duration.strip().replace(" ", "")
        if not _WHOLE.fullmatch(text):
            raise ValueError(
                f'{duration!r} is not a duration: use seconds, a timedelta, or a text such as "90s", "10m", "1h30m", "7d"'
            )
        value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    elif isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise TypeError(f"a duration is a timedelta, a number of seconds or a text such as '10m', not {duration!r}")
    else:
        value = float(duration)
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"the duration {duration!r} is negative or longer than 1000 years")
    return value


@dataclass(frozen=True)
class Retry:
    """How often a step is tried, and how long it waits in between.

    ``attempts``: runs in all, the first included. ``backoff``: the first wait, doubled each time up to ``cap``; the real
    wait is random between nothing and that (full jitter), unless ``jitter=False``. ``only`` / ``never``: exception classes
    worth (not worth) another try. ``retry_if``: is called with the error, and says whether it is worth one.

    >>> policy = Retry(3, backoff="2s", never=[ValueError])
    >>> policy.again(1, OSError()), policy.again(3, OSError()), policy.again(1, ValueError())
    (True, False, False)
    >>> Retry(5, backoff=2, jitter=False).wait(3)
    8.0
    """

    attempts: int = 5
    backoff: Duration = 2.0
    cap: Duration = 3600.0
    jitter: bool = True
    only: Sequence[type[BaseException]] = ()
    never: Sequence[type[BaseException]] = ()
    retry_if: Callable[[BaseException], bool] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"Retry(attempts={self.attempts!r}): at least 1, the first run counts")
        seconds(self.backoff), seconds(self.cap)
        for kind in (*self.only, *self.never):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"Retry(only=, never=) take exception classes, not {kind!r}")

    def again(self, failed: int, error: BaseException) -> bool:
        """Is another try due after ``failed`` failed ones, the last with this error?"""
        if isinstance(error, (Cancel, TransactionMisused, *self.never)) or (
            self.only and not isinstance(error, tuple(self.only))
        ):
            return False
        return failed < self.attempts and (self.retry_if is None or self._says_yes(self.retry_if, error))

    @staticmethod
    def _says_yes(retry_if: Callable[[BaseException], bool], error: BaseException) -> bool:
        try:
            return bool(retry_if(error))
        except Exception:  # what has failed is the step: its own error is what people want to read
            log.exception("retry_if raised an error about %s: the step is not tried again", type(error).__qualname__)
            return False

    def wait(self, failed: int) -> float:
        """Seconds to wait before the next try, after ``failed`` failed ones."""
        longest = min(seconds(self.cap), seconds(self.backoff) * 2.0 ** min(failed - 1, 60))
        return random.uniform(0, longest) if self.jitter else longest  # noqa: S311 -- spreading load, no secret

    def numbers(self) -> dict[str, Any]:
        """The part of the policy that can be stored with a job (exception classes live in code only)."""
        return {
            "attempts": self.attempts,
            "backoff": seconds(self.backoff),
            "cap": seconds(self.cap),
            "jitter": self.jitter,
        }


ONCE = Retry(1)
"""No second try: the default of workflows, whose steps have retries of their own."""
