/* How large the KV region becomes. Pure arithmetic: what was asked, what is free, what the model needs. */
#ifndef QN_MEMORY_KV_SIZE_H
#define QN_MEMORY_KV_SIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/model/model_config.h"

#define KV_SIZE_BLOCKS_MAX (1u << 28) /* as block_pool.h */

typedef struct {
    uint64_t block_bytes; /* of one block over all layers */
    uint32_t block_tokens;
    uint32_t max_model_len;   /* tokens of one sequence */
    bool max_model_len_asked; /* configured: may not be lowered */
    uint32_t max_sequences;   /* running at once */
    uint64_t asked_bytes;     /* memory.kv_bytes; 0 = auto */
    uint64_t free_bytes;      /* what the host or the device still has */
    /* A device serves this model alone; a host has other things to do. All zero: a host. */
    bool device;
    uint64_t reserve_bytes; /* of free_bytes: what compute will need there */
    uint64_t largest_bytes; /* no region may be larger; 0 = no bound */
} kv_size_request_t;

typedef struct {
    uint32_t block_count;
    uint64_t bytes;         /* block_count * block_bytes */
    uint32_t max_model_len; /* as requested, or lowered to what the blocks hold when it was not asked for */
} kv_size_t;

/* auto: every sequence can reach max_model_len, but at most a quarter of what a host has free, or all that a device has
 * beside the reserve. A sequence of max_model_len must fit: when it does not, the length is lowered if nobody asked for
 * it, else QN_ERR_CONFIG says what to change. QN_ERR_LIMIT: asked_bytes exceed what is free or one region may have. */
qn_err_t kv_size_decide(const kv_size_request_t *request, kv_size_t *ret_size);

/* Device memory that compute will need for this model: its context with cuBLASLt, and room for the activations and
 * tables it reserves. An estimate from above, for sizing only; what it reserves is granted or refused then. */
uint64_t kv_size_compute_bytes(const qn_model_config_t *config, uint64_t max_step_tokens, uint64_t max_sequences);
/* Of it, what a device's context takes. */
uint64_t kv_size_context_bytes(void);

#endif
