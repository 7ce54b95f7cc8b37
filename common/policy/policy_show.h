/* A seat as methods show it (schemas/shown_policies.fbs), and the changes they ask for. */
#ifndef QN_COMMON_POLICY_POLICY_SHOW_H
#define QN_COMMON_POLICY_POLICY_SHOW_H

#include "common/daemon/calls.h"
#include "common/policy/policy_seat.h"

/* In the call's arena. */
const qn_shown_policies_t *qn_policy_show(const qn_policy_seat_t *seat, const qn_call_t *call);
/* Changes live or shadow; live, "default" is what the configuration says. `choice` without a NUL of its own is copied. What cannot be is refused, and nothing changes; a change
 * is in the log. */
qn_call_outcome_t qn_policy_change(qn_policy_seat_t *seat, bool shadow, qn_text_t choice, const qn_call_t *call);

#endif
