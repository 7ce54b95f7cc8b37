/* What is this?      The scheduler's nouns put together: what happens to all of them on an event.
 * State owned:       ledger, batch, planner, policy, delivery; who is an orphan, who is ending; which peers are up.
 * Must never:        know a socket or a clock; lose an accepted request without an end or a refusal.
 * Read next:         planner.h (decisions), batch.h (life of a sequence), service.c (the feet). */
#include "services/scheduler/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define NO_DEADLINE UINT64_MAX
#define LOOK_AGAIN_NS 1000000ull /* for blocks of suspects that come back without a message */

/* A quarantined request that has not left. */
typedef enum { NOT_CONDEMNED = 0, CONDEMNED_NEWLY, CONDEMNED_UNTOLD } condemned_t;

struct scheduler {
    scheduler_options_t options;
    ledger_t *ledger;
    batch_t *batch;
    policy_t *policy;
    planner_t *planner;
    delivery_t *delivery;
    suspects_t *suspects;

    evidence_t former; /* what the life before this one left */
    bool policy_withdrawn;
    uint8_t *condemned; /* [requests_max]: condemned_t */
    uint32_t condemned_count;
    suspects_peer_t condemned_by;

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
    uint64_t masked_runs;
};

/* ---- marks ---- */

/* Something about the request changed that its client or scheduler_tidy should know. */
static void note(scheduler_t *scheduler, const request_t *request)
{
    delivery_note(scheduler->delivery, request->index);
    if (request->finish == REQUEST_UNFINISHED || scheduler->is_ending[request->index]) return;
    scheduler->is_ending[request->index] = true;
    scheduler->ending[scheduler->ending_count++] = request->index;
}

/* One that is an orphan already keeps its time: another death does not start it again. */
static void make_orphan(scheduler_t *scheduler, request_t *request, uint64_t now_ns)
{
    if (!request_is_orphan(request)) ledger_orphan(scheduler->ledger, request, now_ns > 0 ? now_ns : 1);
    uint64_t deadline_ns = request->orphaned_ns + SCHEDULER_ORPHAN_NS;
    if (deadline_ns < scheduler->next_orphan_ns) scheduler->next_orphan_ns = deadline_ns;
    delivery_hold(scheduler->delivery, request->index, true);
}

static void give_client(scheduler_t *scheduler, request_t *request)
{
    ledger_orphan(scheduler->ledger, request, 0);
    delivery_hold(scheduler->delivery, request->index, scheduler->condemned[request->index] != NOT_CONDEMNED);
}

static void set_condemned(scheduler_t *scheduler, uint32_t index, condemned_t state)
{
    scheduler->condemned_count += (state != NOT_CONDEMNED) - (scheduler->condemned[index] != NOT_CONDEMNED);
    scheduler->condemned[index] = (uint8_t)state;
}

/* A request that is new to this process. */
static void enter(scheduler_t *scheduler, const request_t *request, bool checked, bool claimed)
{
    scheduler->checked[request->index] = checked;
    scheduler->unchecked_count += !checked;
    scheduler->claimed[request->index] = claimed;
    bool condemned = request->finish == REQUEST_ERROR && request->crashes >= SUSPECTS_CRASHES_MAX;
    set_condemned(scheduler, request->index, condemned ? CONDEMNED_UNTOLD : NOT_CONDEMNED);
    delivery_restart(scheduler->delivery, request->index);
    delivery_hold(scheduler->delivery, request->index, false);
    note(scheduler, request);
}

static void forget(scheduler_t *scheduler, request_t *request)
{
    if (!scheduler->checked[request->index]) scheduler->unchecked_count--;
    set_condemned(scheduler, request->index, NOT_CONDEMNED);
    suspects_forget(scheduler->suspects, request->index);
    ledger_forget(scheduler->ledger, &request);
}

/* ---- life ---- */

