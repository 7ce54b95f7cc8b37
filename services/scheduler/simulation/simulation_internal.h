/* What simulation.c and simulation_summary.c share. Not for others. */
#ifndef QN_SCHEDULER_SIMULATION_SIMULATION_INTERNAL_H
#define QN_SCHEDULER_SIMULATION_SIMULATION_INTERNAL_H

#include "qn_limits.h"
#include "services/scheduler/simulation/simulation.h"

struct simulation {
    simulation_options_t options;
    scheduler_t *scheduler;
    void *mapping; /* of its ledger */
    uint64_t now_ns;
    bool ended;

    simulation_request_t *requests; /* [count] */
    simulation_outcome_t *outcomes; /* [count] */
    uint32_t *held;                 /* [count]: blocks */
    uint32_t *order;                /* [count]: places by arrival */
    uint32_t count, arrived;
    uint32_t free_blocks;
    uint32_t *ids;         /* of every prompt: zeros */
    batch_token_t *tokens; /* [max_sequences] */

    simulation_step_t *steps; /* [steps_kept] */
    simulation_run_t *runs;
    char (*reasons)[QN_POLICY_REASON_MAX];
    uint32_t step_count, run_count, reason_count;
    uint64_t all_steps, all_tokens, generated;
};

/* Fills in `order`. */
void simulation_sort(simulation_t *self);

#endif
