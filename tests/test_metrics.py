"""Metrics: counting in shared memory, through any number of deaths; the list of them."""

from __future__ import annotations

import os
import random
import re
import signal
import threading

import pytest

from pgqueue.meter import ALL_SERIES, SERIES, Meter, Meters
from pgqueue.metrics import CLAIM_BATCH, JOBS, METRICS, OTHER, WORKERS, Family
from tests.support import ROOT, wait_for

SEEN = Family("seen_total", "counter", "Seen.", ("what",))


def values(meters: Meters, family: Family) -> dict[tuple[str, ...], float]:
    """The first number of each series."""
    found = meters.read()
    assert found is not None
    return {labels: numbers[0] for labels, numbers in found.get(family, {}).items()}


def test_the_list_is_one_that_prometheus_takes() -> None:
    names = [family.name for family in METRICS]
    assert len(set(names)) == len(names)
    for family in METRICS:
        assert family.name.startswith("pgqueue_")
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert bool(family.buckets) == (family.kind == "histogram")
        assert family.help.endswith(".")
        assert family.labels == tuple(dict.fromkeys(family.labels))


def test_the_guide_explains_every_metric() -> None:
    rows = re.findall(r"^\| `(pgqueue_\w+)` \|([^|]*)\| ", (ROOT / "docs/guides/metrics.md").read_text(), re.MULTILINE)
    assert [(name, tuple(re.findall(r"`(\w+)`", labels))) for name, labels in rows] == [(f.name, f.labels) for f in METRICS]


def test_what_was_counted_is_there_after_the_death_of_whoever_counted() -> None:
    meters = Meters(2)
    for life in range(20):
        meter = meters.meter(life % 2)
        meter.add(JOBS, ("default", "a", "succeeded"), 2)
        meter.observe(CLAIM_BATCH, (), 3)
        meter.observe(CLAIM_BATCH, (), 10_000)
        meter.set(WORKERS, ("busy",), 1)
        meters.admit()
        assert values(meters, JOBS) == {("default", "a", "succeeded"): 2 * (life + 1)}
        assert values(meters, WORKERS) == {("busy",): 1}
        meters.fold(life % 2)
        assert values(meters, JOBS) == {("default", "a", "succeeded"): 2 * (life + 1)}
        assert values(meters, WORKERS) == {}
    found = meters.read()
    assert found is not None
    numbers = found[CLAIM_BATCH][()]
    assert numbers[CLAIM_BATCH.buckets.index(5)] == 20  # 3 is in the bucket "up to 5"
    assert numbers[-2:] == [20, 20 * 10_003]


def test_labels_are_bounded_and_nothing_is_lost() -> None:
    """More label values than there is room for, in processes that come and go: no series ever goes back, the sum is exact."""
    rng, meters = random.Random(1), Meters(3)
    expected = 0
    last: dict[tuple[str, ...], float] = {}
    writers = [meters.meter(i) for i in range(3)]
    for writer in writers:
        writer.declare(SEEN)
    for _ in range(400):
        at = rng.randrange(3)
        for _ in range(rng.randrange(40)):
            writers[at].add(SEEN, (str(rng.randrange(3000)),))
            expected += 1
        if rng.random() < 0.3:
            meters.fold(at)
            writers[at] = meters.meter(at)
            writers[at].declare(SEEN)
        if rng.random() < 0.5:
            meters.admit()
            now = values(meters, SEEN)
            assert sum(now.values()) == expected
            assert len(now) <= ALL_SERIES + 1
            for labels, value in last.items():
                assert now[labels] >= value, labels
            last = now
    assert last[(OTHER,)] > 0


def test_one_process_cannot_fill_the_memory() -> None:
    meters = Meters(1)
    meter = meters.meter(0)
    families = [Family(f"user_{i}", "histogram", "x" * 1000, ("a", "b"), tuple(map(float, range(60)))) for i in range(100)]
    for family in families:
        meter.declare(family)
        for value in range(SERIES + 10):
            meter.observe(family, (str(value) * 1000, "\ud800"), 1.0)
    meters.admit()
    meters.fold(0)
    meter = meters.meter(0)
    meter.add(JOBS, ("default", "a", "succeeded"))
    meters.admit()
    assert values(meters, JOBS) == {("default", "a", "succeeded"): 1}


