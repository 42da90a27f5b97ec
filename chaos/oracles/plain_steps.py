"""A plain step runs at least once, one step wide.

Fails where a step has a checkpoint and never ran; where it ran again in a run of the job that has that checkpoint, because it
stored it itself or began behind it; where it ran for somebody who never had the job; where one that had lost the job ran it
late more than once; where it ran again for the same claim; and where more steps ran again at the frontier than faults can have
interrupted.

A worker that nobody has disturbed runs a step once: whatever else comes of the step, the next run of it has another claim. Only a
worker that loses a connection runs the job again with the claim that it has, and says so in its log: each time allows one more.

So a step that is stored may run only in one case, once for each run of the job: its worker was paused, or cut off, until others
had taken the job and stored the step. It stood in front of the effect and knows nothing of them.

Needs the history of claims (claim_history.py): its times are the server's own, because tests replace pgqueue.clock().
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

#: What the report counts.
AGAIN, LATE = "plain steps: interrupted, and run again", "plain steps: run too late"

#: When each was stored, and by which claim.
_STORED = """
SELECT k.job_id || ':' || k.seq, extract(epoch FROM h.at)::float8, h.claim
  FROM pgqueue.checkpoint k JOIN pgqueue.workflow w ON w.name = k.name
  JOIN (SELECT job_id, xid, claim, max(at) AS at FROM claim_history WHERE event = '2 stored a step' GROUP BY 1, 2, 3) h
    ON h.job_id = k.job_id AND h.xid = k.xid
 WHERE w.kind = 'step' AND k.error IS NULL
UNION ALL
SELECT o.job_id || ':0', extract(epoch FROM h.at)::float8, h.claim
  FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id JOIN pgqueue.workflow w ON w.name = j.name
  JOIN (SELECT DISTINCT ON (job_id) job_id, claim, at FROM claim_history WHERE event = '3 ended the job'
         ORDER BY job_id, at DESC) h ON h.job_id = o.job_id
 WHERE w.kind = 'step' AND o.status = 'succeeded'
"""
_CLAIMED = """
SELECT job_id::text, claim, extract(epoch FROM min(at))::float8 FROM claim_history WHERE event = '1 claimed' GROUP BY 1, 2
"""


#: What a worker says when it has lost a connection, and runs a job from its beginning with the same claim.
_AGAIN = re.compile(rb"job ([0-9a-f-]{36}) \([^)]*\): the connection was lost, and the job begins again")


class Stored(NamedTuple):
    """The checkpoint of a step."""

    at: float
    claim: int


class Ran(NamedTuple):
    """One run of a step's code, in the run of the job that had this claim."""

    at: float
    claim: int


@dataclass
class Found:
    """What there was: runs, those again of a step that was not stored yet, and those of a step that was."""

    runs: int = 0
    again: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)


def check(conn: psycopg.Connection[Any], outside: Path, faults: int, at_once: int = 1) -> list[str]:
    """What is wrong. The arguments are those of ``judge``."""
    return judge(conn, outside, faults, at_once).wrong


def begun_again(directory: Path) -> Mapping[str, int]:
    """How often each job was, by the logs of all hosts of a round."""
    return Counter(job.decode() for log in directory.glob("program-*.log") for job in _AGAIN.findall(log.read_bytes()))


def judge(
    conn: psycopg.Connection[Any],
    outside: Path,
    faults: int,
    at_once: int = 1,
    lost_claims: bool = False,
    again: Mapping[str, int] | None = None,
) -> Found:
    """``outside`` is the file with one line per run. ``faults``: crashes, pauses and lost connections of workers; ``at_once``:
    how many jobs a worker can be running. ``lost_claims``: the server has crashed, and claims do not wait for its disk.
    ``again``: how often each job was begun again with its claim; None: nobody knows."""
    stored = {key: Stored(at, claim) for key, at, claim in conn.execute(_STORED).fetchall()}
    claimed = {(job, claim): at for job, claim, at in conn.execute(_CLAIMED).fetchall()}
    found = Found()
    counts: dict[str, int] = {}
    for key, runs in _runs(outside).items():
        late = _late(key, runs, stored[key], claimed, found) if key in stored else 0
        job = key.partition(":")[0]
        strange = [ran.claim for ran in runs if (job, ran.claim) not in claimed and not lost_claims]
        found.wrong += [f"step {key} ran for claim {claim}, which nobody had" for claim in strange]
        found.wrong += [
            f"step {key} ran {times} times for claim {claim}, which lost its connection {again.get(job, 0)} times"
            for claim, times in Counter(ran.claim for ran in runs).items()
            if again is not None and times > 1 + again.get(job, 0)
        ]
        found.runs += len(runs)
        found.late += late
        counts[key] = len(runs) - late
    found.wrong += [f"step {key} has a checkpoint, and its code never ran" for key in stored if key not in counts]
    several = {key: count for key, count in counts.items() if count > 1}
    found.again = sum(several.values()) - len(several)
    if any(count > 1 + faults for count in several.values()) or found.again > faults * at_once:
        found.wrong.append(f"steps ran more than once, with {faults} faults: {several}")
    return found


def _late(key: str, runs: list[Ran], stored: Stored, claimed: dict[tuple[str, int], float], found: Found) -> int:
    """How many of these came when the step was stored. Only an earlier claim may, and only once."""
    job = key.partition(":")[0]
    late = [ran for ran in runs if ran.at > stored.at or claimed.get((job, ran.claim), 0.0) > stored.at]
    for claim, times in Counter(ran.claim for ran in late).items():
        if claim == stored.claim:
            found.wrong.append(f"step {key} ran although it had a checkpoint, which this very claim, {claim}, had stored")
        elif claimed.get((job, claim), 0.0) > stored.at:
            found.wrong.append(f"step {key} ran although it had a checkpoint when claim {claim} began")
        elif times > 1:
            found.wrong.append(f"step {key} ran although it had a checkpoint, {times} times for claim {claim}")
    return len(late)


def _runs(outside: Path) -> dict[str, list[Ran]]:
    runs: dict[str, list[Ran]] = defaultdict(list)
    for line in outside.read_text().splitlines() if outside.exists() else ():
        what, key, moment, claim = line.split()
        if what == "effect":
            runs[key].append(Ran(float(moment), int(claim)))
    return runs
