"""The command ``pgqueue``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point. Without libpq nothing works, so that is said here and not by a traceback."""
    if sys.argv[1:2] == ["health"]:
        from pgqueue.cli.health import fast

        if (code := fast(sys.argv[2:])) is not None:
            sys.exit(code)
    if sys.argv[1:2] == ["work"]:  # what comes before the supervisor can listen waits for it, and does not end the process
        names = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TSTP", "TTIN", "TTOU")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals["SIG" + name] for name in names])
    try:
        import psycopg  # noqa: F401 -- the question is whether it can be imported
    except ImportError as error:
        sys.stderr.write(
            f"pgqueue: psycopg finds no libpq ({str(error).splitlines()[0]}).\n"
            "Install the one that comes with psycopg:  pip install 'pgqueue-workflows[binary]'\n"
            "or your system's:                         apt install libpq5\n"
        )
        sys.exit(78)
    try:
        from pgqueue.cli.commands import run

        run()
    except KeyboardInterrupt:  # also while modules are being imported
        sys.exit(130)
