/* What is this?      Half of the planner: what compute does next.
 * State owned:       the plan being built (buffers in planner_inner.h).
 * Must never:        plan past a sequence's blocks, its end, or the step's token budget.
 * Read next:         batch.c (what a run changes), planner_traffic.c (where blocks come from). */
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "services/scheduler/planner/planner_inner.h"

/* ---- who runs how much ---- */

static sequence_t *owner_of(const planner_t *planner, uint32_t slot)
{
    uint32_t index = planner->batch->slot_owner[slot];
    if (index == BATCH_NOBODY || planner->batch->sequences[index].phase != SEQUENCE_RUNNING) return NULL;
    if (planner->apart != PLANNER_EVERYBODY && planner->apart != index) return NULL;
    return &planner->batch->sequences[index];
}

/* Whether its next run is one token: the last that is to be run, or the one its slot will hold. */
static bool decodes(const sequence_t *sequence)
{
    if (sequence->planned >= request_run_limit(sequence->request)) return false;
    return sequence->planned == request_known_tokens(sequence->request) || planner_prefill_tokens(sequence) == 1;
}

/* Tokens that its blocks still take. */
static uint32_t room_for(const planner_t *planner, const sequence_t *sequence)
{
    uint32_t capacity = batch_capacity(planner->batch, sequence);
    return capacity > sequence->planned ? capacity - sequence->planned : 0;
}

static uint32_t choose_decodes(planner_t *planner)
{
    uint32_t tokens = 0;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = owner_of(planner, slot);
        planner->tokens_of_slot[slot] = sequence != NULL && decodes(sequence) && room_for(planner, sequence) > 0;
        tokens += planner->tokens_of_slot[slot];
    }
    return tokens;
}

/* Puts `shown` in its place in a view that is kept in order of arrival. */
static void insert_by_arrival(qn_policy_sequence_t *view, uint32_t count, const qn_policy_sequence_t *shown)
{
    uint32_t at = count;
    for (; at > 0 && view[at - 1].arrival > shown->arrival; at--)
        view[at] = view[at - 1];
    view[at] = *shown;
}

static uint32_t show_prefills(planner_t *planner, bool orphans)
{
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = owner_of(planner, slot);
        if (sequence == NULL || planner_prefill_tokens(sequence) <= 1 || room_for(planner, sequence) == 0) continue;
        if (request_is_orphan(sequence->request) != orphans) continue;
        qn_policy_sequence_t shown;
        planner_show(planner, sequence, &shown);
        insert_by_arrival(planner->view, count++, &shown);
    }
    return count;
}

/* How large the step is to be. */
static void choose_size(planner_t *planner, uint64_t now_ns, uint32_t decode_tokens, uint32_t count,
                        qn_policy_size_t *ret_size)
{
    const batch_t *batch = planner->batch;
    qn_policy_load_t load = {
        .now_ns = now_ns,
        .waiting_count = batch->waiting_count,
        .running_count = batch->running_count,
        .decode_tokens = decode_tokens,
        .total_blocks = batch->total_blocks,
        .available_blocks = batch->available_blocks,
        .block_tokens = batch->block_tokens,
        .step_tokens_max = planner->options.max_step_tokens,
        .chunk_tokens_max = planner->options.prefill_chunk_tokens < planner->options.max_step_tokens
                                ? planner->options.prefill_chunk_tokens
                                : planner->options.max_step_tokens,
        .last_tokens = planner->last_tokens,
        .last_ns = planner->last_ns,
    };
    for (uint32_t i = 0; i < count; i++)
        load.prefill_tokens += planner->view[i].prefill_tokens;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        const sequence_t *sequence = owner_of(planner, slot);
        load.short_count += sequence != NULL && sequence->short_of_blocks;
    }
    policy_size(planner->policies.batching, &load, ret_size);
}

static void choose_prefills(planner_t *planner, uint64_t now_ns, uint32_t decode_tokens)
{
    uint32_t count = show_prefills(planner, false);
    if (count == 0) count = show_prefills(planner, true); /* rule 8 */
    if (count == 0 || planner->options.max_step_tokens == decode_tokens) return;
    qn_policy_size_t size;
    choose_size(planner, now_ns, decode_tokens, count, &size);
    bool as_configured = size.step_tokens == planner->options.max_step_tokens &&
                         size.chunk_tokens == planner->options.prefill_chunk_tokens; /* needs no words */
    if (!as_configured) planner_decide(planner, 0, "size", planner->policies.batching, now_ns, size.reason);
    uint32_t budget = size.step_tokens - decode_tokens;
    if (budget == 0) return;
    qn_policy_view_t view = planner_view(planner, now_ns, count);
    qn_policy_share_t share = {.parts = planner->parts};
    bool must_progress = decode_tokens == 0 && planner->batch->step_count == 0;
    policy_share(planner->policies.scheduling, &view, budget, size.chunk_tokens, must_progress, planner->shadow_parts,
                 &share);
    for (uint32_t i = 0; i < share.count; i++) {
        const request_t *request = ledger_find(planner->batch->ledger, share.parts[i].id);
        const sequence_t *sequence = &planner->batch->sequences[request->index];
        uint32_t room = room_for(planner, sequence);
        planner->tokens_of_slot[sequence->slot] = share.parts[i].tokens < room ? share.parts[i].tokens : room;
    }
    planner_decide(planner, 0, "share", planner->policies.scheduling, now_ns, share.reason);
}

