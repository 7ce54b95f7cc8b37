/* What is this?      The layout of compute's buffers.
 * State owned:       none; it hands out pointers into memory's regions.
 * Must never:        let the measured and the placed layout differ: both are made by the same lines.
 * Read next:         executor.c, forward.c, which use the buffers. */
#include "services/compute/executor/scratch.h"

#include "common/assert.h"

#define CARVE_ALIGN 64

/* Walks over a piece of memory; with base NULL it only counts. */
typedef struct {
    char *base;
    uint64_t used_bytes;
    bool overflow;
} carver_t;

static void *carve(carver_t *carver, uint64_t count, uint64_t width, uint64_t bytes)
{
    uint64_t size;
    if (__builtin_mul_overflow(count, width, &size) || __builtin_mul_overflow(size, bytes, &size) ||
        __builtin_add_overflow(size, CARVE_ALIGN - 1, &size) ||
        __builtin_add_overflow(carver->used_bytes, size & ~(uint64_t)(CARVE_ALIGN - 1), &size)) {
        carver->overflow = true;
        return NULL;
    }
    void *piece = carver->base ? carver->base + carver->used_bytes : NULL;
    carver->used_bytes = size;
    return piece;
}

#define CARVE(carver, field, count, width) ((field) = carve((carver), (count), (width), sizeof *(field)))
/* The same of elements of the activations' type. */
#define CARVE_ACTIVATIONS(carver, limits, field, count, width) \
    ((field) = carve((carver), (count), (width), qn_scalar_bytes((limits)->activations)))

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Whether any layer is of this kind. */
static bool has_layer(const qn_model_config_t *config, bool sparse)
{
    for (uint32_t i = 0; i < config->layers; i++)
        if (config->layer_is_sparse[i] == sparse) return true;
    return false;
}

/* Assignments of tokens to experts in one step; 0 for a dense model. Both factors are small: model_config.h. */
static uint64_t assignments(const qn_model_config_t *config, const step_limits_t *limits)
{
    return has_layer(config, true) ? (uint64_t)limits->max_step_tokens * config->experts_per_token : 0;
}

/* The greatest need of any product of a step. Inputs and tokens are bounded, so that it stays below 2^50. */
static uint64_t product_bytes(const qn_model_config_t *config, const step_limits_t *limits)
{
    uint64_t tokens = limits->max_step_tokens, places = assignments(config, limits);
    uint64_t inputs = larger(config->hidden, (uint64_t)config->heads * config->head_dim);
    if (has_layer(config, false)) inputs = larger(inputs, config->intermediate);
    uint64_t dense = qn_matmul_scratch_bytes(tokens, inputs);
    return places ? larger(dense, qn_matmul_scratch_bytes(places, larger(config->hidden, config->expert_intermediate)))
                  : dense;
}

static void carve_experts(const qn_model_config_t *config, const step_limits_t *limits, carver_t *carver, scratch_t *s)
{
    uint64_t tokens = limits->max_step_tokens, places = assignments(config, limits);
    CARVE_ACTIVATIONS(carver, limits, s->router, places ? tokens : 0, config->experts);
    CARVE_ACTIVATIONS(carver, limits, s->expert_x, places, config->hidden);
    CARVE(carver, s->expert_weights, places, 1);
    CARVE(carver, s->expert_places, places, 1);
    CARVE(carver, s->expert_rows, places, 1);
    CARVE(carver, s->expert_offsets, places ? (uint64_t)config->experts + 1 : 0, 1);
}

static void carve_activations(const qn_model_config_t *config, const step_limits_t *limits, carver_t *carver,
                              scratch_t *s)
{
    uint32_t tokens = limits->max_step_tokens;
    uint64_t mlp_values = larger(has_layer(config, false) ? (uint64_t)tokens * config->intermediate : 0,
                                 assignments(config, limits) * config->expert_intermediate);
    CARVE_ACTIVATIONS(carver, limits, s->x, tokens, config->hidden);
    CARVE_ACTIVATIONS(carver, limits, s->normed, tokens, config->hidden);
    CARVE_ACTIVATIONS(carver, limits, s->q, tokens, (uint64_t)config->heads * config->head_dim);
    CARVE_ACTIVATIONS(carver, limits, s->attended, tokens, (uint64_t)config->heads * config->head_dim);
    CARVE_ACTIVATIONS(carver, limits, s->k, tokens, (uint64_t)config->kv_heads * config->head_dim);
    CARVE_ACTIVATIONS(carver, limits, s->v, tokens, (uint64_t)config->kv_heads * config->head_dim);
    CARVE_ACTIVATIONS(carver, limits, s->gate, mlp_values, 1);
    CARVE_ACTIVATIONS(carver, limits, s->up, mlp_values, 1);
    carve_experts(config, limits, carver, s);
    s->products = carve(carver, product_bytes(config, limits), 1, 1);
    CARVE(carver, s->angles, tokens, config->head_dim);
    CARVE_ACTIVATIONS(carver, limits, s->picked, s->logit_rows, config->hidden);
    CARVE(carver, s->logits, s->logit_rows, config->vocab);
    CARVE(carver, s->sampler, s->logit_rows, 2 * (uint64_t)config->vocab);
    CARVE(carver, s->token_ids, tokens, 1);
    CARVE(carver, s->positions, tokens, 1);
    CARVE(carver, s->lengths, tokens, 1);
    CARVE(carver, s->kv_rows, tokens, 1);
}

