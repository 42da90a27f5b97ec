"""The threads of a round: its load, those who watch, those who start hosts again. The death of one is a finding."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable


class Threads:
    """Of one round. ``note`` writes to its log of events."""

    def __init__(self, findings: list[str], note: Callable[..., None]) -> None:
        self._findings = findings
        self._note = note
        self._all: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Do this in a thread. Who dies in there would be missed by nobody."""

        def watched() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 -- whatever it was
                self._findings.append(f"suite: the thread {name!r} died, and the rest of the round was without it: {error!r}")
                self._note("a thread of the suite has died", thread=name, trace=traceback.format_exc())

        thread = threading.Thread(target=watched, name=name, daemon=True)
        self._all.append(thread)
        thread.start()
        return thread

    def join(self, patience: float = 30.0) -> None:
        """The round is over: wait for all of them."""
        for thread in self._all:
            thread.join(patience)
            if thread.is_alive():
                self._findings.append(f"suite: the thread {thread.name!r} did not end in {patience:g} s")
