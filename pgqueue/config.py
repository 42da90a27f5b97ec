"""What can be set of ``pgqueue work``, and the exit codes.

Each setting is declared once, as a field of WorkSettings. From there come the option of the command line, the environment
variable, the key of a file and of ``App(settings=...)``, and the table in docs/operations.md. What was given where is found out
by settings.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, TypeVar

from pgqueue.retry import seconds

T = TypeVar("T")


class Exit(IntEnum):
    """Exit codes of the command line: a contract with service managers (see docs/reference/cli.md)."""

    OK = 0
    FAILED = 1
    UNPROVEN = 3
    USAGE = 64
    UNREACHABLE = 69
    CRASH_LOOP = 70
    GIVEN_BACK = 75
    CONFIG = 78


# ------------------------------------------------------------------------------------------------ kinds of values


class Kind:
    """How a value is read, from a text or from what TOML and Python have, and shown. This one takes any text."""

    name = "text"

    def read(self, given: Any) -> Any:
        """The value. ValueError says what is wrong with it."""
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"{given!r} is no text")
        return given

    def text(self, value: Any) -> str:
        """As one would give it on a command line."""
        return "" if value is None else str(value)

    def plain(self, value: Any) -> Any:
        """As JSON has it."""
        return value


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number."""

    low: int
    high: int
    name = "number"

    def read(self, given: Any) -> int:
        if isinstance(given, bool) or not re.fullmatch(r"\d{1,12}", str(given)) or not self.low <= int(given) <= self.high:
            raise ValueError(f"{given!r} is no whole number from {self.low} to {self.high}")
        return int(given)


class Address(Kind):
    """Where to listen: a port of this machine, or an address and a port."""

    name = "address"

    def read(self, given: Any) -> str:
        text = str(given)
        found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]*):)?(\d{1,5})", text)
        if not found or int(found[2]) > 65535:
            raise ValueError(f"{given!r} is no address: 9909 (this machine only), 0.0.0.0:9909 or [::]:9909")
        return f"{found[1] or '127.0.0.1'}:{found[2]}"


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class WholeOrAuto(Whole):
    """A whole number, or the word ``auto``, which is 0 inside."""

    def read(self, given: Any) -> int:
        return 0 if given == "auto" else super().read(given)

    def text(self, value: Any) -> str:
        return str(value) if value else "auto"

    def plain(self, value: Any) -> Any:
        return value or "auto"


@dataclass(frozen=True)
class Duration(Kind):
    """A length of time, in seconds."""

    low: float = 0.0
    name = "duration"

    def read(self, given: Any) -> float:
        try:
            value = seconds(float(given) if re.fullmatch(r"-?\d+(\.\d+)?", str(given)) else given)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if value < self.low:
            raise ValueError(f"{given!r} is too short: use at least {self.text(self.low)}")
        return value

    def text(self, value: Any) -> str:
        return "" if value is None else f"{value:g}s"


@dataclass(frozen=True)
class Size(Kind):
    """An amount of memory, in bytes: none, or at least so much."""

    low: int
    name = "size"

    def read(self, given: Any) -> int:
        found = re.fullmatch(r"(\d{1,12})\s*([KMG]?)i?B?", str(given).strip(), re.IGNORECASE)
        if isinstance(given, bool) or found is None:
            raise ValueError(f"{given!r} is no amount of memory: use 400M, or 1G")
        value = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]
        if 0 < value < self.low:
            raise ValueError(f"{given!r} is too little: use at least {self.text(self.low)}, or 0")
        return value

    def text(self, value: Any) -> str:
        shift, unit = next(
            (shift, unit) for shift, unit in ((30, "G"), (20, "M"), (10, "K"), (0, "")) if value % (1 << shift) == 0
        )
        return f"{value >> shift}{unit}" if value else "0"


Levels = list[dict[str, int]]


def levels(text: str) -> Levels:
    """Queues with their weights, level by level. ValueError for what cannot be meant.

    >>> levels("critical>default=2,low")
    [{'critical': 1}, {'default': 2, 'low': 1}]
    """
    found: Levels = []
    for level in text.split(">") if text.strip() else ():
        parts = [part.partition("=") for part in level.split(",") if part.strip()]
        for name, equals, weight in parts:
            if equals and not (weight.strip().isdecimal() and 1 <= int(weight) <= 1000):
                raise ValueError(f"{name.strip()}={weight}: a weight is a whole number from 1 to 1000")
        found.append({name.strip(): int(weight or 1) for name, _, weight in parts})
        if not parts or len(parts) != len(found[-1]) or any(name in level for level in found[:-1] for name in found[-1]):
            raise ValueError(f"{text!r}: name each queue once, such as critical=5,default=2,low or critical>default>low")
    return found


