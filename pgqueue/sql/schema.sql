-- Run at the start of every migration: the schema, and the list of numbered files that were applied. (CREATE SCHEMA IF NOT EXISTS
-- would ask for the right to create one also where it is there.)
DO $$ BEGIN
    IF to_regnamespace('pgqueue') IS NULL THEN
        CREATE SCHEMA pgqueue;
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS pgqueue.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
