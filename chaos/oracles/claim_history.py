"""The history of each job's claims, written by triggers that exist in tests only.

Fails where a job had two holders at once, a checkpoint or outcome was written by a run that did not hold the claim, a claim ended
that was not held, a job ended twice, or something happened to it after it had ended. Who worked, and was fenced why, is written
down too, for charges.py.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import psycopg

_TRIGGERS = """
CREATE TABLE claim_history (
    place bigserial, xid xid8 NOT NULL, job_id uuid NOT NULL, event text NOT NULL, claim bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp()  -- the server's own: tests replace pgqueue.clock()
);
CREATE INDEX claims ON claim_history (job_id, at) WHERE event = '1 claimed';
CREATE FUNCTION note_claim_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO claim_history (xid, job_id, event, claim) VALUES (
        pg_current_xact_id(), coalesce(NEW.job_id, OLD.job_id), TG_ARGV[0], coalesce(NEW.claim, OLD.claim));
    RETURN NULL;
END $$;
CREATE TRIGGER history AFTER INSERT ON pgqueue.running FOR EACH ROW EXECUTE FUNCTION note_claim_history('1 claimed');
CREATE TRIGGER change AFTER UPDATE ON pgqueue.running FOR EACH ROW EXECUTE FUNCTION note_claim_history('1 changed');
CREATE TRIGGER history AFTER INSERT ON pgqueue.checkpoint FOR EACH ROW EXECUTE FUNCTION note_claim_history('2 stored a step');
CREATE TRIGGER history AFTER INSERT ON pgqueue.outcome FOR EACH ROW EXECUTE FUNCTION note_claim_history('3 ended the job');
CREATE TRIGGER ending AFTER DELETE ON pgqueue.running FOR EACH ROW EXECUTE FUNCTION note_claim_history('4 ended');
CREATE TABLE worker_history (
    id uuid NOT NULL, event text NOT NULL, pid int NOT NULL, reason text, started uuid[],
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION note_worker_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO worker_history (id, event, pid, reason, started) VALUES (NEW.id, TG_ARGV[0], NEW.pid, NEW.reason, NEW.started);
    RETURN NULL;
END $$;
CREATE TRIGGER registering AFTER INSERT ON pgqueue.worker FOR EACH ROW EXECUTE FUNCTION note_worker_history('registered');
CREATE TRIGGER fencing AFTER UPDATE OF fenced_at ON pgqueue.worker FOR EACH ROW
WHEN (OLD.fenced_at IS NULL AND NEW.fenced_at IS NOT NULL) EXECUTE FUNCTION note_worker_history('fenced');
CREATE TRIGGER reopening AFTER DELETE ON pgqueue.outcome FOR EACH ROW EXECUTE FUNCTION note_claim_history('5 reopened');
"""


def install(conn: psycopg.Connection[Any]) -> None:
    """From now on."""
    conn.execute(_TRIGGERS)


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """What is wrong with the histories so far."""
    # Transactions on one job follow each other, because each locks its claim. Within one, the order of triggers says nothing.
    rows = conn.execute(
        "SELECT job_id::text, xid::text, event, claim FROM (SELECT *, min(place) OVER (PARTITION BY job_id, xid) AS began "
        "FROM claim_history) h ORDER BY job_id, began, event"
    ).fetchall()
    return [f"job {job}: {what}" for job, events in groupby(rows, lambda row: row[0]) for what in _wrong(list(events))]


def _wrong(events: list[tuple[Any, ...]]) -> list[str]:
    """Follow one job."""
    holder: int | None = None
    ended = False
    wrong = []
    for _, xid, event, claim in events:
        by_stranger = claim != holder
        if event == "1 claimed":
            legal, holder = holder is None and not ended, claim
        elif event == "2 stored a step":
            legal = not by_stranger and not ended
        elif event == "3 ended the job":
            legal, ended = not by_stranger and not ended, True
        elif event == "4 ended":
            legal, holder = not by_stranger, None
        elif event == "5 reopened":
            legal, ended = ended and holder is None, False
        else:
            legal = False
        if not legal:
            wrong.append(f"claim {claim} {event[2:]} in transaction {xid}, illegal after {[e[2] for e in events]}")
    if ended and holder is not None:
        wrong.append(f"it has ended, and claim {holder} still holds it")
    return wrong
