/* What is this?      The life of sequences between admission and the return of their last block.
 * State owned:       phases, slots, block tables, positions, the steps without a result.
 * Must never:        let a block go while a plan without a result may write it; move `proven` without a result.
 * Read next:         batch_result.c (what a StepResult changes), planner.c (who decides). */
#include "services/scheduler/batch/batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

/* ---- life ---- */

static bool allocate(batch_t *batch, uint32_t requests_max)
{
    uint32_t slots = batch->slot_count;
    batch->sequences = calloc(requests_max, sizeof *batch->sequences);
    batch->retiring = calloc(requests_max, sizeof *batch->retiring);
    batch->slot_owner = calloc(slots, sizeof *batch->slot_owner);
    batch->slot_live = calloc(slots, sizeof *batch->slot_live);
    batch->changed = calloc((size_t)slots * 2, sizeof *batch->changed);
    batch->run_of_slot = calloc(slots, sizeof *batch->run_of_slot);
    batch->run_of_request = calloc(requests_max, sizeof *batch->run_of_request);
    batch->seen = calloc(QN_STEP_TOKENS_MAX, sizeof *batch->seen);
    batch->tokens = calloc(slots, sizeof *batch->tokens);
    bool whole = batch->sequences && batch->retiring && batch->slot_owner && batch->slot_live && batch->changed &&
                 batch->run_of_slot && batch->run_of_request && batch->seen && batch->tokens;
    for (uint32_t i = 0; i < BATCH_STEPS_MAX; i++)
        whole = (batch->steps[i].runs = calloc(slots, sizeof(batch_run_t))) != NULL && whole;
    return (batch->last.runs = calloc(slots, sizeof(batch_run_t))) != NULL && whole;
}

qn_err_t batch_create(ledger_t *ledger, uint32_t slot_count, batch_t **ret_batch)
{
    if (slot_count < 1 || slot_count > QN_SLOTS_MAX)
        return qn_fail(QN_ERR_CONFIG, "scheduler.max_sequences %u is outside 1..%d", slot_count, QN_SLOTS_MAX);
    batch_t *batch = calloc(1, sizeof *batch);
    if (batch == NULL) return qn_fail(QN_ERR_NO_MEMORY, "batch: out of memory");
    batch->ledger = ledger;
    batch->slot_count = batch->free_slots = slot_count;
    batch->session = 1;
    if (!allocate(batch, ledger_requests_max(ledger))) {
        batch_destroy(&batch);
        return qn_fail(QN_ERR_NO_MEMORY, "batch: no memory for %u slots", slot_count);
    }
    for (uint32_t i = 0; i < slot_count; i++)
        batch->slot_owner[i] = BATCH_NOBODY;
    for (request_t *request = ledger_next(ledger, NULL); request != NULL; request = ledger_next(ledger, request))
        batch_add(batch, request);
    *ret_batch = batch;
    return QN_OK;
}

void batch_destroy(batch_t **batch)
{
    batch_t *self = *batch;
    if (self == NULL) return;
    for (uint32_t i = 0; i < BATCH_STEPS_MAX; i++)
        free(self->steps[i].runs);
    free(self->last.runs);
    free(self->sequences);
    free(self->retiring);
    free(self->slot_owner);
    free(self->slot_live);
    free(self->changed);
    free(self->run_of_slot);
    free(self->run_of_request);
    free(self->seen);
    free(self->tokens);
    free(self->tables);
    free(self);
    *batch = NULL;
}

qn_err_t batch_configure(batch_t *batch, uint32_t block_tokens, uint32_t total_blocks, uint32_t tokens_max,
                         uint32_t vocab_size)
{
    QN_ASSERT(batch->leasing_count + batch->running_count + batch->retiring_count == 0);
    uint32_t table_max = tokens_max / block_tokens + (tokens_max % block_tokens != 0);
    table_max = table_max < total_blocks ? table_max : total_blocks;
    size_t entries;
    if (__builtin_mul_overflow((size_t)batch->slot_count, (size_t)table_max, &entries))
        return qn_fail(QN_ERR_LIMIT, "batch: block tables of %u entries are too large", table_max);
    uint32_t *tables = calloc(entries, sizeof *tables);
    if (tables == NULL)
        return qn_fail(QN_ERR_NO_MEMORY, "batch: no memory for %u block tables of %u entries", batch->slot_count,
                       table_max);
    free(batch->tables);
    batch->tables = tables;
    batch->block_tokens = block_tokens;
    batch->total_blocks = batch->available_blocks = total_blocks;
    batch->table_max = table_max;
    batch->vocab_size = vocab_size;
    return QN_OK;
}

