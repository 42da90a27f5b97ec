-- Run at the start of every migration: the schema, and the list of numbered files that were applied.
CREATE SCHEMA IF NOT EXISTS pgqueue;

CREATE TABLE IF NOT EXISTS pgqueue.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
