/* What is this?      The host's record of the slots, and the rules a plan must keep.
 * State owned:       two copies of the record: the one in force and the one being written by slot_book_admit.
 * Must never:        change on a refused plan; let a number through that a kernel would use as an index unchecked.
 * Read next:         schemas/step_plan.fbs (the rules' source), executor.c (what runs after). */
#include "services/compute/slot_book.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    bool set;
    bool begun;             /* a run was planned: the next one must continue it */
    bool masked;            /* attends under masks */
    bool sampled;           /* the last run sampled, so from_slot has an id to take */
    uint32_t next_position; /* of the next run, once begun */
    uint32_t known_blocks;  /* table entries [0, known_blocks) are filled */
} slot_record_t;

struct slot_book {
    step_limits_t limits;
    uint32_t used, next_used;
    slot_record_t *records, *next; /* [max_sequences] each */
};

qn_err_t slot_book_create(const step_limits_t *limits, slot_book_t **ret_book)
{
    slot_book_t *book = calloc(1, sizeof *book);
    if (book) {
        book->limits = *limits;
        book->records = calloc(limits->max_sequences, sizeof *book->records);
        book->next = calloc(limits->max_sequences, sizeof *book->next);
    }
    if (!book || !book->records || !book->next) {
        slot_book_destroy(&book);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for the book of %u slots", limits->max_sequences);
    }
    *ret_book = book;
    return QN_OK;
}

void slot_book_destroy(slot_book_t **book)
{
    if (!*book) return;
    free((*book)->records);
    free((*book)->next);
    free(*book);
    *book = NULL;
}

void slot_book_clear(slot_book_t *book)
{
    memset(book->records, 0, book->limits.max_sequences * sizeof *book->records);
    book->used = 0;
}

uint32_t slot_book_used(const slot_book_t *book) { return book->used; }

/* ---- rules; each looks at and writes book->next ---- */

static bool range_ok(uint32_t offset, uint32_t count, uint32_t total) { return (uint64_t)offset + count <= total; }

static qn_err_t ids_ok(const slot_book_t *book, const uint32_t *ids, uint32_t count, const char *what)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= book->limits.vocab)
            return qn_fail(QN_ERR_INVALID, "%s %u is not below the vocabulary of %u", what, ids[i], book->limits.vocab);
    return QN_OK;
}

static slot_record_t *set_record(slot_book_t *book, uint32_t slot)
{
    return slot < book->limits.max_sequences && book->next[slot].set ? &book->next[slot] : NULL;
}

static qn_err_t sizes_ok(const step_limits_t *limits, const step_plan_t *plan, const char **ret_param)
{
    const struct {
        const char *param;
        uint32_t count, max;
    } ROWS[] = {
        {"retire", plan->retire_count, limits->max_sequences},    {"sets", plan->set_count, limits->max_sequences},
        {"blocks", plan->block_count, limits->plan_blocks},       {"copies", plan->copy_count, limits->plan_copies},
        {"runs", plan->run_count, limits->max_sequences},         {"ids", plan->id_count, limits->plan_ids},
        {"stop_ids", plan->stop_id_count, limits->plan_stop_ids}, {"bias", plan->bias_count, limits->plan_bias},
        {"list_ids", plan->list_id_count, limits->plan_list_ids},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        *ret_param = ROWS[i].param;
        if (ROWS[i].count > ROWS[i].max)
            return qn_fail(QN_ERR_INVALID,
                           "%u %s in one plan, at most %u here (scheduler.max_sequences %u, "
                           "model.max_model_len %u)",
                           ROWS[i].count, ROWS[i].param, ROWS[i].max, limits->max_sequences, limits->max_model_len);
    }
    return QN_OK;
}

static qn_err_t enter_retire(slot_book_t *book, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->retire_count; i++) {
        slot_record_t *record = set_record(book, plan->retire[i]);
        if (!record) return qn_fail(QN_ERR_INVALID, "retire: slot %u holds nothing", plan->retire[i]);
        *record = (slot_record_t){0};
        book->next_used--;
    }
    return QN_OK;
}

static qn_err_t sampling_ok(const step_sampling_t *s)
{
    bool ok = s->temperature >= 0 && isfinite(s->temperature) && s->top_p >= 0 && s->top_p <= 1 && s->min_p >= 0 &&
              s->min_p <= 1 && s->repetition_penalty > 0 && isfinite(s->repetition_penalty) &&
              isfinite(s->presence_penalty) && isfinite(s->frequency_penalty) && s->top_logprobs <= QN_TOP_LOGPROBS_MAX;
    return ok ? QN_OK
              : qn_fail(QN_ERR_INVALID,
                        "sampling: a parameter is out of range (temperature %g, top_p %g, "
                        "min_p %g, repetition_penalty %g, top_logprobs %u)",
                        (double)s->temperature, (double)s->top_p, (double)s->min_p, (double)s->repetition_penalty,
                        s->top_logprobs);
}

