"""Where and how this process was started, so that it can be done again after a deployment."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Home:
    """The directory and the command line of the start. The directory as it was called then: a release is often a symbolic link,
    and leads elsewhere after the next deployment."""

    def __init__(self) -> None:
        called = os.environ.get("PWD", "")
        try:
            same = os.path.samefile(called, os.curdir)
        except OSError:
            same = False
        self.directory = called if same else os.getcwd()

    def enter(self) -> None:
        """Go there."""
        try:
            os.chdir(self.directory)
        except OSError as error:
            log.warning("cannot go to %s: %s", self.directory, error.strerror)

    def command(self, *more: str) -> list[str]:
        return [sys.executable, *sys.orig_argv[1:], *more]

    def execute_again(self, variables: Mapping[str, str]) -> None:
        """Become a fresh interpreter. Does not return. ``variables``: to be in the environment once more."""
        self.enter()
        os.execve(sys.executable, self.command(), {**os.environ, **variables})  # noqa: S606 -- ourselves
