"""The alert rules and the board: every query names metrics and labels that exist, every alert has a page in the runbooks, and
fires when it should and not before."""

from __future__ import annotations

import inspect
import json
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
import yaml

from pgqueue import App, protocol
from pgqueue.cli.commands import cli
from pgqueue.database import run
from pgqueue.metrics import METRICS
from pgqueue.supervisor.deaths import exit_reason
from tests.apps import counted
from tests.support import ROOT, Hand, Server, Workers, kill, later, states, wait_for, worker_pids
from tests.test_deploy import DEPLOY, said, tool
from tests.test_exposition import Samples, counted_db, samples, serve, value  # noqa: F401 -- a fixture

RULES = DEPLOY / "prometheus" / "alerts.yml"
BOARD = DEPLOY / "grafana" / "pgqueue.json"
RUNBOOKS = ROOT / "docs" / "runbooks"
#: What is a label of any metric: Prometheus adds it, or a histogram has it.
COMMON = {"instance", "job", "le"}


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(BOARD.read_text())["panels"])


def queries() -> dict[str, str]:
    """All of them, by where they are."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


@pytest.mark.parametrize("where", queries())
def test_queries_name_metrics_and_labels_that_exist(where: str) -> None:
    query = queries()[where]
    labels = {sample: {*family.labels, *COMMON} for family in METRICS for sample in family.samples}
    used = set(re.findall(r"\bpgqueue_\w+", query))
    assert used
    for metric in used:
        assert metric in labels, f"{where}: there is no metric {metric}"
    for metric, matchers in re.findall(r"(pgqueue_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)=~?\"", matchers)) <= labels[metric], f"{where}: {metric}{{{matchers}}}"
    every = set().union(*(labels[metric] for metric in used))
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= every, f"{where}: {group}"


def test_reasons_that_are_alerted_on_exist() -> None:
    """A label's value that nobody writes would make an alert silent."""
    [expr] = [rule["expr"] for rule in rules() if rule["alert"] == "PgqueueCrashLoop"]
    written = set(re.findall(r'"(\w+)"', inspect.getsource(exit_reason)))
    assert set(re.search(r'reason=~"([^"]+)"', expr)[1].split("|")) <= written  # type: ignore[index]


def test_metrics_of_the_database_are_not_added_up() -> None:
    """Each supervisor may show them: a sum over all would count them several times."""
    database = {sample for family in METRICS if family.source == "database" for sample in family.samples}
    for where, query in queries().items():
        for metric in re.findall(r"sum(?: by \([^)]*\))? \((?:rate|increase)?\(?(pgqueue_\w+)", query):
            assert metric not in database, f"{where}: {query}"


def test_the_board_can_be_imported() -> None:
    board = json.loads(BOARD.read_text())
    variables = {variable["name"] for variable in board["templating"]["list"]}
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
    boxes = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels()]
    assert len(set(boxes)) == len(boxes), "no panel hides another"


# ------------------------------------------------------------------------------------------------------ runbooks


def page_of(rule: dict[str, Any]) -> Path:
    return ROOT / rule["annotations"]["runbook"]


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    assert {page_of(rule) for rule in rules()} == set(RUNBOOKS.glob("*.md"))
    for rule in rules():
        page = page_of(rule).read_text()
        assert page.startswith(f"# {rule['alert'].removeprefix('Pgqueue')}\n")
        for heading in ("## What it means", "## Look", "## Do", "## Later"):
            assert f"\n{heading}\n" in page, (rule["alert"], heading)
        for metric in set(re.findall(r"\bpgqueue_\w+", rule["expr"])):
            assert metric in page, f"{page_of(rule)} does not speak of {metric}"


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_what_the_runbooks_tell_to_do_can_be_done(page: Path, conn: psycopg.Connection[Any]) -> None:
    """Commands and their options exist; SQL runs, in a transaction that is taken back."""
    spans = re.findall(r"`([^`]+)`", page.read_text())
    commands = [span for span in spans if span.startswith("pgqueue ")]
    assert commands, "a runbook tells to do something"
    for span in commands:
        words = span.split()
        command = cli.commands.get(words[1])
        assert isinstance(command, click.Command), f"{page.name}: {span}"
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, f"{page.name}: {span}"
    for span in spans:
        if span.lower().startswith(("select ", "alter ", "vacuum ")):
            statement: Any = span.replace("PID", "0").replace("ID", "00000000-0000-0000-0000-000000000000")
            if span.lower().startswith("vacuum"):
                conn.execute(statement)
                continue
            with conn.transaction(force_rollback=True):
                conn.execute(statement)


