"""Which value each setting has, and who said so: the command line, the environment, a file, the App, or nobody.

``pgqueue work`` asks before it starts; its probe asks again with the App, and again for each new generation, so that a changed
file is heard. ``pgqueue config`` shows the same answer. For the database alone the App beats the environment: what a program says
about its own data is not changed by where it happens to run.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgqueue import database
from pgqueue.app import App
from pgqueue.config import SETTINGS, WorkSettings, nearest, read_settings
from pgqueue.errors import Configuration

FILES = ("pgqueue.toml", "pyproject.toml")
PREFIX = "PGQUEUE_"
#: Variables that are no settings of ``pgqueue work``.
OTHER_VARIABLES = (
    "PGQUEUE_PG_BIN",
    "PGQUEUE_FAILPOINTS",
    "PGQUEUE_FAILPOINTS_ONCE",
    "PGQUEUE_FAILPOINTS_DIR",
    "PGQUEUE_STANDING",
)
#: Tests and programs around pgqueue may pass their own variables on.
OTHER_PREFIXES = ("PGQUEUE_TEST_", "PGQUEUE_DEMO_")
#: Kubernetes gives these to every pod beside a Service whose name begins with "pgqueue".
OF_SERVICES = re.compile(r"PGQUEUE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


@dataclass(frozen=True)
class Value:
    """The value of a setting, and where it comes from: ``default``, or where somebody gave it."""

    value: Any = field(repr=False)
    source: str


def resolve(typed: Mapping[str, Any], app: App | None = None) -> dict[str, Value]:
    """All settings. ``typed``: values from the command line. Configuration for an unknown name or a wrong value."""
    layers = [
        {name: Value(value, SETTINGS[name].option) for name, value in typed.items()},
        _from_environment(),
        _from_file(),
        {name: Value(value, f"App(settings=...) of {app.name}") for name, value in app.settings.items()} if app else {},
    ]
    if app is not None and app.client.pool.given_dsn:
        layers.insert(1, {"dsn": Value(app.client.pool.given_dsn, f"App(...) of {app.name}")})
    given = {name: value for layer in reversed(layers) for name, value in layer.items()}
    return {name: given.get(name, Value(setting.default, "default")) for name, setting in SETTINGS.items()}


def work_settings(target: str, typed: Mapping[str, Any], burst: bool = False, app: App | None = None) -> WorkSettings:
    """The settings of a supervisor; without the App what can be known before it is imported."""
    values = resolve(typed, app)
    for name in ("dsn", "listen_dsn"):  # the latter is for the pooler that may come: only there would anybody notice
        try:
            database.parsed(values[name].value or "")
        except Configuration as error:
            raise Configuration(f"{values[name].source}: {error}") from None
    return WorkSettings(target, **{name: value.value for name, value in values.items()}, burst=burst, typed=dict(typed))


def dsn_of_file() -> str | None:
    """The database that the file names."""
    value = _from_file().get("dsn")
    return value.value if value else None


def _from_environment() -> dict[str, Value]:
    given = {}
    variables = {setting.variable: name for name, setting in SETTINGS.items()}
    for variable, text in os.environ.items():
        if variable in variables and text:
            name = variables[variable]
            given.update(_read({name: text}, variable))
        elif variable.startswith(PREFIX) and variable not in variables and not _others(variable):
            raise Configuration(
                f"there is no environment variable {variable}: {nearest(variable, [*variables, *OTHER_VARIABLES[:1]])}"
            )
    return given


def _others(variable: str) -> bool:
    return variable in OTHER_VARIABLES or variable.startswith(OTHER_PREFIXES) or OF_SERVICES.fullmatch(variable) is not None


def _from_file() -> dict[str, Value]:
    """``pgqueue.toml``, or ``[tool.pgqueue]`` of ``pyproject.toml``, in the current directory."""
    found = {name: table for name in FILES if (table := _table(Path(name))) is not None}
    if len(found) > 1:
        raise Configuration("there are settings in pgqueue.toml and in [tool.pgqueue] of pyproject.toml: keep one of them")
    return {name: value for file, table in found.items() for name, value in _read(table, str(Path(file).resolve())).items()}


def _table(path: Path) -> dict[str, Any] | None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Configuration(f"{path.resolve()} cannot be read: {error}") from None
    table = content.get("tool", {}).get("pgqueue") if path.name == "pyproject.toml" else content
    if table is not None and not isinstance(table, dict):
        raise Configuration(f"{path.resolve()}: [tool.pgqueue] has to be a table")
    return table


def _read(given: Mapping[str, Any], source: str) -> dict[str, Value]:
    try:
        return {name: Value(value, source) for name, value in read_settings(dict(given)).items()}
    except ValueError as error:
        raise Configuration(f"{source}: {error}") from None