/* Each sequence ends with a mark, and a slot remembers enough tokens for it. */
static bool sequences_ok(const uint32_t *ids, uint32_t count)
{
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (++tokens > QN_BAD_SEQUENCE_TOKENS_MAX) return false;
        if (ids[i] & QN_SEQUENCE_END) tokens = 0;
    }
    return tokens == 0;
}

static qn_err_t set_lists_ok(const slot_book_t *book, const step_plan_t *plan, const step_set_t *set)
{
    if (set->stop_count > QN_SLOT_STOP_IDS_MAX || !range_ok(set->stop_offset, set->stop_count, plan->stop_id_count))
        return qn_fail(QN_ERR_INVALID, "slot %u: %u stop ids at %u, the plan has %u and a slot holds %d", set->slot,
                       set->stop_count, set->stop_offset, plan->stop_id_count, QN_SLOT_STOP_IDS_MAX);
    if (set->bias_count > QN_LOGIT_BIAS_MAX || !range_ok(set->bias_offset, set->bias_count, plan->bias_count))
        return qn_fail(QN_ERR_INVALID, "slot %u: %u logit biases at %u, the plan has %u and a slot holds %d", set->slot,
                       set->bias_count, set->bias_offset, plan->bias_count, QN_LOGIT_BIAS_MAX);
    if (set->logprob_count > QN_LOGPROB_IDS_MAX || set->bad_count > QN_BAD_IDS_MAX ||
        !range_ok(set->logprob_offset, set->logprob_count, plan->list_id_count) ||
        !range_ok(set->bad_offset, set->bad_count, plan->list_id_count))
        return qn_fail(QN_ERR_INVALID, "slot %u: %u logprob ids at %u and %u bad ids at %u, the plan has %u", set->slot,
                       set->logprob_count, set->logprob_offset, set->bad_count, set->bad_offset, plan->list_id_count);
    if (!sequences_ok(plan->list_ids + set->bad_offset, set->bad_count))
        return qn_fail(QN_ERR_INVALID, "slot %u: bad ids are not sequences of 1 to %d", set->slot,
                       QN_BAD_SEQUENCE_TOKENS_MAX);
    for (uint32_t i = 0; i < set->logprob_count; i++)
        if (plan->list_ids[set->logprob_offset + i] & QN_SEQUENCE_END)
            return qn_fail(QN_ERR_INVALID, "slot %u: a logprob id ends a sequence", set->slot);
    if (set->allow_only && set->bias_count == 0)
        return qn_fail(QN_ERR_INVALID, "slot %u: no id may be sampled", set->slot);
    if (set->history_count > book->limits.max_model_len ||
        !range_ok(set->history_offset, set->history_count, plan->id_count))
        return qn_fail(QN_ERR_INVALID, "slot %u: %u history ids at %u, the plan has %u", set->slot, set->history_count,
                       set->history_offset, plan->id_count);
    return QN_OK;
}

static qn_err_t enter_sets(slot_book_t *book, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const step_set_t *set = &plan->sets[i];
        if (set->slot >= book->limits.max_sequences)
            return qn_fail(QN_ERR_INVALID, "sets: slot %u, there are %u (scheduler.max_sequences)", set->slot,
                           book->limits.max_sequences);
        if (book->next[set->slot].set) return qn_fail(QN_ERR_INVALID, "sets: slot %u is in use", set->slot);
        if (set->prompt_tokens == 0 || set->prompt_tokens > book->limits.max_model_len)
            return qn_fail(QN_ERR_INVALID, "sets: prompt of %u tokens, 1 to %u are possible", set->prompt_tokens,
                           book->limits.max_model_len);
        qn_err_t err = sampling_ok(&set->sampling);
        const char *field;
        if (!err) err = set_lists_ok(book, plan, set);
        if (!err && !qn_probe_is_empty(&set->probe)) err = qn_probe_check(&set->probe, &book->limits.probes, &field);
        if (err) return err;
        book->next[set->slot] = (slot_record_t){.set = true, .masked = set->probe.mask_count > 0};
        book->next_used++;
    }
    return QN_OK;
}

static qn_err_t enter_blocks(slot_book_t *book, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->block_count; i++) {
        const qn_table_entry_t *entry = &plan->blocks[i];
        slot_record_t *record = set_record(book, entry->slot);
        if (!record) return qn_fail(QN_ERR_INVALID, "blocks: slot %u is not set", entry->slot);
        if (entry->block >= book->limits.kv_blocks)
            return qn_fail(QN_ERR_INVALID, "blocks: block %u, there are %u", entry->block, book->limits.kv_blocks);
        if (entry->index >= book->limits.table_blocks || entry->index > record->known_blocks)
            return qn_fail(QN_ERR_INVALID, "blocks: entry %u of slot %u, the next is %u and a table has %u",
                           entry->index, entry->slot, record->known_blocks, book->limits.table_blocks);
        if (entry->index == record->known_blocks) record->known_blocks++;
    }
    return QN_OK;
}

static qn_err_t copies_ok(const slot_book_t *book, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->copy_count; i++)
        if (plan->copies[i].from >= book->limits.kv_blocks || plan->copies[i].to >= book->limits.kv_blocks)
            return qn_fail(QN_ERR_INVALID, "copies: block %u to %u, there are %u", plan->copies[i].from,
                           plan->copies[i].to, book->limits.kv_blocks);
    return QN_OK;
}

