/* Between the scheduler's messages and its nouns: the handler table, the sending half, and the state both share. */
#ifndef QN_SCHEDULER_HANDLERS_H
#define QN_SCHEDULER_HANDLERS_H

#include <sys/types.h>

#include "common/daemon/daemon.h"
#include "common/daemon/kept_memory.h"
#include "common/policy/policy_stats.h"
#include "common/watch/window.h"
#include "services/scheduler/history.h"
#include "services/scheduler/scheduler.h"
#include "services/scheduler/session_mask.h"

enum {
    SCHEDULER_STAT_WAITING,
    SCHEDULER_STAT_RUNNING,
    SCHEDULER_STAT_REQUESTS,
    SCHEDULER_STAT_SUBMITTED,
    SCHEDULER_STAT_REFUSED,
    SCHEDULER_STAT_FINISHED,
    SCHEDULER_STAT_PROMPT_TOKENS,
    SCHEDULER_STAT_CACHED_TOKENS,
    SCHEDULER_STAT_GENERATED_TOKENS,
    SCHEDULER_STAT_STEPS,
    SCHEDULER_STAT_STEP_TOKENS,
    SCHEDULER_STAT_FROM_SLOT_RUNS,
    SCHEDULER_STAT_MASKED_RUNS,
    SCHEDULER_STAT_PREEMPTIONS,
    SCHEDULER_STAT_RENEWALS,
    SCHEDULER_STAT_LEDGER_BYTES,
    SCHEDULER_STAT_LEDGER_COMPACTIONS,
    SCHEDULER_STAT_QUEUE,
    SCHEDULER_STAT_PLAN_BUILD,
    SCHEDULER_STAT_STEP_ROUND_TRIP,
    SCHEDULER_STAT_STEP_COMPUTE,
    SCHEDULER_STAT_IDLE_GAP,
    SCHEDULER_STAT_PEER_FAULTS,
    SCHEDULER_STAT_SUSPECTS,
    SCHEDULER_STAT_QUARANTINED,
    SCHEDULER_STAT_SCHEDULING, /* QN_POLICY_STAT_ROWS each */
    SCHEDULER_STAT_BATCHING = SCHEDULER_STAT_SCHEDULING + QN_POLICY_STAT_ROWS,
    SCHEDULER_STAT_ADMISSION = SCHEDULER_STAT_BATCHING + QN_POLICY_STAT_ROWS,
    SCHEDULER_STAT_COUNT = SCHEDULER_STAT_ADMISSION + QN_POLICY_STAT_ROWS,
};

#define SCHEDULES_MAX 4 /* simulations at once */
typedef struct schedule schedule_t;

/* What steps took: sums over those with a result, halved when they grow old, for a line through (tokens, ns). */
typedef struct {
    double count, tokens, ns, tokens_tokens, tokens_ns;
} step_model_t;

typedef struct {
    qn_daemon_t *daemon;
    scheduler_t *scheduler;
    qn_kept_memory_t ledger;
    qn_arena_t arena;          /* of the message being translated */
    qn_peer_t memory, compute; /* epoch 0: not up */
    bool compute_ready;        /* it takes plans */
    uint64_t doubted_beats;    /* of compute, when it refused a plan: only a later heartbeat says that it is ready */
    bool renewed;              /* the last session was begun for want of progress, and has no result yet */
    bool draining, announced;  /* announced: state and its words, as below */
    qn_state_t state;
    char text[QN_REASON_MAX];
    qn_peer_t lost[2];   /* by suspects_peer_t: lives that are gone and of which it is not known how they ended */
    pid_t judged;        /* the process whose crash was judged last: two services may have been in it */
    char crash_text[64]; /* how it ended */
    char policy_dirs[2 * QN_PATH_MAX];
    uint64_t named[LEDGER_POLICY_PAGES]; /* policy_stats.h */
    step_model_t steps;
    schedule_t *schedules[SCHEDULES_MAX];
    uint32_t schedule_count;
    uint64_t last_end_ns; /* of the last step, while others were to run; 0 = none */
    struct {
        qn_window_t queued, plans, round_trips, steps, idle;
    } windows;               /* times of the last minute; methods_latency.c shows them */
    history_t *history;      /* owned; what became of requests, for who asks */
    session_mask_t mask;     /* of requests that name none */
    qn_probe_model_t probes; /* the model's shape; no layers: not known yet */
} scheduler_service_t;

extern const qn_handler_t scheduler_handlers[];
extern const qn_method_row_t scheduler_methods[]; /* methods.c */

/* A step's time as *ret_step_us + tokens * *ret_token_us, from the last steps; 1 ms and 0.1 ms before there was any. */
void scheduler_step_model(const scheduler_service_t *service, double *ret_step_us, double *ret_token_us);
/* Compute took no plan: what has no result is planned again in a new session, once it says that it is ready. */
void scheduler_doubt_compute(scheduler_service_t *service);
/* Asks compute where the step is. Failure: as below. */
qn_err_t scheduler_send_query(scheduler_service_t *service, uint64_t step);
/* Keeps in the run directory what made a daemon crash and is refused for it. */
void scheduler_keep_submission(scheduler_service_t *service, const ledger_submission_t *submission);
/* Records and tells of what was quarantined; false: some client could not be told yet. */
bool scheduler_send_quarantined(scheduler_service_t *service);
/* The decisions of this turn, translated and sent. A failure ends the daemon: the policy broke a rule, or a peer takes
 * nothing any more. */
qn_err_t scheduler_send_refusals(scheduler_service_t *service);
qn_err_t scheduler_send_plans(scheduler_service_t *service, uint64_t now_ns);
/* Answers CommitQuery. */
qn_err_t scheduler_send_written(scheduler_service_t *service, qn_peer_t to, uint64_t query, uint64_t id);
/* *ret_again_ns: when the planner wants to be asked again though nothing arrives. */
qn_err_t scheduler_send_traffic(scheduler_service_t *service, uint64_t now_ns, uint64_t *ret_again_ns);
void scheduler_send_tokens(scheduler_service_t *service);

#endif
