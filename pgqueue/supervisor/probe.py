"""The first child: can this App be worked for at all? It imports the App and asks the database, so that one clear message and
exit code come out, and not one from every worker; and it tells the supervisor what the housekeeper needs to know."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import msgspec

from pgqueue import database
from pgqueue.config import Exit, WorkSettings
from pgqueue.context import process
from pgqueue.errors import Configuration, DatabaseUnreachable, NotConfigured, NotPermitted, SchemaMissing
from pgqueue.loading import load_app
from pgqueue.logs import hide
from pgqueue.settings import work_settings
from pgqueue.worker.process import served_queues

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What the probe found out."""

    dsn: str
    queues: list[str]
    settings: WorkSettings  # with what the App says, and what the file says now


def probe(settings: WorkSettings, answer: int) -> int:
    """Write the Facts to the descriptor ``answer``. The exit code: 0, or why not."""
    try:
        process.role = "probe"
        app = load_app(settings.target)
        settings = work_settings(settings.target, settings.typed, settings.burst, app)
        queues = served_queues(app, settings.queues)
        if not app.functions:
            log.warning("%s has no workflows, steps or transactions: is its module complete?", settings.target)
        dsn = settings.dsn or app.dsn
        hide(dsn)
        with database.connect(dsn, "pgqueue:probe") as conn, database.errors_translated():
            database.check_schema(conn)
            database.run(conn, app.registration())
    except (Configuration, NotConfigured, NotPermitted, SchemaMissing) as error:
        log.error("%s", error)
        return Exit.CONFIG
    except DatabaseUnreachable as error:
        log.error("%s", error)
        return Exit.UNREACHABLE
    os.write(answer, msgspec.json.encode(Facts(dsn, queues, settings)))
    return Exit.OK


def read_facts(data: bytes) -> Facts:
    """What the probe wrote."""
    return msgspec.json.decode(data, type=Facts)
