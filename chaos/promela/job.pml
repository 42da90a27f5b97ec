/* One job under the protocol of leases, fences and checkpoints, with everything that may go wrong around it.

   A workflow of two steps: a transaction, whose effect and checkpoint are one commit, and a plain step, whose effect is outside of
   the database. Processes interleave in every way, so a pause of any length at any place needs no words: whoever is not chosen
   stands still. README.md says what is left out. -DNAME with a name out of check.py breaks the protocol: spin must then find a
   way to a failed assertion. */

#ifndef FAULTS
#define FAULTS 2                       /* that may happen in one history, of whatever kinds */
#endif
#define WORKERS 2                      /* at a time */
#define INCARNATIONS 4                 /* enough for two faults: each kills at most one */
#define SUCCEEDED 1
#define FAILED 2

mtype = { IDLE, OPEN, COMMITTING };    /* a session: in no transaction; in one, with the claim locked; inside COMMIT */
mtype = { NONE, COMMITTED, ABORTED };  /* what a client has heard of its COMMIT */

/* What is committed. A crash or a failover takes all of it back to an earlier moment, together. */
typedef Database {
    byte token;                        /* of the row in `running`; 0: the job is ready, or has ended */
    byte holder;                       /* the worker in that row */
    byte truth;                        /* which claim that is. No real column: it never repeats, so assertions may trust it */
    bit first, second;                 /* the checkpoints */
    byte effect;                       /* how often the effect of the transaction is there */
    byte outcome;
    byte ended_by;                     /* the claim of the outcome */
    byte fenced;                       /* one bit per worker */
    byte sequence;                     /* for mutants: tokens from a sequence */
};
Database db, durable, replica;

inline copy(to, from) {
    to.token = from.token; to.holder = from.holder; to.truth = from.truth; to.first = from.first; to.second = from.second;
    to.effect = from.effect; to.outcome = from.outcome; to.ended_by = from.ended_by; to.fenced = from.fenced;
    to.sequence = from.sequence
}
inline flush() { copy(durable, db) }   /* a synchronous commit: it and all before it are safe from a crash */

/* The sessions of the step transactions. Each worker has two: after a lost connection the old one may live on for a while. */
typedef Session { mtype state; mtype heard; byte token; byte truth; };
Session session[2 * INCARNATIONS];

byte faults, born, tokens;             /* so far */
bit dead[INCARNATIONS];                /* killed */
byte beat[INCARNATIONS];
byte held[INCARNATIONS];               /* shared memory of the host: the token that this worker holds */
byte inflight[INCARNATIONS];           /* and the one that it has asked for and not heard of */
byte outside;                          /* effects of the plain step */
bit acknowledged;                      /* some worker was told that the job has ended, and no failover has happened since */
bit copied;                            /* the replica has got as far as it will get */

#define FENCED(w) ((db.fenced >> (w)) & 1)
#define SLOT(w, k) (2 * (w) + (k))
#define CONTINUES (seen == 0 || (seen == 1 && db.first) || (seen == 2 && db.second))
#define LOCKED(n) (session[n].state != IDLE && session[n].token == db.token)
#define ANY_LOCK (LOCKED(0) || LOCKED(1) || LOCKED(2) || LOCKED(3) || LOCKED(4) || LOCKED(5) || LOCKED(6) || LOCKED(7))
#define CODE_RUNS(n) (session[n].state != IDLE)
#define MANY_RUN ((CODE_RUNS(0) + CODE_RUNS(1) + CODE_RUNS(2) + CODE_RUNS(3) + CODE_RUNS(4) + CODE_RUNS(5) + CODE_RUNS(6) + \
                   CODE_RUNS(7)) > 1)

#ifdef NO_FENCE
#define HOLDS (true)
#else
#define HOLDS (db.token == token)
#endif
#ifdef NO_CONTINUITY_AT_SETTLE
#define SETTLES (HOLDS && !ANY_LOCK)
#else
#define SETTLES (HOLDS && CONTINUES && !ANY_LOCK)
#endif

