"""One implementation for ``def`` and ``async def``: what does I/O here is written once, as coroutines.

The two colours differ in their lowest layer only (a session that blocks, or one that awaits). Where it blocks, a coroutine never
suspends, and ``blocking`` runs it like an ordinary function.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose I/O blocks.

    >>> async def double(n: int) -> int:
    ...     return 2 * n
    >>> blocking(double(21))
    42
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("something awaited in code that runs without an event loop")
