/* What became of requests, for people: the steps each was in, and what is left to say of those that have ended. Rings of
 * fixed size; the oldest go. Of long use of a busy scheduler about the last 65,000 runs are known, 4,096 steps and 1,024
 * ended requests.
 *
 * Pure: time is an argument; nothing is decided by it. Lost with the process: the ledger keeps the request itself. */
#ifndef QN_SCHEDULER_HISTORY_H
#define QN_SCHEDULER_HISTORY_H

#include "common/err.h"
#include "services/scheduler/batch/batch.h"

#define HISTORY_RUNS 65536u
#define HISTORY_STEPS 4096u
#define HISTORY_LIVES 1024u

typedef struct {
    uint64_t step, sent_ns;
    uint64_t begin_ns, end_ns, result_ns; /* 0: it has no result */
    uint32_t sequences, tokens;
} history_step_t;

/* Tokens [position, position + tokens) of the request were run in the step. */
typedef struct {
    uint64_t request, step;
    uint32_t position, tokens;
} history_run_t;

typedef struct {
    uint64_t request; /* 0: none */
    uint64_t first_step, last_step;
    uint32_t steps, blocks_most;
    /* of one that has ended: */
    uint64_t ended_ns; /* 0: it lives */
    request_timeline_t timeline;
    int32_t priority;
    uint64_t arrival;
    uint32_t prompt_tokens, cached_tokens, generated_tokens, generated_max, preemptions, crashes;
    request_finish_t finish;
} history_life_t;

typedef struct history history_t;

/* For requests of a ledger with these many entries. Returns owned. */
qn_err_t history_create(uint32_t requests_max, history_t **ret_history);
void history_destroy(history_t **history);

/* The step was sent to compute. */
void history_plan(history_t *history, const batch_t *batch, const batch_step_t *step);
/* Its result came. */
void history_result(history_t *history, uint64_t step, uint64_t begin_ns, uint64_t end_ns, uint64_t now_ns);
/* The request's end was delivered. */
void history_end(history_t *history, const request_t *request, uint64_t now_ns);

/* Of a request that lives (`index`: of its ledger entry), or NULL: no step had it. */
const history_life_t *history_live(const history_t *history, uint32_t index, uint64_t request);
/* Of one that has ended, or NULL: too long ago, or in a former life of the scheduler. */
const history_life_t *history_ended(const history_t *history, uint64_t request);
/* The last `room` runs of the request at most, oldest first; 0: of all requests. Returns how many. */
uint32_t history_runs(const history_t *history, uint64_t request, uint32_t room, history_run_t *ret_runs);
/* NULL: it is too long ago. */
const history_step_t *history_step(const history_t *history, uint64_t step);

#endif
