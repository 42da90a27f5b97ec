"""A producer in a process of its own, to be killed: python -m chaos.workloads.producer JOURNAL COUNT [FIRST].

Enqueues orders in three ways in turn: alone, in a transaction that writes a row too, and in a transaction that it rolls back. The
journal is a file, outside of the database: it says before and after each try what the producer knows.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg

from pgqueue import Client
from pgqueue.errors import DatabaseUnreachable

ORDER = "chaos.workloads.bank.order"


class Producer:
    """One process's orders."""

    def __init__(self, journal: Path) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._client = Client()

    def produce(self, count: int, first: int = 0) -> None:
        """Orders with the numbers from ``first`` on."""
        ways = (self._alone, self._with_a_row, self._rolled_back)
        for number in range(first, first + count):
            self._note("attempted", number)
            try:
                ways[number % 3](number)
            except (DatabaseUnreachable, psycopg.OperationalError):
                continue  # the connection was lost: nobody knows whether this one exists
            if ways[number % 3] != self._rolled_back:
                self._note("acknowledged", number)
        self._client.close()

    def _note(self, what: str, number: int) -> None:
        os.write(self._journal, f"{what} {number}\n".encode())

    def _alone(self, number: int) -> None:
        self._client.enqueue(ORDER, {"number": number})

    def _with_a_row(self, number: int) -> None:
        self._note("with_a_row", number)
        with psycopg.connect(os.environ["PGQUEUE_DSN"]) as conn:
            conn.execute("INSERT INTO purchase VALUES (%s)", (number,))
            self._client.enqueue(ORDER, {"number": number}, conn=conn)

    def _rolled_back(self, number: int) -> None:
        self._note("rolled_back", number)
        with psycopg.connect(os.environ["PGQUEUE_DSN"]) as conn:
            conn.execute("INSERT INTO purchase VALUES (%s)", (number,))
            self._client.enqueue(ORDER, {"number": number}, conn=conn)
            conn.rollback()


if __name__ == "__main__":
    Producer(Path(sys.argv[1])).produce(*map(int, sys.argv[2:]))
