"""Runs a few database sessions against each other in every order of their statements, on real connections.

A session is a generator: it yields statements (SQL, or a Call of the protocol), is sent each answer, and returns its result::

    def settling(job):
        yield "BEGIN"
        lost = yield protocol.settle([Settlement(job, "succeeded", "1")])
        yield "COMMIT"
        return lost

    Interleaver(dsn).run({"settle": settling, "reap": reaping}, setup=hold_a_job, check=it_ended_once)

For each order, ``setup(conn)`` makes a fresh state in one transaction and returns what the sessions are called with. Then the
sessions take turns of one statement each, and ``check(conn, state, results)`` judges where that led. ``always(conn)``, if given,
is called after every turn. It sees what is committed, and must find the invariants in order.

What is an order?

* ``BEGIN`` sees nothing and locks nothing, so it is one turn with the statement behind it.
* A statement that has to wait for a lock has had its turn. It ends when the sessions it waits for let go, whoever's turn that
  is. Orders in which its session would have gone on meanwhile do not exist. The server says who waits for whom
  (``pg_blocking_pids``): nothing here sleeps and hopes.
* A deadlock is left to the server, and so is the choice of its victim, before the next turn. The victim's generator gets the
  error, as it gets every error of the database. One that it does not catch ends the session, and is its result.
* A session that ended, in whatever way, is rolled back if it left a transaction open.

An error raised by a check carries a note with the order, and with ``only="..."``, which runs just that one again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg

from pgqueue.database import connect, run
from pgqueue.protocol import Call

S = TypeVar("S")
Connection = psycopg.Connection[Any]
Statement = str | Call[Any]
Program = Generator[Statement, Any, Any]
Results = dict[str, Any]
Look = Callable[[Connection], None]

MOST_SESSIONS = 4
FOR_EVER = 60.0  # seconds after which a statement that neither ends nor waits for another session counts as stuck
DEADLOCK_TIMEOUT = "20ms"  # after which the server looks for a deadlock; only a superuser may set that


@dataclass
class Order:
    """One order, as it was run."""

    turns: list[str] = field(default_factory=list)  # whose turn it was
    choices: list[list[str]] = field(default_factory=list)  # who could have gone on, at each turn
    story: list[str] = field(default_factory=list)  # what happened, for people

    def __str__(self) -> str:
        return "\n".join(["in this order:", *(f"  {line}" for line in self.story), f'  again with only="{" ".join(self.turns)}"'])


class Interleaver:
    """Runs sessions in one database. Keeps its connections from one run to the next."""

    def __init__(self, dsn: str) -> None:
        self._threads = ThreadPoolExecutor(MOST_SESSIONS)
        self._observer = connect(dsn, "interleaver")
        self._sessions = [_Session(dsn, self._threads) for _ in range(MOST_SESSIONS)]

    def __enter__(self) -> Interleaver:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.conn.close()
        self._observer.close()
        self._threads.shutdown()

    def run(
        self,
        programs: Mapping[str, Callable[[S], Program]],
        setup: Callable[[Connection], S],
        check: Callable[[Connection, S, Results], None],
        always: Look = lambda _: None,
        only: str | None = None,
    ) -> list[Order]:
        """Run every order, or ``only`` this one. Returns the orders that were run, each of them exactly once."""
        conn, sessions = self._observer, self._sessions[: len(programs)]

        def play(beginning: Sequence[str]) -> Order:
            order = Order()
            with conn.transaction():
                state = setup(conn)
            for session, (name, program) in zip(sessions, programs.items(), strict=True):
                session.begin(name, program(state))
            try:
                _take_turns(sessions, conn, beginning, order, always)
                check(conn, state, {session.name: session.result for session in sessions})
            except BaseException as error:
                error.add_note(str(order))
                raise
            finally:
                for session in sessions:
                    session.stop()
            return order

        return list(_all_orders(play)) if only is None else [play(only.split())]


def _all_orders(play: Callable[[Sequence[str]], Order]) -> Iterator[Order]:
    """Depth first: play a beginning and whatever comes by itself; then each beginning that leaves this order somewhere."""
    beginnings: list[list[str]] = [[]]
    while beginnings:
        beginning = beginnings.pop()
        order = play(beginning)
        yield order
        chosen = range(len(beginning), len(order.turns))
        beginnings += ([*order.turns[:n], name] for n in chosen for name in order.choices[n] if name != order.turns[n])


def _take_turns(sessions: Sequence[_Session], observer: Connection, beginning: Sequence[str], order: Order, always: Look) -> None:
    """Until every session has ended. The first turns are given; then the first that can go on does."""
    while free := {session.name: session for session in sessions if session.can_go_on}:
        turn = len(order.turns)
        name = beginning[turn] if turn < len(beginning) else next(iter(free))
        if name not in free:
            raise RuntimeError(f"it is {name}'s turn, but it waits or has ended: the sessions do not behave the same each time")
        order.turns.append(name)
        order.choices.append(list(free))
        free[name].send(order.story)
        _until_quiet(sessions, observer, order.story)
        if free[name].under_way:
            order.story.append(f"{name}: {free[name].under_way} waits")
        always(observer)


def _until_quiet(sessions: Sequence[_Session], observer: Connection, story: list[str]) -> None:
    """Until each statement has ended, or waits for a session that can go on."""
    deadline = time.monotonic() + FOR_EVER
    while True:
        wait([session.answer for session in sessions if session.answer is not None], timeout=0.002)
        for session in sessions:
            session.receive(story)
        waiting = {session.pid for session in sessions if session.answer is not None}
        if not waiting or _wait_for_others(observer, waiting, {session.pid for session in sessions}):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"stuck for {FOR_EVER:g} s: {[s.name for s in sessions if s.under_way]}")


def _wait_for_others(observer: Connection, waiting: set[int], ours: set[int]) -> bool:
    """Does each of these wait for sessions that can go on, or that will when those do? Not so where a statement still runs, and
    not in a deadlock, which the server is about to end."""
    rows = observer.execute("SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) pid", (list(waiting),)).fetchall()
    waits_for = {pid: ours.intersection(blockers) for pid, blockers in rows}
    if not all(waits_for.values()):
        return False
    free = ours - waiting
    while freed := {pid for pid, blockers in waits_for.items() if blockers <= free} - free:
        free |= freed
    return free == ours


class _Session:
    """A program on a connection of its own. Its statements run in a thread, so that one that waits holds up nobody else."""

    def __init__(self, dsn: str, threads: ThreadPoolExecutor) -> None:
        self.name = ""
        self.result: Any = None
        self.answer: Future[Any] | None = None
        self.under_way = ""  # a short name of the statement that has not ended
        self.conn = connect(dsn, "interleaver:session")
        self.conn.execute(f"SET deadlock_timeout = '{DEADLOCK_TIMEOUT}'")
        self.pid = self.conn.info.backend_pid
        self._threads = threads
        self._next: Statement | None = None

    @property
    def can_go_on(self) -> bool:
        return self._next is not None and self.answer is None

    def begin(self, name: str, program: Program) -> None:
        self.name, self._program = name, program
        self._resume(lambda: next(program))

    def send(self, story: list[str]) -> None:
        """Start the next statement, and do not wait for it."""
        if isinstance(self._next, str) and self._next.startswith("BEGIN"):
            self.conn.execute(self._next)
            story.append(f"{self.name}: {self._next}")
            self._resume(lambda: self._program.send(None))
        assert self._next is not None, "a session that ends with BEGIN"
        self.under_way = _short(self._next)
        self.answer = self._threads.submit(_execute, self.conn, self._next)

    def receive(self, story: list[str]) -> None:
        """If the statement has ended, go on."""
        if self.answer is None or not self.answer.done():
            return
        done, self.answer = self.answer, None
        error = done.exception()
        story.append(f"{self.name}: {self.under_way} -> {type(error).__name__ if error else repr(done.result())}")
        self.under_way = ""
        if error is None:
            self._resume(lambda: self._program.send(done.result()))
        elif isinstance(error, psycopg.Error):
            self._resume(lambda: self._program.throw(error))
        else:
            raise error

    def _resume(self, resume: Callable[[], Statement]) -> None:
        try:
            self._next = resume()
        except (StopIteration, psycopg.Error) as end:
            self._next = None
            self.result = end.value if isinstance(end, StopIteration) else end
            self.conn.rollback()

    def stop(self) -> None:
        """After an order that failed half way: end what is under way, and the transaction."""
        if self.answer is not None:
            self.conn.cancel_safe()
            wait([self.answer])
        self.answer, self.under_way = None, ""
        self.conn.rollback()


def _execute(conn: Connection, statement: Statement) -> Any:
    if isinstance(statement, Call):
        return run(conn, statement)
    return conn.execute(statement).fetchall() if statement.startswith("SELECT") else conn.execute(statement).statusmessage


def _short(statement: Statement) -> str:
    """The verb, or the beginning of the SQL."""
    sql = statement.sql if isinstance(statement, Call) else statement
    verb = re.search(r"pgqueue\.(\w+)\(", sql)
    return verb[1] if verb else sql[:40]