static void carve_state(const qn_model_config_t *config, const step_limits_t *limits, carver_t *carver, scratch_t *s)
{
    uint32_t slots = limits->max_sequences + 1;
    s->tables = (qn_slot_tables_t){.slots = slots, .table_blocks = limits->table_blocks, .vocab = limits->vocab};
    CARVE(carver, s->tables.rows, slots, 1);
    CARVE(carver, s->tables.block_tables, slots, limits->table_blocks);
    CARVE(carver, s->tables.stop_ids, slots, QN_SLOT_STOP_IDS_MAX);
    CARVE(carver, s->tables.bias, slots, QN_LOGIT_BIAS_MAX);
    CARVE(carver, s->tables.counts, slots, limits->vocab);
    CARVE(carver, s->tables.logprob_ids, slots, QN_LOGPROB_IDS_MAX);
    CARVE(carver, s->tables.bad_ids, slots, QN_BAD_IDS_MAX);
    CARVE(carver, s->tables.recent, slots, QN_BAD_SEQUENCE_TOKENS_MAX);
    CARVE_ACTIVATIONS(carver, limits, s->pending, limits->max_sequences, config->hidden);
    CARVE(carver, s->frequencies, config->head_dim / 2, 1);
    CARVE(carver, s->experts, model_expert_count(config), 1);
}

static void carve_in(const step_limits_t *limits, carver_t *carver, scratch_in_t *in)
{
    uint32_t slots = limits->max_sequences;
    CARVE(carver, in->runs, slots, 1);
    CARVE(carver, in->decode_runs, slots, 1);
    CARVE(carver, in->prefill_runs, slots, 1);
    CARVE(carver, in->samples, slots, 1);
    CARVE(carver, in->sample_rows, slots, 1);
    CARVE(carver, in->retire, slots, 1);
    CARVE(carver, in->ids, limits->plan_ids, 1);
    CARVE(carver, in->stop_ids, limits->plan_stop_ids, 1);
    CARVE(carver, in->starts, slots, 1);
    CARVE(carver, in->entries, limits->plan_blocks, 1);
    CARVE(carver, in->copies, limits->plan_copies, 1);
    CARVE(carver, in->bias, limits->plan_bias, 1);
    CARVE(carver, in->list_ids, limits->plan_list_ids, 1);
    CARVE(carver, in->token_runs, limits->max_step_tokens, 1);
    CARVE(carver, in->rows, limits->logit_rows, 1);
    CARVE(carver, in->targets, limits->logit_rows, 1);
    CARVE(carver, in->slots, limits->logit_rows, 1);
    CARVE(carver, in->top_counts, limits->logit_rows, 1);
}

static void carve_out(const step_limits_t *limits, carver_t *carver, scratch_out_t *out)
{
    CARVE(carver, out->results, limits->max_sequences, 1);
    CARVE(carver, out->logprobs, limits->max_step_tokens, 1);
    CARVE(carver, out->sample_top, limits->max_sequences, QN_ALTERNATIVES_MAX);
    CARVE(carver, out->prompt_top, limits->max_step_tokens, QN_ALTERNATIVES_MAX);
}

qn_err_t scratch_measure(const qn_model_config_t *config, const step_limits_t *limits, scratch_sizes_t *ret_sizes)
{
    scratch_t scratch = {.logit_rows = limits->logit_rows};
    scratch_out_t results;
    carver_t activations = {0}, state = {0}, in = {0}, out = {0};
    carve_activations(config, limits, &activations, &scratch);
    carve_state(config, limits, &state, &scratch);
    carve_in(limits, &in, &scratch.in);
    carve_out(limits, &out, &results);
    if (activations.overflow || state.overflow || in.overflow || out.overflow)
        return qn_fail(QN_ERR_LIMIT, "buffers for %u tokens and %u sequences exceed 2^64 bytes",
                       limits->max_step_tokens, limits->max_sequences);
    *ret_sizes = (scratch_sizes_t){activations.used_bytes, state.used_bytes, in.used_bytes, out.used_bytes};
    return QN_OK;
}

void scratch_place(const qn_model_config_t *config, const step_limits_t *limits, void *activations, void *state,
                   void *step_io, scratch_t *ret_scratch)
{
    carver_t a = {.base = activations}, s = {.base = state}, io = {.base = step_io};
    QN_ASSERT(activations && state && step_io);
    *ret_scratch = (scratch_t){.logit_rows = limits->logit_rows};
    carve_activations(config, limits, &a, ret_scratch);
    carve_state(config, limits, &s, ret_scratch);
    carve_in(limits, &io, &ret_scratch->in);
    QN_ASSERT(!a.overflow && !s.overflow && !io.overflow);
}

void scratch_place_in(const step_limits_t *limits, void *memory, scratch_in_t *ret_in)
{
    carver_t carver = {.base = memory};
    QN_ASSERT(memory);
    carve_in(limits, &carver, ret_in);
    QN_ASSERT(!carver.overflow);
}

void scratch_place_out(const step_limits_t *limits, void *memory, scratch_out_t *ret_out)
{
    carver_t carver = {.base = memory};
    QN_ASSERT(memory);
    carve_out(limits, &carver, ret_out);
    QN_ASSERT(!carver.overflow);
}
