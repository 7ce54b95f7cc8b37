/* What is this?      The built-in batching policies: fixed, pressure.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the load it is shown.
 * Read next:         planner_step.c, which asks. */
#include <stdio.h>

#include "services/scheduler/policy/policy.h"

/* ---- fixed: what the configuration says ---- */

static void fixed_size(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    (void)memory;
    ret_size->step_tokens = load->step_tokens_max;
    ret_size->chunk_tokens = load->chunk_tokens_max;
    snprintf(ret_size->reason, sizeof ret_size->reason, "fixed: steps of %u tokens, chunks of %u",
             load->step_tokens_max, load->chunk_tokens_max);
}

/* ---- pressure: below a quarter of free blocks prompts are taken in smaller pieces, so that those who decode find the
 * blocks that they will need and fewer are preempted; when memory refuses blocks, a block's worth at a time ---- */

static void pressure_size(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    (void)memory;
    uint32_t prompt_tokens = load->step_tokens_max - load->decode_tokens;
    uint32_t quarter = load->total_blocks / 4 > 0 ? load->total_blocks / 4 : 1;
    uint32_t block = load->block_tokens > 0 ? load->block_tokens : 1;
    uint32_t least = block < prompt_tokens ? block : prompt_tokens;
    uint32_t tokens = prompt_tokens;
    if (load->short_count > 0)
        tokens = least;
    else if (load->available_blocks < quarter)
        tokens = least + (uint32_t)((uint64_t)(prompt_tokens - least) * load->available_blocks / quarter);
    ret_size->step_tokens = load->decode_tokens + tokens;
    ret_size->chunk_tokens = tokens < load->chunk_tokens_max ? (tokens > 0 ? tokens : 1) : load->chunk_tokens_max;
    snprintf(ret_size->reason, sizeof ret_size->reason,
             "pressure: %u prompt tokens of %u, %u of %u blocks are free, %u sequences wait for one", tokens,
             prompt_tokens, load->available_blocks, load->total_blocks, load->short_count);
}

const qn_batching_policy_t batching_fixed = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_BATCHING, .name = "fixed"},
    .size = fixed_size,
};
const qn_batching_policy_t batching_pressure = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_BATCHING, .name = "pressure"},
    .size = pressure_size,
};
