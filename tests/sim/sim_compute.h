/* A compute without tensors: slot tables, block tables, and a KV store of one number per token. It checks that every
 * plan is legal (as services/compute does), that it writes only what the block pool says its sequence may write, and
 * gives the tokens that the KV really in the store leads to. */
#ifndef QN_TESTS_SIM_SIM_COMPUTE_H
#define QN_TESTS_SIM_SIM_COMPUTE_H

#include "services/memory/block_pool.h"
#include "services/scheduler/planner/planner.h"
#include "tests/sim/sim_base.h"

/* A plan as it travels: a deep copy, with what SlotSet carries of the request. */
typedef struct {
    plan_t plan;
    uint64_t *set_requests;
    uint32_t *set_prompts;
    request_sampling_t *set_samplings;
} sim_plan_t;

typedef struct {
    bool set, done, begun, sampled, pending;
    uint64_t request;
    uint32_t prompt_tokens, next_position, last_id, block_count, history_count, stop_count;
    uint32_t blocks[SIM_TOKENS_MAX], history[SIM_TOKENS_MAX], stop_ids[QN_SLOT_STOP_IDS_MAX];
    request_sampling_t sampling;
    uint64_t pending_kv; /* prompt scores: the KV before the next chunk */
} sim_slot_t;

typedef struct {
    uint32_t slot_count, block_count, block_tokens, max_step_tokens;
    sim_slot_t *slots;
    uint64_t *kv;             /* [blocks, block_tokens]; memory's */
    const block_pool_t *pool; /* memory's, to check writes */
    uint64_t *writer_salt;    /* [blocks] */
    uint64_t last_step;
    bool clones; /* some were made in this run */
} sim_compute_t;

/* What a step gave, with room for all it may give. */
typedef struct {
    batch_result_t result;
    batch_token_t tokens[64];
    batch_prompt_token_t prompt[SIM_TOKENS_MAX * 8];
    request_alternative_t top[64 * 20 + SIM_TOKENS_MAX * 8 * 4];
    uint32_t top_count;
} sim_result_t;

static inline sim_plan_t *sim_plan_copy(const plan_t *plan)
{
    sim_plan_t *copy = sim_copy(&(sim_plan_t){.plan = *plan}, 1, sizeof *copy);
    copy->plan.retire = sim_copy(plan->retire, plan->retire_count, sizeof *plan->retire);
    copy->plan.sets = sim_copy(plan->sets, plan->set_count, sizeof *plan->sets);
    copy->plan.blocks = sim_copy(plan->blocks, plan->block_count, sizeof *plan->blocks);
    copy->plan.copies = sim_copy(plan->copies, plan->copy_count, sizeof *plan->copies);
    copy->plan.runs = sim_copy(plan->runs, plan->run_count, sizeof *plan->runs);
    copy->plan.ids = sim_copy(plan->ids, plan->id_count, sizeof *plan->ids);
    copy->plan.stop_ids = sim_copy(plan->stop_ids, plan->stop_id_count, sizeof *plan->stop_ids);
    copy->set_requests = calloc(plan->set_count + 1, sizeof *copy->set_requests);
    copy->set_prompts = calloc(plan->set_count + 1, sizeof *copy->set_prompts);
    copy->set_samplings = calloc(plan->set_count + 1, sizeof *copy->set_samplings);
    for (uint32_t i = 0; i < plan->set_count; i++) {
        copy->set_requests[i] = plan->sets[i].request->id;
        copy->set_prompts[i] = plan->sets[i].request->prompt_tokens;
        copy->set_samplings[i] = plan->sets[i].request->sampling;
    }
    return copy;
}

static inline void sim_plan_free(sim_plan_t *copy)
{
    free((void *)copy->plan.retire);
    free((void *)copy->plan.sets);
    free((void *)copy->plan.blocks);
    free((void *)copy->plan.copies);
    free((void *)copy->plan.runs);
    free((void *)copy->plan.ids);
    free((void *)copy->plan.stop_ids);
    free(copy->set_requests);
    free(copy->set_prompts);
    free(copy->set_samplings);
    free(copy);
}

/* ---- tables ---- */

static inline void sim_compute_set(sim_compute_t *compute, const sim_plan_t *copy, uint32_t at)
{
    const plan_set_t *set = &copy->plan.sets[at];
    SIM_CHECK(set->slot < compute->slot_count, "slot %u of %u is set", set->slot, compute->slot_count);
    sim_slot_t *slot = &compute->slots[set->slot];
    SIM_CHECK(!slot->set, "slot %u is set twice", set->slot);
    *slot = (sim_slot_t){.set = true,
                         .request = copy->set_requests[at],
                         .prompt_tokens = copy->set_prompts[at],
                         .sampling = copy->set_samplings[at],
                         .stop_count = set->stop_count,
                         .history_count = set->history_count};
    memcpy(slot->stop_ids, copy->plan.stop_ids + set->stop_offset, set->stop_count * sizeof *slot->stop_ids);
    if (set->history_count > 0)
        memcpy(slot->history, copy->plan.ids + set->history_offset, set->history_count * sizeof *slot->history);
}

