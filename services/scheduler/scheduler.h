/* The scheduler without its sockets: ledger, batch, planner, policy and delivery put together. service.c feeds it what
 * arrives and sends what it decides; the simulator of tests/sim does the same with a virtual clock.
 *
 * Events record; scheduler_plan, scheduler_traffic and delivery decide. Time is an argument. */
#ifndef QN_SCHEDULER_SCHEDULER_H
#define QN_SCHEDULER_SCHEDULER_H

#include "services/scheduler/planner/admission.h"
#include "services/scheduler/batch/batch.h"
#include "services/scheduler/delivery.h"
#include "services/scheduler/planner/planner.h"
#include "services/scheduler/progress.h"
#include "services/scheduler/quarantine/suspects.h"

/* How long requests of a client that is gone are held, for it to come back and ask for them. Counted from the first
 * time that nobody was there, over all deaths of the scheduler since. Meanwhile they yield (planner.h, rule 8). */
#define SCHEDULER_ORPHAN_NS 10000000000ull
/* Its client is not just starting again: when the queue is full, such an orphan makes room for who is there. */
#define SCHEDULER_ORPHAN_OLD_NS 1000000000ull

/* What the client of a quarantined request is told. */
#define SCHEDULER_QUARANTINED_TEXT                                                                                          \
    "This request made a daemon of the engine crash twice. It was ended and quarantined; the folder quarantine of the run " \
    "directory holds it for the operator."

typedef struct scheduler scheduler_t;

typedef struct {
    planner_options_t planner;
    uint32_t max_sequences; /* slots */
    uint32_t queue_limit;   /* requests in the ledger */
    const char *policy;     /* choices (policy_object.h); NULL: the first built-in one */
    const char *batching, *admission;
    const char *policy_dirs;             /* NULL: no shared object is loaded */
    const qn_policy_t *policy_functions; /* not NULL: these schedule (borrowed; tests) */
    void *ledger_base;                   /* shared mapping, borrowed */
    size_t ledger_bytes;
    uint32_t epoch;      /* this life's */
    bool former_crashed; /* the life that left the ledger did */
} scheduler_options_t;

/* What the resident model needs to be known of. */
typedef struct {
    char name[QN_MODEL_NAME_MAX]; /* "": any name is right */
    uint32_t vocab_size, max_model_len, block_tokens, block_count;
    uint32_t eos_ids[PLANNER_EOS_MAX];
    uint32_t eos_count;
    qn_probe_model_t probes; /* what probes must suit */
} scheduler_model_t;

typedef enum {
    SCHEDULER_ACCEPTED,
    SCHEDULER_RESUMED, /* it lives already: its client is told everything from the start */
    SCHEDULER_REFUSED,
} scheduler_submit_outcome_t;

typedef struct {
    uint32_t waiting, leasing, running, retiring, requests, suspects;
    planner_counts_t planner;
    uint64_t masked_runs;
} scheduler_counts_t;

/* Opens the ledger and replays it; everybody found there waits again, an orphan until its client shows. Failure: an
 * option, the policy, memory. Returns owned. */
qn_err_t scheduler_create(const scheduler_options_t *options, uint64_t now_ns, scheduler_t **ret_scheduler,
                          ledger_replay_t *ret_replay);
/* The ledger's mapping keeps all requests. */
void scheduler_destroy(scheduler_t **scheduler);

/* ---- clients ---- */

/* submission->generated_max is filled in here. *ret_refusal is written for SCHEDULER_REFUSED. */
scheduler_submit_outcome_t scheduler_submit(scheduler_t *scheduler, const ledger_submission_t *submission,
                                            uint64_t now_ns, admission_refusal_t *ret_refusal);
/* Ends the request; unknown or finished ones are ignored. `finish`: REQUEST_CANCELLED, or REQUEST_STOP. */
void scheduler_cancel(scheduler_t *scheduler, uint64_t id, request_finish_t finish);
void scheduler_cancel_all(scheduler_t *scheduler);
/* What attention under masks read for a request; of one that is gone nobody wants to know. */
void scheduler_count_reads(scheduler_t *scheduler, const qn_sequence_read_t *read);
/* New requests are refused with 503 from now on; those that wait may be cancelled. */
void scheduler_drain(scheduler_t *scheduler, bool cancel_waiting);
/* A client (this life of it) is there: what it is owed goes to it. */
void scheduler_client_up(scheduler_t *scheduler, request_client_t client);
/* It has submitted again all it holds since this process began: what it does not know any more (its client left while
 * no scheduler was there to be told) is cancelled. */
void scheduler_client_replayed(scheduler_t *scheduler, request_client_t client);
/* It is gone for good: its requests are cancelled SCHEDULER_ORPHAN_NS later unless somebody submits them again. */
void scheduler_client_gone(scheduler_t *scheduler, request_client_t client, uint64_t now_ns);
/* Requests accepted before the model was known, and refused by it: one per call, taken out of the ledger. */
bool scheduler_next_refusal(scheduler_t *scheduler, uint64_t *ret_request, request_client_t *ret_client,
                            admission_refusal_t *ret_refusal);

/* A message about this request is handled now (0: no more): if the process dies over it, the next one knows. */
void scheduler_take_in_hand(scheduler_t *scheduler, uint64_t request);

/* ---- quarantine (suspects.h) ---- */

