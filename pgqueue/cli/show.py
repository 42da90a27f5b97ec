"""``pgqueue show``: everything about one job."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import psycopg

from pgqueue import database, protocol
from pgqueue.cli.draw import drawn, span
from pgqueue.cli.now import now
from pgqueue.cli.options import dsn_option, json_option
from pgqueue.cli.output import cell, show_fields, show_json
from pgqueue.cli.tree import EACH, Job, load, missing, short
from pgqueue.errors import UnknownJob

LONG = 2000  # characters of an input or result


@click.command("show")
@click.argument("id")
@click.option("--depth", default=3, show_default=True, type=click.IntRange(0, 20), help="How many levels of children.")
@json_option
@dsn_option
def show_command(id: str, depth: int, as_json: bool, dsn: str | None) -> None:
    """Everything about one job: its steps, every attempt that did not succeed, its children, and where it is now.

    Any unique prefix of the id will do.
    """
    with database.connect(database.dsn_from(dsn), "pgqueue:cli") as conn:
        job = whole_id(conn, id)
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # all that is read is of one moment
        with conn.transaction():
            facts = _facts(conn, job)
            root = _root(facts)
            load(conn, root, depth)
            step = next((s for s in root.in_order if s.wait is not None and s.wait.kind == "children"), None)
            facts["now"] = now(facts, root, missing(conn, job, step.seq) if step else [], database.run(conn, protocol.now()))
            if as_json:
                show_json(_document(conn, facts, root))
                return
    show_fields(_header(facts))
    lines = list(drawn(root))
    if lines:
        click.echo("\nsteps")
        for text in lines:
            click.echo(text)
    click.echo(f"\nnow: {facts['now']['text']}")


def whole_id(conn: psycopg.Connection[Any], prefix: str) -> str:
    """The id that begins so. UnknownJob where there is none, or several."""
    prefix = prefix.lower()
    if not re.fullmatch(r"[0-9a-f-]{1,36}", prefix) or (len(prefix) < 36 and not _could_begin_a_uuid(prefix)):
        raise UnknownJob(f"{cell(prefix)!r} is not the id of a job, nor the beginning of one")
    found = database.run(conn, protocol.job_ids(prefix))
    if len(found) != 1:
        raise UnknownJob(f"{'no job has' if not found else 'several jobs have'} an id that begins with {prefix}")
    return found[0]


def _could_begin_a_uuid(prefix: str) -> bool:
    return bool(re.fullmatch("".join(f"(?:{'-' if i in (8, 13, 18, 23) else '[0-9a-f]'}" for i in range(36)) + ")?" * 36, prefix))


def _facts(conn: psycopg.Connection[Any], job: str) -> dict[str, Any]:
    """What is known of the job itself."""
    row = database.run(conn, protocol.job_row(job))
    value = database.run(conn, protocol.job_value(job))
    place = database.run(conn, protocol.job_place(job))
    if row is None or value is None or place is None:
        raise UnknownJob(f"there is no job {job}")
    facts = dict(zip(protocol.JOB_COLUMNS, row, strict=True)) | dict(zip(protocol.PLACE_COLUMNS, place, strict=True))
    policy = facts.pop("policy") or {}
    said = {name: policy.get(name) for name in ("meta", "deadline", "rerun_of")}
    return {**facts, **said, **dict(zip(("input", "result", "error"), value[2:], strict=True))}


def _root(facts: dict[str, Any]) -> Job:
    same = ("id", "name", "state", "ordinal", "created_at", "run_at", "started_at", "finished_at")
    return Job(**{name: facts[name] for name in same}, error=short(facts["error"]))


def _header(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as lines; what is None is left out."""
    begin, end = facts["run_at"] or facts["created_at"], facts["finished_at"]
    requested = facts["cancel_requested"] and not end
    return {
        "id": facts["id"],
        "name": facts["name"],
        "version": facts["version"],
        "state": facts["state"],
        "queue": facts["queue"],
        "priority": facts["priority"],
        "key": facts["key"],
        "created": facts["created_at"],
        "due": facts["run_at"],
        "started": facts["started_at"],
        "finished": f"{cell(end)} ({span((end - begin).total_seconds())})" if end else None,
        "parent": facts["parent"] and f"{facts['parent']}, step {facts['parent_seq']}, child {facts['ordinal']}",
        "rerun of": facts["rerun_of"],
        "meta": facts["meta"] and json.dumps(facts["meta"], ensure_ascii=False),
        "deadline": facts["deadline"],
        "cancel": f"requested{' by ' + facts['cancel_by'] if facts['cancel_by'] else ''}" if requested else None,
        "input": _cut(facts["input"]),
        "result": _cut(facts["result"]),
        "error": facts["error"] and short(facts["error"]),
    }


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= LONG:
        return text
    return f"{text[:LONG]}... ({len(text):,} characters; --json shows all)"


# ------------------------------------------------------------------------------------------------------------ as JSON


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _document(conn: psycopg.Connection[Any], facts: dict[str, Any], root: Job) -> dict[str, Any]:
    """The same facts, and of the job itself all of its steps and attempts."""
    facts |= {name: _json(facts[name]) for name in ("input", "result", "error")}
    steps = [
        {"seq": seq, "name": name, "status": status, "result": _json(result), "error": _json(error),
         "ended_at": root.steps[seq].ended_at if seq in root.steps else None}
        for seq, name, status, result, error in database.run(conn, protocol.steps(root.id))
    ]  # fmt: skip
    attempts = [
        {"kind": kind, "seq": seq, "error": _json(error), "host": host, "ended_at": ended_at, "by": by}
        for kind, seq, error, host, ended_at, by in database.run(conn, protocol.attempt_rows(root.id))
    ]
    waits = [vars(step.wait) for step in root.in_order if step.wait is not None]
    said = facts.pop("now")
    return {**facts, "steps": steps, "attempts": attempts, "waits": waits, "children": _children(root), "now": said}


def _children(job: Job) -> list[dict[str, Any]]:
    """For each step that has started jobs: how many are in which state, and up to EACH of them."""
    return [
        {"seq": step.seq or None, "counts": step.counts, "jobs": [_child(child) for child in step.jobs[:EACH]]}
        for step in job.in_order
        if step.counts
    ]


def _child(job: Job) -> dict[str, Any]:
    facts = {name: value for name, value in vars(job).items() if name not in ("steps", "tries", "earlier")}
    steps = [{"seq": s.seq, "name": s.name, "status": s.status, "ended_at": s.ended_at} for s in job.in_order if s.seq]
    return {**facts, "steps": steps, "children": _children(job)}
