/* What is this?      The size of the KV region.
 * State owned:       none.
 * Must never:        ask the machine: free memory is an argument.
 * Read next:         block_pool.h, which hands the blocks out. */
#include "services/memory/kv_size.h"

#include <inttypes.h>

#include "common/assert.h"

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

qn_err_t kv_size_decide(const kv_size_request_t *request, kv_size_t *ret_size)
{
    QN_ASSERT(request->block_bytes && request->block_tokens && request->max_model_len && request->max_sequences);
    uint64_t per_sequence = (request->max_model_len + (uint64_t)request->block_tokens - 1) / request->block_tokens;
    uint64_t budget = request->asked_bytes ? request->asked_bytes : request->free_bytes / 4;
    uint64_t blocks = smaller(budget / request->block_bytes, KV_SIZE_BLOCKS_MAX);
    if (request->asked_bytes > request->free_bytes)
        return qn_fail(QN_ERR_LIMIT, "memory.kv_bytes asks for %" PRIu64 " bytes and %" PRIu64 " are free",
                       request->asked_bytes, request->free_bytes);
    if (!request->asked_bytes) blocks = smaller(blocks, per_sequence * request->max_sequences);
    if (blocks == 0 || (blocks < per_sequence && request->max_model_len_asked))
        return qn_fail(QN_ERR_CONFIG, "a KV cache of %" PRIu64 " bytes holds %" PRIu64 " tokens, a sequence of "
                       "max_model_len needs %" PRIu32 " (%" PRIu64 " bytes): raise memory.kv_bytes or lower "
                       "model.max_model_len", budget, blocks * request->block_tokens, request->max_model_len,
                       per_sequence * request->block_bytes);
    uint64_t length = smaller(blocks * request->block_tokens, request->max_model_len);
    *ret_size = (kv_size_t){ .block_count = (uint32_t)blocks, .bytes = blocks * request->block_bytes,
                             .max_model_len = (uint32_t)length };
    return QN_OK;
}
