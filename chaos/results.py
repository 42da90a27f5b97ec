"""What came of a round, and of a whole run, in figures."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from chaos.arena import Arena
from chaos.one_by_one import FROZEN, HOST, SERVER, WORKER
from chaos.oracles import plain_steps
from chaos.server import Server
from chaos.verdicts import Verdict
from pgqueue._version import __version__


@dataclass
class Result:
    """Of one round. Times are in seconds."""

    kind: str
    name: str
    seed: str
    seconds: float = 0.0
    injected: dict[str, int] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)  # by the timetable
    empty: dict[str, int] = field(default_factory=dict)  # of these: there was nothing to break
    events: list[tuple[float, str, str]] = field(default_factory=list)
    jobs: int = 0
    step_commits: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # SIGKILLs, pauses, crashes ...
    #: Of each job that somebody held who was broken; and the first job after the server accepted connections again.
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)  # what is promised of some of these
    drained: float = 0.0  # from the end of the faults until everything had ended
    lost_commits: list[int] = field(default_factory=list)
    throughput: list[tuple[int, int]] = field(default_factory=list)  # second, step commits in it
    attempts: dict[str, int] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)  # of cases and cuts: how many of which kind
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """All that any oracle found."""
        return [f"{name}: {what}" for name, verdict in self.verdicts.items() for what in verdict.wrong]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``, without the single events."""
        return {key: value for key, value in asdict(self).items() if key not in ("events", "recoveries", "throughput")}


SUITE = "suite"  # the verdict about the suite itself
#: What of the faults is counted apart, whichever fault it was.
COUNTED = (
    "SIGKILLs",
    "pauses",
    "PostgreSQL crashes",
    "PostgreSQL restarts",
    "lossy failovers",
    "restores",
    "failovers without loss",
    plain_steps.AGAIN,
    plain_steps.LATE,
)
RECOVERIES = {
    WORKER: "one worker killed",
    HOST: "one host killed",
    SERVER: "PostgreSQL crashed: the first job",
    FROZEN: "a host frozen in a transaction",
    "worker": "in a storm: killed worker",
    "supervisor": "killed supervisor",
    "host": "frozen or killed host",
    "server": "PostgreSQL away: the first job",
    "wire": "cut connection: the job ended",
}

_AFTERWARDS = """
SELECT extract(epoch FROM min(h.at))::float8 FROM claim_history h
 WHERE h.job_id = ANY (%s::uuid[]) AND h.event = '1 claimed' AND h.at > to_timestamp(%s) GROUP BY h.job_id
"""
_FIRST = "SELECT extract(epoch FROM min(at))::float8 FROM claim_history WHERE event = '1 claimed' AND at > to_timestamp(%s)"
_THROUGHPUT = """
SELECT floor(extract(epoch FROM at) - %s)::int, count(*) FROM claim_history WHERE event = '2 stored a step' GROUP BY 1 ORDER BY 1
"""


def measured(arena: Arena, name: str, seed: str) -> Result:
    """The figures of a storm."""
    ask = arena.chaos.query
    result = Result("storm", name, seed, time.time() - arena.began, dict(arena.injected), events=arena.events)
    result.empty = dict(arena.empty)
    [(result.jobs, result.step_commits)] = ask(
        "SELECT (SELECT count(*) FROM pgqueue.outcome), (SELECT count(*) FROM pgqueue.checkpoint)"
    )
    result.counts = dict(arena.counts)
    result.bounds = arena.bounds
    for loss in arena.losses:
        moments = [row[0] - loss.at for row in ask(_AFTERWARDS, loss.jobs, loss.at)]
        result.recoveries.setdefault(loss.kind, []).extend(moments)
    for kind, moment in arena.accepted:
        [(first,)] = ask(_FIRST, moment)
        if first is not None and first < arena.calm:
            result.recoveries.setdefault(kind, []).append(first - moment)
    result.drained = arena.drained
    result.lost_commits = arena.lost_commits
    result.throughput = [(second, count) for second, count in ask(_THROUGHPUT, arena.began)]
    result.attempts = dict(Counter(row[0] for row in ask("SELECT kind FROM pgqueue.attempts")))
    return result


