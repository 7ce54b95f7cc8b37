/* A model and its executor in this process, without services: the regions memory would make, the network compute would
 * run, and sequences stepped by hand. What it does to weights, KV and kernels is what a configuration says
 * (model.*, memory.*, compute.*), through the services' own code.
 *
 * Sequence s lives in slot s, with KV blocks of its own. */
#ifndef QN_TOOLS_BENCH_BENCH_ENGINE_H
#define QN_TOOLS_BENCH_BENCH_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/err.h"
#include "services/compute/backend/backend.h"
#include "services/compute/model.h"
#include "services/compute/worker/step.h"

typedef struct bench_engine bench_engine_t;

typedef struct {
    uint32_t sequences;   /* at once, 1 .. QN_SLOTS_MAX */
    uint32_t step_tokens; /* of one step, at least `sequences`, at most QN_STEP_TOKENS_MAX */
    uint32_t model_len;   /* positions of sequence 0, at most QN_PROMPT_TOKENS_MAX */
    uint32_t others_len;  /* of each of the others, at most model_len */
} bench_engine_size_t;

/* One sequence's tokens in a step. `ids` NULL: one token, the one that was sampled last. */
typedef struct {
    uint32_t slot, position, tokens;
    const uint32_t *ids;
    bool sample;
} bench_run_t;

/* Loads the model (blocks for as long as that takes) and fills the KV cache with small random numbers, so that a
 * sequence may begin at any position. Failure: the loader's, or QN_ERR_NO_MEMORY naming what did not fit. Returns
 * owned. */
qn_err_t bench_engine_open(const qn_config_values_t *config, bench_engine_size_t size, bench_engine_t **ret_engine);
void bench_engine_close(bench_engine_t **engine);

/* Takes slot `slot` for a sequence that samples greedily; it is set with the next step. */
void bench_engine_start(bench_engine_t *engine, uint32_t slot, uint32_t prompt_tokens);
/* Frees the slot, with the next step. */
void bench_engine_retire(bench_engine_t *engine, uint32_t slot);
/* Launches a step; `runs` are sorted by slot. At most bench_engine_info_t.steps_in_flight are between submit and finish.
 * A plan that breaks a rule is QN_ERR_INVALID. */
qn_err_t bench_engine_submit(bench_engine_t *engine, const bench_run_t *runs, uint32_t run_count);
/* Waits for the oldest step. Returns view of its result until two steps later. */
qn_err_t bench_engine_finish(bench_engine_t *engine, const step_result_t **ret_result);
/* Both. Returns view of the result until the next step. */
qn_err_t bench_engine_step(bench_engine_t *engine, const bench_run_t *runs, uint32_t run_count,
                           const step_result_t **ret_result);
/* Views of the logits [rows, V] of the runs that sampled, in order, until the next call; at most
 * BENCH_ENGINE_LOGIT_ROWS of them in one step. */
#define BENCH_ENGINE_LOGIT_ROWS 64
qn_err_t bench_engine_logits(bench_engine_t *engine, const float **ret_logits, uint32_t *ret_rows);

/* ---- what it is ---- */

typedef struct {
    const qn_model_config_t *config;
    const char *id;        /* as the HTTP API names the model */
    const char *directory; /* of its files */
    const qn_kernel_set_t *kernels;
    uint32_t threads; /* of the CPU; 0 on a GPU */
    const backend_t *backend;
    const char *device_name; /* "2 threads", "NVIDIA H200" */
    uint32_t steps_in_flight;
    uint64_t weights_bytes;     /* resident */
    qn_scalar_t product_scalar; /* format of the first layer's products */
    qn_scalar_t head_scalar;
    qn_scalar_t kv_scalar;
    double load_s;
} bench_engine_info_t;

void bench_engine_info(const bench_engine_t *engine, bench_engine_info_t *ret_info);
/* Bytes that a decode step of `batch` sequences that see `context` positions each must read: weights once (of experts
 * as many as that batch can reach), embedding rows, keys and values. */
double bench_engine_decode_bytes(const bench_engine_t *engine, uint32_t batch, uint32_t context);
/* Multiplications and additions of `tokens` tokens of one sequence from position 0 on, logits of the last one. */
double bench_engine_prefill_operations(const bench_engine_t *engine, uint32_t tokens);

#endif
