/* What scheduler.c, scheduler_clients.c and scheduler_peers.c share: the state, and what is marked when a request enters,
 * changes or ends. Nobody else includes this. */
#ifndef QN_SCHEDULER_SCHEDULER_INTERNAL_H
#define QN_SCHEDULER_SCHEDULER_INTERNAL_H

#include "services/scheduler/scheduler.h"

#define SCHEDULER_NO_DEADLINE UINT64_MAX

/* A quarantined request that has not left. */
typedef enum { NOT_CONDEMNED = 0, CONDEMNED_NEWLY, CONDEMNED_UNTOLD } condemned_t;

struct scheduler {
    scheduler_options_t options;
    ledger_t *ledger;
    batch_t *batch;
    policies_t policies;
    planner_t *planner;
    delivery_t *delivery;
    suspects_t *suspects;

    evidence_t former;  /* what the life before this one left */
    bool policy_blamed; /* of its crash: a shared object */
    uint8_t *condemned; /* [requests_max]: condemned_t */
    uint32_t condemned_count;
    suspects_peer_t condemned_by;

    request_client_t replayed[QN_PEERS_MAX]; /* who has submitted again all it held: what it submits now is new */
    uint32_t replayed_count;
    uint64_t next_orphan_ns; /* the first orphan's time is over */
    bool *claimed;           /* [requests_max]: somebody submitted it to this process */
    bool *checked;           /* [requests_max]: against the model */
    uint32_t unchecked_count;
    uint32_t *ending; /* [requests_max]: finished, not forgotten */
    bool *is_ending;
    uint32_t ending_count;

    progress_t progress;
    scheduler_model_t model;
    admission_model_t limits;
    bool memory_is_up, compute_is_up, draining;
    uint64_t kernel_set; /* of compute; 0: not known yet */
    uint64_t masked_runs;
};

/* Opens the seats as the configuration, or what was set live, says. */
qn_err_t scheduler_open_policies(scheduler_t *scheduler);

/* Asks the admission policy; its words are kept. */
bool scheduler_judge_arrival(scheduler_t *scheduler, const ledger_submission_t *submission, uint32_t living,
                             uint64_t now_ns, qn_policy_verdict_t *ret_verdict);

/* Something about the request changed that its client or scheduler_tidy should know. */
void scheduler_note(scheduler_t *scheduler, const request_t *request);

/* Nobody waits for it. One that is an orphan already keeps its time: another death does not start it again. */
void scheduler_make_orphan(scheduler_t *scheduler, request_t *request, uint64_t now_ns);

/* Ends the orphans whose time is over. */
void scheduler_end_orphans(scheduler_t *scheduler, uint64_t now_ns);

void scheduler_set_condemned(scheduler_t *scheduler, uint32_t index, condemned_t state);

/* A request that is new to this process. */
void scheduler_enter(scheduler_t *scheduler, const request_t *request, bool checked, bool claimed);

/* Out of the ledger; its blocks are back. */
void scheduler_forget(scheduler_t *scheduler, request_t *request);

/* Nothing happens when it has ended already. */
void scheduler_end(scheduler_t *scheduler, request_t *request, request_finish_t finish);

/* Quarantine; `request` may be NULL. */
void scheduler_condemn(scheduler_t *scheduler, request_t *request, suspects_peer_t peer);

/* The oldest step without a result is another one, or the same. */
void scheduler_watch_oldest(scheduler_t *scheduler, uint64_t now_ns);

#endif
