"""Settings: who wins, what is refused, and that the documentation has them all. The declarations are in pgqueue/config.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgqueue import App
from pgqueue.config import SETTINGS
from pgqueue.errors import Configuration
from pgqueue.settings import resolve
from tests.support import ROOT, Workers, wait_for
from tests.test_docs import code, section, table

SHOP = """
from pgqueue import App
app = App({dsn}settings={settings})
"""


class Place:
    """A directory to run pgqueue in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def app(self, dsn: str | None = None, **settings: Any) -> None:
        (self.path / "shop.py").write_text(SHOP.format(dsn=f"{dsn!r}, " if dsn else "", settings=settings))

    def pgqueue(self, *arguments: str, code: int = 0, **variables: str) -> str:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", *arguments],
            env={**inherited, "PYTHONPATH": str(ROOT), **variables}, cwd=self.path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def found(self, *arguments: str, **variables: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.pgqueue("config", *arguments, "--json", **variables))
        return said


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_each_place_beats_those_below_it(place: Place) -> None:
    """Everything is said everywhere; then the uppermost falls silent, again and again."""
    place.app(threads=11, lease="11s", drain_timeout="11m")
    file = place.path / "pgqueue.toml"
    file.write_text("threads = 12\nlease = 12.5\n")
    assert place.found("shop:app", PGQUEUE_THREADS="13")["threads"] == {"value": 13, "from": "PGQUEUE_THREADS"}
    found = place.found("shop:app", PGQUEUE_THREADS="")
    assert found["threads"] == {"value": 12, "from": str(file)}
    assert found["lease"] == {"value": 12.5, "from": str(file)}
    assert found["drain_timeout"] == {"value": 660.0, "from": "App(settings=...) of shop"}
    assert found["workers"] == {"value": "auto", "from": "default"}
    file.write_text("")
    assert place.found("shop:app")["threads"]["value"] == 11
    assert place.found()["threads"]["value"] == 1
    file.unlink()
    (place.path / "pyproject.toml").write_text("[tool.other]\nx = 1\n[tool.pgqueue]\nqueues = ['a', 'b']\n")
    assert place.found()["queues"] == {"value": "a,b", "from": str(place.path / "pyproject.toml")}
    assert place.found(PGQUEUE_QUEUES="b, c=1 > d=5")["queues"]["value"] == "b,c>d=5"


def test_the_app_beats_the_environment_for_the_database(place: Place) -> None:
    (place.path / "pgqueue.toml").write_text("dsn = 'dbname=of_file'\n")
    place.app("dbname=of_app")
    assert place.found()["dsn"]["value"] == "dbname=of_file"
    assert place.found(PGQUEUE_DSN="dbname=of_env")["dsn"]["value"] == "dbname=of_env"
    assert place.found("shop:app", PGQUEUE_DSN="dbname=of_env")["dsn"] == {"value": "dbname=of_app", "from": "App(...) of shop"}
    assert place.found("shop:app", "--dsn", "dbname=typed", PGQUEUE_DSN="dbname=of_env")["dsn"]["value"] == "dbname=typed"


def test_the_commands_find_the_database_in_each_place(place: Place, dsn: str) -> None:
    assert "PGQUEUE_DSN" in place.pgqueue("status", code=78)
    (place.path / "pgqueue.toml").write_text(f"dsn = {json.dumps(dsn)}\n")
    place.app()
    assert "default" in place.pgqueue("status")
    assert "registered" in place.pgqueue("migrate", "shop:app")
    place.pgqueue("work", "shop:app", "--burst")
    place.pgqueue("status", code=69, PGQUEUE_DSN="host=/nowhere")
    place.app("host=/nowhere")
    place.pgqueue("migrate", "shop:app", code=69)
    assert "registered" in place.pgqueue("migrate", "shop:app", "--dsn", dsn)