inline fault(guard) { faults < FAULTS && (guard) -> faults++ }

inline new_token() {
#if defined(SEQUENCE_FENCE)
    db.sequence++; token = db.sequence
#elif defined(ATTEMPT_FENCE)
    token = 1                          /* nobody has failed: a run that is taken away is no attempt */
#else
    tokens++; token = tokens           /* random: no number comes twice, whatever is lost */
#endif
}

proctype Worker() {
    byte me, token, truth, k, seen;
    bit told;                          /* the database has said that the claim is lost */

start: skip;
    d_step { me = born; born++; token = 0; truth = 0; k = 0; seen = 0; told = 0 }

end_idle:
    if
    :: FENCED(me) -> goto die
    :: atomic { faults < FAULTS -> faults++ ; goto die }
    :: atomic { db.token == 0 && db.outcome == 0 && !FENCED(me) -> new_token(); inflight[me] = token }
    fi;
    if                                 /* the claim: an asynchronous commit */
    :: atomic { db.token == 0 && db.outcome == 0 && !FENCED(me) ->
                tokens++; truth = tokens; db.token = token; db.holder = me; db.truth = truth }
    :: atomic { !(db.token == 0 && db.outcome == 0 && !FENCED(me)) -> inflight[me] = 0; goto end_idle }
    fi;
    if
    :: atomic { held[me] = token; inflight[me] = 0; told = 0 }
    :: atomic { faults < FAULTS -> faults++; inflight[me] = 0; token = 0; goto end_idle }      /* its reply is lost */
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;

replay: skip;
    d_step { seen = (db.second -> 2 : (db.first -> 1 : 0)) };

    /* ------------------------------------------------------------------------------------------- the transaction */
    if :: seen >= 1 -> goto plain :: else fi;
    if                                 /* BEGIN, and the fence: it locks the claim */
    :: atomic { session[SLOT(me, k)].state == IDLE && HOLDS && CONTINUES ->
                session[SLOT(me, k)].state = OPEN; session[SLOT(me, k)].heard = NONE;
                session[SLOT(me, k)].token = token; session[SLOT(me, k)].truth = truth;
                assert(!MANY_RUN) }    /* the code of the job runs once at a time, where it could commit */
    :: atomic { session[SLOT(me, k)].state == IDLE && !(HOLDS && CONTINUES) -> goto lost }
    fi;
    if
    :: atomic { session[SLOT(me, k)].state == OPEN -> session[SLOT(me, k)].state = COMMITTING }
    :: session[SLOT(me, k)].state != OPEN -> goto in_doubt                                     /* the server has ended it */
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;
    if
    :: session[SLOT(me, k)].heard == COMMITTED -> skip
    :: session[SLOT(me, k)].state == IDLE && session[SLOT(me, k)].heard != COMMITTED -> goto in_doubt
    :: atomic { faults < FAULTS -> faults++; goto in_doubt }                                   /* the connection is lost */
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;
#ifdef SECOND_TRANSACTION
    if
    :: atomic { HOLDS && CONTINUES -> db.first = 1; flush() }
    :: atomic { !(HOLDS && CONTINUES) -> goto lost }
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;
#endif
    seen = 1;

    /* -------------------------------------------------------------------------------------------- the plain step */
plain:
    if :: seen >= 2 -> goto settle :: else fi;
    if
    :: atomic { assert(!told); outside++; assert(outside <= 1 + faults) }
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;
    if
    :: atomic { HOLDS && CONTINUES && !db.second -> assert(db.truth == truth); db.second = 1; flush(); seen = 2 }
    :: atomic { HOLDS && CONTINUES && db.second -> goto in_doubt }                              /* the primary key */
    :: atomic { !(HOLDS && CONTINUES) -> goto lost }
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;

settle:
    if
    :: atomic { SETTLES -> assert(db.truth == truth); db.outcome = SUCCEEDED; db.ended_by = token; db.token = 0;
#ifndef NO_SYNC
                flush();
#endif
                assert(db.first && db.second && db.effect == 1) }  /* what is said to be done is done */
    :: atomic { !SETTLES && db.ended_by == token -> skip }         /* sent again */
    :: atomic { !SETTLES && db.ended_by != token && !(HOLDS && CONTINUES && ANY_LOCK) -> goto lost }
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;
    if
    :: atomic { db.outcome != 0 -> acknowledged = 1; held[me] = 0; goto end_idle }
    :: db.outcome == 0 -> goto settle                              /* the answer was lost, and with it perhaps more */
    fi;

in_doubt: skip;                           /* did it commit? */
#ifdef DOUBT_IS_FAILURE
    if
    :: atomic { HOLDS && !ANY_LOCK -> db.outcome = FAILED; db.token = 0; flush(); held[me] = 0; goto end_idle }
    :: !HOLDS || ANY_LOCK
    fi;
#endif
    if
#ifdef KEY_SHARE_IN_DOUBT
    :: atomic { db.token == token -> k = 1 - k; goto replay }      /* granted at once, beside the other KEY SHARE */
#else
    :: atomic { db.token == token && !LOCKED(SLOT(me, 0)) && !LOCKED(SLOT(me, 1)) -> k = 1 - k; goto replay }
#endif
    :: atomic { db.token != token -> goto lost }
    :: atomic { faults < FAULTS -> faults++; goto die }
    fi;

lost: skip;
#ifdef CLAIM_LOST_IS_SWALLOWED
    if
    :: atomic { seen == 0 && !told -> told = 1; seen = 1; goto plain }
    :: else
    fi;
#endif
    d_step { told = 1; held[me] = 0; token = 0; truth = 0 };
    goto end_idle;

die: skip;
    d_step { dead[me] = 1; held[me] = 0; inflight[me] = 0 };
    if :: born < INCARNATIONS -> goto start :: else fi
}

