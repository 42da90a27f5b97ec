"""Draws the picture of the board in docs/guides/deploying.md: two supervisors under load whose workers are killed, a real
Prometheus that scrapes them, and each query of deploy/grafana/pgqueue.json, asked of it.

    pip install matplotlib; apt install prometheus
    python docs/images/draw_board.py --minutes 6

Not a part of the tests: they hold the queries against the metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from pgqueue import App, Queue, Retry, gather, migrate, protocol, sleep  # noqa: E402
from pgqueue.database import connect, run  # noqa: E402
from pgqueue.embedded import Embedded  # noqa: E402

PORTS, PROMETHEUS = (19101, 19102), 19100
STEP = 5  # seconds between two points
UNITS = {"s": "seconds", "ops": "per second", "bytes": "bytes", "percentunit": "part"}

app = App(queues=[Queue("mail", concurrency=4), Queue("reports")])


@app.step(name="send_mail", queue="mail", retry=Retry(2, backoff="1s"), timeout="1m")
def send_mail(order: int) -> None:
    time.sleep(random.uniform(0.02, 0.1))  # noqa: S311
    if order % 25 == 0:
        raise RuntimeError("bad address")


@app.step(name="render", timeout="1m")
def render(page: int) -> int:
    time.sleep(random.expovariate(20))
    return page


@app.workflow(name="report", queue="reports")
def report(pages: int) -> int:
    sleep(2)
    return len(gather(*render.map(range(pages))))


@app.schedule(every=30, name="cleanup")
@app.workflow(name="clean_up")
def clean_up() -> None: ...


def main() -> None:
    said = argparse.ArgumentParser()
    said.add_argument("--minutes", type=float, default=6)
    said.add_argument("--into", type=Path, default=Path(__file__).parent / "board.png")
    options = said.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgqueue-board-", ignore_cleanup_errors=True) as home:
        server = Embedded(Path(home) / "data")
        app.dsn = dsn = server.start()
        try:
            with connect(dsn, "board") as conn:
                migrate.migrate(conn)
                run(conn, app.registration())
            with supervisors(dsn), prometheus(Path(home)):
                began = time.time()
                live(dsn, began + options.minutes * 60)
                draw(began, time.time(), options.into)
        finally:
            app.close()
            server.remove()


@contextmanager
def supervisors(dsn: str) -> Iterator[None]:
    """Two of them, of two workers each."""
    command = [sys.executable, "-m", "pgqueue", "work", "draw_board:app", "-w", "2", "--metrics"]
    environment = {**os.environ, "PGQUEUE_DSN": dsn, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*command, str(port)], env=environment, **quiet) for port in PORTS]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)


@contextmanager
def prometheus(home: Path) -> Iterator[None]:
    targets = [f"127.0.0.1:{port}" for port in PORTS]
    scrape = {"job_name": "pgqueue", "scrape_interval": f"{STEP}s", "static_configs": [{"targets": targets}]}
    (home / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
    process = subprocess.Popen(
        ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/series",  # noqa: S607
         f"--web.listen-address=127.0.0.1:{PROMETHEUS}", "--log.level=error"]
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def live(dsn: str, until: float) -> None:
    """Waves of jobs; a worker is killed every few seconds; in the middle a transaction is forgotten for a while."""
    stop = threading.Event()
    killer = threading.Thread(target=kill, args=(dsn, stop))
    killer.start()
    began, order = time.time(), 0
    with connect(dsn, "nightly report") as forgotten:
        while time.time() < until:
            part = (time.time() - began) / (until - began)
            amount = 20 if 0.3 < part < 0.45 else 3
            app.enqueue_many(send_mail.map(range(order, order + amount)))
            if order % 2:
                report.enqueue(5)
            if order == 0:
                app.client.enqueue("removed", {}, queue="reports")
            order += amount
            if 0.4 < part < 0.7 and not forgotten.info.transaction_status:
                forgotten.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                run(forgotten, protocol.now())
            elif part > 0.7 and forgotten.info.transaction_status:
                forgotten.execute("ROLLBACK")
            time.sleep(1)
    stop.set()
    killer.join()


def kill(dsn: str, stop: threading.Event) -> None:
    with connect(dsn, "board") as conn:
        while not stop.wait(random.uniform(3, 9)):  # noqa: S311
            pids = [row[2] for row in run(conn, protocol.worker_rows()) if row[5] is None]
            try:
                os.kill(random.choice(pids), signal.SIGKILL)  # noqa: S311
            except (IndexError, ProcessLookupError):
                pass


def draw(began: float, ended: float, into: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = json.loads((ROOT / "deploy" / "grafana" / "pgqueue.json").read_text())["panels"]
    rows = -(-len(panels) // 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(16, 2.6 * rows), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"])
        axis.set_title(panel["title"] + (f" ({unit})" if unit else ""), loc="left", fontsize=10)
        for target in panel["targets"]:
            for labels, points in asked(target["expr"], began, ended):
                name = target["legendFormat"]
                for label, value in labels.items():
                    name = name.replace("{{" + label + "}}", value)
                axis.plot([(at - began) / 60 for at, _ in points], [float(value) for _, value in points], label=name, lw=1.2)
        axis.set_xlim(0, (ended - began) / 60)
        if panel["fieldConfig"]["defaults"].get("min") == 0:
            axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, loc="upper left", framealpha=0.6)
        else:
            print("no data:", panel["title"])
    figure.savefig(into, dpi=70)


def asked(query: str, began: float, ended: float) -> list[tuple[dict[str, str], list[list[Any]]]]:
    """The series of a query, with their labels."""
    query = query.replace("$__rate_interval", f"{6 * STEP}s").replace("$queue", ".*")
    said = urllib.parse.urlencode({"query": query, "start": began, "end": ended, "step": STEP})
    with urllib.request.urlopen(f"http://127.0.0.1:{PROMETHEUS}/api/v1/query_range?{said}") as answer:
        return [(series["metric"], series["values"]) for series in json.load(answer)["data"]["result"]]


if __name__ == "__main__":
    sys.modules["draw_board"] = sys.modules["__main__"]
    main()
