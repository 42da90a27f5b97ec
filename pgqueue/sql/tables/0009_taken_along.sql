-- Children that were asked to end because their parent had ended: what brings the parent back, brings them back.
CREATE TABLE pgqueue.taken_along (
    parent uuid NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (parent, job_id)
);