class Queues(Kind):
    """Queues to serve: by weights, in strict order, or both. A list is for those of one level."""

    name = "queues"

    def read(self, given: Any) -> str:
        text = ",".join(map(str, given)) if isinstance(given, list | tuple) else given
        if not isinstance(text, str):
            raise ValueError(f"{given!r} is no list of names")  # noqa: TRY004 -- what the others raise too
        if not text.strip():
            raise ValueError("it names no queue: leave it out to serve all of them")
        return ">".join(
            ",".join(name if weight == 1 else f"{name}={weight}" for name, weight in level.items()) for level in levels(text)
        )


class Flag(Kind):
    """Yes or no."""

    name = "flag"

    def read(self, given: Any) -> bool:
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if str(given).lower() not in words:
            raise ValueError(f"{given!r} is neither true nor false")
        return words[str(given).lower()]

    def text(self, value: Any) -> str:
        return str(value).lower()


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]
    name = "choice"

    def read(self, given: Any) -> str:
        if given not in self.words:
            raise ValueError(f"{given!r} is none of {', '.join(self.words)}")
        return str(given)


# ------------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Setting:
    """One thing that can be set."""

    name: str  # the key in files and in App(settings=...)
    kind: Kind
    default: Any
    says: str
    short: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PGQUEUE_" + self.name.upper()


def setting(default: T, kind: Kind, says: str, *short: str) -> T:
    """A field of WorkSettings that can be set from outside. ``says``: for --help and the docs. ``short``: more options."""
    declared: T = field(default=default, metadata={"setting": (kind, default, says, short)})
    return declared


@dataclass(frozen=True)
class WorkSettings:
    """What holds for a supervisor and its processes."""

    target: str  # module:app
    dsn: str | None = field(default=None, repr=False, metadata={"setting": (Kind(), None, "The database.", ())})
    listen_dsn: str | None = field(
        default=None, repr=False, metadata={"setting": (Kind(), None, "Where to listen, if the database is behind a pooler.", ())}
    )
    workers: int = setting(0, WholeOrAuto(1, 512), "Worker processes; auto: as many as processors are ours.", "-w")
    threads: int = setting(1, Whole(1, 64), "def jobs of each worker at once.")
    concurrency: int = setting(100, Whole(1, 500), "async def jobs of each worker at once.")
    queues: str = setting("", Queues(), "Serve only these queues: critical=5,default=2,low or critical>default>low.", "-q")
    drain_timeout: float = setting(25.0, Duration(), "How long a stop waits for running jobs.")
    lease: float = setting(15.0, Duration(1.0), "After how long without a beat a worker is dead; the beat is a third of it.")
    max_jobs: int = setting(0, Whole(0, 10**9), "Replace a worker that has run so many jobs; 0: never.")
    max_memory: int = setting(0, Size(1 << 20), "Replace a worker that needs more memory of its own; 0: never.")
    preload: bool = setting(False, Flag(), "Import the App once, before workers are forked from it: saves memory.")
    reload: bool = setting(False, Flag(), "For development: reload when a source file changes.")
    boot_timeout: float = setting(60.0, Duration(1.0), "Kill a worker that has not booted after so long.")
    hang_timeout: float = setting(30.0, Duration(1.0), "Kill a worker that has no job and has not moved for so long.")
    metrics: str | None = setting(
        None, Address(), "Where to answer /metrics, /livez and /readyz: a port of this machine, or ADDRESS:PORT."
    )
    log_format: str = setting(
        "auto", Choice(("auto", "text", "json")), "How the log looks; auto: text on a terminal, JSON elsewhere."
    )
    verbose: bool = setting(False, Flag(), "Log more.", "-v")
    burst: bool = False
    typed: dict[str, Any] = field(default_factory=dict, repr=False)  # what of it was given on the command line

    @property
    def beat(self) -> float:
        return self.lease / 3


SETTINGS: dict[str, Setting] = {
    f.name: Setting(f.name, *f.metadata["setting"]) for f in fields(WorkSettings) if "setting" in f.metadata
}


def nearest(wrong: str, known: Iterable[str]) -> str:
    """A hint for somebody who has mistyped a name: the most similar one, or all of them."""
    from difflib import get_close_matches

    known = list(known)
    similar = get_close_matches(wrong, known, n=1)
    return f"did you mean {similar[0]!r}?" if similar else f"there are {', '.join(sorted(known))}"


def read_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Values by the names of settings, checked. ValueError for an unknown name or a wrong value.

    >>> read_settings({"lease": "1m"})
    {'lease': 60.0}
    >>> read_settings({"worker": 4})
    Traceback (most recent call last):
    ValueError: there is no setting 'worker': did you mean 'workers'?
    """
    read = {}
    for name, value in given.items():
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {name!r}: {nearest(name, SETTINGS)}")
        try:
            read[name] = SETTINGS[name].kind.read(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return read
