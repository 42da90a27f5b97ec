"""What children write before they end or are killed: the stacks of their threads, and in a word why they could not start.

Read out of their scratch file by whoever buries them or was asked for a status.
"""

from __future__ import annotations

import logging
import os
import re

log = logging.getLogger(__name__)

_WORDS = re.compile("\0([^\0]*)\0")
_THREAD = re.compile(r"^(?=(?:Current thread|Thread) 0x)", re.MULTILINE)
_ONE_RECORD = 3000  # characters: a longer one would be cut (see logs.py)


def say(scratch: int, text: str) -> None:
    """Why this process ends. For those that read its log, and for its supervisor."""
    os.write(scratch, f"\0{text[:1000]}\0".replace("\n", " ").encode("utf-8", "replace"))


def log_written(whose: str, written: bytes, level: int = logging.WARNING) -> str:
    """Log the stacks, a record for each thread. What was said beside them."""
    text = written.decode(errors="replace")
    records = [record for thread in _THREAD.split(_WORDS.sub("", text)) for record in _pieces(thread.strip())]
    for number, record in enumerate(records, 1):
        which = f" ({number} of {len(records)})" if len(records) > 1 else ""
        log.log(level, "stacks of %s%s", whose, which, extra={"listing": record})
    return " ".join(_WORDS.findall(text))


def _pieces(text: str) -> list[str]:
    """Whole lines of it, in pieces that fit into a record."""
    pieces: list[str] = []
    for line in text.splitlines():
        if pieces and len(pieces[-1]) + len(line) < _ONE_RECORD:
            pieces[-1] += f"\n{line}"
        else:
            pieces.append(line)
    return pieces
