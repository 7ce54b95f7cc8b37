/* An admission policy in a shared object: nobody is accepted whose deadline cannot be kept. Contract: common/policy.h.
 *
 *     make && build/quintet up --set scheduler.admission=example_admission.so
 *
 * A request waits behind those who wait now, and a slot takes about SLOT_NS to become free. Who asks with deadline_ms and
 * would not get a slot in time hears so at once (429) and may ask another server. */
#include "common/policy.h"

#include <stdio.h>

#define SLOT_NS 1000000000ull

static void judge(const qn_policy_memory_t *memory, const qn_policy_arrival_t *arrival,
                  qn_policy_verdict_t *ret_verdict)
{
    (void)memory; /* it keeps nothing */
    uint64_t rounds = arrival->waiting_count / (arrival->slot_count > 0 ? arrival->slot_count : 1);
    if (arrival->running_count >= arrival->slot_count) rounds++;
    uint64_t begins_ns = arrival->now_ns + rounds * SLOT_NS;
    ret_verdict->accept = arrival->deadline_ns == 0 || begins_ns <= arrival->deadline_ns;
    ret_verdict->retry_after_ms = 1000;
    snprintf(ret_verdict->reason, sizeof ret_verdict->reason,
             "%u wait for %u slots: it would begin in %.1f s, and its deadline is %s", arrival->waiting_count,
             arrival->slot_count, (double)(begins_ns - arrival->now_ns) / 1e9,
             arrival->deadline_ns == 0 ? "none"
             : ret_verdict->accept     ? "later"
                                       : "sooner");
}

const qn_policy_head_t *qn_policy_entry(void)
{
    static const qn_admission_policy_t policy = {
        .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_ADMISSION, .name = "in_time"},
        .judge = judge,
    };
    return &policy.head;
}
