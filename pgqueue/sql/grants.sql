-- What the roles may do here. Run at the end of every migration of a database that has them: what is no longer granted goes.
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM pgqueue_producer, pgqueue_worker, pgqueue_reader;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM pgqueue_producer, pgqueue_worker, pgqueue_reader;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM pgqueue_producer, pgqueue_worker, pgqueue_reader;
GRANT USAGE ON SCHEMA pgqueue TO pgqueue_producer, pgqueue_worker, pgqueue_reader;

-- Producers: enqueue and send. These functions have the rights of their owner.
GRANT EXECUTE ON FUNCTION pgqueue.enqueue_workflow, pgqueue.enqueue_workflows, pgqueue.send_event, pgqueue.send_message
   TO pgqueue_producer;

-- Workers and operators: every verb, and the rows that the verbs read and write. No TRUNCATE, no TRIGGER, nothing to create.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgqueue TO pgqueue_worker;
REVOKE INSERT, UPDATE, DELETE ON pgqueue.migration, pgqueue.installation FROM pgqueue_worker;
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA pgqueue TO pgqueue_worker;
REVOKE UPDATE ON SEQUENCE pgqueue.conflict FROM pgqueue_worker;                -- counted, and taken back by the owner only
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgqueue TO pgqueue_worker;

-- Readers: what is where, and how much. No inputs, results or errors (of those that failed last, the type of the error).
GRANT SELECT ON pgqueue.jobs, pgqueue.children, pgqueue.waits, pgqueue.queues, pgqueue.workers, pgqueue.beats, pgqueue.ticks,
                pgqueue.violations, pgqueue.retentions, pgqueue.migration, pgqueue.unclaimable, pgqueue.running_jobs, pgqueue.conflicts,
                pgqueue.connections, pgqueue.sessions, pgqueue.server_settings, pgqueue.table_stats, pgqueue.xmin_holders,
                pgqueue.public_rights TO pgqueue_reader;
GRANT SELECT (name, workflow, cron, every, timezone, next_at, last_at, paused, misfire, overlap, origin, declared, grace, queue, priority,
              app, paused_by, problem, done_until) ON pgqueue.schedules TO pgqueue_reader;
GRANT EXECUTE ON FUNCTION pgqueue.stats, pgqueue.limits, pgqueue.metrics, pgqueue.job_metrics, pgqueue.rates, pgqueue.last_failures,
                          pgqueue.youngest_jobs, pgqueue.clock, pgqueue.clock_bound TO pgqueue_reader;
