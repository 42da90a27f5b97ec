"""What running jobs say of themselves: progress, and values for streams. Sent together, a few times a second, by a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import psycopg

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.errors import PgQueueError
from pgqueue.runtime.session import Restart, Sessions

log = logging.getLogger(__name__)

Claim = tuple[str, int]  # job and token

EVERY = 0.2  # seconds
MOST = 1000  # values of a job that wait here; with more, the job's code waits until they are sent


class Reports:
    """Of all jobs of one worker."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # one at a time, so that a stream keeps its order
        self._something = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: dict[Claim, tuple[float | None, str | None]] = {}
        self._values: dict[Claim, list[tuple[str, str]]] = {}  # (stream, JSON)

    def progress(self, claim: Claim, fraction: float | None, note: str | None) -> None:
        """How far a job is. What was said before and not sent yet is forgotten."""
        with self._lock:
            self._progress[claim] = (fraction, note)
            self._call()

    def write(self, claim: Claim, stream: str, value: str) -> bool:
        """Append to a stream. False: it is time to call flush()."""
        with self._lock:
            waiting = self._values.setdefault(claim, [])
            waiting.append((stream, value))
            self._call()
            return len(waiting) < MOST

    def _call(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pgqueue-reports", daemon=True)
            self._thread.start()
        self._something.set()

    def has(self, claim: Claim) -> bool:
        """Does anything of this job wait here?"""
        return claim in self._values or claim in self._progress or self._sending.locked()

    def flush(self, claim: Claim) -> None:
        """Send what this job has said. Blocks. Restart where the connection is lost: the job's run begins again."""
        with self._sending:
            with self._lock:
                progress, values = self._progress.pop(claim, None), self._values.pop(claim, [])
            if progress is not None:
                self._send_progress({claim: progress})
            self._send_values(claim, values)

    # ------------------------------------------------------------------------------------------- the thread

    def _serve(self) -> None:
        while True:
            self._something.wait()
            self._something.clear()
            with self._sending:
                self._send_all()
            time.sleep(EVERY)

    def _send_all(self) -> None:
        with self._lock:
            progress, self._progress = self._progress, {}
            values, self._values = self._values, {}
        try:
            self._send_progress(progress)
            for claim in list(values):
                self._send_values(claim, values[claim])
                del values[claim]
        except (Restart, psycopg.Error, PgQueueError) as error:
            log.warning("what jobs say of themselves could not be stored: %s", error.__cause__ or error)
            with self._lock:
                self._progress = progress | self._progress
                for claim, left in values.items():
                    self._values[claim] = left + self._values.get(claim, [])
                self._something.set()

    def _send_progress(self, progress: dict[Claim, tuple[float | None, str | None]]) -> None:
        if progress:
            blocking(self._sessions.run(protocol.report([(*claim, *said) for claim, said in progress.items()])))

    def _send_values(self, claim: Claim, values: Sequence[tuple[str, str]]) -> None:
        for stream in dict.fromkeys(name for name, _ in values):
            texts = [text for name, text in values if name == stream]
            blocking(self._sessions.run(protocol.write_stream(*claim, stream, texts)))
