"""What a transaction wrote and its checkpoint are one commit, as PostgreSQL's own log has it: nothing of pgqueue is trusted here.

Fails where a committed transaction has effects without exactly the matching checkpoints (or the outcome, for a job that is one
transaction), or a checkpoint without its effects, and where a job was claimed that was held already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from chaos.history import Commit


def check(history: Iterable[Commit], names: Mapping[str, str], transactions: frozenset[str]) -> list[str]:
    """``names``: of the jobs, by their ids. ``transactions``: which of the names are transactions."""
    wrong = []
    held: set[str] = set()
    for commit in history:
        effects = Counter(commit.effects)
        stored = Counter((step.job, step.seq) for step in commit.steps if step.name in transactions and not step.failed)
        stored.update((job, 0) for job, status in commit.outcomes if status == "succeeded" and names.get(job) in transactions)
        if effects != stored:
            wrong.append(f"{commit.at}: a commit with the effects {dict(effects)} and the checkpoints {dict(stored)}")
        held.difference_update(commit.ended)
        wrong += [f"{commit.at}: job {start.job} was claimed, and is held" for start in commit.began if start.job in held]
        held.update(start.job for start in commit.began)
    return wrong
