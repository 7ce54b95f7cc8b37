/* What is this?      The scheduler's nouns put together: what happens to all of them on an event.
 * State owned:       ledger, batch, planner, policy, delivery; who is an orphan, who is ending; which peers are up.
 * Must never:        know a socket or a clock; lose an accepted request without an end or a refusal.
 * Read next:         scheduler_clients.c, scheduler_peers.c (the events), planner/planner.h (decisions), batch/batch.h (life of a sequence). */
#include "services/scheduler/scheduler_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define LOOK_AGAIN_NS 1000000ull /* for blocks of suspects that come back without a message */

/* ---- marks ---- */

void scheduler_note(scheduler_t *scheduler, const request_t *request)
{
    delivery_note(scheduler->delivery, request->index);
    if (request->finish == REQUEST_UNFINISHED || scheduler->is_ending[request->index]) return;
    scheduler->is_ending[request->index] = true;
    scheduler->ending[scheduler->ending_count++] = request->index;
}

void scheduler_make_orphan(scheduler_t *scheduler, request_t *request, uint64_t now_ns)
{
    if (!request_is_orphan(request)) ledger_orphan(scheduler->ledger, request, now_ns > 0 ? now_ns : 1);
    uint64_t deadline_ns = request->orphaned_ns + SCHEDULER_ORPHAN_NS;
    if (deadline_ns < scheduler->next_orphan_ns) scheduler->next_orphan_ns = deadline_ns;
    delivery_hold(scheduler->delivery, request->index, true);
}

void scheduler_set_condemned(scheduler_t *scheduler, uint32_t index, condemned_t state)
{
    scheduler->condemned_count += (state != NOT_CONDEMNED) - (scheduler->condemned[index] != NOT_CONDEMNED);
    scheduler->condemned[index] = (uint8_t)state;
}

void scheduler_enter(scheduler_t *scheduler, const request_t *request, bool checked, bool claimed)
{
    scheduler->checked[request->index] = checked;
    scheduler->unchecked_count += !checked;
    scheduler->claimed[request->index] = claimed;
    bool condemned = request->finish == REQUEST_ERROR && request->crashes >= SUSPECTS_CRASHES_MAX;
    scheduler_set_condemned(scheduler, request->index, condemned ? CONDEMNED_UNTOLD : NOT_CONDEMNED);
    delivery_restart(scheduler->delivery, request->index);
    delivery_hold(scheduler->delivery, request->index, false);
    scheduler_note(scheduler, request);
}

void scheduler_forget(scheduler_t *scheduler, request_t *request)
{
    if (!scheduler->checked[request->index]) scheduler->unchecked_count--;
    scheduler_set_condemned(scheduler, request->index, NOT_CONDEMNED);
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
    if (err == QN_OK) err = scheduler_open_policies(scheduler);
    if (err == QN_OK) err = allocate(scheduler);
    if (err == QN_OK) err = batch_create(scheduler->ledger, options->max_sequences, &scheduler->batch);
    if (err == QN_OK)
        err = planner_create(&options->planner, scheduler->batch, &scheduler->policies, &scheduler->planner);
    if (err == QN_OK) err = delivery_create(scheduler->ledger, &scheduler->delivery);
    if (err == QN_OK) err = suspects_create(scheduler->ledger, scheduler->batch, &scheduler->suspects);
    return err;
}

void scheduler_end(scheduler_t *scheduler, request_t *request, request_finish_t finish)
{
    if (request->finish != REQUEST_UNFINISHED) return;
    ledger_finish(scheduler->ledger, request, finish);
    batch_end(scheduler->batch, request->index);
    scheduler_note(scheduler, request);
}

void scheduler_condemn(scheduler_t *scheduler, request_t *request, suspects_peer_t peer)
{
    if (request == NULL || request->finish != REQUEST_UNFINISHED) return;
    evidence_note(ledger_evidence(scheduler->ledger), request->id, SUSPECTS_CRASHES_MAX);
    scheduler_set_condemned(scheduler, request->index, CONDEMNED_NEWLY);
    scheduler->condemned_by = peer;
    delivery_hold(scheduler->delivery, request->index, true);
    scheduler_end(scheduler, request, REQUEST_ERROR);
}

qn_err_t scheduler_create(const scheduler_options_t *options, uint64_t now_ns, scheduler_t **ret_scheduler,
                          ledger_replay_t *ret_replay)
{
    scheduler_t *scheduler = calloc(1, sizeof *scheduler);
    if (scheduler == NULL) return qn_fail(QN_ERR_NO_MEMORY, "scheduler: out of memory");
    scheduler->options = *options;
    scheduler->next_orphan_ns = SCHEDULER_NO_DEADLINE;
    qn_err_t err = build(scheduler, ret_replay);
    if (err < 0) {
        scheduler_destroy(&scheduler);
        return err;
    }
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        scheduler_enter(scheduler, request, false, false);
        scheduler_make_orphan(scheduler, request, now_ns);
    }
    if (options->former_crashed && !scheduler->policy_blamed)
        scheduler_condemn(scheduler, suspects_inherit(scheduler->suspects, &scheduler->former), SUSPECTS_SCHEDULER);
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
    policies_close(&self->policies);
    free(self->claimed);
    free(self->checked);
    free(self->ending);
    free(self->is_ending);
    free(self->condemned);
    free(self);
    *scheduler = NULL;
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

void scheduler_plan(scheduler_t *scheduler, uint64_t now_ns, plan_t *ret_plan, bool *ret_built)
{
    *ret_built = false;
    if (!scheduler_running(scheduler)) return;
    choose_who_runs(scheduler);
    planner_plan(scheduler->planner, now_ns, ret_plan, ret_built);
    if (*ret_built) scheduler_watch_oldest(scheduler, now_ns);
}

void scheduler_traffic(scheduler_t *scheduler, uint64_t now_ns, plan_traffic_t *ret_traffic)
{
    *ret_traffic = (plan_traffic_t){.again_ns = PLANNER_NEVER};
    if (!scheduler->memory_is_up) return;
    bool nobody = choose_who_runs(scheduler) == SUSPECTS_NOBODY;
    planner_traffic(scheduler->planner, now_ns, ret_traffic);
    if (nobody && now_ns + LOOK_AGAIN_NS < ret_traffic->again_ns) ret_traffic->again_ns = now_ns + LOOK_AGAIN_NS;
}

delivery_t *scheduler_delivery(scheduler_t *scheduler) { return scheduler->delivery; }

uint64_t scheduler_tidy(scheduler_t *scheduler, uint64_t now_ns)
{
    if (scheduler->next_orphan_ns <= now_ns) scheduler_end_orphans(scheduler, now_ns);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < scheduler->ending_count; i++) {
        uint32_t index = scheduler->ending[i];
        if (scheduler->batch->sequences[index].phase == SEQUENCE_NONE && delivery_done(scheduler->delivery, index)) {
            scheduler->is_ending[index] = false;
            scheduler_forget(scheduler, ledger_at(scheduler->ledger, index));
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

const scheduler_options_t *scheduler_options(const scheduler_t *scheduler) { return &scheduler->options; }

const batch_t *scheduler_batch(const scheduler_t *scheduler) { return scheduler->batch; }

const ledger_t *scheduler_ledger(const scheduler_t *scheduler) { return scheduler->ledger; }

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
