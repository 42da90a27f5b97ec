"""The fixtures that pytest offers wherever pgqueue is installed.

pytest imports this module in every run, so it imports nothing of pgqueue before one of its fixtures is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.testing.fixture import PgQueueFixture

NO_APP = """the fixture "pgqueue" does not know your App. Say which one it is in conftest.py:

    @pytest.fixture(scope="session")
    def pgqueue_app():
        from shop.tasks import app
        return app
"""


@pytest.fixture(scope="session")
def pgqueue_app() -> App:
    """The App under test. Yours to override: there is no other way to know it."""
    pytest.fail(NO_APP, pytrace=False)


@pytest.fixture(scope="session")
def pgqueue_server() -> Iterator[str]:
    """The DSN of a server on which databases may be created: PGQUEUE_TEST_DSN, or an embedded one for this session."""
    from pgqueue.testing.databases import server

    with server(os.environ.get("PGQUEUE_TEST_DSN")) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def pgqueue_template(pgqueue_server: str) -> Iterator[str]:
    """The DSN of a database with the schema of pgqueue, made once per session and copied for each test."""
    from pgqueue.testing.databases import template

    with template(pgqueue_server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def pgqueue_schema(pgqueue_template: str) -> None:
    """What else the template holds: nothing. Override it to create the application's own tables there."""


@pytest.fixture
def pgqueue(
    pgqueue_app: App,
    pgqueue_server: str,
    pgqueue_template: str,
    pgqueue_schema: None,  # noqa: ARG001 -- asked for, so that the template is complete before it is copied
) -> Iterator[PgQueueFixture]:
    """A fresh database for this test, in which the App works meanwhile; what is enqueued there, and running it."""
    from pgqueue.app import App
    from pgqueue.testing.databases import copied
    from pgqueue.testing.fixture import PgQueueFixture

    if not isinstance(pgqueue_app, App):
        pytest.fail(f"the fixture pgqueue_app has to return a pgqueue App, not {pgqueue_app!r}", pytrace=False)
    with copied(pgqueue_server, pgqueue_template) as dsn, PgQueueFixture(pgqueue_app, dsn, pgqueue_server) as fixture:
        yield fixture
