"""An effect exists exactly where a checkpoint exists, once, and of the same transaction.

Fails where a transaction committed without its checkpoint (it will run again), a checkpoint without its transaction's writes
(they are lost), or a transaction twice. For a job that is one transaction, its outcome is the checkpoint.
"""

from __future__ import annotations

from typing import Any

import psycopg

_UNEQUAL = """
SELECT coalesce(c.job_id, e.job_id), coalesce(c.seq, e.seq), coalesce(e.times, 0), c.job_id IS NOT NULL, e.xids, c.xid
  FROM (SELECT k.job_id, k.seq, k.xid::text FROM pgqueue.checkpoint k JOIN pgqueue.workflow w ON w.name = k.name
         WHERE w.kind = 'transaction' AND k.error IS NULL
        UNION ALL
        SELECT o.job_id, 0, NULL FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id
          JOIN pgqueue.workflow w ON w.name = j.name
         WHERE w.kind = 'transaction' AND o.status = 'succeeded') c
  FULL JOIN (SELECT job_id, seq, count(*) AS times, array_agg(xid::text) AS xids FROM effect GROUP BY 1, 2) e
    ON e.job_id = c.job_id AND e.seq = c.seq
 WHERE c.job_id IS NULL OR e.times IS DISTINCT FROM 1 OR c.xid <> e.xids[1]
"""


def figures(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """How many steps with a checkpoint have lost their effect, and how many have it several times."""
    lost = doubled = 0
    for _, _, times, stored, _, _ in conn.execute(_UNEQUAL).fetchall():
        lost += stored and times == 0
        doubled += times > 1
    return {"lost": lost, "doubled": doubled}


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """The steps where effect and checkpoint do not agree."""
    wrong = []
    for job, seq, times, stored, xids, xid in conn.execute(_UNEQUAL).fetchall():
        checkpoint = f"a checkpoint of transaction {xid}" if stored else "no checkpoint"
        wrong.append(f"step {job}:{seq} has {times} effects, of transactions {xids}, and {checkpoint}")
    return wrong