static qn_err_t allocate(scheduler_t *scheduler)
{
    uint32_t requests = ledger_requests_max(scheduler->ledger);
    scheduler->claimed = calloc(requests, sizeof *scheduler->claimed);
    scheduler->checked = calloc(requests, sizeof *scheduler->checked);
    scheduler->ending = calloc(requests, sizeof *scheduler->ending);
    scheduler->is_ending = calloc(requests, sizeof *scheduler->is_ending);
    scheduler->condemned = calloc(requests, sizeof *scheduler->condemned);
    if (scheduler->claimed && scheduler->checked && scheduler->ending && scheduler->is_ending && scheduler->condemned)
        return QN_OK;
    return qn_fail(QN_ERR_NO_MEMORY, "scheduler: no memory for %u requests", requests);
}

/* Scores of prompts died with the former life: whose end was not told yet runs its prompt again. */
static void reopen_unscored(scheduler_t *scheduler)
{
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        bool whole = request->finish == REQUEST_STOP || request->finish == REQUEST_LENGTH;
        if (whole && request->sampling.prompt_logprobs && request->prompt.known < request->prompt_tokens)
            ledger_reopen(scheduler->ledger, request);
    }
}

/* Keeps what the former life left and begins to write this one's. */
static void take_evidence(scheduler_t *scheduler)
{
    evidence_t *evidence = ledger_evidence(scheduler->ledger);
    scheduler->former = *evidence;
    evidence->epoch = scheduler->options.epoch;
    evidence->in_hand = evidence->apart = 0;
    memset(evidence->slots, 0, sizeof evidence->slots);
}

/* A shared object that was loaded when the scheduler crashed is withdrawn before any request is suspected. */
static qn_err_t open_policy(scheduler_t *scheduler)
{
    const scheduler_options_t *options = &scheduler->options;
    evidence_t *evidence = ledger_evidence(scheduler->ledger);
    if (options->policy_functions != NULL) return policy_wrap(options->policy_functions, &scheduler->policy);
    uint64_t fingerprint = policy_fingerprint(options->policy);
    if (options->former_crashed && scheduler->former.policy != 0) evidence->withdrawn_policy = scheduler->former.policy;
    scheduler->policy_withdrawn = fingerprint != 0 && fingerprint == evidence->withdrawn_policy;
    evidence->policy = scheduler->policy_withdrawn ? 0 : fingerprint; /* before its code runs */
    qn_err_t err = policy_open(scheduler->policy_withdrawn ? "fcfs" : options->policy, &scheduler->policy);
    if (err < 0) evidence->policy = 0; /* it says itself what is wrong with it */
    return err;
}

static qn_err_t build(scheduler_t *scheduler, ledger_replay_t *ret_replay)
{
    const scheduler_options_t *options = &scheduler->options;
    if (options->queue_limit < 1 || options->queue_limit > QN_REQUESTS_MAX)
        return qn_fail(QN_ERR_CONFIG, "scheduler.queue_limit %u is outside 1..%d", options->queue_limit,
                       QN_REQUESTS_MAX);
    if (options->ledger_bytes < LEDGER_BYTES_FOR(options->max_sequences))
        return qn_fail(QN_ERR_INVALID, "scheduler: a ledger of %zu bytes is too small for %u sequences",
                       options->ledger_bytes, options->max_sequences);
    /* Room for finished requests whose blocks or ends are still on their way. */
    uint32_t requests_max = options->queue_limit + options->max_sequences;
    qn_err_t err =
        ledger_open(options->ledger_base, options->ledger_bytes, requests_max, &scheduler->ledger, ret_replay);
    if (err == QN_OK) take_evidence(scheduler);
    if (err == QN_OK) reopen_unscored(scheduler);
    if (err == QN_OK) err = open_policy(scheduler);
    if (err == QN_OK) err = allocate(scheduler);
    if (err == QN_OK) err = batch_create(scheduler->ledger, options->max_sequences, &scheduler->batch);
    if (err == QN_OK) err = planner_create(&options->planner, scheduler->batch, scheduler->policy, &scheduler->planner);
    if (err == QN_OK) err = delivery_create(scheduler->ledger, &scheduler->delivery);
    if (err == QN_OK) err = suspects_create(scheduler->ledger, scheduler->batch, &scheduler->suspects);
    return err;
}

