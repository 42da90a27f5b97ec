-- What crash_matrix() needs in the copy of the database in which it kills a process: to hold a COMMIT, and to look around.
CREATE SCHEMA pgqueue_testing;

-- A COMMIT that writes one of these rows waits at its very end, before it is durable, as long as hold() is in force.
CREATE FUNCTION pgqueue_testing.wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('pgqueue_testing'));
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgqueue.checkpoint DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pgqueue_testing.wait_in_commit();
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgqueue.outcome DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pgqueue_testing.wait_in_commit();
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgqueue.waiting DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pgqueue_testing.wait_in_commit();
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgqueue.scheduled DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pgqueue_testing.wait_in_commit();
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgqueue.ready DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pgqueue_testing.wait_in_commit();

CREATE PROCEDURE pgqueue_testing.hold() LANGUAGE sql
AS $$ SELECT pg_advisory_lock(hashtext('pgqueue_testing')) $$;

CREATE PROCEDURE pgqueue_testing.release() LANGUAGE sql
AS $$ SELECT pg_advisory_unlock(hashtext('pgqueue_testing')) $$;

-- The sessions that wait inside their COMMIT.
CREATE VIEW pgqueue_testing.held AS
SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted;

-- They end, and have not committed.
CREATE PROCEDURE pgqueue_testing.end_held() LANGUAGE sql
AS $$ SELECT pg_terminate_backend(h.pid) FROM pgqueue_testing.held h $$;

-- The sessions of workers.
CREATE VIEW pgqueue_testing.sessions AS
SELECT a.pid FROM pg_stat_activity a
 WHERE a.datname = current_database() AND a.application_name ~ '^pgqueue:[0-9a-f]{8}-';

-- In how many seconds the next of the jobs that wait for a time is due. Null: there is none.
CREATE VIEW pgqueue_testing.next_due AS
SELECT extract(epoch FROM min(least(j.run_at, j.waiting_until)) - pgqueue.clock())::float8 AS seconds
  FROM pgqueue.jobs j
 WHERE j.state = 'scheduled' OR (j.state = 'waiting' AND j.waiting_until IS NOT NULL);
