/* One step as compute's nouns see it: the plan, its bounds, and what came of it. Plain data without a wire type; the
 * meaning of each field is in schemas/step_plan.fbs and schemas/step_result.fbs. Arrays of a plan are views. */
#ifndef QN_COMPUTE_WORKER_STEP_H
#define QN_COMPUTE_WORKER_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "qn_limits.h"

typedef struct {
    uint64_t seed;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k, min_tokens;
    uint32_t top_logprobs;
    bool logprobs, prompt_logprobs;
} step_sampling_t;

typedef struct {
    uint64_t request;
    uint32_t slot, prompt_tokens;
    uint32_t stop_offset, stop_count;
    uint32_t bias_offset, bias_count;
    uint32_t logprob_offset, logprob_count, bad_offset, bad_count; /* into list_ids */
    bool allow_only;                                               /* the bias names all ids that may be sampled */
    uint32_t history_offset, history_count;
    step_sampling_t sampling;
} step_set_t;

typedef struct {
    uint32_t slot, position, tokens, ids_offset;
    bool from_slot, sample;
} step_run_t;

typedef struct {
    uint64_t step;
    const uint32_t *retire;
    uint32_t retire_count;
    const step_set_t *sets;
    uint32_t set_count;
    const qn_table_entry_t *blocks;
    uint32_t block_count;
    const qn_copy_t *copies;
    uint32_t copy_count;
    const step_run_t *runs;
    uint32_t run_count;
    const uint32_t *ids;
    uint32_t id_count;
    const uint32_t *stop_ids;
    uint32_t stop_id_count;
    const qn_bias_entry_t *bias;
    uint32_t bias_count;
    const uint32_t *list_ids; /* the last id of each bad sequence has QN_SEQUENCE_END */
    uint32_t list_id_count;
} step_plan_t;

/* What one plan may hold here; everything that is sized once at start is sized by it. */
typedef struct {
    uint32_t max_sequences;   /* slots */
    uint32_t max_step_tokens; /* T */
    uint32_t max_model_len;   /* positions of one sequence */
    uint32_t block_tokens;    /* P */
    uint32_t kv_blocks;       /* B */
    uint32_t vocab;           /* V */
    uint32_t table_blocks;    /* entries of one block table */
    uint32_t plan_ids, plan_blocks, plan_copies, plan_stop_ids, plan_bias, plan_list_ids;
    uint32_t logit_rows;     /* R: rows whose logits are computed at once; more take several rounds */
    qn_scalar_t activations; /* f32 or bf16; the backend's */
} step_limits_t;

/* Bounds [R, V] for large vocabularies; a backend with memory to spare may raise step_limits_t.logit_rows. */
#define STEP_LOGIT_ROWS 64

static inline uint32_t step_smaller(uint64_t a, uint64_t b) { return (uint32_t)(a < b ? a : b); }

/* The worst plan is the first one after a restart: every slot set anew, with its history and its whole table. */
static inline step_limits_t step_limits_make(uint32_t max_sequences, uint32_t max_step_tokens, uint32_t max_model_len,
                                             uint32_t block_tokens, uint32_t kv_blocks, uint32_t vocab)
{
    uint32_t table_blocks = (uint32_t)(((uint64_t)max_model_len + block_tokens - 1) / block_tokens);
    return (step_limits_t){
        .max_sequences = max_sequences,
        .max_step_tokens = max_step_tokens,
        .max_model_len = max_model_len,
        .block_tokens = block_tokens,
        .kv_blocks = kv_blocks,
        .vocab = vocab,
        .table_blocks = table_blocks,
        .plan_ids = step_smaller((uint64_t)max_sequences * max_model_len + max_step_tokens, QN_STEP_PLAN_IDS_MAX),
        .plan_blocks = step_smaller((uint64_t)max_sequences * table_blocks, QN_STEP_PLAN_BLOCKS_MAX),
        .plan_copies = step_smaller(kv_blocks, QN_STEP_PLAN_COPIES_MAX),
        .plan_stop_ids = max_sequences * QN_SLOT_STOP_IDS_MAX,
        .plan_bias = step_smaller((uint64_t)max_sequences * QN_LOGIT_BIAS_MAX, QN_STEP_PLAN_BIAS_MAX),
        .plan_list_ids =
            step_smaller((uint64_t)max_sequences * (QN_LOGPROB_IDS_MAX + QN_BAD_IDS_MAX), QN_STEP_PLAN_LIST_IDS_MAX),
        .logit_rows = step_smaller(max_step_tokens, STEP_LOGIT_ROWS),
        .activations = QN_SCALAR_F32,
    };
}

typedef struct {
    uint64_t request;
    uint32_t slot, position, id;
    float logprob;
    uint32_t top_count;
    bool stopped, masked;
} step_token_t;

typedef struct {
    uint64_t request;
    uint32_t position, id;
    float logprob;
    uint32_t top_count;
} step_prompt_token_t;

/* Where a step's time went, on the compute thread. */
typedef struct {
    uint64_t input_ns, attention_ns, mlp_ns, output_ns, sample_ns;
    bool sampled; /* they were measured in this step */
} step_times_t;

/* Arrays are owned by whoever made the result, of the capacities named. */
typedef struct {
    uint64_t step, begin_ns, end_ns;
    uint32_t run_tokens; /* T of this step */
    step_times_t times;
    step_token_t *tokens;
    uint32_t token_count; /* max_sequences */
    step_prompt_token_t *prompt;
    uint32_t prompt_count; /* max_step_tokens */
    qn_top_entry_t *top;
    uint32_t top_count; /* (max_sequences + max_step_tokens) * QN_ALTERNATIVES_MAX */
} step_result_t;

#endif