def test_a_queue_that_its_rate_holds_says_so(conn: psycopg.Connection[Any], hand: Callable[[], Hand], app: App) -> None:
    """Until its next start; what has no rate says nothing."""
    app.step(name="noop")(lambda: None)
    hand()
    run(conn, protocol.limit_queue("default", {"rate": {"n": 1, "per": 3600, "burst": 1}}))

    def told() -> list[float]:
        return [number for name, _, number in run(conn, protocol.metrics()) if name == "pgqueue_queue_next_start_seconds"]

    assert told() == [0]
    app.enqueue_many([app.functions["noop"].call()] * 2)
    assert hand().drain() == 1
    [seconds] = told()
    assert 3500 < seconds <= 3600
    later(conn, "2 hours")
    assert told() == [0]
    run(conn, protocol.limit_queue("default", {"rate": None}))
    assert told() == []


# ------------------------------------------------------------------------------------------------- with promtool


@dataclass
class Case:
    """An alert and the series that provoke it. It has to fire at this minute, and not one minute earlier."""

    alert: str
    minute: int
    series: dict[str, str]
    labels: dict[str, str]
    summary: str
    calm: dict[str, str] = field(default_factory=dict)  # series beside them that change nothing


def counter(steps: int, each: float = 1, start: float = 0) -> str:
    return f"{start}+{each}x{steps}"


