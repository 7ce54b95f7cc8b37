/* What is this?      The built-in admission policies: queue, user_share.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the arrival it is shown.
 * Read next:         scheduler_clients.c, which asks. */
#include <stdio.h>

#include "services/scheduler/policy/policy.h"

/* ---- queue: whoever finds a place (scheduler.queue_limit is kept before anybody is asked) ---- */

static void queue_judge(const qn_policy_memory_t *memory, const qn_policy_arrival_t *arrival,
                        qn_policy_verdict_t *ret_verdict)
{
    (void)memory;
    ret_verdict->accept = 1;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason, "queue: place %u of %u", arrival->request_count + 1,
             arrival->queue_limit);
}

/* ---- user_share: while less than half of the queue is taken, as queue; then nobody may hold more than an equal part ---- */

static void user_share_judge(const qn_policy_memory_t *memory, const qn_policy_arrival_t *arrival,
                             qn_policy_verdict_t *ret_verdict)
{
    (void)memory;
    uint32_t users = arrival->user_count > 0 ? arrival->user_count : 1;
    uint32_t part = arrival->queue_limit / users > 0 ? arrival->queue_limit / users : 1;
    uint32_t half = (arrival->queue_limit + 1) / 2;
    ret_verdict->accept = arrival->request_count < half || arrival->user_requests < part;
    ret_verdict->retry_after_ms = 1000;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
             "user_share: %u of %u places are taken, %u of them by %s%.40s; an equal part of %u users is %u",
             arrival->request_count, arrival->queue_limit, arrival->user_requests,
             arrival->user_name[0] != '\0' ? "user " : "requests without a user", arrival->user_name, users, part);
}

const qn_admission_policy_t admission_queue = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_ADMISSION, .name = "queue"},
    .judge = queue_judge,
};
const qn_admission_policy_t admission_user_share = {
    .head = {.version = QN_POLICY_ABI_VERSION,
             .kind = QN_POLICY_ADMISSION,
             .name = "user_share",
             .wants = QN_POLICY_WANTS_USERS},
    .judge = user_share_judge,
};
