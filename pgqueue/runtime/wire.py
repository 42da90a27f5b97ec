"""pgqueue's own statements on a worker's connection: several in one message, prepared, with one wait for all their answers.
Behind a connection pooler they are not prepared.

psycopg's pipeline does the same for statements of any kind. This is on the way of every step, and needs less: for two round trips
of a transaction, a third of the processor time of both sides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any

from psycopg import generators, pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from pgqueue.database import is_pooled
from pgqueue.protocol import Call, Rows
from pgqueue.runtime.connection import AnyConnection

FINE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


class Wire:
    """The protocol's part of a session. Both colours of connections drive its generators."""

    def __init__(self, conn: AnyConnection) -> None:
        self._pgconn: pq.abc.PGconn = conn.pgconn
        self._prepares = not is_pooled(conn)
        self._names: dict[str, bytes] = {}  # SQL -> its prepared statement
        self._numbers = itertools.count(1)
        self._sent: list[list[tuple[str, bytes] | None]] = []  # what the answers belong to: a statement being prepared, or a call

    def forget(self) -> None:
        """Somebody has deallocated statements, perhaps ours."""
        self._names.clear()

    def send(self, *groups: Sequence[Call[Any]]) -> None:
        """Send them, in this order. The server leaves out what follows an error, up to the end of its group. Outside of BEGIN and
        COMMIT each group is a transaction."""
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        self._sent = []
        for calls in groups:
            sent: list[tuple[str, bytes] | None] = []
            for call in calls:
                params = [None if value is None else str(value).encode() for value in call.params]
                sent.append(None)
                if not self._prepares:
                    pgconn.send_query_params(_numbered(call.sql), params)
                    continue
                name = self._names.get(call.sql)
                if name is None:
                    name = b"pgqueue_%d" % next(self._numbers)
                    pgconn.send_prepare(name, _numbered(call.sql))
                    sent.insert(-1, (call.sql, name))
                pgconn.send_query_prepared(name, params)
            pgconn.pipeline_sync()
            self._sent.append(sent)

    def answers(self) -> Generator[Any, Any, list[pq.abc.PGresult]]:
        """One result for each of them."""
        pgconn = self._pgconn
        yield from generators.send(pgconn)
        results = []
        for sent in self._sent:
            refused = None
            for preparing in sent:
                result = (yield from generators.fetch_many(pgconn))[0]
                if preparing is None:
                    results.append(refused or result)
                    refused = None
                elif result.status in FINE:
                    self._names[preparing[0]] = preparing[1]
                else:
                    refused = result  # says why; the answer of the call itself does not
            yield from generators.fetch(pgconn)  # the end of the group
        while pgconn.get_result() is not None:
            pass
        pgconn.exit_pipeline_mode()
        return results


def check(results: Sequence[pq.abc.PGresult]) -> None:
    """The first error among them comes out."""
    for result in results:
        if result.status not in FINE:
            raise error_from_result(result)


def rows(conn: AnyConnection, result: pq.abc.PGresult) -> Rows:
    """What a call gave back, as its ``read`` takes it."""
    reader = Transformer(conn)
    reader.set_pgresult(result)
    return reader.load_rows(0, result.ntuples, tuple)


@lru_cache
def _numbered(sql: str) -> bytes:
    """The placeholders as PostgreSQL has them.

    >>> _numbered("SELECT f(%s::uuid, %s)")
    b'SELECT f($1::uuid, $2)'
    """
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", sql).encode()
