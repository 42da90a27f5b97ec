"""For ``--reload``: has one of the files changed that the application was imported from? For development: it reads directories
every time it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable

SETTINGS_FILES = ("pgqueue.toml", "pyproject.toml")


class Sources:
    """All Python files beside those that were imported, so that modules are seen too that are only imported later."""

    def __init__(self, directories: Iterable[str]) -> None:
        self._directories = list(directories)
        self._seen = self._look()

    def have_changed(self) -> bool:
        """Since the last time."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> dict[str, int]:
        found = {}
        for directory in {*self._directories, os.curdir}:
            try:
                for entry in os.scandir(directory):
                    if entry.name in SETTINGS_FILES or (entry.name.endswith(".py") and directory != os.curdir):
                        found[entry.path] = entry.stat().st_mtime_ns
            except OSError:
                continue  # it is gone, or going
        return found
