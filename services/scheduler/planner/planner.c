/* What is this?      Creation of the planner and what its two halves share.
 * State owned:       buffers, the reasons for the next plan, whether admission is blocked.
 * Must never:        move a sequence itself (batch.c does), read a clock, send.
 * Read next:         planner_step.c (what compute does next), planner_traffic.c (what is asked of memory). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/scheduler/planner/planner_inner.h"

static bool allocate(planner_t *planner)
{
    uint32_t slots = planner->batch->slot_count;
    planner->retire = calloc(slots, sizeof *planner->retire);
    planner->sets = calloc(slots, sizeof *planner->sets);
    planner->blocks = calloc(PLAN_BLOCKS_MAX, sizeof *planner->blocks);
    planner->runs = calloc(slots, sizeof *planner->runs);
    planner->copies = calloc(slots, sizeof *planner->copies);
    planner->ids = calloc(PLAN_IDS_MAX, sizeof *planner->ids);
    planner->stop_ids = calloc((size_t)slots * QN_SLOT_STOP_IDS_MAX, sizeof *planner->stop_ids);
    planner->bias = calloc(QN_STEP_PLAN_BIAS_MAX, sizeof *planner->bias);
    planner->list_ids = calloc(QN_STEP_PLAN_LIST_IDS_MAX, sizeof *planner->list_ids);
    planner->reasons = calloc(PLANNER_REASONS_MAX, sizeof *planner->reasons);
    planner->next_reasons = calloc(PLANNER_REASONS_MAX, sizeof *planner->next_reasons);
    planner->tokens_of_slot = calloc(slots, sizeof *planner->tokens_of_slot);
    planner->view = calloc(ledger_requests_max(planner->batch->ledger), sizeof *planner->view);
    planner->parts = calloc(slots, sizeof *planner->parts);
    planner->shadow_parts = calloc(slots, sizeof *planner->shadow_parts);
    planner->lookups = calloc(QN_PREFIX_QUERY_ITEMS_MAX, sizeof *planner->lookups);
    planner->prefixes = calloc(ledger_requests_max(planner->batch->ledger), sizeof *planner->prefixes);
    planner->decisions = calloc(PLANNER_DECISIONS_MAX, sizeof *planner->decisions);
    planner->commits = calloc(QN_LEASE_ITEMS_MAX, sizeof *planner->commits);
    planner->releases = calloc(QN_LEASE_ITEMS_MAX, sizeof *planner->releases);
    planner->leases = calloc(QN_LEASE_ITEMS_MAX, sizeof *planner->leases);
    return planner->retire && planner->sets && planner->blocks && planner->copies && planner->runs && planner->ids &&
           planner->stop_ids && planner->bias && planner->list_ids && planner->reasons && planner->next_reasons &&
           planner->tokens_of_slot && planner->view && planner->parts && planner->shadow_parts && planner->lookups &&
           planner->prefixes && planner->decisions && planner->commits && planner->releases && planner->leases;
}

static qn_err_t check_options(const planner_options_t *options, uint32_t slots)
{
    if (options->max_step_tokens < slots || options->max_step_tokens > QN_STEP_TOKENS_MAX)
        return qn_fail(QN_ERR_CONFIG,
                       "scheduler.max_step_tokens %u is outside %u (scheduler.max_sequences)..%d: every "
                       "running sequence takes a token of a step",
                       options->max_step_tokens, slots, QN_STEP_TOKENS_MAX);
    if (options->prefill_chunk_tokens < 1)
        return qn_fail(QN_ERR_CONFIG, "scheduler.prefill_chunk_tokens is 0: no prompt would ever be run");
    if (options->lookahead + 1 > BATCH_STEPS_MAX)
        return qn_fail(QN_ERR_CONFIG, "scheduler.lookahead %u is outside 0..%d", options->lookahead,
                       BATCH_STEPS_MAX - 1);
    return QN_OK;
}

qn_err_t planner_create(const planner_options_t *options, batch_t *batch, const policies_t *policies,
                        planner_t **ret_planner)
{
    qn_err_t err = check_options(options, batch->slot_count);
    if (err < 0) return err;
    planner_t *planner = calloc(1, sizeof *planner);
    if (planner == NULL) return qn_fail(QN_ERR_NO_MEMORY, "planner: out of memory");
    planner->options = *options;
    planner->batch = batch;
    planner->policies = *policies;
    planner->apart = PLANNER_EVERYBODY;
    if (!allocate(planner)) {
        planner_destroy(&planner);
        return qn_fail(QN_ERR_NO_MEMORY, "planner: no memory for %u slots", batch->slot_count);
    }
    *ret_planner = planner;
    return QN_OK;
}

void planner_destroy(planner_t **planner)
{
    planner_t *self = *planner;
    if (self == NULL) return;
    free(self->retire);
    free(self->sets);
    free(self->blocks);
    free(self->copies);
    free(self->runs);
    free(self->ids);
    free(self->stop_ids);
    free(self->bias);
    free(self->list_ids);
    free(self->reasons);
    free(self->next_reasons);
    free(self->tokens_of_slot);
    free(self->view);
    free(self->parts);
    free(self->shadow_parts);
    free(self->lookups);
    free(self->prefixes);
    free(self->decisions);
    free(self->commits);
    free(self->releases);
    free(self->leases);
    free(self);
    *planner = NULL;
}

void planner_set_eos(planner_t *planner, const uint32_t *ids, uint32_t count)
{
    QN_ASSERT(count <= PLANNER_EOS_MAX);
    if (count > 0) memcpy(planner->eos_ids, ids, count * sizeof *ids);
    planner->eos_count = count;
}

void planner_set_apart(planner_t *planner, uint32_t index) { planner->apart = index; }

void planner_memory_lost(planner_t *planner)
{
    planner->admission_blocked = planner->yielding = false;
    planner->open_lookup = 0;
    memset(planner->prefixes, 0, ledger_requests_max(planner->batch->ledger) * sizeof *planner->prefixes);
}

void planner_step_took(planner_t *planner, uint32_t tokens, uint64_t ns)
{
    planner->last_tokens = tokens;
    planner->last_ns = ns;
}

void planner_counts(const planner_t *planner, planner_counts_t *ret_counts) { *ret_counts = planner->counts; }

void planner_note(planner_t *planner, const char *reason)
{
    if (planner->next_reason_count == PLANNER_REASONS_MAX - 1) { /* the last place says how many are missing */
        planner->reasons_dropped++;
        return;
    }
    snprintf(planner->next_reasons[planner->next_reason_count++], QN_POLICY_REASON_MAX, "%s", reason);
}

