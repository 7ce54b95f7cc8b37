/* The scheduler's three seats (common/policy/policy_seat.h) and what is asked of them, each decision checked.
 *
 * A policy is foreign code: what it writes is read once, bounds and names are verified, and the first rule it breaks
 * withdraws it: the policy before it is asked instead, for this very decision. So every call here has a decision. */
#ifndef QN_SCHEDULER_POLICY_POLICY_H
#define QN_SCHEDULER_POLICY_POLICY_H

#include <stdbool.h>

#include "common/policy/policy_seat.h"

extern const qn_policy_t policy_fcfs, policy_priority, policy_shortest_job, policy_prefix, policy_fair;
extern const qn_batching_policy_t batching_fixed, batching_pressure;
extern const qn_admission_policy_t admission_queue, admission_user_share;

typedef struct {
    qn_policy_seat_t *scheduling, *batching, *admission;
} policies_t;

/* What is built in, with `dirs` (borrowed) for shared objects; `kind`: SCHEDULING, BATCHING or ADMISSION. */
qn_policy_catalogue_t policy_catalogue(qn_policy_kind_t kind, const char *dirs);
qn_policy_seat_t *policies_seat(const policies_t *policies, qn_policy_kind_t kind);
void policies_close(policies_t *policies);

/* As in common/policy.h, checked. `ret_share->parts` has room for the view's sequences, as has `room`, for a shadow. */
void policy_admit(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint32_t admissions_max,
                  qn_policy_admit_t *ret_admit);
void policy_share(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens,
                  bool must_progress, qn_policy_part_t *room, qn_policy_share_t *ret_share);
void policy_preempt(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint64_t needy,
                    qn_policy_preempt_t *ret_preempt);
void policy_size(qn_policy_seat_t *seat, const qn_policy_load_t *load, qn_policy_size_t *ret_size);
void policy_judge(qn_policy_seat_t *seat, const qn_policy_arrival_t *arrival, qn_policy_verdict_t *ret_verdict);

#endif
