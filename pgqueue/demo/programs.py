"""The processes that are killed in the two stories: ``python -m pgqueue.demo.programs NAME``.

At its worst moment each says so on its standard output and waits for a line on its input. The demo kills it there, or lets it
go on. Nothing else about them is special: this is how it is done without pgqueue, and with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import psycopg

from pgqueue.demo import shop

Connection = psycopg.Connection[Any]


def worst_moment(what: str) -> None:
    """Here the demo may kill us."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def naive_worker(conn: Connection) -> None:
    """Do the tasks that are not done: first the effect, then the note that it happened. Two transactions."""
    for name, cents in conn.execute("select name, cents from bank_task where not done").fetchall():
        conn.execute("update bank set cents = cents + %s where name = %s", (cents, name))
        worst_moment("credited")
        conn.execute("update bank_task set done = true where name = %s", (name,))


def naive_shop(conn: Connection) -> None:
    """Store an order, then tell the warehouse. Two transactions (as they would be for two systems)."""
    conn.execute("insert into shop_order values (1)")
    worst_moment("stored")
    conn.execute("insert into warehouse values (1)")


def atomic_shop(conn: Connection) -> None:
    """Store an order and enqueue the job that tells the warehouse. One transaction."""
    with conn.transaction():
        conn.execute("insert into shop_order values (2)")
        shop.tell_warehouse.using(conn).enqueue(2)
        worst_moment("enqueued")
    worst_moment("committed")


PROGRAMS: dict[str, Callable[[Connection], None]] = {
    program.__name__: program for program in (naive_worker, naive_shop, atomic_shop)
}

if __name__ == "__main__":
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as connection:
        PROGRAMS[sys.argv[1]](connection)
