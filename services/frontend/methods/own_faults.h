/* The frontend's methods about faults; own.c has the table. */
#ifndef QN_FRONTEND_METHODS_OWN_FAULTS_H
#define QN_FRONTEND_METHODS_OWN_FAULTS_H

#include "services/frontend/frontend.h"

qn_call_outcome_t frontend_method_faults_get(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t frontend_method_faults_set(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