static void end(scheduler_t *scheduler, request_t *request, request_finish_t finish)
{
    if (request->finish != REQUEST_UNFINISHED) return;
    ledger_finish(scheduler->ledger, request, finish);
    batch_end(scheduler->batch, request->index);
    note(scheduler, request);
}

/* Quarantine; `request` may be NULL. */
static void condemn(scheduler_t *scheduler, request_t *request, suspects_peer_t peer)
{
    if (request == NULL || request->finish != REQUEST_UNFINISHED) return;
    evidence_note(ledger_evidence(scheduler->ledger), request->id, SUSPECTS_CRASHES_MAX);
    set_condemned(scheduler, request->index, CONDEMNED_NEWLY);
    scheduler->condemned_by = peer;
    delivery_hold(scheduler->delivery, request->index, true);
    end(scheduler, request, REQUEST_ERROR);
}

qn_err_t scheduler_create(const scheduler_options_t *options, uint64_t now_ns, scheduler_t **ret_scheduler,
                          ledger_replay_t *ret_replay)
{
    scheduler_t *scheduler = calloc(1, sizeof *scheduler);
    if (scheduler == NULL) return qn_fail(QN_ERR_NO_MEMORY, "scheduler: out of memory");
    scheduler->options = *options;
    scheduler->next_orphan_ns = NO_DEADLINE;
    qn_err_t err = build(scheduler, ret_replay);
    if (err < 0) {
        scheduler_destroy(&scheduler);
        return err;
    }
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        enter(scheduler, request, false, false);
        make_orphan(scheduler, request, now_ns);
    }
    if (options->former_crashed && scheduler->former.policy == 0)
        condemn(scheduler, suspects_inherit(scheduler->suspects, &scheduler->former), SUSPECTS_SCHEDULER);
    *ret_scheduler = scheduler;
    return QN_OK;
}

void scheduler_destroy(scheduler_t **scheduler)
{
    scheduler_t *self = *scheduler;
    if (self == NULL) return;
    suspects_destroy(&self->suspects);
    delivery_destroy(&self->delivery);
    planner_destroy(&self->planner);
    batch_destroy(&self->batch);
    ledger_close(&self->ledger);
    policy_close(&self->policy);
    free(self->claimed);
    free(self->checked);
    free(self->ending);
    free(self->is_ending);
    free(self->condemned);
    free(self);
    *scheduler = NULL;
}

/* ---- clients ---- */

static bool has_model(const scheduler_t *scheduler) { return scheduler->limits.vocab_size > 0; }

/* It lives already: the client may be a new one, and knows nothing for sure. */
static void resume(scheduler_t *scheduler, request_t *request, request_client_t client)
{
    if (memcmp(&request->client, &client, sizeof client) != 0) ledger_adopt(scheduler->ledger, request, client);
    give_client(scheduler, request);
    scheduler->claimed[request->index] = true;
    delivery_restart(scheduler->delivery, request->index);
}

/* Nothing is left to run: nothing was to be generated, or a scheduler died between the last token and the end. */
static void end_if_complete(scheduler_t *scheduler, request_t *request)
{
    if (request_complete(request)) end(scheduler, request, request->stopped ? REQUEST_STOP : REQUEST_LENGTH);
}

/* Ends it, and nobody is told: there is nobody. */
static void end_unheard(scheduler_t *scheduler, request_t *request)
{
    end(scheduler, request, REQUEST_CANCELLED);
    note(scheduler, request);
    delivery_drop(scheduler->delivery, request->index);
}

static request_t *longest_orphan(const scheduler_t *scheduler)
{
    request_t *found = NULL;
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (request_is_orphan(request) && request->finish == REQUEST_UNFINISHED &&
            (found == NULL || request->orphaned_ns < found->orphaned_ns))
            found = request;
    return found;
}

/* Requests that count towards queue_limit. An old orphan keeps no place from who is there. */
static uint32_t count_living(scheduler_t *scheduler, uint64_t now_ns)
{
    uint32_t living = ledger_count(scheduler->ledger) - scheduler->ending_count;
    request_t *orphan = living >= scheduler->options.queue_limit ? longest_orphan(scheduler) : NULL;
    if (orphan == NULL || now_ns < orphan->orphaned_ns + SCHEDULER_ORPHAN_OLD_NS) return living;
    end_unheard(scheduler, orphan);
    return living - 1;
}

