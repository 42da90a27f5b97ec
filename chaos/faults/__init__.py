"""The faults, one file each: ``BROKEN`` says what is broken how, ``EXPECTED`` what must come of it, ``SEEN_BY`` which oracles
would show it otherwise. ``inject(arena, chance)`` breaks it in a round that is under way, and has mended it when it returns: what
was done, in words, or None where there was nothing to break.

``LANE``: faults of different lanes happen at the same time, those of one lane one after the other. ``NEEDS``: what a server of
somebody else, or an ordinary user, does not give.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from chaos.arena import Arena
from chaos.server import Server

OWN_SERVER = "a server that the suite has started itself"
ROOT = "root"


@dataclass(frozen=True)
class Fault:
    """One of F1 to F23."""

    number: str
    title: str
    broken: str
    expected: str
    seen_by: tuple[str, ...]
    lane: str
    needs: tuple[str, ...]
    inject: Callable[[Arena, random.Random], str | None]

    def left_out(self, server: Server) -> str | None:
        """Why it cannot be done here; None if it can."""
        if OWN_SERVER in self.needs and not server.own:
            return f"it needs {OWN_SERVER}"
        if ROOT in self.needs and os.geteuid() != 0:
            return f"it needs {ROOT}"
        return None


@cache
def faults() -> dict[str, Fault]:
    """All, by their number."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        number, _, title = info.name.partition("_")
        number = f"F{int(number[1:])}"
        found[number] = Fault(
            number,
            title.replace("_", " "),
            " ".join(module.BROKEN.split()),
            " ".join(module.EXPECTED.split()),
            module.SEEN_BY,
            module.LANE,
            getattr(module, "NEEDS", ()),
            module.inject,
        )
    return found