def test_the_variables_of_libpq_are_enough(place: Place, dsn: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    variables = {names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names}
    place.app()
    assert "default" in place.pgqueue("status", **variables)
    place.pgqueue("work", "shop:app", "--burst", **variables)
    assert "libpq" in place.pgqueue("status", code=69, PGHOST="/nowhere")


def test_secrets_are_masked(place: Place) -> None:
    dsn = "postgresql://me:hunter2@db/shop?sslpassword=hunter2"
    place.app(dsn)
    for arguments in ((), ("shop:app",), ("shop:app", "--json"), ("--json",)):
        said = place.pgqueue(
            "config", *arguments, PGQUEUE_DSN=dsn, PGQUEUE_LISTEN_DSN=dsn, PGPASSWORD="hunter2", PGHOST="elsewhere"
        )
        assert "hunter2" not in said
        assert "PGPASSWORD" in said
        assert "elsewhere" in said


@pytest.mark.parametrize(
    ("file", "variables", "says"),
    [
        ("worker = 3", {}, "pgqueue.toml: there is no setting 'worker': did you mean 'workers'?"),
        ("drain-timeout = 3", {}, "did you mean 'drain_timeout'?"),
        ("workers = 0", {}, "pgqueue.toml: workers: 0 is no whole number from 1 to 512"),
        ("workers = true", {}, "True is no whole number"),
        ("lease = '15 parsecs'", {}, "is not a duration"),
        ("lease = 0.5", {}, "too short"),
        ("boot_timeout = 0", {}, "boot_timeout: 0 is too short: use at least 1s"),
        ("hang_timeout = 0.001", {}, "hang_timeout: 0.001 is too short: use at least 1s"),
        ("max_memory = 1", {}, "max_memory: 1 is too little: use at least 1M, or 0"),
        ("lease = [1]", {}, "a duration is"),
        ("queues = 5", {}, "5 is no list of names"),
        ("queues = ' '", {}, "queues: it names no queue"),
        ("verbose = 'perhaps'", {}, "neither true nor false"),
        ("dsn = 5", {}, "dsn: 5 is no text"),
        ("workers = ", {}, "pgqueue.toml cannot be read"),
        ("", {"PGQUEUE_WORKER": "3"}, "there is no environment variable PGQUEUE_WORKER: did you mean 'PGQUEUE_WORKERS'?"),
        ("", {"PGQUEUE_THREADS": "many"}, "PGQUEUE_THREADS: threads: 'many'"),
    ],
)
def test_what_nobody_can_have_meant_is_refused(
    place: Place, file: str, variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.path / "pgqueue.toml").write_text(file)
    monkeypatch.chdir(place.path)
    for variable, text in variables.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(Configuration, match=re.escape(says)):
        resolve({})


def test_a_wrong_setting_stops_workers_before_they_start(place: Place) -> None:
    place.app()
    assert "PGQUEUE_THREADS" in place.pgqueue("work", "shop:app", code=78, PGQUEUE_THREADS="many")
    (place.path / "pgqueue.toml").write_text("")
    (place.path / "pyproject.toml").write_text("[tool.pgqueue]\n")
    assert "keep one" in place.pgqueue("work", "shop:app", code=78)
    (place.path / "pyproject.toml").write_text("tool.pgqueue = 5\n")
    assert "has to be a table" in place.pgqueue("config", code=78)


def test_variables_that_kubernetes_makes_for_a_service_are_left_alone(place: Place) -> None:
    services = {
        "PGQUEUE_SERVICE_HOST": "10.0.0.1", "PGQUEUE_SERVICE_PORT": "9909", "PGQUEUE_SERVICE_PORT_METRICS": "9909",
        "PGQUEUE_PORT": "tcp://10.0.0.1:9909", "PGQUEUE_PORT_9909_TCP": "tcp://10.0.0.1:9909",
        "PGQUEUE_PORT_9909_TCP_PROTO": "tcp", "PGQUEUE_PORT_9909_TCP_PORT": "9909", "PGQUEUE_PORT_9909_TCP_ADDR": "10.0.0.1",
        "PGQUEUE_METRICS_SERVICE_HOST": "10.0.0.1", "PGQUEUE_METRICS_PORT": "tcp://10.0.0.1:9909",
    }  # fmt: skip
    assert place.found(**services)["workers"]["value"] == "auto"


def test_an_app_is_told_where_its_settings_are_written() -> None:
    for settings, says in (({"worker": 1}, "did you mean 'workers'"), ({"workers": -1}, "whole number"), ({"dsn": "x"}, "App")):
        with pytest.raises(ValueError, match=says):
            App(settings=settings)


def test_workers_do_what_the_app_says(place: Place, dsn: str) -> None:
    """The supervisor imports no App: it hears of these from its first child."""
    place.app(workers=3)
    workers = Workers(dsn, place.path)
    try:
        variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{place.path}", "PGQUEUE_WORKERS": ""}
        work = workers.start("shop:app", env=variables)
        wait_for(lambda: len(work.children()) == 4, what="three workers and a housekeeper")
        assert "3 workers for default" in work.log()
        other = workers.start("shop:app", env={**variables, "PGQUEUE_WORKERS": "1"})
        wait_for(lambda: "1 worker for default" in other.log())
    finally:
        workers.stop_all()


def test_the_documentation_has_all_settings() -> None:
    rows = table(section(ROOT / "docs" / "operations.md", "Settings"))
    declared = [[f"`{s.name}`", f"`{s.option}`", f"`{s.variable}`", s.kind.text(s.default), s.says] for s in SETTINGS.values()]
    assert rows == declared, "\n".join("| " + " | ".join(row) + " |" for row in declared)
    options = {code(row[0])[-1] for row in table(section(ROOT / "docs" / "reference" / "cli.md", "`pgqueue work`"))}
    assert {setting.option for setting in SETTINGS.values()} <= options
