"""Three queues with jobs of which a worker holds a few at a time, for tests of how it divides itself among them."""

from __future__ import annotations

import time

from pgqueue import App, Queue

app = App(queues=[Queue("critical"), Queue("low")])


@app.step(queue="critical")
def critical(n: int) -> None:
    time.sleep(0.02)


@app.step
def usual(n: int) -> None:
    time.sleep(0.02)


@app.step(queue="low")
def low(n: int) -> None:
    time.sleep(0.02)