WORKING = {'pgqueue_workers{state="idle", instance="a"}': "2+0x100"}
CASES = [
    Case(
        "Latency", 6, {'pgqueue_queue_oldest_ready_seconds{queue="mail"}': "0 310+60x20"}, {"queue": "mail"},
        "Jobs of queue mail wait for 10m 10s",
        {'pgqueue_queue_oldest_ready_seconds{queue="rest"}': "900+60x20", 'pgqueue_queue_paused{queue="rest"}': "1+0x20",
         'pgqueue_queue_oldest_ready_seconds{queue="rate"}': "900+60x20",
         'pgqueue_queue_next_start_seconds{queue="rate"}': "3600-60x20"},
    ),
    Case(
        "Stalled", 11,
        {'pgqueue_queue_jobs{queue="mail", state="ready"}': "7+0x20",
         'pgqueue_jobs_total{queue="mail", workflow="w", outcome="succeeded"}': "0 1+0x20"},
        {"queue": "mail"}, "7 jobs of queue mail are ready, and none has ended for 5 minutes",
        {'pgqueue_queue_jobs{queue="busy", state="ready"}': "7+0x20",
         'pgqueue_jobs_total{queue="busy", workflow="w", outcome="failed"}': counter(20),
         'pgqueue_queue_jobs{queue="tries", state="ready"}': "7+0x20",
         'pgqueue_unfinished_runs_total{queue="tries", workflow="w", how="retry"}': counter(20),
         'pgqueue_queue_jobs{queue="rest", state="ready"}': "7+0x20", 'pgqueue_queue_paused{queue="rest"}': "1+0x20",
         'pgqueue_queue_jobs{queue="full", state="ready"}': "7+0x20", 'pgqueue_queue_used{queue="full"}': "3+0x20",
         'pgqueue_queue_limit{queue="full"}': "3+0x20", 'pgqueue_queue_jobs{queue="rate", state="ready"}': "7+0x20",
         'pgqueue_queue_next_start_seconds{queue="rate"}': "3600-60x20"},
    ),
    Case(
        "Stalled", 13,
        {'pgqueue_queue_jobs{queue="mail", state="ready"}': "7+0x20",
         'pgqueue_queue_next_start_seconds{queue="mail"}': "60+60x7 0+0x20"},
        {"queue": "mail"}, "7 jobs of queue mail are ready, and none has ended for 5 minutes",
    ),
    Case(
        "FailRatio", 12,
        {'pgqueue_jobs_total{queue="mail", workflow="w", outcome="failed"}': "0 " + counter(30, 1),
         'pgqueue_jobs_total{queue="mail", workflow="w", outcome="succeeded"}': counter(31, 9)},
        {"queue": "mail", "workflow": "w"}, "10% of the jobs of w fail",
        {'pgqueue_jobs_total{queue="mail", workflow="good", outcome="failed"}': counter(31, 1),
         'pgqueue_jobs_total{queue="mail", workflow="good", outcome="succeeded"}': counter(31, 99)},
    ),
    Case(
        "DeadGrowing", 71, {'pgqueue_jobs_total{queue="mail", workflow="w", outcome="failed"}': counter(100, 1)},
        {"queue": "mail", "workflow": "w"}, "w adds 60 failed jobs an hour",
        {'pgqueue_jobs_total{queue="mail", workflow="good", outcome="failed"}': "0+0x50 1+0x50"},
    ),
    Case(
        "CrashLoop", 4, {'pgqueue_worker_exits_total{reason="signal", instance="a"}': counter(20, 2)}, {"instance": "a"},
        "8 workers of a died within 10 minutes", {'pgqueue_worker_exits_total{reason="recycled", instance="b"}': counter(20, 9),
             'pgqueue_worker_exits_total{reason="stopped", instance="b"}': counter(20, 9)},
    ),
    Case(
        "NoWorkers", 6, {'pgqueue_workers{state="idle"}': "2 0+0x20", 'pgqueue_workers{state="booting"}': "9+0x20"}, {},
        "There are no workers",
    ),
    Case(
        "DatabaseUnreachable", 12,
        {'pgqueue_db_errors_total{op="claims", instance="a"}': "0+0x3 0 " + counter(20, 10),
         'pgqueue_db_errors_total{op="heartbeat", instance="a"}': "0+0x3 0 " + counter(20, 8)},
        {"instance": "a"}, "a cannot work with the database: 0.3 errors a second",
        {'pgqueue_db_errors_total{op="metrics", instance="b"}': counter(20, 7),
         'pgqueue_db_errors_total{op="claims", instance="c"}': "0 60+0x20"},
    ),
    Case(
        "MetricsMissing", 11,
        {'pgqueue_workers{state="idle", instance="a"}': "2+0x30", 'pgqueue_queue_jobs{queue="a", state="ready"}': "0 _x30"}, {},
        "Nobody shows the metrics of the database: the alerts about queues see nothing",
    ),
    Case("NoWorkers", 16, {'pgqueue_workers{state="busy"}': "2+0x5 _x30"}, {}, "There are no workers"),
    Case(
        "LongRunning", 11, {'pgqueue_queue_oldest_running_seconds{queue="mail"}': "3600+60x20"}, {"queue": "mail"},
        "A job of queue mail runs for 1h 11m 0s", {'pgqueue_queue_oldest_running_seconds{queue="rest"}': "0+0x20"},
    ),
    Case(
        "ScheduleMissed", 7, {'pgqueue_schedule_next_run_timestamp_seconds{schedule="daily"}': "0+0x20"}, {"schedule": "daily"},
        "Schedule daily is late by 7m 0s", {'pgqueue_schedule_next_run_timestamp_seconds{schedule="hourly"}': "3600+0x20"},
    ),
    Case(
        "Unclaimable", 16, {'pgqueue_unclaimable_jobs{workflow="old"}': "0 3+0x30"}, {"workflow": "old"},
        "3 jobs wait for a worker that knows old", {'pgqueue_unclaimable_jobs{workflow="new"}': "1+0x10 0+0x20"},
    ),
    Case(
        "LimitSaturated", 31,
        {'pgqueue_queue_used{queue="mail"}': "4 5+0x40", 'pgqueue_queue_limit{queue="mail"}': "5+0x40",
         'pgqueue_queue_jobs{queue="mail", state="ready"}': "1+0x40"},
        {"queue": "mail"}, "Queue mail uses all 5 of its concurrency, and more jobs wait",
        {'pgqueue_queue_used{queue="idle"}': "5+0x40", 'pgqueue_queue_limit{queue="idle"}': "5+0x40",
         'pgqueue_queue_jobs{queue="idle", state="ready"}': "0+0x40"},
    ),
    Case(
        "VacuumHorizon", 6, {"pgqueue_xmin_horizon_age_seconds": "0 901+60x20"}, {},
        "A transaction that is 20m 1s old keeps dead rows from vacuum",
    ),
    Case("Conflicts", 1, {"pgqueue_conflicts_total": "0 1+0x20"}, {}, "1 rows were met that cannot exist"),
]  # fmt: skip