def test_a_killed_process_leaves_what_it_has_counted() -> None:
    meters = Meters(1)
    for _ in range(5):
        before = sum(values(meters, JOBS).values())
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            meter = meters.meter(0)
            for count in range(1_000_000_000):
                meter.add(JOBS, ("default", "a", "succeeded"))
                if count == 1000:
                    os.write(write, b".")
            os._exit(0)
        os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
        meters.fold(0)
        assert sum(values(meters, JOBS).values()) >= before + 1000


def test_a_child_of_the_process_does_not_count_in_its_region() -> None:
    meters = Meters(1)
    meter = meters.meter(0)
    meter.add(JOBS, ("default", "a", "succeeded"))
    pid = os.fork()
    if pid == 0:
        meter.add(JOBS, ("default", "a", "succeeded"), 1000)
        meter.add(JOBS, ("default", "b", "succeeded"), 1000)
        os._exit(0)
    os.waitpid(pid, 0)
    meters.admit()
    assert values(meters, JOBS) == {("default", "a", "succeeded"): 1}


def test_a_reader_never_sees_a_counter_go_back() -> None:
    """One thread folds and counts as fast as it can, another one reads."""
    meters, stop = Meters(4), threading.Event()

    def live() -> None:
        rng = random.Random(2)
        writers = [meters.meter(i) for i in range(4)]
        while not stop.is_set():
            at = rng.randrange(4)
            writers[at].add(JOBS, ("default", rng.choice("abc"), "succeeded"))
            if rng.random() < 0.2:
                meters.fold(at)
                writers[at] = meters.meter(at)
            meters.admit()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        last: dict[tuple[str, ...], float] = {}
        wait_for(lambda: values(meters, JOBS))
        for _ in range(300):
            now = values(meters, JOBS)
            for labels, value in last.items():
                assert now[labels] >= value
            last = now
    finally:
        stop.set()
        thread.join()


def test_gauges_of_several_processes() -> None:
    meters = Meters(2)
    one, two = meters.meter(0), meters.meter(1)
    gauges = {how: Family(how, "gauge", "G.", (), combine=how) for how in ("sum", "max", "min", "latest")}
    for family in gauges.values():
        for meter, value in ((one, 3.0), (two, 1.0)):
            meter.declare(family)
            meter.set(family, (), value)
    two.set(gauges["sum"], (), 1.5, add=True)
    meters.admit()
    assert {how: values(meters, family)[()] for how, family in gauges.items()} == {"sum": 5.5, "max": 3, "min": 1, "latest": 1}
    meters.fold(1)
    assert {how: values(meters, family)[()] for how, family in gauges.items()} == {"sum": 3, "max": 3, "min": 3, "latest": 1}


def test_several_threads_count_exactly() -> None:
    meters = Meters(1)
    meter = meters.meter(0)
    threads = [
        threading.Thread(target=lambda: [meter.add(JOBS, ("default", "a", "succeeded")) for _ in range(20_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meters.admit()
    assert values(meters, JOBS) == {("default", "a", "succeeded"): 80_000}


def test_a_meter_of_its_own_counts_for_nobody() -> None:
    meter = Meter()
    meter.add(JOBS, ("default", "a", "succeeded"))


@pytest.mark.parametrize("value", ["", "a\nb", 'quo"te', "ü" * 500, "\0", "\ud800"])
def test_any_text_can_be_the_value_of_a_label(value: str) -> None:
    meters = Meters(1)
    meter = meters.meter(0)
    meter.add(JOBS, ("default", value, "succeeded"))
    meters.admit()
    [(labels, count)] = values(meters, JOBS).items()
    assert count == 1
    assert len(labels[1]) <= 128