/* The server, for one session: what is inside COMMIT commits, what the dead have left open comes to an end. */
proctype Server(byte n) {
end:
    do
    :: atomic { session[n].state == COMMITTING && !db.first ->
                assert(db.truth == session[n].truth);              /* who commits is the one holder */
                db.effect++; assert(db.effect == 1);
#ifndef SECOND_TRANSACTION
                db.first = 1;
#endif
                flush(); session[n].state = IDLE; session[n].heard = COMMITTED }
    :: atomic { session[n].state == COMMITTING && db.first ->      /* the primary key of checkpoints */
                session[n].state = IDLE; session[n].heard = ABORTED }
    :: atomic { session[n].state == OPEN && dead[n / 2] -> session[n].state = IDLE; session[n].heard = ABORTED }
    od
}

inline end_sessions() {
    d_step {
        n = 0;
        do
        :: n < 2 * INCARNATIONS -> session[n].state = IDLE; if :: session[n].heard != COMMITTED -> session[n].heard = ABORTED :: else fi; n++
        :: else -> break
        od;
        n = 0
    }
}

/* The heartbeat of the host. */
proctype Beat() {
    byte w;
end:
    do
    :: atomic { w < INCARNATIONS && w < born -> if :: !FENCED(w) && !dead[w] -> beat[w]++ :: else fi; w++ }
    od
}

