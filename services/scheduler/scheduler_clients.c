/* What is this?      What clients do to requests: submit, cancel, leave, come back; who is an orphan, and for how long.
 * State owned:       nothing of its own: the scheduler's (scheduler_internal.h).
 * Must never:        lose an accepted request without an end or a refusal; give an id's answer to another prompt.
 * Read next:         planner/admission.h (what is refused), scheduler_peers.c (the other side). */
#include "services/scheduler/scheduler_internal.h"

#include <string.h>

static bool has_model(const scheduler_t *scheduler) { return scheduler->limits.vocab_size > 0; }

static void give_client(scheduler_t *scheduler, request_t *request)
{
    ledger_orphan(scheduler->ledger, request, 0);
    delivery_hold(scheduler->delivery, request->index, scheduler->condemned[request->index] != NOT_CONDEMNED);
}

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
    if (request_complete(request)) scheduler_end(scheduler, request, request->stopped ? REQUEST_STOP : REQUEST_LENGTH);
}

/* Ends it, and nobody is told: there is nobody. */
static void end_unheard(scheduler_t *scheduler, request_t *request)
{
    scheduler_end(scheduler, request, REQUEST_CANCELLED);
    scheduler_note(scheduler, request);
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
    scheduler_forget(scheduler, request);
    return true;
}

/* Its place among those whose submissions are new ones, or replayed_count. */
static uint32_t find_replayed(const scheduler_t *scheduler, request_client_t client)
{
    uint32_t at = 0;
    while (at < scheduler->replayed_count && memcmp(&scheduler->replayed[at], &client, sizeof client) != 0)
        at++;
    return at;
}

static void forget_replayed(scheduler_t *scheduler, request_client_t client)
{
    uint32_t at = find_replayed(scheduler, client);
    if (at < scheduler->replayed_count) scheduler->replayed[at] = scheduler->replayed[--scheduler->replayed_count];
}

/* The admission policy. What a client submits again was accepted before, by a scheduler that is gone: nobody is asked. */
static bool judge_new(scheduler_t *scheduler, const ledger_submission_t *submission, uint32_t living, uint64_t now_ns,
                      admission_refusal_t *ret_refusal)
{
    qn_policy_verdict_t verdict;
    if (find_replayed(scheduler, submission->client) == scheduler->replayed_count ||
        scheduler_judge_arrival(scheduler, submission, living, now_ns, &verdict))
        return true;
    admission_refuse(ret_refusal, 429, verdict.retry_after_ms, NULL, "not admitted: %s", verdict.reason);
    return false;
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
    bool is_full = living >= scheduler->options.queue_limit;
    if (!is_full && !judge_new(scheduler, &accepted, living, now_ns, ret_refusal)) return SCHEDULER_REFUSED;
    if (is_full || ledger_submit(scheduler->ledger, &accepted, &request) != LEDGER_ACCEPTED) {
        admission_refuse(ret_refusal, 429, 1000, NULL,
                         "the queue is full: %u requests are running or waiting, "
                         "scheduler.queue_limit is %u; try again later",
                         living, scheduler->options.queue_limit);
        return SCHEDULER_REFUSED;
    }
    batch_add(scheduler->batch, request);
    scheduler_enter(scheduler, request, has_model(scheduler), true);
    if (has_model(scheduler)) end_if_complete(scheduler, request);
    return SCHEDULER_ACCEPTED;
}

void scheduler_cancel(scheduler_t *scheduler, uint64_t id, request_finish_t finish)
{
    request_t *request = ledger_find(scheduler->ledger, id);
    if (request != NULL) scheduler_end(scheduler, request, finish);
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
        scheduler_end(scheduler, request, REQUEST_CANCELLED);
}

void scheduler_drain(scheduler_t *scheduler, bool cancel_waiting)
{
    scheduler->draining = true;
    request_t *request = cancel_waiting ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->batch->sequences[request->index].phase == SEQUENCE_WAITING)
            scheduler_end(scheduler, request, REQUEST_CANCELLED);
}

static bool is_of(const request_t *request, request_client_t client)
{
    return request->client.epoch == client.epoch && request->client.service == client.service &&
           request->client.instance == client.instance;
}

void scheduler_client_up(scheduler_t *scheduler, request_client_t client)
{
    forget_replayed(scheduler, client);
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client)) {
            give_client(scheduler, request);
            delivery_restart(scheduler->delivery, request->index); /* what was on its way when the link ended is lost */
        }
}

void scheduler_client_replayed(scheduler_t *scheduler, request_client_t client)
{
    forget_replayed(scheduler, client);
    if (scheduler->replayed_count < QN_PEERS_MAX) scheduler->replayed[scheduler->replayed_count++] = client;
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client) && !scheduler->claimed[request->index]) end_unheard(scheduler, request);
}

void scheduler_client_gone(scheduler_t *scheduler, request_client_t client, uint64_t now_ns)
{
    forget_replayed(scheduler, client);
    request_t *request = ledger_next(scheduler->ledger, NULL);
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (is_of(request, client)) scheduler_make_orphan(scheduler, request, now_ns);
}

/* Judges a request that came before the model did. true: it may stay. */
static bool check_late(scheduler_t *scheduler, request_t *request, admission_refusal_t *ret_refusal)
{
    ledger_submission_t submission = {
        .model = request->model,
        .sampling = request->sampling,
        .prompt_ids = request->ids,
        .prompt_tokens = request->prompt_tokens,
        .stop_ids = request->stop_ids,
        .stop_count = request->stop_count,
        .bias = request->bias,
        .bias_count = request->bias_count,
        .logprob_ids = request->logprob_ids,
        .logprob_id_count = request->logprob_id_count,
        .bad_ids = request->bad_ids,
        .bad_id_count = request->bad_id_count,
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
        scheduler_end(scheduler, request, REQUEST_ERROR);
        delivery_drop(scheduler->delivery, request->index); /* the refusal is its end */
        return true;
    }
    return false;
}

void scheduler_end_orphans(scheduler_t *scheduler, uint64_t now_ns)
{
    scheduler->next_orphan_ns = SCHEDULER_NO_DEADLINE;
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