/* ---- phases ---- */

static sequence_t *sequence_at(const batch_t *batch, uint32_t index)
{
    QN_ASSERT(index < ledger_requests_max(batch->ledger));
    return &batch->sequences[index];
}

static uint32_t *phase_count(batch_t *batch, sequence_phase_t phase)
{
    switch (phase) {
    case SEQUENCE_WAITING: return &batch->waiting_count;
    case SEQUENCE_LEASING: return &batch->leasing_count;
    case SEQUENCE_RUNNING: return &batch->running_count;
    case SEQUENCE_RETIRING: return &batch->retiring_count;
    case SEQUENCE_NONE: break;
    }
    return NULL;
}

static void move_to(batch_t *batch, sequence_t *sequence, sequence_phase_t phase)
{
    uint32_t *from = phase_count(batch, sequence->phase);
    uint32_t *to = phase_count(batch, phase);
    if (from != NULL) --*from;
    if (to != NULL) ++*to;
    sequence->phase = phase;
}

static void take_slot(batch_t *batch, sequence_t *sequence)
{
    uint32_t slot = 0;
    while (batch->slot_owner[slot] != BATCH_NOBODY)
        slot++;
    batch->slot_owner[slot] = sequence->request->index;
    ledger_evidence(batch->ledger)->slots[slot] = sequence->request->id;
    batch->free_slots--;
    sequence->slot = slot;
}

static void leave_slot(batch_t *batch, sequence_t *sequence)
{
    if (sequence->slot == BATCH_NO_SLOT) return;
    batch->slot_owner[sequence->slot] = BATCH_NOBODY;
    ledger_evidence(batch->ledger)->slots[sequence->slot] = 0;
    batch->free_slots++;
    sequence->slot = BATCH_NO_SLOT;
    sequence->slot_set = false;
}

/* Back to the state of a request that has nothing but its tokens. */
static void wait_again(batch_t *batch, sequence_t *sequence)
{
    leave_slot(batch, sequence);
    move_to(batch, sequence, SEQUENCE_WAITING);
    request_t *request = sequence->request;
    *sequence = (sequence_t){.request = request, .phase = SEQUENCE_WAITING, .slot = BATCH_NO_SLOT};
}

static void settle(batch_t *batch, sequence_t *sequence)
{
    leave_slot(batch, sequence);
    move_to(batch, sequence, SEQUENCE_NONE);
    *sequence = (sequence_t){.phase = SEQUENCE_NONE, .slot = BATCH_NO_SLOT};
}

static void retire(batch_t *batch, sequence_t *sequence, bool requeue)
{
    leave_slot(batch, sequence);
    sequence->requeue = requeue;
    if (sequence->lease_batch > batch->left_lease) batch->left_lease = sequence->lease_batch;
    sequence->lease_batch = 0;
    sequence->retiring_at = batch->retiring_count;
    batch->retiring[batch->retiring_count] = sequence->request->index;
    move_to(batch, sequence, SEQUENCE_RETIRING);
}

static void leave_retiring(batch_t *batch, const sequence_t *sequence)
{
    uint32_t last = batch->retiring[batch->retiring_count - 1];
    batch->retiring[sequence->retiring_at] = last;
    batch->sequences[last].retiring_at = sequence->retiring_at;
}

void batch_add(batch_t *batch, request_t *request)
{
    sequence_t *sequence = sequence_at(batch, request->index);
    QN_ASSERT(sequence->phase == SEQUENCE_NONE);
    if (request->finish != REQUEST_UNFINISHED) return;
    *sequence = (sequence_t){.request = request, .slot = BATCH_NO_SLOT};
    move_to(batch, sequence, SEQUENCE_WAITING);
}

void batch_end(batch_t *batch, uint32_t index)
{
    sequence_t *sequence = sequence_at(batch, index);
    switch (sequence->phase) {
    case SEQUENCE_NONE: break;
    case SEQUENCE_WAITING: settle(batch, sequence); break;
    case SEQUENCE_LEASING: /* the Release follows the Lease on the same link: whatever it gave comes back */
    case SEQUENCE_RUNNING: retire(batch, sequence, false); break;
    case SEQUENCE_RETIRING: sequence->requeue = false; break;
    }
}

void batch_preempt(batch_t *batch, uint32_t index)
{
    sequence_t *sequence = sequence_at(batch, index);
    QN_ASSERT(sequence->phase == SEQUENCE_RUNNING);
    ledger_preempt(batch->ledger, sequence->request);
    retire(batch, sequence, true);
}