@dataclass
class Report:
    """Of a whole run."""

    plan: str
    seed: int
    began: float
    versions: dict[str, str]
    left_out: dict[str, str]
    seconds: float = 0.0
    rounds: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # rounds of the plan that did not run, and why

    @classmethod
    def begun(cls, plan: str, seed: int, server: Server, left_out: dict[str, str], began: float) -> Report:
        """Now, on this machine and this server."""
        with psycopg.connect(server.dsn) as conn:
            postgres = str(conn.info.parameter_status("server_version"))
        versions = {
            "pgqueue": __version__,
            "PostgreSQL": postgres,
            "data": server.place,
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processors": str(os.cpu_count()),
        }
        return cls(plan, seed, began, versions, left_out)

    def add(self, result: Result) -> None:
        """One more round."""
        self.rounds.append(result)
        self.seconds = time.time() - self.began

    @property
    def good(self) -> bool:
        """Was anything broken, and has no oracle found anything?"""
        return not self.broken and self.unproven is None

    @property
    def broken(self) -> bool:
        """Has any oracle found something? (What went wrong in the suite itself is no promise of pgqueue's.)"""
        return any(verdict.wrong for name, verdict in self.verdicts().items() if name != SUITE)

    @property
    def unproven(self) -> str | None:
        """Why it proves nothing that no oracle has found anything; None where it does."""
        if not self.rounds:
            return "no round ran"
        if wrong := self.verdicts().get(SUITE, Verdict([])).wrong:
            return f"the suite itself failed: {wrong[0][:200]}"
        if not self.injected() and not self.totals()["cases"]:
            return "not one fault was injected"
        return None

    def injected(self) -> dict[str, int]:
        """How often each fault was."""
        return self._sum(result.injected for result in self.rounds)

    def planned(self) -> dict[str, int]:
        """How often each was to be, by the timetables of the rounds that ran."""
        return self._sum(result.planned for result in self.rounds)

    def empty(self) -> dict[str, int]:
        """How often each came and found nothing to break."""
        return self._sum(result.empty for result in self.rounds)

    def missed(self) -> list[str]:
        """The faults of the plan that did not happen once."""
        return [fault for fault in self.planned() if not self.injected().get(fault)]

    def _sum(self, counts: Iterable[dict[str, int]]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for of_a_round in counts:
            total.update(of_a_round)
        return dict(sorted(total.items(), key=lambda item: int(item[0][1:])))

    def recoveries(self, kind: str) -> list[float]:
        """Of all rounds, sorted."""
        return sorted(seconds for result in self.rounds for seconds in result.recoveries.get(kind, ()))

    def bounds(self) -> dict[str, float]:
        """What is promised of recoveries from one fault at a time, in seconds."""
        return {kind: seconds for result in self.rounds for kind, seconds in result.bounds.items()}

    def verdicts(self) -> dict[str, Verdict]:
        """Of each oracle over all rounds: all that it found; judged if it was in any."""
        found: dict[str, Verdict] = {}
        for number, result in enumerate(self.rounds):
            for name, verdict in result.verdicts.items():
                before = found.get(name, Verdict([], verdict.note, judged=False))
                wrong = [*before.wrong, *(f"round {number}: {what}" for what in verdict.wrong)]
                note = verdict.note if verdict.judged and verdict.note else before.note
                seen, needs = before.seen + verdict.seen, before.needs or verdict.needs
                judged, most = before.judged or verdict.judged, max(before.most, verdict.most)
                found[name] = Verdict(wrong, note, judged, seen, needs, most=most)
        return found

    def totals(self) -> dict[str, Any]:
        """The figures that people compare."""
        rounds = self.rounds
        counts = sum((Counter(result.counts) for result in rounds), Counter[str]())
        wrong = {name: len(verdict.wrong) for name, verdict in self.verdicts().items()}
        lost = sum((_lost(result) for result in rounds), Counter[str]())
        return {
            "jobs": sum(result.jobs for result in rounds),
            "step commits": sum(result.step_commits for result in rounds),
            **{name: counts[name] for name in COUNTED},
            "commits lost in failovers": sum(sum(result.lost_commits) for result in rounds),
            "cases": sum(sum(result.cases.values()) for result in rounds),
            "lost": lost["lost"],
            "doubled": lost["doubled"],
            "limit violations": sum(wrong.get(name, 0) for name in ("concurrency", "rates", "key order")),
            "findings of oracles": sum(wrong.values()),
        }

    def as_json(self, everything: bool = False) -> dict[str, Any]:
        """For ``--json``; with every event and every recovery for the pictures."""
        return {
            "plan": self.plan,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "good": self.good,
            "versions": self.versions,
            "left_out": self.left_out,
            "skipped": self.skipped,
            "unproven": self.unproven,
            "faults": self.injected(),
            "planned": self.planned(),
            "empty": self.empty(),
            **{name.replace(" ", "_"): value for name, value in self.totals().items()},
            "recovery": {kind: quantiles(self.recoveries(kind)) for kind in RECOVERIES},
            "promised": self.bounds(),
            "oracles": {name: asdict(verdict) for name, verdict in self.verdicts().items()},
            "rounds": [asdict(result) if everything else result.as_json() for result in self.rounds],
        }


def _lost(result: Result) -> Counter[str]:
    """The jobs and steps of a round that were lost or doubled; sentences, where nobody has counted them."""
    found: Counter[str] = Counter()
    for name, kind in (("conservation", "lost"), ("effects", "doubled")):
        if (verdict := result.verdicts.get(name)) is not None:
            found.update({kind: len(verdict.wrong)} if verdict.figures is None else verdict.figures)
    return found


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Of sorted values."""
    if not values:
        return None
    last = len(values) - 1
    return {
        "count": len(values),
        "p50": round(values[last // 2], 3),
        "p99": round(values[int(last * 0.99)], 3),
        "max": round(values[-1], 3),
    }