/* Ids are given out once: the same id with another prompt is a confused client's, or a forged one. */
static bool is_same(const request_t *request, const ledger_submission_t *submission)
{
    return request->prompt_tokens == submission->prompt_tokens &&
           request->sampling.max_tokens == submission->sampling.max_tokens &&
           memcmp(request->ids, submission->prompt_ids, request->prompt_tokens * sizeof *request->ids) == 0;
}

/* Ends what holds the id of another request; true: it is out of the ledger already. */
static bool displace(scheduler_t *scheduler, request_t *request)
{
    end_unheard(scheduler, request);
    if (scheduler->batch->sequences[request->index].phase != SEQUENCE_NONE) return false;
    uint32_t at = 0;
    while (scheduler->ending[at] != request->index)
        at++;
    scheduler->ending[at] = scheduler->ending[--scheduler->ending_count];
    scheduler->is_ending[request->index] = false;
    forget(scheduler, request);
    return true;
}

scheduler_submit_outcome_t scheduler_submit(scheduler_t *scheduler, const ledger_submission_t *submission,
                                            uint64_t now_ns, admission_refusal_t *ret_refusal)
{
    ledger_submission_t accepted = *submission;
    request_t *request = ledger_find(scheduler->ledger, submission->id);
    if (request != NULL && is_same(request, submission)) {
        resume(scheduler, request, submission->client);
        return SCHEDULER_RESUMED;
    }
    if (scheduler_is_quarantined(scheduler, submission->id)) {
        admission_refuse(ret_refusal, 500, 0, NULL, SCHEDULER_QUARANTINED_TEXT);
        return SCHEDULER_REFUSED;
    }
    if (request != NULL && !displace(scheduler, request)) {
        admission_refuse(ret_refusal, 503, 1000, NULL, "another request has this id and is being ended; try again");
        return SCHEDULER_REFUSED;
    }
    if (scheduler->draining) {
        admission_refuse(ret_refusal, 503, 1000, NULL, "the scheduler is shutting down; try again");
        return SCHEDULER_REFUSED;
    }
    accepted.generated_max = submission->sampling.max_tokens;
    if (has_model(scheduler) && !admission_check(&scheduler->limits, submission, &accepted.generated_max, ret_refusal))
        return SCHEDULER_REFUSED;
    accepted.timeline.queued_ns = now_ns;
    uint32_t living = count_living(scheduler, now_ns);
    if (living >= scheduler->options.queue_limit ||
        ledger_submit(scheduler->ledger, &accepted, &request) != LEDGER_ACCEPTED) {
        admission_refuse(ret_refusal, 429, 1000, NULL,
                         "the queue is full: %u requests are running or waiting, "
                         "scheduler.queue_limit is %u; try again later",
                         living, scheduler->options.queue_limit);
        return SCHEDULER_REFUSED;
    }
    batch_add(scheduler->batch, request);
    enter(scheduler, request, has_model(scheduler), true);
    if (has_model(scheduler)) end_if_complete(scheduler, request);
    return SCHEDULER_ACCEPTED;
}

void scheduler_cancel(scheduler_t *scheduler, uint64_t id, request_finish_t finish)
{
    request_t *request = ledger_find(scheduler->ledger, id);
    if (request != NULL) end(scheduler, request, finish);
}

void scheduler_count_reads(scheduler_t *scheduler, const qn_sequence_read_t *read)
{
    request_t *request = ledger_find(scheduler->ledger, read->request);
    if (request == NULL) return;
    request->kv_read += read->read;
    request->kv_all += read->all;
}

void scheduler_cancel_all(scheduler_t *scheduler)
{
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        end(scheduler, request, REQUEST_CANCELLED);
}

void scheduler_drain(scheduler_t *scheduler, bool cancel_waiting)
{
    scheduler->draining = true;
    request_t *request = cancel_waiting ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->batch->sequences[request->index].phase == SEQUENCE_WAITING)
            end(scheduler, request, REQUEST_CANCELLED);
}

