"""The floors: a file imports only from its own floor or lower ones. docs/architecture.md prints the same table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "pgqueue"

#: From the top to the bottom. A name stands for the module or the package of that name.
FLOORS = {
    "edge": ["__main__", "cli", "bench", "demo", "doctor", "embedded", "testing"],
    "process": ["supervisor", "housekeeper"],
    "run": ["worker", "runtime", "slots"],
    "author": [
        "__init__",
        "app",
        "instruments",
        "logs",
        "client",
        "functions",
        "loading",
        "settings",
        "context",
        "durable",
        "results",
    ],
    "protocol": ["protocol"],
    "database": ["database", "migrate", "listening", "descriptors"],
    "words": [
        "model",
        "errors",
        "retry",
        "unique",
        "config",
        "values",
        "ids",
        "colour",
        "schedules",
        "failpoints",
        "metrics",
        "meter",
        "_version",
    ],
}
LEVEL = {name: level for level, names in enumerate(reversed(FLOORS.values())) for name in names}
# The database runs the calls of the protocol, and the protocol speaks of nothing but words: they are one floor in two files.
LEVEL["database"] = LEVEL["migrate"] = LEVEL["listening"] = LEVEL["descriptors"] = LEVEL["protocol"]

FILES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """What of pgqueue a file imports when it is loaded, leaving out what only type checkers see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pgqueue":
            parts = node.module.split(".")
            found.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("pgqueue."))
    return {name if name in LEVEL else "__init__" for name in found}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = place(path)
    assert here in LEVEL, f"{here} has no floor: add it to FLOORS here and in docs/architecture.md"
    wrong = {name for name in imports(path) if LEVEL[name] > LEVEL[here]}
    assert not wrong, f"{path} is on a lower floor than what it imports: {wrong}"


def test_producers_need_neither_worker_nor_runtime() -> None:
    for name in ("client", "app", "functions"):
        assert not imports(PACKAGE / f"{name}.py") & set(FLOORS["run"] + FLOORS["process"] + FLOORS["edge"])


def test_the_supervisor_has_no_threads_and_no_connections() -> None:
    for path in (PACKAGE / "supervisor").glob("*.py"):
        text = path.read_text()
        assert "threading" not in text
        assert path.name == "probe.py" or "database" not in imports(path)


def test_sql_lives_in_sql_files() -> None:
    """Python calls verbs and reads views. It changes no table by itself."""
    allowed = {"protocol.py", "migrate.py", "embedded.py"}
    for path in FILES:
        if path.name in allowed or {"demo", "bench"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.split()
                assert words[:1] not in (["SELECT"], ["DELETE"]), f"{path}: {node.value}"
                assert words[:2] not in (["INSERT", "INTO"],), f"{path}: {node.value}"


def test_one_function_per_file() -> None:
    for path in (PACKAGE / "sql" / "functions").glob("*.sql"):
        text = path.read_text()
        assert text.count("CREATE OR REPLACE FUNCTION") == 1, path
        assert f"FUNCTION pgqueue.{path.stem}(" in text, path
        assert text.startswith("-- "), f"{path} does not say what it does"


def test_each_migration_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (PACKAGE / "sql" / "tables").glob("*.sql")]
    assert sorted(numbers) == [f"{n:04}" for n in range(1, len(numbers) + 1)]


def test_only_the_clock_reads_the_time() -> None:
    clocks = ("now()", "clock_timestamp()", "statement_timestamp()", "current_timestamp", "transaction_timestamp")
    for path in (PACKAGE / "sql").rglob("*.sql"):
        if path.stem in ("clock", "clock_bound", "schema", "0001_core"):
            continue
        code = "\n".join(line.partition("--")[0] for line in path.read_text().lower().splitlines())
        for clock in clocks:
            assert clock not in code, f"{path} reads {clock}: use pgqueue.clock() or clock_bound()"
