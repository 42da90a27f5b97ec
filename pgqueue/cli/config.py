"""``pgqueue config``: what is set, and by whom."""

from __future__ import annotations

import os
from typing import Any

import click
from psycopg import pq

from pgqueue.cli.options import dsn_option, json_option, typed
from pgqueue.cli.output import show, show_json
from pgqueue.config import SETTINGS
from pgqueue.database import masked
from pgqueue.loading import load_app
from pgqueue.settings import Value, resolve

COLUMNS = ("setting", "value", "from")


@click.command("config")
@click.argument("target", required=False, metavar="[MODULE:APP]")
@json_option
@dsn_option
def config_command(target: str | None, as_json: bool, dsn: str | None) -> None:
    """Each setting of pgqueue work, its value here, and where that comes from. Passwords are masked."""
    values = resolve(typed({"dsn": dsn}), load_app(target) if target else None)
    libpq = _of_libpq()
    if as_json:
        rows = {name: {"value": _plain(name, value.value), "from": value.source} for name, value in values.items()}
        show_json({**rows, "libpq": libpq})
        return
    shown = [(name, _text(name, value), value.source) for name, value in values.items()]
    show(COLUMNS, shown + [(variable, text, "environment, for libpq") for variable, text in libpq.items()], False)


def _plain(name: str, value: Any) -> Any:
    return masked(value) if name.endswith("dsn") and value else SETTINGS[name].kind.plain(value)


def _text(name: str, value: Value) -> str:
    return SETTINGS[name].kind.text(masked(value.value) if name.endswith("dsn") and value.value else value.value) or "-"


def _of_libpq() -> dict[str, str]:
    """What libpq's own variables say about the connection: they fill in what the DSN leaves out."""
    options = [(option.envvar.decode(), option.dispchar) for option in pq.Conninfo.get_defaults() if option.envvar]
    secret = {variable for variable, how in options if how == b"*"}
    return {name: "***" if name in secret else os.environ[name] for name, _ in options if os.environ.get(name)}
