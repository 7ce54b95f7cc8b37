/* Methods of compute that are in files of their own; methods.c has the table. */
#ifndef QN_COMPUTE_METHODS_H
#define QN_COMPUTE_METHODS_H

#include "common/daemon/calls.h"

qn_call_outcome_t method_forward(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_attention_scores(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_run_stage(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
