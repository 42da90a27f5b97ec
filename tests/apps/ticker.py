"""A process that ticks, and does nothing else, as a housekeeper does: until its standard input ends, or it is killed."""

from __future__ import annotations

import select
import sys

from pgqueue.database import connect
from pgqueue.housekeeper.ticks import tick_due


def main(dsn: str) -> None:
    with connect(dsn, "ticker") as conn:
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            while tick_due(conn)[1] == 0:
                pass


if __name__ == "__main__":
    main(sys.argv[1])