static bool is_of(const request_t *request, request_client_t client)
{
    return request->client.epoch == client.epoch && request->client.service == client.service &&
           request->client.instance == client.instance;
}

void scheduler_client_up(scheduler_t *scheduler, request_client_t client)
{
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client)) give_client(scheduler, request);
}

void scheduler_client_replayed(scheduler_t *scheduler, request_client_t client)
{
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client) && !scheduler->claimed[request->index]) end_unheard(scheduler, request);
}

void scheduler_client_gone(scheduler_t *scheduler, request_client_t client, uint64_t now_ns)
{
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client)) make_orphan(scheduler, request, now_ns);
}

/* Judges a request that came before the model did. true: it may stay. */
static bool check_late(scheduler_t *scheduler, request_t *request, admission_refusal_t *ret_refusal)
{
    ledger_submission_t submission = {
        .sampling = request->sampling,
        .prompt_ids = request->ids,
        .prompt_tokens = request->prompt_tokens,
        .stop_ids = request->stop_ids,
        .stop_count = request->stop_count,
        .bias = request->bias,
        .bias_count = request->bias_count,
        .probe = request->probe,
    };
    uint32_t generated_max;
    if (!admission_check(&scheduler->limits, &submission, &generated_max, ret_refusal)) return false;
    if (generated_max < request->generated_tokens) generated_max = request->generated_tokens;
    if (generated_max < request->generated_max) ledger_clip(scheduler->ledger, request, generated_max);
    end_if_complete(scheduler, request);
    return true;
}

bool scheduler_next_refusal(scheduler_t *scheduler, uint64_t *ret_request, request_client_t *ret_client,
                            admission_refusal_t *ret_refusal)
{
    if (!has_model(scheduler)) return false;
    request_t *request = scheduler->unchecked_count > 0 ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        if (scheduler->checked[request->index] || request->finish != REQUEST_UNFINISHED) continue;
        scheduler->checked[request->index] = true;
        scheduler->unchecked_count--;
        if (check_late(scheduler, request, ret_refusal)) continue;
        *ret_request = request->id;
        *ret_client = request->client;
        end(scheduler, request, REQUEST_ERROR);
        delivery_drop(scheduler->delivery, request->index); /* the refusal is its end */
        return true;
    }
    return false;
}

/* ---- quarantine ---- */

void scheduler_take_in_hand(scheduler_t *scheduler, uint64_t request)
{
    ledger_evidence(scheduler->ledger)->in_hand = request;
}

void scheduler_peer_crashed(scheduler_t *scheduler, suspects_peer_t peer)
{
    condemn(scheduler, suspects_crashed(scheduler->suspects, peer), peer);
}

void scheduler_peer_survived(scheduler_t *scheduler, suspects_peer_t peer)
{
    suspects_acquit(scheduler->suspects, peer);
}

void scheduler_compute_failed(scheduler_t *scheduler)
{
    suspects_heard(scheduler->suspects, SUSPECTS_COMPUTE); /* of this session: nothing older is in its hands */
    suspects_accuse(scheduler->suspects, SUSPECTS_COMPUTE);
    scheduler_peer_crashed(scheduler, SUSPECTS_COMPUTE);
    scheduler_renew(scheduler);
}

void scheduler_memory_failed(scheduler_t *scheduler)
{
    suspects_accuse(scheduler->suspects, SUSPECTS_MEMORY);
    batch_give_back(scheduler->batch);
    scheduler_peer_crashed(scheduler, SUSPECTS_MEMORY);
}

const request_t *scheduler_next_guilty(scheduler_t *scheduler, suspects_peer_t *ret_peer)
{
    const request_t *request = scheduler->condemned_count > 0 ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->condemned[request->index] == CONDEMNED_NEWLY) {
            set_condemned(scheduler, request->index, CONDEMNED_UNTOLD);
            *ret_peer = scheduler->condemned_by;
            return request;
        }
    return NULL;
}

