/* What is this?      The arithmetic of memory.plan.
 * State owned:       none.
 * Must never:        ask the machine or read a file: everything is an argument.
 * Read next:         plan.h, methods_plan.c (who asks), kv_size.c (the real one). */
#include "services/memory/plan.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/assert.h"
#include "services/memory/kv_size.h"

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t blocks_for(const memory_plan_request_t *request, uint32_t tokens)
{
    return (tokens + (uint64_t)request->block_tokens - 1) / request->block_tokens;
}

/* Bytes that are wanted in the first place at least: one sequence of the greatest length, or what was asked for. */
static uint64_t wanted_kv(const memory_plan_request_t *request)
{
    uint64_t one = blocks_for(request, request->max_model_len) * request->block_bytes;
    return request->kv_bytes > one ? request->kv_bytes : one;
}

static void say_missing(const memory_plan_request_t *request, uint64_t fixed, memory_plan_t *plan)
{
    uint64_t one = blocks_for(request, request->max_model_len) * request->block_bytes;
    if (fixed > request->device_bytes)
        snprintf(plan->reason, sizeof plan->reason,
                 "the weights (%" PRIu64 " bytes) and what compute needs (%" PRIu64 ") do not fit into %" PRIu64
                 ": a smaller model, model.quantize, or a larger device",
                 request->weights_bytes, request->activations_bytes, request->device_bytes);
    else if (request->kv_bytes > 0 && request->kv_bytes < one)
        snprintf(plan->reason, sizeof plan->reason,
                 "kv_bytes %" PRIu64 " are less than the %" PRIu64 " of one sequence of %" PRIu32
                 " tokens: raise kv_bytes, or lower max_model_len",
                 request->kv_bytes, one, request->max_model_len);
    else
        snprintf(plan->reason, sizeof plan->reason,
                 "beside weights and activations %" PRIu64 " bytes are left, and the KV cache takes %" PRIu64
                 ": lower kv_bytes or max_model_len, or use memory.kv_dtype bf16",
                 request->device_bytes - fixed, wanted_kv(request));
}

static void plan_tiers(const memory_plan_request_t *request, uint64_t per_sequence, memory_plan_t *plan)
{
    for (uint32_t i = 0; i < request->tier_count; i++) {
        plan->tier_blocks[i] = request->tier_bytes[i] / request->block_bytes;
        plan->tier_sequences[i] = plan->tier_blocks[i] / per_sequence;
    }
}

void memory_plan_decide(const memory_plan_request_t *request, memory_plan_t *ret_plan)
{
    QN_ASSERT(request->block_bytes && request->block_tokens && request->max_model_len && request->sequence_tokens);
    QN_ASSERT(request->tier_count <= PLAN_TIERS_MAX);
    uint64_t fixed = request->weights_bytes + request->activations_bytes;
    uint64_t room = request->device_bytes - smaller(request->device_bytes, fixed);
    uint64_t wanted = wanted_kv(request), asked = request->kv_bytes ? request->kv_bytes : room;
    uint64_t per_sequence = blocks_for(request, request->sequence_tokens);
    memory_plan_t plan = {.block_count = smaller(smaller(asked, room) / request->block_bytes, KV_SIZE_BLOCKS_MAX)};
    plan.kv_bytes = plan.block_count * request->block_bytes;
    plan.left_bytes = room - plan.kv_bytes;
    plan.longest_tokens = smaller(plan.block_count * request->block_tokens, request->max_model_len);
    plan.sequences = plan.block_count / per_sequence;
    plan.fits = fixed + wanted <= request->device_bytes && plan.longest_tokens == request->max_model_len;
    plan_tiers(request, per_sequence, &plan);
    if (plan.fits) {
        snprintf(plan.reason, sizeof plan.reason, "weights, activations and %" PRIu64 " blocks fit", plan.block_count);
    } else {
        uint64_t needed = fixed + wanted;
        plan.missing_bytes =
            needed > request->device_bytes ? needed - request->device_bytes : wanted - smaller(wanted, plan.kv_bytes);
        say_missing(request, fixed, &plan);
    }
    *ret_plan = plan;
}
