"""Among the jobs of a queue that a claim can see: priority first, then position."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgqueue import App
from tests.support import Hand

priorities = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    app = App(dsn)

    @app.step(name="noop")
    def noop() -> None: ...

    yield app
    app.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=priorities, second=priorities, amount=st.integers(1, 12))
def test_priority_then_position(app: App, dsn: str, first: list[int], second: list[int], amount: int) -> None:
    """Two producers, claims of any size in between: each claim takes the best of what it could see."""
    hand = Hand(app, dsn)
    noop = app.functions["noop"]
    present: list[tuple[int, int, str]] = []
    count = 0
    for batch in (first, second):
        jobs = app.enqueue_many([noop.options(priority=priority).call() for priority in batch])
        for priority, job in zip(batch, jobs, strict=True):
            present.append((priority, count, job.id))
            count += 1
        present.sort()
        expected, present = present[:amount], present[amount:]
        assert [claimed.id for claimed in hand.claim(amount)] == [job_id for _, _, job_id in expected]
    hand.claim(1000)
    hand.close()
