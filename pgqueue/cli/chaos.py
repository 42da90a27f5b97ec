"""``pgqueue chaos``: break this pgqueue on this PostgreSQL in every way that the suite knows, and look at what came of it.

The suite is the directory ``chaos`` beside this package in a checkout, and ``pgqueue/suite/chaos`` in the wheel. Only this
command puts it on the path.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
import psycopg
from psycopg import conninfo

import pgqueue
from pgqueue.cli.output import show_json
from pgqueue.config import Exit
from pgqueue.errors import Configuration, PgQueueError

PLANS = ("smoke", "sweep", "soak")
EVERY = 10.0  # seconds between two lines where nobody looks at a terminal


@click.group()
def chaos() -> None:
    """Kill, freeze, cut and restart everything, and see whether promises hold."""


@chaos.command("run")
@click.option("--plan", default="smoke", show_default=True, type=click.Choice(PLANS), help="Which rounds there are.")
@click.option("--minutes", type=click.FloatRange(0.1, 10_000), help="For how long rounds begin.  [default: as the plan says]")
@click.option("--seed", type=click.IntRange(0), help="What is broken when follows from it.  [default: a random one]")
@click.option("--faults", default="", help="Only these, separated by commas: F1,F8. pgqueue chaos faults lists them.")
@click.option(
    "--dsn",
    help="A server of yours, in databases of their own: only what is safe there. The role needs CREATEDB; with REPLICATION and"
    " wal_level=logical more can be judged.",
)
@click.option("--embedded", type=click.IntRange(15), metavar="VERSION", help="The major version of the server that is started.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where events, logs and the report go.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def run_command(
    plan: str, minutes: float | None, seed: int | None, faults: str, dsn: str | None, embedded: int | None, out: Path | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Run a plan. Exits with 1 if any oracle has found anything, with 3 if nothing is proved: the suite itself could not run, or
    nothing was injected.

    Without --dsn it starts a PostgreSQL of its own, with standbys, which it may crash and throw away.
    """
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    return _run(as_json, plan=plan, minutes=minutes, seed=chosen, faults=_split(faults), dsn=dsn, version=embedded, directory=out)