const request_t *scheduler_next_untold(const scheduler_t *scheduler, const request_t *after)
{
    const request_t *request = scheduler->condemned_count > 0 ? ledger_next(scheduler->ledger, after) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->condemned[request->index] == CONDEMNED_UNTOLD && !request_is_orphan(request) &&
            !delivery_done(scheduler->delivery, request->index))
            return request;
    return NULL;
}

void scheduler_told(scheduler_t *scheduler, const request_t *request)
{
    delivery_drop(scheduler->delivery, request->index);
}

bool scheduler_record_once(scheduler_t *scheduler, uint64_t request)
{
    evidence_t *evidence = ledger_evidence(scheduler->ledger);
    if (evidence_crashes(evidence, request) > SUSPECTS_CRASHES_MAX) return false;
    evidence_note(evidence, request, SUSPECTS_CRASHES_MAX + 1);
    return true;
}

bool scheduler_is_quarantined(const scheduler_t *scheduler, uint64_t request)
{
    return evidence_crashes(ledger_evidence(scheduler->ledger), request) >= SUSPECTS_CRASHES_MAX;
}

/* ---- memory and compute ---- */

static bool same_model(const scheduler_model_t *a, const scheduler_model_t *b)
{
    return a->vocab_size == b->vocab_size && a->max_model_len == b->max_model_len &&
           a->block_tokens == b->block_tokens && a->block_count == b->block_count && a->eos_count == b->eos_count &&
           memcmp(a->eos_ids, b->eos_ids, a->eos_count * sizeof *a->eos_ids) == 0;
}

qn_err_t scheduler_memory_up(scheduler_t *scheduler, const scheduler_model_t *model)
{
    if (model->block_count == 0) return qn_fail(QN_ERR_PEER, "memory has no KV blocks; raise memory.kv_bytes");
    bool known = same_model(model, &scheduler->model);
    if (known && scheduler->memory_is_up) return QN_OK;
    scheduler_memory_lost(scheduler);
    suspects_drop(scheduler->suspects, SUSPECTS_MEMORY);
    uint64_t pool_tokens = (uint64_t)model->block_count * model->block_tokens;
    uint32_t most = pool_tokens < UINT32_MAX ? (uint32_t)pool_tokens : UINT32_MAX;
    qn_err_t err = known ? QN_OK
                         : batch_configure(scheduler->batch, model->block_tokens, model->block_count,
                                           model->max_model_len, model->vocab_size);
    if (err < 0) return err;
    scheduler->model = *model;
    scheduler->limits = (admission_model_t){.vocab_size = model->vocab_size,
                                            .max_model_len = model->max_model_len,
                                            .pool_tokens = most,
                                            .probes = model->probes};
    planner_set_eos(scheduler->planner, model->eos_ids, model->eos_count);
    scheduler->memory_is_up = true;
    if (known) return QN_OK;
    memset(scheduler->checked, 0, ledger_requests_max(scheduler->ledger) * sizeof *scheduler->checked);
    scheduler->unchecked_count = ledger_count(scheduler->ledger);
    return QN_OK;
}

void scheduler_memory_lost(scheduler_t *scheduler)
{
    if (scheduler->memory_is_up) suspects_accuse(scheduler->suspects, SUSPECTS_MEMORY);
    scheduler->memory_is_up = false;
    suspects_leave_steps(scheduler->suspects);
    batch_memory_lost(scheduler->batch);
    planner_memory_lost(scheduler->planner);
}

void scheduler_compute_up(scheduler_t *scheduler)
{
    batch_compute_lost(scheduler->batch);
    suspects_drop(scheduler->suspects, SUSPECTS_COMPUTE);
    scheduler->compute_is_up = true;
}

void scheduler_compute_lost(scheduler_t *scheduler)
{
    suspects_accuse(scheduler->suspects, SUSPECTS_COMPUTE);
    suspects_leave_steps(scheduler->suspects);
    batch_compute_lost(scheduler->batch);
    scheduler->compute_is_up = false;
}

void scheduler_renew(scheduler_t *scheduler)
{
    suspects_leave_steps(scheduler->suspects);
    batch_compute_lost(scheduler->batch);
    progress_watch(&scheduler->progress, 0, 0, 0);
}

