"""A PostgreSQL server of our own for ``pgqueue demo``, ``pgqueue dev`` and the tests."""

from pgqueue.embedded.binaries import EmbeddedError, find_binaries
from pgqueue.embedded.server import Embedded

__all__ = ["Embedded", "EmbeddedError", "find_binaries"]