static qn_err_t enter_run(slot_book_t *book, const step_plan_t *plan, const step_run_t *run)
{
    const step_limits_t *limits = &book->limits;
    slot_record_t *record = set_record(book, run->slot);
    if (!record) return qn_fail(QN_ERR_INVALID, "runs: slot %u is not set", run->slot);
    uint64_t end = (uint64_t)run->position + run->tokens;
    if (run->tokens == 0 || end > limits->max_model_len)
        return qn_fail(QN_ERR_INVALID, "runs: slot %u, %u tokens at %u, positions end at %u", run->slot, run->tokens,
                       run->position, limits->max_model_len);
    if (record->masked && end > QN_MASK_POSITIONS_MAX)
        return qn_fail(QN_ERR_INVALID, "runs: slot %u attends under a mask: positions end at %u", run->slot,
                       QN_MASK_POSITIONS_MAX);
    if (record->begun && run->position != record->next_position)
        return qn_fail(QN_ERR_INVALID, "runs: slot %u is at position %u, the run begins at %u", run->slot,
                       record->next_position, run->position);
    if ((end - 1) / limits->block_tokens >= record->known_blocks)
        return qn_fail(QN_ERR_INVALID, "runs: slot %u, position %llu needs block table entry %llu, %u are filled",
                       run->slot, (unsigned long long)end - 1, (unsigned long long)(end - 1) / limits->block_tokens,
                       record->known_blocks);
    if (run->from_slot && (run->tokens != 1 || !record->sampled))
        return qn_fail(QN_ERR_INVALID, "runs: slot %u, from_slot with %u tokens and %s sample before it", run->slot,
                       run->tokens, record->sampled ? "a" : "no");
    if (!run->from_slot && !range_ok(run->ids_offset, run->tokens, plan->id_count))
        return qn_fail(QN_ERR_INVALID, "runs: slot %u, %u ids at %u, the plan has %u", run->slot, run->tokens,
                       run->ids_offset, plan->id_count);
    record->begun = true;
    record->sampled = run->sample;
    record->next_position = (uint32_t)end;
    return QN_OK;
}

static qn_err_t enter_runs(slot_book_t *book, const step_plan_t *plan)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        if (i && run->slot <= plan->runs[i - 1].slot)
            return qn_fail(QN_ERR_INVALID, "runs: slot %u after slot %u; runs are sorted by slot, each once", run->slot,
                           plan->runs[i - 1].slot);
        tokens += run->tokens;
        if (tokens > book->limits.max_step_tokens)
            return qn_fail(QN_ERR_INVALID, "runs: more than %u tokens in one step (scheduler.max_step_tokens)",
                           book->limits.max_step_tokens);
        qn_err_t err = enter_run(book, plan, run);
        if (err) return err;
    }
    return QN_OK;
}

static qn_err_t lists_ok(const slot_book_t *book, const step_plan_t *plan, const char **ret_param)
{
    *ret_param = "ids";
    qn_err_t err = ids_ok(book, plan->ids, plan->id_count, "id");
    if (err) return err;
    *ret_param = "stop_ids";
    err = ids_ok(book, plan->stop_ids, plan->stop_id_count, "stop id");
    if (err) return err;
    *ret_param = "list_ids";
    for (uint32_t i = 0; i < plan->list_id_count; i++) {
        uint32_t id = plan->list_ids[i] & ~QN_SEQUENCE_END;
        err = ids_ok(book, &id, 1, "listed id");
        if (err) return err;
    }
    *ret_param = "bias";
    for (uint32_t i = 0; i < plan->bias_count; i++) {
        err = ids_ok(book, &plan->bias[i].id, 1, "biased id");
        if (!err && !isfinite(plan->bias[i].bias))
            err = qn_fail(QN_ERR_INVALID, "bias of id %u is not a number", plan->bias[i].id);
        if (err) return err;
    }
    return QN_OK;
}

qn_err_t slot_book_admit(slot_book_t *book, const step_plan_t *plan, const char **ret_param)
{
    qn_err_t err = sizes_ok(&book->limits, plan, ret_param);
    if (!err) err = lists_ok(book, plan, ret_param);
    if (err) return err;
    memcpy(book->next, book->records, book->limits.max_sequences * sizeof *book->next);
    book->next_used = book->used;
    if (*ret_param = "retire", (err = enter_retire(book, plan)) != QN_OK) return err;
    if (*ret_param = "sets", (err = enter_sets(book, plan)) != QN_OK) return err;
    if (*ret_param = "blocks", (err = enter_blocks(book, plan)) != QN_OK) return err;
    if (*ret_param = "copies", (err = copies_ok(book, plan)) != QN_OK) return err;
    if (*ret_param = "runs", (err = enter_runs(book, plan)) != QN_OK) return err;
    slot_record_t *entered = book->next;
    book->next = book->records;
    book->records = entered;
    book->used = book->next_used;
    return QN_OK;
}