uint32_t scheduler_session(const scheduler_t *scheduler) { return scheduler->batch->session; }

/* The oldest step without a result is another one, or the same. */
static void watch_oldest(scheduler_t *scheduler, uint64_t now_ns)
{
    const batch_t *batch = scheduler->batch;
    const batch_step_t *oldest = &batch->steps[0];
    if (batch->step_count > 0)
        progress_watch(&scheduler->progress, oldest->step, oldest->token_count, now_ns);
    else
        progress_watch(&scheduler->progress, 0, 0, now_ns);
}

progress_verdict_t scheduler_progress(scheduler_t *scheduler, uint64_t now_ns, const progress_t **ret_progress,
                                      uint64_t *ret_again_ns)
{
    watch_oldest(scheduler, now_ns);
    *ret_progress = &scheduler->progress;
    return progress_look(&scheduler->progress, now_ns, ret_again_ns);
}

const progress_t *scheduler_progress_shown(const scheduler_t *scheduler) { return &scheduler->progress; }

void scheduler_step_status(scheduler_t *scheduler, uint32_t session, uint64_t step, bool held, uint64_t now_ns)
{
    if (session == scheduler->batch->session) progress_answer(&scheduler->progress, step, held, now_ns);
}

bool scheduler_running(const scheduler_t *scheduler) { return scheduler->memory_is_up && scheduler->compute_is_up; }

static void misfit_grant(scheduler_t *scheduler, uint64_t id)
{
    const request_t *request = ledger_find(scheduler->ledger, id);
    suspects_drop(scheduler->suspects, SUSPECTS_MEMORY);
    suspects_accuse_one(scheduler->suspects, SUSPECTS_MEMORY, request->index);
    scheduler_peer_crashed(scheduler, SUSPECTS_MEMORY);
}

uint32_t scheduler_grant(scheduler_t *scheduler, const batch_grant_t *grants, uint32_t count, uint32_t available_blocks)
{
    uint32_t misfits = 0;
    if (!scheduler->memory_is_up) return 0;
    suspects_heard(scheduler->suspects, SUSPECTS_MEMORY);
    batch_available(scheduler->batch, available_blocks);
    for (uint32_t i = 0; i < count; i++) {
        if (batch_grant(scheduler->batch, &grants[i]) == QN_OK) continue;
        misfit_grant(scheduler, grants[i].sequence);
        misfits++;
    }
    return misfits;
}

qn_err_t scheduler_result(scheduler_t *scheduler, const batch_result_t *result, uint64_t now_ns,
                          const batch_step_t **ret_step)
{
    batch_t *batch = scheduler->batch;
    batch_result_t taken = *result;
    taken.taken_ns = now_ns;
    qn_err_t err = batch_result(batch, &taken);
    *ret_step = &batch->last;
    if (err < 0) return err;
    if (batch->last.step != 0) suspects_heard(scheduler->suspects, SUSPECTS_COMPUTE);
    if (batch->last.step != 0) progress_result(&scheduler->progress, now_ns);
    watch_oldest(scheduler, now_ns);
    scheduler->masked_runs += batch->masked_count;
    for (uint32_t i = 0; i < batch->changed_count; i++)
        note(scheduler, ledger_at(scheduler->ledger, batch->changed[i]));
    return QN_OK;
}

/* ---- decisions ---- */

static suspects_choice_t choose_who_runs(scheduler_t *scheduler)
{
    uint32_t index;
    suspects_choice_t choice = suspects_choose(scheduler->suspects, &index);
    switch (choice) {
    case SUSPECTS_EVERYBODY: planner_set_apart(scheduler->planner, PLANNER_EVERYBODY); break;
    case SUSPECTS_ONE: planner_set_apart(scheduler->planner, index); break;
    case SUSPECTS_NOBODY: planner_set_apart(scheduler->planner, PLANNER_NOBODY); break;
    }
    return choice;
}