/* ---- the plan's vectors ---- */

static void reset_plan(planner_t *planner)
{
    planner->plan = (plan_t){
        .retire = planner->retire,
        .sets = planner->sets,
        .blocks = planner->blocks,
        .copies = planner->copies,
        .runs = planner->runs,
        .ids = planner->ids,
        .stop_ids = planner->stop_ids,
        .bias = planner->bias,
        .list_ids = planner->list_ids,
        .reasons = (const char(*)[QN_POLICY_REASON_MAX])planner->reasons,
    };
}

static bool counts_tokens(const request_sampling_t *sampling)
{
    return sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
}

static uint32_t history_tokens(const sequence_t *sequence)
{
    const request_t *request = sequence->request;
    bool looks_back = request->bad_id_count > 0 && sequence->planned > request->prompt_tokens;
    return looks_back || counts_tokens(&request->sampling) ? sequence->planned : 0;
}

static uint32_t add_ids(planner_t *planner, const uint32_t *ids, uint32_t count)
{
    uint32_t offset = planner->plan.id_count;
    QN_ASSERT(count <= PLAN_IDS_MAX - offset);
    if (count > 0) memcpy(planner->ids + offset, ids, count * sizeof *ids);
    planner->plan.id_count += count;
    return offset;
}

static uint32_t add_list(planner_t *planner, const uint32_t *ids, uint32_t count)
{
    uint32_t offset = planner->plan.list_id_count;
    if (count > 0) memcpy(planner->list_ids + offset, ids, count * sizeof *ids);
    planner->plan.list_id_count += count;
    return offset;
}

/* The request's stop ids, then those of the model it has not named itself: a slot holds all of both. */
static uint32_t add_stop_ids(planner_t *planner, const request_t *request)
{
    uint32_t *stop_ids = planner->stop_ids + planner->plan.stop_id_count;
    uint32_t count = request->stop_count;
    if (count > 0) memcpy(stop_ids, request->stop_ids, count * sizeof *stop_ids);
    for (uint32_t i = 0; !request->sampling.ignore_eos && i < planner->eos_count && count < QN_SLOT_STOP_IDS_MAX; i++) {
        bool named = false;
        for (uint32_t j = 0; j < count; j++)
            named = named || stop_ids[j] == planner->eos_ids[i];
        if (!named) stop_ids[count++] = planner->eos_ids[i];
    }
    planner->plan.stop_id_count += count;
    return count;
}

static void add_set(planner_t *planner, const sequence_t *sequence)
{
    plan_t *plan = &planner->plan;
    const request_t *request = sequence->request;
    plan_set_t *set = &planner->sets[plan->set_count++];
    *set = (plan_set_t){.request = request,
                        .slot = sequence->slot,
                        .stop_offset = plan->stop_id_count,
                        .bias_offset = plan->bias_count,
                        .bias_count = request->bias_count,
                        .history_count = history_tokens(sequence)};
    set->stop_count = add_stop_ids(planner, request);
    set->history_offset = add_ids(planner, request->ids, set->history_count);
    set->logprob_offset = add_list(planner, request->logprob_ids, request->logprob_id_count);
    set->bad_offset = add_list(planner, request->bad_ids, request->bad_id_count);
    if (request->bias_count > 0)
        memcpy(planner->bias + plan->bias_count, request->bias, request->bias_count * sizeof *request->bias);
    plan->bias_count += request->bias_count;
    plan->tap_count += request->probe.tap_count;
    plan->tap_value_count += request->probe.value_count;
}

/* Whether the plan has room for all a slot needs before `run_tokens` tokens of it can run. */
static bool fits(const planner_t *planner, const sequence_t *sequence, uint32_t run_tokens)
{
    const plan_t *plan = &planner->plan;
    uint64_t ids = run_tokens;
    uint32_t bias = 0, lists = 0, taps = 0, values = 0;
    if (!sequence->slot_set) {
        ids += history_tokens(sequence);
        bias = sequence->request->bias_count;
        lists = sequence->request->logprob_id_count + sequence->request->bad_id_count;
        taps = sequence->request->probe.tap_count;
        values = sequence->request->probe.value_count;
    }
    return plan->id_count + ids <= PLAN_IDS_MAX && plan->bias_count + bias <= QN_STEP_PLAN_BIAS_MAX &&
           plan->list_id_count + lists <= QN_STEP_PLAN_LIST_IDS_MAX &&
           plan->tap_count + taps <= QN_STEP_PLAN_TAPS_MAX &&
           plan->tap_value_count + values <= QN_STEP_PLAN_TAP_VALUES_MAX;
}

