/* A scheduler that schedules nobody: the real one (ledger, batch, planner, policies) over a memory that counts blocks and a
 * compute whose steps take a time by their size. Requests and arrivals go in, the schedule and its latencies come out.
 * Nothing is run and nothing outside is changed; the same input gives the same output.
 *
 * Steps take step_ns + tokens * token_ns. A request generates exactly max_tokens. Lookahead is 0. What a request finds cached
 * is what it says: prefixes of simulated prompts are not compared, for there are no prompts.
 *
 * Used by scheduler.schedule, a few steps per turn, and by quintet policy replay. Allocates, reads no clock. */
#ifndef QN_SCHEDULER_SIMULATION_SIMULATION_H
#define QN_SCHEDULER_SIMULATION_SIMULATION_H

#include "common/err.h"
#include "services/scheduler/scheduler.h"

#define SIMULATION_TOKENS_MAX (64u << 20) /* that all requests of a simulation generate */

typedef struct {
    uint64_t arrival_ns;   /* after the start */
    uint64_t deadline_ns;  /* after the arrival; 0: none */
    uint64_t user;         /* hash; 0: none */
    const char *user_name; /* borrowed until the simulation is destroyed; NULL: "" */
    int32_t priority;
    uint32_t prompt_tokens; /* 1 .. QN_PROMPT_TOKENS_MAX, as max_tokens */
    uint32_t max_tokens;
    uint32_t prefix_tokens; /* of the prompt, cached */
} simulation_request_t;

typedef struct {
    const char *policy, *batching, *admission; /* NULL: the first built-in one */
    const char *policy_dirs;
    uint32_t max_sequences, max_step_tokens, prefill_chunk_tokens, queue_limit;
    uint32_t block_tokens, block_count;
    uint64_t step_ns, token_ns;
    uint32_t steps_kept; /* the first ones; 0: none */
} simulation_options_t;

typedef struct {
    uint32_t request; /* its place in the input */
    uint32_t tokens;
    bool prefill;
} simulation_run_t;

typedef struct {
    uint64_t step, begin_ns, end_ns;
    uint32_t tokens, first_run, run_count, first_reason, reason_count; /* into the lists below */
} simulation_step_t;

/* ns after the start; 0: it never came to it. */
typedef struct {
    uint64_t first_run_ns, first_token_ns, end_ns;
    uint32_t preemptions;
    bool refused;                      /* by admission, or it can never be served */
    char reason[QN_POLICY_REASON_MAX]; /* of its last admission, or why it was refused */
} simulation_outcome_t;

typedef struct {
    double mean, p50, p99; /* ms */
} simulation_spread_t;

typedef struct {
    uint32_t requests, refused, late; /* late: ended after their deadline */
    uint64_t steps, tokens, generated_tokens, preemptions;
    double total_ms, tokens_per_s; /* generated ones */
    simulation_spread_t queue, ttft, latency;
    char withdrawn[QN_ERR_TEXT_MAX]; /* "": no policy was */
} simulation_summary_t;

typedef struct simulation simulation_t;

/* Copies the requests. QN_ERR_CONFIG: a policy, or an option; QN_ERR_INVALID: a request, with its place in the text;
 * QN_ERR_NO_MEMORY. Returns owned. */
qn_err_t simulation_create(const simulation_options_t *options, const simulation_request_t *requests, uint32_t count,
                           simulation_t **ret_simulation);
void simulation_destroy(simulation_t **simulation);
/* At most `steps` steps. Returns whether all have ended. */
bool simulation_run(simulation_t *self, uint32_t steps);

/* ---- when it has ended; views ---- */

void simulation_summary(const simulation_t *self, simulation_summary_t *ret_summary);
const simulation_request_t *simulation_request(const simulation_t *self, uint32_t request);
const simulation_outcome_t *simulation_outcome(const simulation_t *self, uint32_t request);
const simulation_step_t *simulation_steps(const simulation_t *self, uint32_t *ret_count);
const simulation_run_t *simulation_runs(const simulation_t *self);
const char (*simulation_reasons(const simulation_t *self))[QN_POLICY_REASON_MAX];

#endif