void batch_lease_open(batch_t *batch, uint32_t index, uint32_t tokens, uint64_t lease_batch)
{
    sequence_t *sequence = sequence_at(batch, index);
    QN_ASSERT(sequence->phase == SEQUENCE_WAITING && batch->free_slots > 0);
    take_slot(batch, sequence);
    sequence->lease_tokens = tokens;
    sequence->lease_batch = lease_batch;
    sequence->shared = !request_runs_whole_prompt(sequence->request);
    move_to(batch, sequence, SEQUENCE_LEASING);
}

void batch_lease_extend(batch_t *batch, uint32_t index, uint32_t tokens, uint64_t lease_batch)
{
    sequence_t *sequence = sequence_at(batch, index);
    QN_ASSERT(sequence->phase == SEQUENCE_RUNNING && sequence->lease_batch == 0);
    sequence->lease_tokens = tokens;
    sequence->lease_batch = lease_batch;
}

/* ---- grants ---- */

static qn_err_t check_grant(const batch_t *batch, const sequence_t *sequence, const batch_grant_t *grant)
{
    bool opened = sequence->phase == SEQUENCE_LEASING;
    uint64_t blocks = (uint64_t)grant->first_block + grant->block_count;
    bool table_fits = grant->first_block == sequence->block_count && blocks <= batch->table_max &&
                      blocks * batch->block_tokens >= sequence->lease_tokens &&
                      (grant->blocks != NULL || grant->block_count == 0);
    bool copy_fits = grant->copies
                         ? table_fits && grant->cached_tokens / batch->block_tokens < blocks &&
                               grant->cached_tokens % batch->block_tokens != 0 && grant->copy_from < batch->total_blocks
                         : grant->cached_tokens % batch->block_tokens == 0;
    bool cached_fits = copy_fits && grant->cached_tokens < request_known_tokens(sequence->request) &&
                       (grant->cached_tokens == 0 || (opened && sequence->shared));
    for (uint32_t i = 0; table_fits && i < grant->block_count; i++)
        table_fits = grant->blocks[i] < batch->total_blocks;
    if (table_fits && cached_fits) return QN_OK;
    return qn_fail(QN_ERR_PEER,
                   "memory granted sequence %llu blocks %u..%llu with %u cached tokens, which does not fit "
                   "its lease of %u tokens",
                   (unsigned long long)grant->sequence, grant->first_block, (unsigned long long)blocks,
                   grant->cached_tokens, sequence->lease_tokens);
}

static void accept_grant(batch_t *batch, sequence_t *sequence, const batch_grant_t *grant)
{
    if (grant->block_count > 0)
        memcpy(batch_table(batch, sequence) + grant->first_block, grant->blocks,
               grant->block_count * sizeof *grant->blocks);
    sequence->block_count += grant->block_count;
    if (sequence->phase != SEQUENCE_LEASING) return;
    request_t *request = sequence->request;
    sequence->planned = sequence->proven = sequence->committed = grant->cached_tokens;
    sequence->copies = grant->copies;
    sequence->copy_from = grant->copy_from;
    sequence->copied_tokens = grant->cached_tokens;
    ledger_admit(batch->ledger, request,
                 grant->cached_tokens < request->prompt_tokens ? grant->cached_tokens : request->prompt_tokens);
    move_to(batch, sequence, SEQUENCE_RUNNING);
}

qn_err_t batch_grant(batch_t *batch, const batch_grant_t *grant)
{
    if (grant->lease_batch >= batch->left_lease) batch->left_lease = 0;
    request_t *request = ledger_find(batch->ledger, grant->sequence);
    sequence_t *sequence = request != NULL ? sequence_at(batch, request->index) : NULL;
    if (sequence == NULL || sequence->lease_batch == 0 || sequence->lease_batch != grant->lease_batch) return QN_OK;
    if (grant->outcome == BATCH_GRANTED) {
        qn_err_t err = check_grant(batch, sequence, grant);
        sequence->lease_batch = 0;
        if (err == QN_OK)
            accept_grant(batch, sequence, grant);
        else
            retire(batch, sequence, true);
        return err;
    }
    sequence->lease_batch = 0;
    if (grant->outcome == BATCH_SHORT && sequence->phase == SEQUENCE_RUNNING) {
        sequence->short_of_blocks = true;
    } else if (grant->outcome == BATCH_SHORT) {
        batch->open_refusals++;
        wait_again(batch, sequence);
    } else { /* UNKNOWN: its lease is void; ALREADY_OPEN: a lease of before stands. Both: give back, then ask anew. */
        retire(batch, sequence, true);
    }
    return QN_OK;
}

