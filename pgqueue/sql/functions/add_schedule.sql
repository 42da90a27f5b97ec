-- Make a schedule of one's own, which no App declares: a cron expression or an interval, for a registered workflow. Or change it; then
-- it counts from now on. What null says nothing of is as without it. The housekeepers read cron and timezone: here is refused what nobody
-- can read, and what they cannot read is the schedule's problem, in the view schedules.
CREATE OR REPLACE FUNCTION pgqueue.add_schedule(
    name text, workflow text, cron text DEFAULT NULL, every interval DEFAULT NULL, timezone text DEFAULT 'UTC', input json DEFAULT '{}',
    queue text DEFAULT NULL, priority integer DEFAULT NULL, misfire text DEFAULT 'once', grace interval DEFAULT '1 minute',
    overlap boolean DEFAULT true)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    timezone := coalesce(add_schedule.timezone, 'UTC');
    misfire := coalesce(add_schedule.misfire, 'once');
    grace := coalesce(add_schedule.grace, interval '1 minute');
    overlap := coalesce(add_schedule.overlap, true);
    PERFORM pgqueue.described_jobs(json_build_array(json_build_object(                  -- refuses what could not be enqueued
        'name', workflow, 'input', input, 'queue', queue, 'priority', priority)));
    IF num_nonnulls(cron, every) <> 1 THEN
        PERFORM pgqueue.refuse('PQ004', 'a schedule has either a cron expression or an interval');
    ELSIF octet_length(cron) > 256 OR cron !~ '^\s*[0-9A-Za-z*/,#-]+(\s+[0-9A-Za-z*/,#-]+){4,5}\s*$' THEN
        PERFORM pgqueue.refuse('PQ004', format('%L is no cron expression', left(cron, 256)),
            'It has five fields (minute hour day month weekday), or six with the seconds in front, and up to 256 characters.');
    ELSIF every IS NOT NULL AND timezone <> 'UTC' THEN
        PERFORM pgqueue.refuse('PQ004', format('timezone %L: an interval has no time zone, it is counted in UTC', left(timezone, 128)),
            'Use a cron expression for times of the day in a time zone.');
    ELSIF timezone !~ '^[A-Za-z0-9_+/-]{1,128}$' THEN
        PERFORM pgqueue.refuse('PQ004', format('%L is no time zone', left(timezone, 128)), 'Use a name such as Europe/London.');
    ELSIF extract(month FROM every) <> 0 OR extract(year FROM every) <> 0 THEN
        PERFORM pgqueue.refuse('PQ004', format('every %s: months and years are not always of the same length', every),
            'Use a cron expression: "0 0 1 * *" is the first of each month.');
    ELSIF coalesce(name, '') !~ '^[A-Za-z0-9_.:-]{1,128}$' OR misfire NOT IN ('skip', 'once', 'all')
          OR every NOT BETWEEN interval '1 second' AND interval '366 days' OR grace NOT BETWEEN interval '1 second' AND interval '366 days' THEN
        PERFORM pgqueue.refuse('PQ004', format('schedule %L cannot be as it was said', left(name, 200)),
            'A name has 1 to 128 letters, digits and _ . : -, misfire is skip, once or all, and an interval is from 1 second to 366 days.');
    END IF;
    INSERT INTO pgqueue.schedule AS old (name, workflow, cron, every, timezone, input, queue, priority, misfire, grace, overlap, origin, done_until)
    VALUES (add_schedule.name, add_schedule.workflow, add_schedule.cron, extract(epoch FROM add_schedule.every), add_schedule.timezone,
            coalesce(add_schedule.input::text, '{}'), add_schedule.queue, add_schedule.priority, add_schedule.misfire,
            extract(epoch FROM add_schedule.grace), add_schedule.overlap, 'operator', stamp)
    ON CONFLICT (name) DO UPDATE
       SET workflow = excluded.workflow, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone, input = excluded.input,
           queue = excluded.queue, priority = excluded.priority, misfire = excluded.misfire, grace = excluded.grace,
           overlap = excluded.overlap, revision = old.revision + 1, done_until = greatest(old.done_until, stamp), next_at = '-infinity',
           problem = NULL
     WHERE old.origin = 'operator';
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is declared by the App %s', name,
            (SELECT o.app FROM pgqueue.schedule o WHERE o.name = add_schedule.name)), 'Choose another name, or change it there.');
    END IF;
END
$$;