qn_err_t scheduler_plan(scheduler_t *scheduler, uint64_t now_ns, plan_t *ret_plan, bool *ret_built)
{
    *ret_built = false;
    if (!scheduler_running(scheduler)) return QN_OK;
    choose_who_runs(scheduler);
    qn_err_t err = planner_plan(scheduler->planner, now_ns, ret_plan, ret_built);
    if (*ret_built) watch_oldest(scheduler, now_ns);
    return err;
}

qn_err_t scheduler_traffic(scheduler_t *scheduler, uint64_t now_ns, plan_traffic_t *ret_traffic)
{
    *ret_traffic = (plan_traffic_t){.again_ns = PLANNER_NEVER};
    if (!scheduler->memory_is_up) return QN_OK;
    bool nobody = choose_who_runs(scheduler) == SUSPECTS_NOBODY;
    qn_err_t err = planner_traffic(scheduler->planner, now_ns, ret_traffic);
    if (nobody && now_ns + LOOK_AGAIN_NS < ret_traffic->again_ns) ret_traffic->again_ns = now_ns + LOOK_AGAIN_NS;
    return err;
}

delivery_t *scheduler_delivery(scheduler_t *scheduler) { return scheduler->delivery; }

static void end_orphans(scheduler_t *scheduler, uint64_t now_ns)
{
    scheduler->next_orphan_ns = NO_DEADLINE;
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        if (!request_is_orphan(request) || delivery_done(scheduler->delivery, request->index)) continue;
        uint64_t deadline_ns = request->orphaned_ns + SCHEDULER_ORPHAN_NS;
        if (deadline_ns <= now_ns)
            end_unheard(scheduler, request);
        else if (deadline_ns < scheduler->next_orphan_ns)
            scheduler->next_orphan_ns = deadline_ns;
    }
}

uint64_t scheduler_tidy(scheduler_t *scheduler, uint64_t now_ns)
{
    if (scheduler->next_orphan_ns <= now_ns) end_orphans(scheduler, now_ns);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < scheduler->ending_count; i++) {
        uint32_t index = scheduler->ending[i];
        if (scheduler->batch->sequences[index].phase == SEQUENCE_NONE && delivery_done(scheduler->delivery, index)) {
            scheduler->is_ending[index] = false;
            forget(scheduler, ledger_at(scheduler->ledger, index));
        } else {
            scheduler->ending[kept++] = index;
        }
    }
    scheduler->ending_count = kept;
    return scheduler->next_orphan_ns;
}

/* ---- views ---- */

void scheduler_counts(const scheduler_t *scheduler, scheduler_counts_t *ret_counts)
{
    const batch_t *batch = scheduler->batch;
    *ret_counts = (scheduler_counts_t){
        .waiting = batch->waiting_count,
        .leasing = batch->leasing_count,
        .running = batch->running_count,
        .retiring = batch->retiring_count,
        .requests = ledger_count(scheduler->ledger),
        .suspects = suspects_count(scheduler->suspects),
        .masked_runs = scheduler->masked_runs,
    };
    planner_counts(scheduler->planner, &ret_counts->planner);
}

const batch_t *scheduler_batch(const scheduler_t *scheduler) { return scheduler->batch; }

const ledger_t *scheduler_ledger(const scheduler_t *scheduler) { return scheduler->ledger; }

const char *scheduler_policy_name(const scheduler_t *scheduler) { return policy_name(scheduler->policy); }

bool scheduler_policy_withdrawn(const scheduler_t *scheduler) { return scheduler->policy_withdrawn; }

const char *scheduler_check(const scheduler_t *scheduler)
{
    const char *broken = batch_check(scheduler->batch);
    if (broken != NULL) return broken;
    uint32_t ending = 0;
    const request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        if (request->finish == REQUEST_UNFINISHED && scheduler->batch->sequences[request->index].phase == SEQUENCE_NONE)
            return "scheduler: an unfinished request is in no phase: it would never end";
        if ((request->finish != REQUEST_UNFINISHED) != scheduler->is_ending[request->index])
            return "scheduler: a finished request is not on its way out";
        ending += scheduler->is_ending[request->index];
    }
    return ending == scheduler->ending_count ? NULL : "scheduler: the requests on their way out are miscounted";
}