static inline void sim_compute_tables(sim_compute_t *compute, const sim_plan_t *copy)
{
    const plan_t *plan = &copy->plan;
    for (uint32_t i = 0; i < plan->retire_count; i++) {
        SIM_CHECK(plan->retire[i] < compute->slot_count && compute->slots[plan->retire[i]].set,
                  "slot %u is retired and holds nothing", plan->retire[i]);
        compute->slots[plan->retire[i]].set = false;
    }
    for (uint32_t i = 0; i < plan->set_count; i++)
        sim_compute_set(compute, copy, i);
    for (uint32_t i = 0; i < plan->block_count; i++) {
        const plan_block_t *entry = &plan->blocks[i];
        sim_slot_t *slot = &compute->slots[entry->slot];
        SIM_CHECK(slot->set && entry->index == slot->block_count && entry->block < compute->block_count,
                  "block %u as entry %u of slot %u, which has %u", entry->block, entry->index, entry->slot,
                  slot->block_count);
        slot->blocks[slot->block_count++] = entry->block;
    }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        const plan_copy_t *one = &plan->copies[i];
        SIM_CHECK(one->from < compute->block_count && one->to < compute->block_count && one->from != one->to,
                  "block %u is copied to %u", one->from, one->to);
        memcpy(compute->kv + (size_t)one->to * compute->block_tokens,
               compute->kv + (size_t)one->from * compute->block_tokens, compute->block_tokens * sizeof *compute->kv);
    }
}

/* ---- runs ---- */

static inline uint64_t *sim_kv_at(const sim_compute_t *compute, const sim_slot_t *slot, uint32_t position)
{
    uint32_t block = slot->blocks[position / compute->block_tokens];
    return &compute->kv[(size_t)block * compute->block_tokens + position % compute->block_tokens];
}

/* The block pool agrees that the sequence may write here (block_pool.h, rule 5). `current`: the plan was made for the
 * leases that stand now; else an old plan may write only what nobody could find. */
static inline void sim_check_write(const sim_compute_t *compute, const sim_slot_t *slot, uint32_t position,
                                   bool current)
{
    uint32_t index = position / compute->block_tokens;
    uint32_t block = slot->blocks[index];
    if (compute->pool == NULL || !current) return;
    uint32_t count = 0;
    const uint32_t *table = block_pool_table(compute->pool, slot->request, &count);
    SIM_CHECK(table != NULL && index < count && table[index] == block,
              "request %llu writes block %u at entry %u, which it does not hold", (unsigned long long)slot->request,
              block, index);
    /* Clones may hold it too, for the rows before (block_pool_check counts who else does). */
    SIM_CHECK((block_pool_references(compute->pool, block) == 1 || compute->clones) &&
                  !block_pool_indexed(compute->pool, block),
              "request %llu writes block %u, which is shared", (unsigned long long)slot->request, block);
}

static inline void sim_add_top(sim_result_t *out, uint64_t kv, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = sim_alternative(kv, i);
        out->top[out->top_count++] = (request_alternative_t){.id = id, .logprob = sim_logprob(kv, id)};
    }
}

/* Scores of prompt tokens: each from the KV of the token before it; the last of a chunk waits for the next chunk. */
static inline void sim_score(sim_slot_t *slot, sim_result_t *out, uint32_t position, uint32_t id, uint64_t kv)
{
    if (!slot->sampling.prompt_logprobs) return;
    if (slot->pending && position < slot->prompt_tokens)
        out->prompt[out->result.prompt_count++] = (batch_prompt_token_t){.request = slot->request,
                                                                         .position = position,
                                                                         .id = id,
                                                                         .logprob = sim_logprob(slot->pending_kv, id),
                                                                         .top_count = slot->sampling.top_logprobs};
    slot->pending_kv = kv;
    slot->pending = true;
}

static inline uint64_t sim_run_token(sim_compute_t *compute, sim_slot_t *slot, uint32_t position, uint32_t id,
                                     sim_result_t *out, bool current)
{
    uint64_t before[SIM_TOKENS_MAX];
    for (uint32_t i = 0; i < position; i++)
        before[i] = *sim_kv_at(compute, slot, i);
    sim_check_write(compute, slot, position, current);
    uint64_t kv = sim_kv(before, position, id);
    *sim_kv_at(compute, slot, position) = kv;
    sim_score(slot, out, position, id, kv);
    if (slot->history_count == position) /* what penalties count is whole only when it was told all before */
        slot->history[slot->history_count++] = id;
    return kv;
}

