"""The command ``pgqueue``."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point. Without libpq nothing works, so that is said here and not by a traceback."""
    _open_standard_streams()
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


def _open_standard_streams() -> None:
    """Whoever started us may have closed them: then the next file or pipe that is opened would be taken for one of them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