def test_each_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == {rule["alert"].removeprefix("Pgqueue") for rule in rules()}


@pytest.mark.deploy
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_fires_when_it_should_and_not_before(case: Case, tmp_path: Path) -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == f"Pgqueue{case.alert}"]
    expected = {
        "exp_labels": {**rule["labels"], **case.labels},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    alone = {"rules": [rule]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", **alone}]}))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in (case.series | case.calm).items()],
            "alert_rule_test": [
                {"eval_time": f"{case.minute - 1}m", "alertname": rule["alert"], "exp_alerts": []},
                {"eval_time": f"{case.minute}m", "alertname": rule["alert"], "exp_alerts": [expected]},
            ],
        }],
    }  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    said(tool("promtool", "apt install prometheus"), "test", "rules", str(tmp_path / "test.yml"))


@pytest.mark.deploy
def test_promtool_reads_the_rules_and_the_queries_of_the_board(tmp_path: Path) -> None:
    promtool = tool("promtool", "apt install prometheus")
    assert "SUCCESS" in said(promtool, "check", "rules", str(RULES))
    recorded = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$queue", "mail")}
        for number, query in enumerate(queries().values())
    ]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in said(promtool, "check", "rules", str(tmp_path / "board.yml"))


# ---------------------------------------------------------------------------------------------- with real metrics


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_what_a_real_supervisor_shows_makes_the_alerts_fire(
    counted_db: psycopg.Connection[Any],  # noqa: F811
    workers: Workers,
    dsn: str,
    tmp_path: Path,
) -> None:
    """Every trouble at once, on a real server. What the supervisor shows is put before the rules as if it went on like that for
    an hour and a half: the names, the labels and their values are those of the code, and not of somebody who wrote a test."""
    promtool = tool("promtool", "apt install prometheus")
    work, port = serve(workers, "-q", "default")
    before = samples(port)
    for number in range(1, 7):
        kill(wait_for(lambda: worker_pids(counted_db, work))[0])
        wait_for(lambda n=number: work.log().count("killed by SIGKILL") == n and len(worker_pids(counted_db, work)) == 2)  # type: ignore[misc]
    counted.app.enqueue_many([counted.fail.call() for _ in range(12)])
    counted.app.client.enqueue("gone", {}, queue="default")
    wait_for(lambda: states(counted_db) == {"failed": 12, "waiting": 1}, what="failed jobs, and one that nobody knows")
    counted.see.options(queue="other").enqueue("a")  # nobody serves it
    counted.nap.enqueue(600)
    wait_for(lambda: states(counted_db).get("running") == 1)
    run(counted_db, protocol.limit_queue("default", {"concurrency": 1}))
    counted.see.enqueue("b")
    counted_db.execute("SELECT nextval('pgqueue.conflict')")
    with psycopg.connect(dsn) as forgotten:
        forgotten.execute("SET default_transaction_isolation = 'repeatable read'; COMMIT")
        forgotten.execute("SELECT 1")
        later(counted_db, "2 hours")
        after = wait_for(lambda: old_enough(samples(port)), what="the metrics of the database to be looked at again")
    work.signal(signal.SIGTERM)
    draining = wait_for(lambda: drained(samples(port)), what="a supervisor that drains")
    # Prometheus' tests begin in 1970: the moment at which a schedule is due is not for them.
    others = {"PgqueueScheduleMissed", "PgqueueNoWorkers", "PgqueueDatabaseUnreachable", "PgqueueMetricsMissing"}
    assert fired(promtool, before, after, tmp_path) == {rule["alert"] for rule in rules()} - others
    assert "PgqueueNoWorkers" in fired(promtool, after, draining, tmp_path)