@chaos.command("replay")
@click.argument("seed", type=click.IntRange(0))
@click.option("--plan", default="smoke", show_default=True, type=click.Choice(PLANS))
@click.option("--minutes", type=click.FloatRange(0.1, 10_000))
@click.option("--faults", default="")
@click.option("--dsn")
@click.option("--embedded", type=click.IntRange(15), metavar="VERSION")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def replay_command(
    seed: int, plan: str, minutes: float | None, faults: str, dsn: str | None, embedded: int | None, out: Path | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Run a plan again with a seed, and the other options of that run: the same faults in the same order, with the same choices.
    (Not the same nanoseconds; and how many rounds there are is a matter of time.)"""
    return _run(as_json, plan=plan, minutes=minutes, seed=seed, faults=_split(faults), dsn=dsn, version=embedded, directory=out)


@chaos.command("clean")
@click.option("--dsn", required=True, help="The server, as it was given to the runs.")
def clean_command(dsn: str) -> int:
    """Drop the databases that runs have left on a server of yours which were killed, and the replication slots in them.

    Those of runs that are under way stay. Exits with 1 if any could not be dropped.
    """
    cleaned = _suite("chaos.leftovers").clean(dsn)
    for name in cleaned.dropped:
        click.echo(f"dropped {name}")
    for name, reason in cleaned.kept.items():
        click.echo(f"pgqueue: {name} is still there: {reason}", err=True)
    return Exit.FAILED if cleaned.kept else Exit.OK


@chaos.command("faults")
def faults_command() -> None:
    """What can be broken, how, and what is expected then."""
    for number, fault in _suite("chaos.faults").faults().items():
        click.echo(f"{number:<4} {fault.title}")
        click.echo(f"     {fault.broken}")
        click.echo(f"     Expected: {fault.expected}")


def _split(faults: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip().upper() for part in faults.split(","))))


def _run(as_json: bool, directory: Path | None, **wanted: Any) -> int:
    suite, table, pictures = map(_suite, ("chaos.suite", "chaos.table", "chaos.pictures"))
    unknown = set(wanted["faults"]) - _suite("chaos.faults").faults().keys()
    if unknown:
        raise click.UsageError(f"there is no fault {', '.join(sorted(unknown))}: see pgqueue chaos faults")
    if wanted["dsn"] is not None and wanted["version"] is not None:
        raise click.UsageError("--dsn is a server of yours, --embedded the version of one that is started here: choose one")
    place = _place(directory)
    say = _teller(as_json)
    say(f"seed {wanted['seed']}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _leave)
    try:
        report = suite.run(suite.Request(directory=place, **wanted), say)
    except (PgQueueError, psycopg.OperationalError):
        raise  # about the server, with exit codes of their own
    except Exception as error:  # noqa: BLE001 -- 1 would mean that an oracle has found something
        (place / "trace.txt").write_text(traceback.format_exc())
        click.echo(f"pgqueue: the suite could not run: {' '.join(str(error).split()) or repr(error)}", err=True)
        if not isinstance(error, suite.CannotRun):
            click.echo(f"pgqueue: the trace is in {place / 'trace.txt'}", err=True)
        return Exit.UNPROVEN
    say("")
    (place / "report.html").write_text(pictures.page(report))
    if as_json:
        show_json(report.as_json())
    else:
        for line in table.lines(report):
            click.echo(line)
        click.echo(f"\nreport with pictures: {place / 'report.html'}")
    if report.good:
        return Exit.OK
    said = "promises were broken" if report.broken else f"nothing is proved: {report.unproven}"
    click.echo(f"pgqueue: {said}; events and logs are in {place}; again: {_again(**wanted)}", err=True)
    return Exit.FAILED if report.broken else Exit.UNPROVEN


def _place(directory: Path | None) -> Path:
    """The directory of the run: a new one. Absolute, because hosts work elsewhere."""
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="pgqueue-chaos-run-")).resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.UsageError(f"--out {directory}: something is in there already, a run perhaps; choose a new directory")
        with tempfile.TemporaryFile(dir=directory):  # can it be written to?
            pass
    except OSError as error:
        raise click.UsageError(f"--out {directory}: {error.strerror or error}; choose one that can be written to") from None
    return directory.resolve()


def _again(plan: str, seed: int, minutes: float | None, faults: tuple[str, ...], dsn: str | None, version: int | None) -> str:
    """The command that does the same."""
    command = ["pgqueue", "chaos", "replay", str(seed), "--plan", plan]
    command += ["--minutes", f"{minutes:g}"] if minutes is not None else []
    command += ["--faults", ",".join(faults)] if faults else []
    command += ["--embedded", str(version)] if version is not None else []
    if dsn is not None:  # without its secrets
        known = {name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items() if "password" not in name}
        command += ["--dsn", conninfo.make_conninfo("", **known)]
    return shlex.join(command)


def _leave(number: int, _: FrameType | None) -> None:
    """As after Ctrl-C: kill what was started, drop the databases."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _teller(quiet: bool) -> Callable[[str], None]:
    """Progress on stderr: one line that changes on a terminal, otherwise a line now and then."""
    if sys.stderr.isatty() and not quiet:
        return lambda text: click.echo(f"\r\x1b[K{text}", nl=False, err=True)
    told = [0.0]

    def tell(text: str) -> None:
        if text and not quiet and time.monotonic() - told[0] > EVERY:
            told[0] = time.monotonic()
            click.echo(text, err=True)

    return tell


def _suite(module: str) -> Any:
    """A module of the suite."""
    package = Path(pgqueue.__file__).parent
    place = next((place for place in (package / "suite", package.parent) if (place / "chaos" / "suite.py").exists()), None)
    if place is None:
        raise Configuration("the chaos suite was not installed with pgqueue: use the wheel, or a checkout")
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
    os.environ.setdefault("PYTHONHASHSEED", "0")
    return importlib.import_module(module)