void batch_give_back(batch_t *batch)
{
    for (uint32_t slot = 0; slot < batch->slot_count; slot++)
        if (batch->slot_owner[slot] != BATCH_NOBODY) retire(batch, &batch->sequences[batch->slot_owner[slot]], true);
    batch->left_lease = 0; /* memory has answered: it refused */
}

/* ---- release and commit ---- */

void batch_available(batch_t *batch, uint32_t blocks) { batch->available_blocks = blocks; }

bool batch_releasable(const batch_t *batch, uint32_t index)
{
    const sequence_t *sequence = sequence_at(batch, index);
    return sequence->phase == SEQUENCE_RETIRING &&
           (batch->step_count == 0 || sequence->last_step < batch->steps[0].step);
}

void batch_released(batch_t *batch, uint32_t index)
{
    sequence_t *sequence = sequence_at(batch, index);
    QN_ASSERT(batch_releasable(batch, index));
    leave_retiring(batch, sequence);
    if (sequence->requeue) {
        wait_again(batch, sequence);
    } else {
        settle(batch, sequence);
        batch->release_count++;
    }
    batch_forget_shortage(batch);
}

void batch_forget_shortage(batch_t *batch)
{
    for (uint32_t slot = 0; slot < batch->slot_count; slot++)
        if (batch->slot_owner[slot] != BATCH_NOBODY) batch->sequences[batch->slot_owner[slot]].short_of_blocks = false;
}

bool batch_must_copy(const sequence_t *sequence)
{
    return sequence->copies && sequence->proven == sequence->copied_tokens;
}

uint32_t batch_written(const batch_t *batch, uint32_t index)
{
    const sequence_t *sequence = sequence_at(batch, index);
    const request_t *request = sequence->request;
    uint32_t proven = sequence->proven;
    if (request->sampling.prompt_logprobs && request->prompt.known < request->prompt_tokens &&
        request->prompt.known - 1 < proven)
        proven = request->prompt.known - 1; /* see batch_compute_lost */
    return proven;
}

uint32_t batch_committable(const batch_t *batch, uint32_t index)
{
    uint32_t written = batch_written(batch, index), full = written - written % batch->block_tokens;
    uint32_t committed = sequence_at(batch, index)->committed;
    return full > committed ? full : committed; /* a copy may end inside a block */
}

void batch_committed(batch_t *batch, uint32_t index, uint32_t position)
{
    sequence_t *sequence = sequence_at(batch, index);
    QN_ASSERT(position >= sequence->committed && position <= sequence->proven);
    sequence->committed = position;
}

/* ---- steps ---- */

batch_step_t *batch_step_begin(batch_t *batch, uint64_t now_ns)
{
    QN_ASSERT(batch->step_count < BATCH_STEPS_MAX);
    batch_step_t *step = &batch->steps[batch->step_count++];
    step->step = ++batch->last_step;
    step->sent_ns = now_ns;
    step->run_count = step->token_count = 0;
    return step;
}

bool batch_opens_session(batch_t *batch)
{
    bool opens = !batch->session_open;
    batch->session_open = true;
    return opens;
}

void batch_step_run(batch_t *batch, batch_step_t *step, const batch_run_t *run)
{
    sequence_t *sequence = sequence_at(batch, run->index);
    QN_ASSERT(sequence->phase == SEQUENCE_RUNNING && run->position == sequence->planned);
    QN_ASSERT(step->run_count < batch->slot_count && run->token_count <= QN_STEP_TOKENS_MAX - step->token_count);
    step->runs[step->run_count] = *run;
    step->runs[step->run_count++].first = step->token_count;
    step->token_count += run->token_count;
    sequence->planned += run->token_count;
    sequence->last_step = step->step;
    request_timeline_t timeline = sequence->request->timeline;
    if (timeline.planned_ns != 0) return;
    timeline.planned_ns = step->sent_ns;
    ledger_stamp(batch->ledger, sequence->request, &timeline);
}

void batch_slot_told(batch_t *batch, uint32_t index, uint32_t blocks)
{
    sequence_t *sequence = sequence_at(batch, index);
    sequence->slot_set = true;
    sequence->blocks_sent = blocks;
    batch->slot_live[sequence->slot] = true;
}

void batch_slot_retired(batch_t *batch, uint32_t slot) { batch->slot_live[slot] = false; }