/* The peer that was lost last crashed, or it did not. */
void scheduler_peer_crashed(scheduler_t *scheduler, suspects_peer_t peer);
void scheduler_peer_survived(scheduler_t *scheduler, suspects_peer_t peer);
/* What compute answered does not fit: a new session begins, and it counts as a crash of compute. */
void scheduler_compute_failed(scheduler_t *scheduler);
/* Memory refused what it was sent: all blocks are given back and asked for anew, and it counts as a crash of memory. */
void scheduler_memory_failed(scheduler_t *scheduler);
/* A request that is found guilty, once for each; *ret_peer: of whose crash. NULL: no more. It is ended already. */
const request_t *scheduler_next_guilty(scheduler_t *scheduler, suspects_peer_t *ret_peer);
/* Quarantined requests whose clients are there and were not told: NULL starts, and ends. */
const request_t *scheduler_next_untold(const scheduler_t *scheduler, const request_t *after);
void scheduler_told(scheduler_t *scheduler, const request_t *request);
/* Whether a quarantined request has to be recorded: true the first time only. */
bool scheduler_record_once(scheduler_t *scheduler, uint64_t request);
/* Whether a request with this id was quarantined, now or in a former life. */
bool scheduler_is_quarantined(const scheduler_t *scheduler, uint64_t request);

/* ---- memory and compute ---- */

/* Memory is up and says what it holds. A second description of the same sizes changes nothing; of other sizes, it is as
 * if memory were another one. */
qn_err_t scheduler_memory_up(scheduler_t *scheduler, const scheduler_model_t *model);
void scheduler_memory_lost(scheduler_t *scheduler);
/* Compute takes plans from now on, with empty slot tables. */
void scheduler_compute_up(scheduler_t *scheduler);
/* Compute's keys and values come from these kernels now. Another set than before: what was computed with the old one is no prefix
 * for anybody, so everybody gives its blocks back and runs its tokens again. True: somebody held any. */
bool scheduler_kernels_changed(scheduler_t *scheduler, uint64_t kernel_set);
/* 0: not known yet. */
uint64_t scheduler_kernel_set(const scheduler_t *scheduler);
void scheduler_compute_lost(scheduler_t *scheduler);
bool scheduler_running(const scheduler_t *scheduler); /* both are up */
/* Compute has lost its slots, or the oldest step: what has no result is planned again, in a new session. */
void scheduler_renew(scheduler_t *scheduler);
/* The session of the plans made now, and whether a result or a word of `session` is of it. */
uint32_t scheduler_session(const scheduler_t *scheduler);
/* What is due about the oldest step without a result (progress.h); *ret_progress is a view. */
progress_verdict_t scheduler_progress(scheduler_t *scheduler, uint64_t now_ns, const progress_t **ret_progress,
                                      uint64_t *ret_again_ns);
/* The same, to be shown. Returns view. */
const progress_t *scheduler_progress_shown(const scheduler_t *scheduler);
/* Compute's answer about it. */
void scheduler_step_status(scheduler_t *scheduler, uint32_t session, uint64_t step, bool held, uint64_t now_ns);

/* Returns how many grants do not fit their lease: they are given back and asked for anew, and that counts as a crash of
 * memory with this request in its hands. */
uint32_t scheduler_grant(scheduler_t *scheduler, const batch_grant_t *grants, uint32_t count,
                         uint32_t available_blocks);
/* Memory's answer to a look-up of prefixes (plan_traffic_t.lookups). */
void scheduler_prefix_hits(scheduler_t *scheduler, uint64_t lookup_batch, const plan_prefix_hit_t *hits,
                           uint32_t count);
/* *ret_step views what the result was for (step 0: nothing any more), until the next result. */
qn_err_t scheduler_result(scheduler_t *scheduler, const batch_result_t *result, uint64_t now_ns,
                          const batch_step_t **ret_step);

/* ---- decisions ---- */

void scheduler_plan(scheduler_t *scheduler, uint64_t now_ns, plan_t *ret_plan, bool *ret_built);
void scheduler_traffic(scheduler_t *scheduler, uint64_t now_ns, plan_traffic_t *ret_traffic);
delivery_t *scheduler_delivery(scheduler_t *scheduler);
/* Ends orphans whose time is over and forgets requests about which nothing is left to do. Returns when it has to be
 * called again though nothing happens (UINT64_MAX: never). */
uint64_t scheduler_tidy(scheduler_t *scheduler, uint64_t now_ns);

/* ---- views ---- */

void scheduler_counts(const scheduler_t *scheduler, scheduler_counts_t *ret_counts);
const scheduler_options_t *scheduler_options(const scheduler_t *scheduler);
const batch_t *scheduler_batch(const scheduler_t *scheduler);
const ledger_t *scheduler_ledger(const scheduler_t *scheduler);
const char *scheduler_policy_name(const scheduler_t *scheduler);
/* Why a policy was withdrawn last; "": none was since somebody chose. */
const char *scheduler_policy_withdrawn(const scheduler_t *scheduler);
/* Who decides; they may be set, and given a shadow, between two calls of this interface. */
const policies_t *scheduler_policies(const scheduler_t *scheduler);
/* What was decided about a request (0: any), the newest first: number `at`; NULL: no more is kept. */
const planner_decision_t *scheduler_decision(const scheduler_t *scheduler, uint64_t request, uint32_t at);
/* NULL, or the broken invariant. */
const char *scheduler_check(const scheduler_t *scheduler);

#endif
