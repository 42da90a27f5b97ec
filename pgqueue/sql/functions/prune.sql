-- Delete up to `amount` ended jobs, with all their facts, that ended longer ago than `older` with one of these statuses: those that
-- may go, see erase_jobs. What people ask for; the housekeepers go by the retention: see prune_due.
-- Returns how many went: fewer than `amount` means that nothing is left to do.
CREATE OR REPLACE FUNCTION pgqueue.prune(statuses text[], older interval, amount integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    old    uuid[];
    went   bigint;
    pruned bigint := 0;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    IF older < interval '0' THEN
        PERFORM pgqueue.refuse('PQ004', format('the age %s is negative', older));
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('pgqueue.kept_children', 0));     -- erase_jobs would not wait
    LOOP                                                     -- parents before their children
        SELECT array_agg(o.job_id) INTO old
          FROM (SELECT o.job_id FROM pgqueue.outcome o
                  JOIN pgqueue.job j ON j.id = o.job_id
                  LEFT JOIN pgqueue.job p ON p.id = j.parent
                  LEFT JOIN pgqueue.outcome po ON po.job_id = j.parent
                 WHERE o.finished_at < pgqueue.clock_bound() - older AND o.status = ANY (statuses)
                   AND (p.id IS NULL OR po.status = 'succeeded')
                   AND NOT EXISTS (SELECT FROM pgqueue.kept_children k
                                     JOIN pgqueue.job b ON b.id = k.job_id
                                     LEFT JOIN pgqueue.outcome bo ON bo.job_id = k.job_id
                                    WHERE k.parent = j.parent AND k.seq = j.parent_seq AND bo.status IS DISTINCT FROM 'succeeded')
                 ORDER BY o.finished_at LIMIT amount - pruned) o;
        went := CASE WHEN old IS NULL THEN 0 ELSE pgqueue.erase_jobs(old) END;
        pruned := pruned + went;
        EXIT WHEN went = 0 OR pruned >= amount;
    END LOOP;
    RETURN pruned;
END
$$;
