"""State = initial + ledger, in every snapshot.

Fails where a movement of money happened twice, by half, or not at all, or where two happened in another order than they were
written down. The trail (a list that each movement appends to) is there because sums would not show the order.
"""

from __future__ import annotations

from typing import Any

import psycopg

from chaos.workloads.bank import ACCOUNTS, BALANCE

#: One statement: one snapshot.
_ACCOUNTS = """
SELECT a.id, a.balance, a.trail, coalesce(m.sum, 0), coalesce(m.keys, '{}'), coalesce(m.places, '{}')
  FROM account a
  LEFT JOIN (SELECT account, sum(amount) AS sum,
                    array_agg(step_key ORDER BY place) AS keys, array_agg(place ORDER BY place) AS places
               FROM movement GROUP BY account) m ON m.account = a.id
"""


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """What is wrong with the accounts now."""
    rows = conn.execute(_ACCOUNTS).fetchall()
    wrong = []
    if (total := sum(row[1] for row in rows)) != ACCOUNTS * BALANCE:
        wrong.append(f"all balances together are {total}, not {ACCOUNTS * BALANCE}: money was made or lost")
    for account, balance, trail, moved, keys, places in rows:
        if balance != BALANCE + moved:
            wrong.append(f"account {account} has {balance}, its movements make it {BALANCE + moved}")
        if keys != trail or places != list(range(1, len(trail) + 1)):
            wrong.append(f"account {account} has the trail {trail}, its movements say {list(zip(places, keys, strict=True))}")
    return wrong
