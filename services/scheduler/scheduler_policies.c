/* What is this?      The scheduler's policies: which are in force at its start, what they are told of an arrival.
 * State owned:       none; the scheduler's seats, the pages of its ledger.
 * Must never:        load what made the scheduler crash; choose another policy without a word.
 * Read next:         common/policy/policy_seat.h, policy/policy.h. */
#include <stdlib.h>
#include <string.h>

#include "services/scheduler/scheduler_internal.h"

/* ---- start ---- */

/* A shared object that ran, or was loaded, when the scheduler crashed is withdrawn before any request is suspected. */
static void judge_former(scheduler_t *scheduler)
{
    for (qn_policy_kind_t kind = QN_POLICY_SCHEDULING; kind <= LEDGER_POLICY_PAGES; kind++) {
        qn_policy_page_t *page = ledger_policy_page(scheduler->ledger, kind);
        if (qn_policy_page_judge(page, scheduler->options.former_crashed)) scheduler->policy_blamed = true;
    }
}

static qn_err_t open_seat(scheduler_t *scheduler, qn_policy_kind_t kind, const char *choice,
                          qn_policy_seat_t **ret_seat)
{
    const char *dirs = scheduler->options.policy_dirs != NULL ? scheduler->options.policy_dirs : "";
    qn_policy_catalogue_t catalogue = policy_catalogue(kind, dirs);
    if (choice == NULL) choice = catalogue.builtin[0]->name;
    return qn_policy_seat_open(&catalogue, choice, ledger_policy_page(scheduler->ledger, kind), ret_seat);
}

static qn_err_t open_scheduling(scheduler_t *scheduler)
{
    const scheduler_options_t *options = &scheduler->options;
    if (options->policy_functions == NULL)
        return open_seat(scheduler, QN_POLICY_SCHEDULING, options->policy, &scheduler->policies.scheduling);
    qn_policy_catalogue_t catalogue = policy_catalogue(QN_POLICY_SCHEDULING, "");
    return qn_policy_seat_wrap(&catalogue, &options->policy_functions->head, &scheduler->policies.scheduling);
}

qn_err_t scheduler_open_policies(scheduler_t *scheduler)
{
    const scheduler_options_t *options = &scheduler->options;
    policies_t *policies = &scheduler->policies;
    judge_former(scheduler);
    qn_err_t err = open_scheduling(scheduler);
    if (err == QN_OK) err = open_seat(scheduler, QN_POLICY_BATCHING, options->batching, &policies->batching);
    if (err == QN_OK) err = open_seat(scheduler, QN_POLICY_ADMISSION, options->admission, &policies->admission);
    return err;
}

/* ---- an arrival ---- */

static int compare_users(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* How many living requests the user has, and how many users there are, this one included. */
static void count_users(const scheduler_t *scheduler, uint64_t user, qn_policy_arrival_t *arrival)
{
    uint64_t *seen = calloc(ledger_requests_max(scheduler->ledger) + 1, sizeof *seen);
    uint32_t count = 0;
    const request_t *request = seen != NULL ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request)) {
        if (request->finish != REQUEST_UNFINISHED) continue;
        arrival->user_requests += request->user == user;
        seen[count++] = request->user;
    }
    if (seen != NULL) seen[count++] = user;
    if (count > 1) qsort(seen, count, sizeof *seen, compare_users);
    for (uint32_t i = 0; i < count; i++)
        arrival->user_count += i == 0 || seen[i] != seen[i - 1];
    free(seen);
}

bool scheduler_judge_arrival(scheduler_t *scheduler, const ledger_submission_t *submission, uint32_t living,
                             uint64_t now_ns, qn_policy_verdict_t *ret_verdict)
{
    const batch_t *batch = scheduler->batch;
    qn_policy_arrival_t arrival = {
        .now_ns = now_ns,
        .id = submission->id,
        .deadline_ns = submission->deadline_ns,
        .user = submission->user,
        .user_name = submission->user_name != NULL ? submission->user_name : "",
        .priority = submission->priority,
        .prompt_tokens = submission->prompt_tokens,
        .max_tokens = submission->generated_max,
        .request_count = living,
        .queue_limit = scheduler->options.queue_limit,
        .waiting_count = batch->waiting_count,
        .running_count = batch->running_count,
        .slot_count = batch->slot_count,
        .total_blocks = batch->total_blocks,
        .available_blocks = batch->available_blocks,
        .block_tokens = batch->block_tokens,
    };
    qn_policy_seat_t *seat = scheduler->policies.admission;
    if (qn_policy_seat_wants(seat) & QN_POLICY_WANTS_USERS) count_users(scheduler, submission->user, &arrival);
    policy_judge(seat, &arrival, ret_verdict);
    planner_record(scheduler->planner, submission->id, "judge", seat, now_ns, ret_verdict->reason);
    return ret_verdict->accept != 0;
}

/* ---- views ---- */

const planner_decision_t *scheduler_decision(const scheduler_t *scheduler, uint64_t request, uint32_t at)
{
    return planner_decision(scheduler->planner, request, at);
}

const policies_t *scheduler_policies(const scheduler_t *scheduler) { return &scheduler->policies; }

const char *scheduler_policy_name(const scheduler_t *scheduler)
{
    return qn_policy_seat_name(scheduler->policies.scheduling);
}

const char *scheduler_policy_withdrawn(const scheduler_t *scheduler)
{
    for (qn_policy_kind_t kind = QN_POLICY_SCHEDULING; kind <= LEDGER_POLICY_PAGES; kind++) {
        const char *text = qn_policy_seat_withdrawn(policies_seat(&scheduler->policies, kind));
        if (text[0] != '\0') return text;
    }
    return "";
}
