/* A hypothetical allocation: weights, KV blocks and activations in so much memory, and KV blocks in further places. Pure
 * arithmetic; the rules are those by which memory sizes the real ones (kv_size.h). */
#ifndef QN_MEMORY_PLAN_H
#define QN_MEMORY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#define PLAN_TIERS_MAX 4
#define PLAN_REASON_MAX 400

typedef struct {
    uint64_t device_bytes; /* that there are */
    uint64_t weights_bytes, activations_bytes;
    uint64_t block_bytes;     /* > 0 */
    uint32_t block_tokens;    /* > 0 */
    uint64_t kv_bytes;        /* asked for; 0: as many as fit */
    uint32_t max_model_len;   /* > 0 */
    uint32_t sequence_tokens; /* > 0 */
    uint64_t tier_bytes[PLAN_TIERS_MAX];
    uint32_t tier_count;
} memory_plan_request_t;

typedef struct {
    bool fits;              /* weights, activations, and one sequence of max_model_len */
    uint64_t missing_bytes; /* fits false: how many more it takes */
    uint64_t kv_bytes, left_bytes;
    uint64_t block_count;
    uint64_t longest_tokens; /* of one sequence, max_model_len at most */
    uint64_t sequences;      /* of sequence_tokens */
    uint64_t tier_blocks[PLAN_TIERS_MAX], tier_sequences[PLAN_TIERS_MAX];
    char reason[PLAN_REASON_MAX];
} memory_plan_t;

/* Every size is at most 2^46. */
void memory_plan_decide(const memory_plan_request_t *request, memory_plan_t *ret_plan);

#endif
