"""The first child: can this App be worked for at all? It imports the App and asks the database, so that one clear message and
exit code come out, and not one from every worker; and it tells the supervisor what the housekeeper needs to know."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgqueue import database, protocol
from pgqueue.config import Exit, WorkSettings
from pgqueue.context import process
from pgqueue.errors import Configuration, DatabaseUnreachable, NotConfigured, NotPermitted, SchemaMissing
from pgqueue.loading import load_app
from pgqueue.logs import hide
from pgqueue.schedules import dispute
from pgqueue.settings import work_settings
from pgqueue.worker.preload import check_forkable
from pgqueue.worker.process import served_queues

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What the probe found out."""

    dsn: str
    database: str  # which one that leads to
    queues: list[str]
    settings: WorkSettings  # with what the App says, and what the file says now
    directories: list[str]  # that it was imported from


def probe(settings: WorkSettings, answer: int) -> int:
    """Write the Facts to the descriptor ``answer``. The exit code: 0, or why not."""
    try:
        process.role = "probe"
        app = load_app(settings.target)
        settings = work_settings(settings.target, settings.typed, settings.burst, app)
        if settings.preload:
            check_forkable(app)
        queues = [queue for level in served_queues(app, settings.queues) for queue in level]
        if not app.functions:
            log.warning("%s has no workflows, steps or transactions: is its module complete?", settings.target)
        dsn = settings.dsn or app.dsn
        hide(dsn, settings.listen_dsn)
        with database.connect(dsn, "pgqueue:probe") as conn, database.errors_translated():
            database.check_schema(conn)
            for name, other in database.run(conn, protocol.disputed_schedules(app.name, list(app.schedules))):
                log.warning("%s; %s", *dispute(name, other))
            database.run(conn, app.registration())
            found = database.run(conn, protocol.this_database())
    except (Configuration, NotConfigured, NotPermitted, SchemaMissing) as error:
        log.error("%s", error)
        return Exit.CONFIG
    except DatabaseUnreachable as error:
        log.error("%s", error)
        return Exit.UNREACHABLE
    os.write(answer, msgspec.json.encode(Facts(dsn, found, queues, settings, _directories())))
    return Exit.OK


def check_only(settings: WorkSettings) -> int:
    """For ``pgqueue work --check``: look, and do nothing else. The exit code."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    with open(os.devnull, "wb") as nowhere:
        return probe(settings, nowhere.fileno())


def _directories() -> list[str]:
    """Where the modules are from that are the user's own: neither Python's, nor installed, nor ours."""
    foreign = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
    files = [file for module in list(sys.modules.values()) if isinstance(file := getattr(module, "__file__", None), str)]
    own = [file for file in files if not os.path.abspath(file).startswith(foreign) and "-packages" + os.sep not in file]
    return sorted({os.path.dirname(os.path.abspath(file)) for file in own if file.endswith(".py")})


def read_facts(data: bytes) -> Facts:
    """What the probe wrote."""
    return msgspec.json.decode(data, type=Facts)
