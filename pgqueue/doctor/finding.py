"""What a check is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import psycopg

from pgqueue import database
from pgqueue.app import App
from pgqueue.protocol import Call
from pgqueue.settings import Value

T = TypeVar("T")
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. error: jobs are lost, stuck or refused; warning: they will be, or nobody could tell;
    note: worth knowing."""

    check: str
    severity: Severity
    what: str
    advice: str


def error(check: str, what: str, advice: str) -> Finding:
    return Finding(check, "error", what, advice)


def warning(check: str, what: str, advice: str) -> Finding:
    return Finding(check, "warning", what, advice)


def note(check: str, what: str, advice: str) -> Finding:
    return Finding(check, "note", what, advice)


@dataclass(frozen=True)
class Case:
    """What a check may ask: the database, the settings of ``pgqueue work`` here, and the App, if one was named."""

    conn: psycopg.Connection[Any]
    dsn: str
    settings: dict[str, Value]
    app: App | None
    patience: float  # seconds for what reads everything

    def ask(self, call: Call[T]) -> T:
        return database.run(self.conn, call)

    def setting(self, name: str) -> Any:
        return self.settings[name].value


Check = Callable[[Case], Iterator[Finding]]
