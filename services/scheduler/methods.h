/* The scheduler's methods: a function per row of scheduler_methods that is in another file than methods.c. */
#ifndef QN_SCHEDULER_METHODS_H
#define QN_SCHEDULER_METHODS_H

#include "services/scheduler/handlers.h"

/* methods_schedule.c */
qn_call_outcome_t scheduler_method_schedule(void *state, qn_call_t *call, const void *message, void *ret_reply);
/* Some steps of the simulations under way; ended ones are answered. Returns whether there are any left. */
bool scheduler_run_schedules(scheduler_service_t *service);
/* The service ends: nobody is answered. */
void scheduler_drop_schedules(scheduler_service_t *service);
/* A request of the ledger as scheduler.queue shows it. */
void scheduler_show_sequence(const batch_t *batch, const request_t *request, uint64_t now_ns,
                             qn_queued_sequence_t *ret_sequence);

/* methods_latency.c, methods_history.c */
qn_call_outcome_t scheduler_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t scheduler_method_history(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
