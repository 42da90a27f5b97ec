"""``pgqueue doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click

from pgqueue import database
from pgqueue.cli.options import DURATION, dsn_for, dsn_option, json_option, typed
from pgqueue.cli.output import many, show_json
from pgqueue.config import Exit
from pgqueue.loading import load_app
from pgqueue.logs import harmless
from pgqueue.settings import resolve


@click.command("doctor")
@click.argument("target", required=False, metavar="[MODULE:APP]")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@click.option("--patience", default="30s", show_default=True, type=DURATION, help="Seconds for what has to read everything.")
@json_option
@dsn_option
def doctor_command(target: str | None, strict: bool, patience: float, as_json: bool, dsn: str | None) -> int:
    """Look for what is wrong: the server, the schema, the workers. Says what to do, and changes nothing."""
    from pgqueue.doctor.examine import CHECKS, examine
    from pgqueue.doctor.finding import Case

    app = load_app(target) if target else None
    settings = resolve(typed({"dsn": dsn}), app)
    address = dsn_for(app, dsn)
    with database.connect(address, "pgqueue:doctor") as conn:
        found, made = examine(Case(conn, address, settings, app, patience))
    if as_json:
        show_json([asdict(finding) for finding in found])
    for finding in () if as_json else found:
        click.echo(f"{finding.severity}: {harmless(finding.what)} [{finding.check}]\n    {harmless(finding.advice)}")
    if not as_json:
        counts = [many(sum(f.severity == severity for f in found), severity) for severity in ("error", "warning", "note")]
        every = len(CHECKS) + 1  # that of the schema comes before them
        checks = f"{every} checks" if made == every else f"only {made} of {every} checks could be made"
        click.echo(f"{', '.join(counts)}; {checks}")
    bad = {"error", "warning"} if strict else {"error"}
    return Exit.FAILED if any(finding.severity in bad for finding in found) else Exit.OK
