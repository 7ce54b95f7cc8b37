/* A batching policy in a shared object: steps that take about 50 ms, whatever the machine. Contract: common/policy.h.
 *
 *     make && build/quintet up --set scheduler.batching=example_batching.so
 *
 * What a token costs is learnt from the last steps and kept in the state, which outlives the scheduler. Longer steps give
 * more tokens per second, shorter ones a steadier stream to those who decode. */
#include "common/policy.h"

#include <stdio.h>

#define TARGET_NS 50e6

typedef struct {
    double ns_per_token; /* 0: no step has ended yet */
} learnt_t;

static void size(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    learnt_t *learnt = memory->state;
    if (load->last_tokens > 0) {
        double now = (double)load->last_ns / load->last_tokens;
        learnt->ns_per_token = learnt->ns_per_token > 0 ? 0.9 * learnt->ns_per_token + 0.1 * now : now;
    }
    double fits = learnt->ns_per_token > 0 ? TARGET_NS / learnt->ns_per_token : load->step_tokens_max;
    uint32_t least = load->decode_tokens + 1; /* so that prompts go on */
    uint32_t tokens = fits < load->step_tokens_max ? (uint32_t)fits : load->step_tokens_max;
    tokens = tokens > least ? tokens : least;
    ret_size->step_tokens = tokens < load->step_tokens_max ? tokens : load->step_tokens_max;
    ret_size->chunk_tokens = load->chunk_tokens_max;
    memory->metrics[0] = learnt->ns_per_token;
    snprintf(ret_size->reason, sizeof ret_size->reason, "%u tokens at %.0f ns each make about %.0f ms",
             ret_size->step_tokens, learnt->ns_per_token, TARGET_NS / 1e6);
}

const qn_policy_head_t *qn_policy_entry(void)
{
    static const char *const metrics[] = {"ns_per_token"};
    static const qn_batching_policy_t policy = {
        .head = {.version = QN_POLICY_ABI_VERSION,
                 .kind = QN_POLICY_BATCHING,
                 .name = "steady",
                 .state_bytes = sizeof(learnt_t),
                 .metric_count = 1,
                 .metric_names = metrics},
        .size = size,
    };
    return &policy.head;
}