@pytest.mark.deploy
def test_a_queue_that_keeps_its_rate_alarms_nobody_and_a_database_that_refuses_does(
    counted_db: psycopg.Connection[Any],  # noqa: F811
    workers: Workers,
    server: Server,
    tmp_path: Path,
) -> None:
    promtool = tool("promtool", "apt install prometheus")
    run(counted_db, protocol.limit_queue("default", {"rate": {"n": 1, "per": 86400, "burst": 1}}))
    work, port = serve(workers)
    counted.app.enqueue_many([counted.see.call("a")] * 3)
    wait_for(lambda: states(counted_db) == {"succeeded": 1, "ready": 2}, what="one job a day")
    later(counted_db, "2 hours")
    before = wait_for(lambda: held(samples(port)), what="the rate to be seen")
    assert fired(promtool, before, before, tmp_path) == set()
    with psycopg.connect(server.dsn, autocommit=True) as other:  # as where a login was taken away, or a pooler refuses
        other.execute(f"ALTER DATABASE {counted_db.info.dbname} ALLOW_CONNECTIONS false")  # type: ignore[arg-type]
    counted_db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue:%'")
    wait_for(lambda: errors(samples(port)) - errors(before) > 20, what="errors")
    for pid in set(work.children()) - set(worker_pids(counted_db, work)):
        kill(pid)  # the housekeeper, which would go on to show what it has seen for a minute
    after = wait_for(lambda: (found := samples(port)) and errors(found) - errors(before) > 20 and found)
    assert fired(promtool, before, after, tmp_path) == {"PgqueueDatabaseUnreachable", "PgqueueMetricsMissing"}


def held(found: Samples) -> Samples | None:
    """By its rate, and after a long wait."""
    told = value(found, "pgqueue_queue_next_start_seconds", queue="default") > 3600
    return found if told and value(found, "pgqueue_queue_oldest_ready_seconds", queue="default") > 3600 else None


def errors(found: Samples) -> float:
    return sum(number for (name, _), number in found.items() if name == "pgqueue_db_errors_total")


def old_enough(found: Samples) -> Samples | None:
    oldest = max((age for (name, _), age in found.items() if name == "pgqueue_queue_oldest_running_seconds"), default=0)
    return found if min(oldest, found.get(("pgqueue_xmin_horizon_age_seconds", ()), 0)) > 3600 else None


def drained(found: Samples) -> Samples | None:
    states = {labels: value for (name, labels), value in found.items() if name == "pgqueue_workers"}
    return found if states and states.get((("state", "draining"),)) == sum(states.values()) > 0 else None


def fired(promtool: str, before: Samples, after: Samples, home: Path) -> set[str]:
    """The alerts that fire after 90 minutes, in each of which the counters grow as they did between the two, and the gauges are
    as they were in the end."""
    kinds = {sample: family.kind for family in METRICS for sample in family.samples}
    series = []
    for (name, labels), number in after.items():
        if kinds.get(name) in ("counter", "gauge"):
            grows = kinds[name] == "counter" and name != "pgqueue_conflicts_total"
            grown = number - before.get((name, labels), 0) if grows else 0
            shown = ", ".join(f'{label}="{text}"' for label, text in (*labels, ("instance", "a")))
            series.append({"series": f"{name}{{{shown}}}", "values": f"{number}+{grown}x100"})
    alerts = {rule["alert"] for rule in rules()}
    questions = [
        {
            "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) > bool 0',
            "eval_time": "90m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for alert in sorted(alerts)
    ]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": questions}],
    }
    (home / "real.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", str(home / "real.yml")], capture_output=True, text=True, check=False)
    silent = set(re.findall(r"Pgqueue\w+", done.stdout + done.stderr))
    assert silent <= alerts
    assert done.returncode == 0 or silent, done.stdout + done.stderr
    return alerts - silent