/* ---- peers replaced ---- */

/* What was planned has no result any more, and nothing is known of compute's slots. */
static void void_steps(batch_t *batch)
{
    batch->step_count = 0;
    batch->void_step = batch->last_step;
    if (batch->session_open) batch->session++;
    batch->session_open = false;
}

void batch_compute_lost(batch_t *batch)
{
    void_steps(batch);
    memset(batch->slot_live, 0, batch->slot_count * sizeof *batch->slot_live);
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        if (batch->slot_owner[slot] == BATCH_NOBODY) continue;
        sequence_t *sequence = &batch->sequences[batch->slot_owner[slot]];
        const request_t *request = sequence->request;
        /* The score of a prompt token comes from the run before it, whose logits went with the old compute. */
        if (request->sampling.prompt_logprobs && request->prompt.known < request->prompt_tokens &&
            request->prompt.known - 1 < sequence->proven)
            sequence->proven = request->prompt.known - 1;
        sequence->planned = sequence->proven;
        sequence->slot_set = false;
        sequence->blocks_sent = 0;
    }
}

void batch_memory_lost(batch_t *batch)
{
    void_steps(batch);
    memset(batch->slot_live, 0, batch->slot_count * sizeof *batch->slot_live);
    while (batch->retiring_count > 0)
        batch_released(batch, batch->retiring[0]);
    for (uint32_t slot = 0; slot < batch->slot_count; slot++)
        if (batch->slot_owner[slot] != BATCH_NOBODY) wait_again(batch, &batch->sequences[batch->slot_owner[slot]]);
    batch->left_lease = 0;
}

/* ---- invariants ---- */

static const char *check_sequence(const batch_t *batch, const sequence_t *sequence)
{
    if (sequence->phase == SEQUENCE_NONE)
        return sequence->request == NULL ? NULL : "batch: a settled sequence has a request";
    bool has_slot = sequence->phase == SEQUENCE_LEASING || sequence->phase == SEQUENCE_RUNNING;
    if (has_slot != (sequence->slot != BATCH_NO_SLOT))
        return "batch: a sequence has a slot and should not, or the other way round";
    if (has_slot && batch->slot_owner[sequence->slot] != sequence->request->index)
        return "batch: a slot is owned by another sequence than says so";
    if (sequence->phase != SEQUENCE_RETIRING && sequence->request->finish != REQUEST_UNFINISHED)
        return "batch: a finished request is not retiring";
    if (sequence->phase != SEQUENCE_RUNNING) return NULL;
    uint32_t known = request_known_tokens(sequence->request);
    if (sequence->committed > sequence->proven || sequence->proven > sequence->planned)
        return "batch: committed <= proven <= planned does not hold";
    if (sequence->planned > known + 1 || sequence->proven > known) return "batch: more is planned or proven than known";
    if (sequence->planned > request_run_limit(sequence->request) || sequence->planned > batch_capacity(batch, sequence))
        return "batch: planned past the end of the sequence or of its blocks";
    if (sequence->blocks_sent > sequence->block_count) return "batch: compute was told of blocks that are not there";
    if (sequence->planned > sequence->proven && batch->step_count == 0)
        return "batch: something is planned and no step is without a result";
    return NULL;
}

const char *batch_check(const batch_t *batch)
{
    uint32_t counts[5] = {0}, slots = 0;
    for (uint32_t i = 0; i < ledger_requests_max(batch->ledger); i++) {
        const char *broken = check_sequence(batch, &batch->sequences[i]);
        if (broken != NULL) return broken;
        counts[batch->sequences[i].phase]++;
    }
    if (counts[SEQUENCE_WAITING] != batch->waiting_count || counts[SEQUENCE_LEASING] != batch->leasing_count ||
        counts[SEQUENCE_RUNNING] != batch->running_count || counts[SEQUENCE_RETIRING] != batch->retiring_count)
        return "batch: phases are miscounted";
    for (uint32_t slot = 0; slot < batch->slot_count; slot++)
        slots += batch->slot_owner[slot] != BATCH_NOBODY;
    if (slots != batch->leasing_count + batch->running_count || slots + batch->free_slots != batch->slot_count)
        return "batch: slots are miscounted";
    for (uint32_t i = 0; i < batch->retiring_count; i++)
        if (batch->sequences[batch->retiring[i]].phase != SEQUENCE_RETIRING ||
            batch->sequences[batch->retiring[i]].retiring_at != i)
            return "batch: the list of retiring sequences is wrong";
    return NULL;
}