void planner_record(planner_t *planner, uint64_t request, const char *function, const qn_policy_seat_t *seat,
                    uint64_t now_ns, const char *reason)
{
    planner_decision_t *decision = &planner->decisions[planner->decision_count++ % PLANNER_DECISIONS_MAX];
    decision->now_ns = now_ns;
    decision->step = planner->batch->last_step + 1;
    decision->request = request;
    snprintf(decision->function, sizeof decision->function, "%s", function);
    snprintf(decision->policy, sizeof decision->policy, "%s", qn_policy_seat_name(seat));
    memcpy(decision->reason, reason, QN_POLICY_REASON_MAX);
}

const planner_decision_t *planner_decision(const planner_t *planner, uint64_t request, uint32_t at)
{
    uint64_t kept = planner->decision_count < PLANNER_DECISIONS_MAX ? planner->decision_count : PLANNER_DECISIONS_MAX;
    for (uint64_t i = 1; i <= kept; i++) {
        const planner_decision_t *one = &planner->decisions[(planner->decision_count - i) % PLANNER_DECISIONS_MAX];
        if ((request == 0 || one->request == request) && at-- == 0) return one;
    }
    return NULL;
}

void planner_decide(planner_t *planner, uint64_t request, const char *function, const qn_policy_seat_t *seat,
                    uint64_t now_ns, const char *reason)
{
    planner_note(planner, reason);
    planner_record(planner, request, function, seat, now_ns, reason);
}

uint32_t planner_prefill_tokens(const sequence_t *sequence)
{
    uint32_t known = request_known_tokens(sequence->request);
    uint32_t limit = request_run_limit(sequence->request);
    uint32_t end = known < limit ? known : limit;
    return end > sequence->planned ? end - sequence->planned : 0;
}

uint32_t planner_lease_tokens(const planner_t *planner, const sequence_t *sequence)
{
    uint32_t block_tokens = planner->batch->block_tokens;
    uint64_t headroom = block_tokens > 8 ? block_tokens : 8;
    uint32_t known = request_known_tokens(sequence->request);
    uint64_t tokens = (known > sequence->planned ? known : sequence->planned) + headroom;
    uint32_t limit = request_run_limit(sequence->request);
    return tokens < limit ? (uint32_t)tokens : limit;
}

static uint32_t policy_state(const sequence_t *sequence)
{
    if (sequence->phase != SEQUENCE_RUNNING) return QN_POLICY_WAITING;
    return planner_prefill_tokens(sequence) > 1 ? QN_POLICY_PREFILL : QN_POLICY_DECODE;
}

void planner_show(const planner_t *planner, const sequence_t *sequence, qn_policy_sequence_t *ret_shown)
{
    const request_t *request = sequence->request;
    uint32_t block_tokens = planner->batch->block_tokens;
    *ret_shown = (qn_policy_sequence_t){
        .id = request->id,
        .arrival = request->arrival,
        .arrival_ns = request->timeline.queued_ns,
        .priority = request->priority,
        .state = policy_state(sequence),
        .prompt_tokens = request->prompt_tokens,
        .prefix_tokens =
            sequence->phase == SEQUENCE_WAITING ? planner_prefix_of(planner, request) : request->cached_tokens,
        .generated_tokens = request->generated_tokens,
        .max_tokens = request->generated_max,
        .progress_tokens = sequence->planned,
        .prefill_tokens = planner_prefill_tokens(sequence),
        .blocks = sequence->block_count,
        .blocks_wanted = (planner_lease_tokens(planner, sequence) + block_tokens - 1) / block_tokens,
        .preemptions = request->preemptions,
        .deadline_ns = request->deadline_ns,
        .user = request->user,
        .user_name = request->user_name,
    };
}

qn_policy_view_t planner_view(const planner_t *planner, uint64_t now_ns, uint32_t count)
{
    return (qn_policy_view_t){
        .now_ns = now_ns,
        .sequences = planner->view,
        .sequence_count = count,
        .waiting_count = planner->batch->waiting_count,
        .running_count = planner->batch->running_count,
        .total_blocks = planner->batch->total_blocks,
        .available_blocks = planner->batch->available_blocks,
        .block_tokens = planner->batch->block_tokens,
    };
}
