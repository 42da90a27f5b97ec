"""What steps returned is what their checkpoints say, and what a job returned is its result.

Of the workloads below both follow from the input. Fails where a checkpoint or a result has another value, where one is missing or
there are too many; and where a job that answers with the claim of its run has the result of another run than the one that its
outcome names: somebody who had lost the job has settled it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from chaos.workloads import bank, town

Input = dict[str, Any]
#: What the steps return, one after the other, and what the job does.
Values = tuple[list[Any], Any]


def _steps(input: Input) -> Values:
    numbers = list(range(input["steps"]))
    return numbers, sum(numbers)


def _transfer(input: Input) -> Values:
    source, target = (f"told {input[account]}" for account in ("source", "target"))
    return [input["amount"], source, 1 - input["amount"], target], target


def _told(input: Input) -> Values:
    return [f"told {input['account']}"], f"told {input['account']}"


#: Those of jobs that are one step are results only.
EXPECTED: dict[str, Callable[[Input], Values]] = {
    **dict.fromkeys((town.chain.name, town.errands.name, town.stroll.name), _steps),
    **dict.fromkeys((bank.transfer.name, bank.transfer_async.name), _transfer),
    **dict.fromkeys((bank.one_tell.name, bank.standing_order.name), _told),
    **dict.fromkeys(
        (town.note.name, town.outside.name, town.visit.name, town.serve.name, town.dwell.name), lambda input: ([], input["n"])
    ),
    bank.tell.name: lambda input: ([], f"told {input['account']}"),
    bank.grant.name: lambda input: ([], input["amount"]),
    bank.order.name: lambda input: ([], input["number"]),
    bank.answer.name: lambda input: ([], input["value"]),
    bank.one_move.name: lambda _: ([1], 1),
    town.child.name: lambda input: ([input["n"]], input["n"]),
    town.fan_out.name: lambda input: ([input["children"]], sum(range(input["children"]))),
    town.waits.name: lambda input: ([1, 2, input["n"]], input["n"]),
}

_VALUES = """
SELECT v.id::text, v.name, v.input, CASE v.status WHEN 'succeeded' THEN v.result END, k.results
  FROM pgqueue.job_values v
  LEFT JOIN (SELECT c.job_id, '[' || string_agg(c.result, ',' ORDER BY c.seq) || ']' AS results
               FROM pgqueue.checkpoint c JOIN pgqueue.workflow w ON w.name = c.name AND w.kind IN ('step', 'transaction')
              WHERE c.error IS NULL GROUP BY 1) k ON k.job_id = v.id
 WHERE v.name = ANY (%s) AND v.status <> 'failed'
"""
_OF_ANOTHER = """
SELECT o.job_id::text, o.claim, o.result FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id
 WHERE j.name = %s AND o.status = 'succeeded' AND o.result IS DISTINCT FROM o.claim::text
"""


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """The values that are not those that follow from the inputs; now, whatever has ended."""
    rows = conn.execute(_VALUES, (list(EXPECTED),)).fetchall()
    wrong = [f"{name.rpartition('.')[2]}, job {job}: {what}" for job, name, *values in rows for what in _wrong(name, *values)]
    for job, claim, result in conn.execute(_OF_ANOTHER, (town.linger.name,)).fetchall():
        wrong.append(f"linger, job {job}: it was ended by claim {claim}, with the result of claim {result}")
    return wrong


def _wrong(name: str, input: str, result: str | None, results: str | None) -> Iterator[str]:
    """Of one job. Where it has not succeeded, its steps are the first ones."""
    steps, expected = EXPECTED[name](json.loads(input))
    stored = json.loads(results or "[]")
    if stored != (steps if result is not None else steps[: len(stored)]):
        yield f"its steps have stored {stored}, and returned {steps}"
    if result is not None and json.loads(result) != expected:
        yield f"its result is {result}, and it returned {expected!r}"


def judged(conn: psycopg.Connection[Any]) -> int:
    """How many jobs there are whose values are known."""
    names = [*EXPECTED, town.linger.name]
    [(count,)] = conn.execute("SELECT count(*) FROM pgqueue.job WHERE name = ANY (%s)", (names,)).fetchall()
    return int(count)
