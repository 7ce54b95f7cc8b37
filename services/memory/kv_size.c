/* What is this?      The size of the KV region.
 * State owned:       none.
 * Must never:        ask the machine: free memory is an argument.
 * Read next:         block_pool.h, which hands the blocks out. */
#include "services/memory/kv_size.h"

#include <inttypes.h>

#include "common/assert.h"

/* A context with its kernels is about 0.5 GiB, cuBLASLt's kernels and workspaces come to as much again. */
#define CONTEXT_BYTES (UINT64_C(3) << 29)
/* Rows of logits that are made at once, when there are fewer sequences. */
#define LOGIT_ROWS 256

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* What a KV region may have at most, without being asked for it or at all. */
static uint64_t room_for(const kv_size_request_t *request)
{
    uint64_t room = request->free_bytes - smaller(request->free_bytes, request->reserve_bytes);
    return request->largest_bytes ? smaller(room, request->largest_bytes) : room;
}

static qn_err_t asked_too_much(const kv_size_request_t *request, uint64_t room)
{
    if (!request->device)
        return qn_fail(QN_ERR_LIMIT, "memory.kv_bytes asks for %" PRIu64 " bytes and %" PRIu64 " are free",
                       request->asked_bytes, request->free_bytes);
    return qn_fail(QN_ERR_LIMIT,
                   "memory.kv_bytes asks for %" PRIu64 " bytes and at most %" PRIu64 " can be had: %" PRIu64
                   " are free, of which compute needs about %" PRIu64,
                   request->asked_bytes, room, request->free_bytes, request->reserve_bytes);
}

qn_err_t kv_size_decide(const kv_size_request_t *request, kv_size_t *ret_size)
{
    QN_ASSERT(request->block_bytes && request->block_tokens && request->max_model_len && request->max_sequences);
    uint64_t per_sequence = (request->max_model_len + (uint64_t)request->block_tokens - 1) / request->block_tokens;
    uint64_t room = room_for(request), automatic = request->device ? room : room / 4;
    uint64_t budget = request->asked_bytes ? request->asked_bytes : automatic;
    uint64_t blocks = smaller(budget / request->block_bytes, KV_SIZE_BLOCKS_MAX);
    if (request->asked_bytes > room) return asked_too_much(request, room);
    if (!request->asked_bytes) blocks = smaller(blocks, per_sequence * request->max_sequences);
    if (blocks == 0 || (blocks < per_sequence && request->max_model_len_asked))
        return qn_fail(QN_ERR_CONFIG,
                       "a KV cache of %" PRIu64 " bytes holds %" PRIu64 " tokens, a sequence of "
                       "max_model_len needs %" PRIu32 " (%" PRIu64 " bytes): raise memory.kv_bytes or lower "
                       "model.max_model_len",
                       budget, blocks * request->block_tokens, request->max_model_len,
                       per_sequence * request->block_bytes);
    uint64_t length = smaller(blocks * request->block_tokens, request->max_model_len);
    *ret_size = (kv_size_t){.block_count = (uint32_t)blocks,
                            .bytes = blocks * request->block_bytes,
                            .max_model_len = (uint32_t)length};
    return QN_OK;
}

/* All in f32, as if no two buffers shared their bytes. Every factor is below 2^20 (model_config.h), so nothing
 * overflows. */
uint64_t kv_size_compute_bytes(const qn_model_config_t *config, uint64_t max_step_tokens, uint64_t max_sequences)
{
    uint64_t places = config->experts ? config->experts_per_token : 0;
    uint64_t heads = (uint64_t)(2 * config->heads + 2 * config->kv_heads + 1) * config->head_dim;
    uint64_t mlp = larger(config->intermediate, places * config->expert_intermediate);
    uint64_t token = 4 * (uint64_t)config->hidden + heads + 3 * mlp + config->experts + 2 * places * config->hidden;
    uint64_t rows = larger(max_sequences, LOGIT_ROWS);
    uint64_t values = max_step_tokens * token + rows * (4 * (uint64_t)config->vocab + config->hidden);
    return CONTEXT_BYTES + values * sizeof(float);
}

uint64_t kv_size_context_bytes(void) { return CONTEXT_BYTES; }
