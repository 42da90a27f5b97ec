"""``python -m pgqueue``: the same as the command ``pgqueue``."""

from pgqueue.cli import main

main()
