"""Waiting for a condition, with a deadline: the one way in which tests and the chaos suite wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str | Callable[[], str], seconds: float = 60) -> T:
    """The condition's first true value. AssertionError after the deadline, which is ten times what is promised.

    ``what`` is waited for, in words; a function is asked when the deadline has passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
