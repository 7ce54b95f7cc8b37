/* An eviction policy in a shared object: system prompts stay. Contract: common/policy.h.
 *
 *     make && build/quintet up --set memory.eviction=example_eviction.so
 *
 * The first tokens of prompts are what many of them share, so the first PINNED_TOKENS of each are worth more than anything
 * behind them; all else goes in the order in which it was last used. The lowest score goes first. */
#include "common/policy.h"

#include <stdio.h>

#define PINNED_TOKENS 512u
#define WORTH 1e15 /* more than any logical time */

static int is_pinned(const qn_policy_block_t *block)
{
    return (uint64_t)block->depth * block->block_tokens < PINNED_TOKENS && block->hits > 0;
}

static double score(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    return (double)block->use + (is_pinned(block) ? WORTH : 0);
}

static void explain(const qn_policy_block_t *block, char ret_reason[QN_POLICY_REASON_MAX])
{
    snprintf(ret_reason, QN_POLICY_REASON_MAX, "last used at %llu%s", (unsigned long long)block->use,
             is_pinned(block) ? ", a shared beginning: nothing else was left" : "");
}

const qn_policy_head_t *qn_policy_entry(void)
{
    static const qn_eviction_policy_t policy = {
        .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_EVICTION, .name = "keep_beginnings"},
        .score = score,
        .explain = explain,
    };
    return &policy.head;
}
