"""Plans: which rounds there are, how large, and how often each fault strikes. They are data, in chaos/plans/*.toml.

A *storm* lets faults strike a host of jobs at random moments, which follow from the seed. *One by one* waits for the recovery
from each before the next, and takes the time. *Cases* are faults at one place each. *Cuts* break the connection at every message
of a workflow.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.arena import Setup

PLANS = Path(__file__).parent / "plans"
KINDS = ("storm", "one by one", "cases", "cuts")
#: What those are that name no faults: a kill, a stop and a lost session at each place; a cut at each message.
OF_THE_KIND = {"cases": frozenset({"F1", "F3", "F7"}), "cuts": frozenset({"F5"})}


@dataclass(frozen=True)
class Round:
    """One entry of a plan."""

    kind: str
    name: str
    seconds: float = 30.0  # of a storm, until the faults stop
    every: dict[str, float] = field(default_factory=dict)  # of each fault: seconds between two, on average
    times: dict[str, int] = field(default_factory=dict)  # or one at a time: how many of each (chaos/one_by_one.py)
    setup: Setup = field(default_factory=Setup)
    proxy: bool = False  # one host more, which works through a proxy that breaks its connections
    pooler: bool = False  # and one behind PgBouncer, where that is installed
    only: tuple[str, ...] = ()  # of cases and cuts: these
    sample: int = 0  # so many of them, by the seed; 0: all
    pairs: int = 0  # of cases: so many pairs besides

    @property
    def faults(self) -> frozenset[str]:
        """All that it can inject."""
        return frozenset(self.every) | frozenset(self.times) | OF_THE_KIND.get(self.kind, frozenset())


@dataclass(frozen=True)
class Plan:
    """What to do."""

    name: str
    minutes: float  # as long as storms are repeated, unless somebody says otherwise; 0: each round once
    rounds: tuple[Round, ...]


def names() -> list[str]:
    """Of all plans."""
    return sorted(path.stem for path in PLANS.glob("*.toml"))


def read(name: str) -> Plan:
    """A plan by its name. ValueError where it says what it cannot mean."""
    said = tomllib.loads((PLANS / f"{name}.toml").read_text())
    return Plan(name, float(said.get("minutes", 0)), tuple(_round(entry) for entry in said["round"]))


def _round(said: dict[str, Any]) -> Round:
    entry = dict(said)
    if entry["kind"] not in KINDS:
        raise ValueError(f"a round of the kind {entry['kind']!r}: use one of {', '.join(KINDS)}")
    setup = Setup(load=entry.pop("load", {}), **entry.pop("setup", {}))
    return Round(setup=setup, every=entry.pop("faults", {}), only=tuple(entry.pop("only", ())), **entry)
