/* The methods frontend.profile_start and frontend.profile_stop. */
#ifndef QN_FRONTEND_METHODS_PROFILE_H
#define QN_FRONTEND_METHODS_PROFILE_H

#include "common/daemon/calls.h"
#include "services/frontend/profiling.h"

#define PROFILE_CALLS_MAX 8 /* that wait for one recording */

/* Who waits for what. A zeroed one is empty. */
typedef struct {
    profiling_t *profiling; /* owned */
    bool active;            /* a recording was begun and has not been seen to end */
    qn_call_t starts[PROFILE_CALLS_MAX], stops[PROFILE_CALLS_MAX];
    unsigned start_count, stop_count;
} profile_t;

qn_call_outcome_t frontend_method_profile_start(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t frontend_method_profile_stop(void *state, qn_call_t *call, const void *message, void *ret_reply);
/* Answers who waits, as far as the recording has come. Every turn. */
void frontend_answer_profile(profile_t *profile);

#endif
