/* Methods of the scheduler that are in files of their own; methods.c has the table. */
#ifndef QN_SCHEDULER_METHODS_H
#define QN_SCHEDULER_METHODS_H

#include "common/daemon/calls.h"
#include "services/scheduler/handlers.h"

qn_call_outcome_t method_tokens(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_mask_get(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_mask_set(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