/* The housekeepers: leases, deaths, reaping, and claims that nobody knows of. */
proctype Housekeeper(byte w) {
    byte seen, token; bit knows;
end:
    do
    :: atomic { faults < FAULTS && w < born && !FENCED(w) && !dead[w] -> faults++; seen = beat[w] };  /* for too long, it says */
#ifdef NO_BEAT_IN_FENCE
       atomic { !FENCED(w) -> assert(beat[w] == seen); db.fenced = db.fenced | (1 << w) }
#else
       if
       :: atomic { beat[w] == seen && !FENCED(w) -> assert(beat[w] == seen); db.fenced = db.fenced | (1 << w) }
       :: beat[w] != seen || FENCED(w)
       fi;
       seen = 0
#endif
    :: atomic { dead[w] && !FENCED(w) -> db.fenced = db.fenced | (1 << w) }
    :: atomic { FENCED(w) && db.token != 0 && db.holder == w && LOCKED(SLOT(w, 0)) && session[SLOT(w, 0)].state == OPEN ->
                session[SLOT(w, 0)].state = IDLE; session[SLOT(w, 0)].heard = ABORTED }
    :: atomic { FENCED(w) && db.token != 0 && db.holder == w && LOCKED(SLOT(w, 1)) && session[SLOT(w, 1)].state == OPEN ->
                session[SLOT(w, 1)].state = IDLE; session[SLOT(w, 1)].heard = ABORTED }
#ifdef NO_COMPARE_IN_REAP
    :: atomic { FENCED(w) && db.token != 0 && db.holder == w && !ANY_LOCK -> token = db.token };   /* whose it is, was looked up */
       if
       :: atomic { db.token != 0 && !ANY_LOCK -> assert(FENCED(db.holder)); db.token = 0 }
       :: db.token == 0 || ANY_LOCK
       fi;
       token = 0
#else
    :: atomic { FENCED(w) && db.token != 0 && db.holder == w && !ANY_LOCK -> db.token = 0 }
#endif
#ifndef NO_RECONCILIATION
#ifdef MEMORY_FIRST
    :: atomic { w < born && !dead[w] -> seen = held[w]; token = inflight[w] };
       if
       :: atomic { !FENCED(w) && db.token != 0 && db.holder == w && db.token != seen && db.token != token && !ANY_LOCK ->
                   assert(held[w] != db.token); db.token = 0 }
       :: FENCED(w) || db.token == 0 || db.holder != w || db.token == seen || db.token == token || ANY_LOCK
       fi;
       atomic { seen = 0; token = 0 }
#else
    :: atomic { w < born && !dead[w] && !FENCED(w) && db.token != 0 && db.holder == w -> token = db.token };
       knows = (held[w] == token || inflight[w] == token);
       if
       :: atomic { !knows && db.token == token && !ANY_LOCK -> assert(held[w] != token); db.token = 0 }
       :: knows || db.token != token || ANY_LOCK
       fi;
       atomic { token = 0; knows = 0 }
#endif
#endif
    od
}

/* What happens to the server as a whole. */
proctype Disaster() {
    byte n;
end:
    do
    :: atomic { faults < FAULTS -> faults++; copy(db, durable); end_sessions();        /* it crashes, and comes back */
                assert(!acknowledged || db.outcome != 0);
                assert(db.effect == db.first) }
    :: atomic { faults < FAULTS && !copied -> copied = 1; copy(replica, durable) }     /* from here on the replica lags */
    :: atomic { faults < FAULTS && copied -> faults++; copied = 0; acknowledged = 0;   /* and takes over */
                copy(db, replica); copy(durable, replica); end_sessions();
                assert(db.effect == db.first) }
    od
}

/* When nobody can do anything any more, the job has ended, well. */
proctype End() {
end:
    timeout;
    assert(db.outcome == SUCCEEDED && db.effect == 1)
}

init {
    byte i;
    atomic {
        i = 0; do :: i < 2 * INCARNATIONS -> run Server(i); i++ :: else -> break od;
        i = 0; do :: i < INCARNATIONS -> run Housekeeper(i); i++ :: else -> break od;
#ifdef TWO_HOSTS
        run Housekeeper(0);            /* of another host: anybody may reap */
#endif
        i = 0; do :: i < WORKERS -> run Worker(); i++ :: else -> break od;
        run Beat(); run Disaster(); run End()
    }
}
