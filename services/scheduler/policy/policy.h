/* The policy in force: found by name or loaded from a shared object, and every decision of it checked.
 *
 * A policy is foreign code: what it writes is read once, bounds and names are verified, and the first rule it breaks is
 * a failure that names the policy and the rule. The scheduler then ends; it never goes on with another policy. */
#ifndef QN_SCHEDULER_POLICY_POLICY_H
#define QN_SCHEDULER_POLICY_POLICY_H

#include <stdbool.h>

#include "common/err.h"
#include "common/policy.h"

typedef struct policy policy_t;

extern const qn_policy_t policy_fcfs, policy_priority;

/* `name`: a built-in policy ("fcfs", "priority"), or the path of a shared object (anything with a slash or ending in
 * .so). QN_ERR_CONFIG: unknown name, file that does not load, missing symbol, another ABI version. Returns owned. */
qn_err_t policy_open(const char *name, policy_t **ret_policy);
/* The same around a table of functions (borrowed), for tests. */
qn_err_t policy_wrap(const qn_policy_t *functions, policy_t **ret_policy);
/* Of the shared object that `name` is the path of, as it lies on disk now; 0 for a built-in policy, or when there is none. */
uint64_t policy_fingerprint(const char *name);
void policy_close(policy_t **policy);
const char *policy_name(const policy_t *policy);

/* As in common/policy.h, checked. QN_ERR_INVALID: the policy broke a rule. */
qn_err_t policy_admit(policy_t *policy, const qn_policy_view_t *view, uint32_t admissions_max,
                      qn_policy_admit_t *ret_admit);
qn_err_t policy_share(policy_t *policy, const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens,
                      bool must_progress, qn_policy_share_t *ret_share);
qn_err_t policy_preempt(policy_t *policy, const qn_policy_view_t *view, uint64_t needy,
                        qn_policy_preempt_t *ret_preempt);

#endif