/* Tells compute of the slot and of blocks it does not know; returns how many tokens the known blocks take from the
 * planned position on. A table too long for one plan is told over several. */
static uint32_t tell_slot(planner_t *planner, sequence_t *sequence)
{
    batch_t *batch = planner->batch;
    plan_t *plan = &planner->plan;
    const uint32_t *table = batch_table(batch, sequence);
    if (!sequence->slot_set) {
        add_set(planner, sequence);
        if (batch_must_copy(sequence))
            planner->copies[plan->copy_count++] =
                (plan_copy_t){.from = sequence->copy_from, .to = table[sequence->copied_tokens / batch->block_tokens]};
    }
    uint32_t told = sequence->slot_set ? sequence->blocks_sent : 0;
    for (; told < sequence->block_count && plan->block_count < PLAN_BLOCKS_MAX; told++)
        planner->blocks[plan->block_count++] =
            (plan_block_t){.slot = sequence->slot, .index = told, .block = table[told]};
    batch_slot_told(batch, sequence->request->index, told);
    uint64_t capacity = (uint64_t)told * batch->block_tokens;
    return capacity > sequence->planned ? (uint32_t)(capacity - sequence->planned) : 0;
}

static void add_run(planner_t *planner, batch_step_t *step, const sequence_t *sequence, uint32_t tokens)
{
    plan_t *plan = &planner->plan;
    const request_t *request = sequence->request;
    uint32_t known = request_known_tokens(request);
    bool from_slot = sequence->planned == known;
    batch_run_t run = {
        .index = request->index,
        .slot = sequence->slot,
        .position = sequence->planned,
        .token_count = tokens,
        .from_slot = from_slot,
        .sample = sequence->planned + tokens >= known && request->generated_max > 0,
    };
    planner->runs[plan->run_count++] = (plan_run_t){
        .slot = run.slot,
        .position = run.position,
        .token_count = tokens,
        .ids_offset = from_slot ? 0 : add_ids(planner, request->ids + run.position, tokens),
        .from_slot = from_slot,
        .sample = run.sample,
    };
    plan->token_count += tokens;
    plan->from_slot_count += from_slot;
    batch_step_run(planner->batch, step, &run);
}

/* Slots that compute knows and nobody has, or somebody new has. */
static void add_retired(planner_t *planner)
{
    batch_t *batch = planner->batch;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        uint32_t index = batch->slot_owner[slot];
        if (!batch->slot_live[slot] || (index != BATCH_NOBODY && batch->sequences[index].slot_set)) continue;
        planner->retire[planner->plan.retire_count++] = slot;
        batch_slot_retired(batch, slot);
    }
}

static void take_reasons(planner_t *planner)
{
    char(*taken)[QN_POLICY_REASON_MAX] = planner->next_reasons;
    planner->next_reasons = planner->reasons;
    planner->reasons = taken;
    planner->plan.reasons = (const char(*)[QN_POLICY_REASON_MAX])taken;
    planner->plan.reason_count = planner->next_reason_count;
    if (planner->reasons_dropped > 0)
        snprintf(taken[planner->plan.reason_count++], QN_POLICY_REASON_MAX, "and %u more decisions",
                 planner->reasons_dropped);
    planner->next_reason_count = planner->reasons_dropped = 0;
}

static void fill_plan(planner_t *planner, uint64_t now_ns)
{
    batch_step_t *step = batch_step_begin(planner->batch, now_ns);
    planner->plan.step = step->step;
    planner->plan.session = planner->batch->session;
    planner->plan.opens = batch_opens_session(planner->batch);
    add_retired(planner);
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        uint32_t tokens = planner->tokens_of_slot[slot];
        if (tokens == 0) continue;
        sequence_t *sequence = owner_of(planner, slot);
        if (!fits(planner, sequence, tokens)) continue; /* in the next plan: the first of a plan always fits */
        uint32_t room = tell_slot(planner, sequence);
        if (room > 0) add_run(planner, step, sequence, tokens < room ? tokens : room);
    }
    take_reasons(planner);
    planner->counts.from_slot_runs += planner->plan.from_slot_count;
}

void planner_plan(planner_t *planner, uint64_t now_ns, plan_t *ret_plan, bool *ret_built)
{
    *ret_built = false;
    if (planner->apart == PLANNER_NOBODY || planner->batch->running_count == 0 ||
        planner->batch->step_count > planner->options.lookahead)
        return;
    uint32_t decode_tokens = choose_decodes(planner);
    choose_prefills(planner, now_ns, decode_tokens);
    uint32_t chosen = 0;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++)
        chosen += planner->tokens_of_slot[slot];
    if (chosen == 0) return;
    reset_plan(planner);
    fill_plan(planner, now_ns);
    *ret_plan = planner->plan;
    *ret_built = true;
}