static inline bool sim_is_stop(const sim_slot_t *slot, uint32_t id, uint32_t position)
{
    if (position - slot->prompt_tokens < slot->sampling.min_tokens) return false;
    for (uint32_t i = 0; i < slot->stop_count; i++)
        if (slot->stop_ids[i] == id) return true;
    return false;
}

static inline void sim_run(sim_compute_t *compute, const sim_plan_t *copy, const plan_run_t *run, sim_result_t *out,
                           bool current)
{
    sim_slot_t *slot = &compute->slots[run->slot];
    SIM_CHECK(run->slot < compute->slot_count && slot->set, "slot %u runs and is not set", run->slot);
    SIM_CHECK(!slot->begun || run->position == slot->next_position, "slot %u runs at %u and is at %u", run->slot,
              run->position, slot->next_position);
    uint32_t end = run->position + run->token_count;
    SIM_CHECK(end <= slot->block_count * compute->block_tokens, "slot %u runs to %u past its %u blocks", run->slot, end,
              slot->block_count);
    SIM_CHECK(!run->from_slot || (slot->sampled && run->token_count == 1), "slot %u: from_slot without a sample",
              run->slot);
    slot->begun = true;
    slot->sampled = run->sample;
    slot->next_position = end;
    batch_token_t token = {.request = slot->request, .slot = run->slot, .position = end, .masked = slot->done};
    if (!slot->done) {
        uint64_t kv = 0;
        for (uint32_t i = 0; i < run->token_count; i++)
            kv = sim_run_token(compute, slot, run->position + i,
                               run->from_slot ? slot->last_id : copy->plan.ids[run->ids_offset + i], out, current);
        bool penalties = slot->sampling.repetition_penalty != 1;
        SIM_CHECK(!run->sample || !penalties || slot->history_count == end,
                  "slot %u samples at %u and counts %u tokens", run->slot, end, slot->history_count);
        token.id = sim_sample(kv, slot->sampling.seed);
        token.logprob = sim_logprob(kv, token.id);
        token.stopped = run->sample && sim_is_stop(slot, token.id, end);
        slot->pending_kv = kv;
        slot->last_id = token.id;
        slot->done = token.stopped;
        token.top_count = slot->sampling.top_logprobs;
    }
    if (run->sample) out->tokens[out->result.token_count++] = token;
}

/* A result names what it is about in every entry: it may list them in any order, and does. */
static inline void sim_shuffle(sim_result_t *out, uint64_t step)
{
    for (uint32_t i = out->result.token_count; i > 1; i--) {
        uint32_t other = (uint32_t)(sim_mix(step, i) % i);
        batch_token_t token = out->tokens[i - 1];
        out->tokens[i - 1] = out->tokens[other];
        out->tokens[other] = token;
    }
    for (uint32_t i = out->result.prompt_count; i > 1; i--) {
        uint32_t other = (uint32_t)(sim_mix(i, step) % i);
        batch_prompt_token_t score = out->prompt[i - 1];
        out->prompt[i - 1] = out->prompt[other];
        out->prompt[other] = score;
    }
}

/* Executes a plan, or only its first `runs` runs (it was killed in the middle). */
static inline void sim_execute(sim_compute_t *compute, const sim_plan_t *copy, uint32_t runs, bool current,
                               sim_result_t *out)
{
    const plan_t *plan = &copy->plan;
    uint32_t tokens = 0;
    memset(&out->result, 0, sizeof out->result);
    out->top_count = 0;
    sim_compute_tables(compute, copy);
    SIM_CHECK(plan->step > compute->last_step, "step %llu comes after step %llu", (unsigned long long)plan->step,
              (unsigned long long)compute->last_step);
    compute->last_step = plan->step;
    for (uint32_t i = 0; i < plan->run_count && i < runs; i++) {
        SIM_CHECK(i == 0 || plan->runs[i].slot > plan->runs[i - 1].slot, "runs are not in order of slots");
        tokens += plan->runs[i].token_count;
        sim_run(compute, copy, &plan->runs[i], out, current);
    }
    SIM_CHECK(tokens <= compute->max_step_tokens, "a step of %u tokens, at most %u are allowed", tokens,
              compute->max_step_tokens);
    sim_shuffle(out, plan->step);
    for (uint32_t i = 0; i < out->result.token_count; i++)
        if (!out->tokens[i].masked)
            sim_add_top(out, compute->slots[out->tokens[i].slot].pending_kv, out->tokens[i].top_count);
    for (uint32_t i = 0; i < out->result.prompt_count;
         i++) /* a prompt's alternatives: of its target, to tell them apart */
        sim_add_top(out, out->prompt[i].position, out->prompt[i].top_count);
    out->result.step = plan->step;
    out->result.tokens = out->tokens;
    out->result.prompt = out->prompt;
    out->result.top = out->top;
    out->result.top_count = out->top_count;
}

#endif
