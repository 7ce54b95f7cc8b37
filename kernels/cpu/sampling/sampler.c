/* What is this?      The sampler: from logits to the next token, one row at a time.
 * State owned:       none; it writes last_token, done, counts and recent of the row's slot.
 * Must never:        depend on another row, a clock or an address: only logits, parameters, seed, position, counts.
 * Read next:         philox.h, logprobs.c, sampler_vector.c; vLLM's v1/sample/sampler.py, whose order of steps this
 *                    follows. */
#include "kernels/cpu/sampling/sampler.h"

#include <math.h>

#include "kernels/cpu/sampling/philox.h"

#define GREEDY_TEMPERATURE 1e-5f

static uint32_t greatest(const float *values, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t v = 1; v < vocab; v++)
        if (values[v] > values[best]) best = v;
    return best;
}

/* ---- changes to the logits ---- */

static void add_bias(const qn_slot_tables_t *tables, uint32_t slot, const float *logits, float *values)
{
    const qn_bias_entry_t *bias = tables->bias + (size_t)slot * QN_LOGIT_BIAS_MAX;
    for (uint32_t v = 0; tables->rows[slot].allow_only && v < tables->vocab; v++)
        values[v] = -INFINITY;
    for (uint32_t i = 0; i < tables->rows[slot].bias_count; i++)
        values[bias[i].id] = logits[bias[i].id] + bias[i].bias;
}

static void forbid_stop(const qn_slot_tables_t *tables, uint32_t slot, float *values)
{
    const uint32_t *stop = tables->stop_ids + (size_t)slot * QN_SLOT_STOP_IDS_MAX;
    for (uint32_t i = 0; i < tables->rows[slot].stop_count; i++)
        values[stop[i]] = -INFINITY;
}

/* Whether the tokens before `position` are the `count` ids at `ids`, all of them generated. */
static bool precede(const qn_slot_tables_t *tables, const qn_sample_t *sample, const uint32_t *ids, uint32_t count)
{
    const uint32_t *recent = tables->recent + (size_t)sample->slot * QN_BAD_SEQUENCE_TOKENS_MAX;
    if (sample->position - tables->rows[sample->slot].prompt_tokens < count) return false;
    for (uint32_t i = 0; i < count; i++)
        if (recent[(sample->position - count + i) % QN_BAD_SEQUENCE_TOKENS_MAX] != ids[i]) return false;
    return true;
}

/* A word is complete with its last token: that one is out when the others were just generated. */
static void forbid_words(const qn_slot_tables_t *tables, const qn_sample_t *sample, float *values)
{
    const uint32_t *ids = tables->bad_ids + (size_t)sample->slot * QN_BAD_IDS_MAX;
    uint32_t begin = 0;
    for (uint32_t i = 0; i < tables->rows[sample->slot].bad_id_count; i++) {
        if (!(ids[i] & QN_SEQUENCE_END)) continue;
        float *value = &values[ids[i] & ~QN_SEQUENCE_END];
        if (precede(tables, sample, ids + begin, i - begin)) *value = fminf(*value, QN_LOGIT_FORBIDDEN);
        begin = i + 1;
    }
}

/* Nearly all ids never occurred. */
static bool none_counted(const uint32_t counts[16])
{
    uint32_t any = 0;
    for (int i = 0; i < 16; i++)
        any |= counts[i];
    return any == 0;
}

static void penalise(const qn_slot_tables_t *tables, uint32_t slot, float *values)
{
    const qn_slot_row_t *row = &tables->rows[slot];
    const uint32_t *counts = tables->counts + (size_t)slot * tables->vocab;
    for (uint32_t v = 0; v < tables->vocab; v++) {
        if (v % 16 == 0 && tables->vocab - v >= 16 && none_counted(counts + v)) {
            v += 15;
            continue;
        }
        if (!counts[v]) continue;
        uint32_t generated = counts[v] & ~QN_COUNT_PROMPT;
        values[v] = values[v] > 0 ? values[v] / row->repetition_penalty : values[v] * row->repetition_penalty;
        if (generated) values[v] -= row->frequency_penalty * (float)generated + row->presence_penalty;
    }
}

static bool below_min_tokens(const qn_slot_row_t *row, uint32_t position)
{
    return position < row->prompt_tokens + (uint64_t)row->min_tokens;
}

/* `values` holds a copy of `logits`. */
static void change_logits(const qn_slot_tables_t *tables, const qn_sample_t *sample, const float *logits, float *values)
{
    const qn_slot_row_t *row = &tables->rows[sample->slot];
    add_bias(tables, sample->slot, logits, values);
    if (below_min_tokens(row, sample->position)) forbid_stop(tables, sample->slot, values);
    if (row->bad_id_count) forbid_words(tables, sample, values);
    if (row->penalties) penalise(tables, sample->slot, values);
}

/* ---- top-k and top-p: keep the best candidates until their number or mass reaches a target ---- */

/* Orders floats like unsigned integers. */
static uint32_t sort_key(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Radix selection, eleven bits of the key at a time (ten at the end): the key at which the target is reached, and what
 * lies above it. `by_mass`: candidates weigh their weight, else 1. */
static uint32_t select_key(const qn_candidates_t *c, bool by_mass, double target, double *ret_above)
{
    static const struct {
        uint32_t shift, bins;
    } DIGITS[] = {{21, 2048}, {10, 2048}, {0, 1024}};
    uint32_t prefix = 0, mask = 0;
    double above = 0;
    for (int digit = 0; digit < 3; digit++) {
        uint32_t shift = DIGITS[digit].shift, last = DIGITS[digit].bins - 1;
        double bins[2048] = {0};
        for (uint32_t i = 0; i < c->count; i++) {
            uint32_t key = sort_key(c->values[i]);
            if (c->weights[i] > 0 && (key & mask) == prefix)
                bins[key >> shift & last] += by_mass ? (double)c->weights[i] : 1;
        }
        uint32_t chosen = 0;
        for (uint32_t b = last + 1; b-- > 0;) {
            if (bins[b] == 0) continue;
            chosen = b;
            if (above + bins[b] >= target) break;
            above += bins[b];
        }
        /* Rounding may leave the target unreached: then the lowest bin is the last one kept. */
        prefix |= chosen << shift;
        mask |= last << shift;
    }
    *ret_above = above;
    return prefix;
}

void qn_cpu_keep_best(qn_candidates_t *c, bool by_mass, double target)
{
    double reached;
    uint32_t last = select_key(c, by_mass, target, &reached);
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t key = sort_key(c->values[i]);
        if (key > last || c->weights[i] == 0) continue;
        if (key == last && reached < target)
            reached += by_mass ? (double)c->weights[i] : 1;
        else
            c->weights[i] = 0;
    }
}

static double mass_of(const qn_candidates_t *c)
{
    double sum = 0;
    for (uint32_t i = 0; i < c->count; i++)
        sum += c->weights[i];
    return sum;
}

/* ---- the draw ---- */

uint32_t qn_cpu_draw_candidate(const qn_slot_row_t *row, uint32_t position, qn_candidates_t *c, double mass)
{
    if (row->top_k && row->top_k < c->count) {
        qn_cpu_keep_best(c, false, row->top_k);
        mass = mass_of(c);
    }
    if (row->top_p < 1) {
        qn_cpu_keep_best(c, true, row->top_p * mass);
        mass = mass_of(c);
    }
    double left = qn_philox_uniform(row->seed, position) * mass;
    uint32_t chosen = UINT32_MAX;
    for (uint32_t i = 0; i < c->count; i++) {
        if (c->weights[i] == 0) continue;
        chosen = i;
        left -= c->weights[i];
        if (left < 0) break;
    }
    return chosen == UINT32_MAX || !c->ids ? chosen : c->ids[chosen];
}

static uint32_t draw(const qn_slot_row_t *row, uint32_t position, const float *values, float *scratch, uint32_t vocab)
{
    qn_candidates_t c = {.values = scratch, .weights = scratch + vocab, .count = vocab};
    float best = -INFINITY;
    for (uint32_t v = 0; v < vocab; v++) {
        c.values[v] = values[v] / row->temperature;
        best = c.values[v] > best ? c.values[v] : best;
    }
    for (uint32_t v = 0; v < vocab; v++) {
        float weight = expf(c.values[v] - best);
        c.weights[v] = weight >= row->min_p ? weight : 0; /* the best weighs 1; also drops NaN */
    }
    return qn_cpu_draw_candidate(row, position, &c, mass_of(&c));
}

static uint32_t choose(const qn_sampler_t *a, const qn_sampler_parts_t *parts, size_t index)
{
    const qn_sample_t *sample = &a->samples[index];
    const qn_slot_row_t *row = &a->tables.rows[sample->slot];
    uint32_t vocab = a->tables.vocab;
    const float *values = a->logits + index * vocab;
    float *scratch = a->scratch + index * 2 * vocab;
    if (row->bias_count || row->bad_id_count || row->penalties || below_min_tokens(row, sample->position)) {
        memcpy(scratch, values, vocab * sizeof *values);
        change_logits(&a->tables, sample, values, scratch);
        values = scratch;
    }
    uint32_t id = UINT32_MAX;
    if (row->temperature >= GREEDY_TEMPERATURE) id = parts->draw(row, sample->position, values, scratch, vocab);
    return id != UINT32_MAX ? id : parts->greatest(values, vocab);
}

static bool stops(const qn_slot_tables_t *tables, uint32_t slot, uint32_t id)
{
    const uint32_t *stop = tables->stop_ids + (size_t)slot * QN_SLOT_STOP_IDS_MAX;
    for (uint32_t i = 0; i < tables->rows[slot].stop_count; i++)
        if (stop[i] == id) return true;
    return false;
}

static void sample_row(const qn_sampler_t *a, const qn_sampler_parts_t *parts, size_t index)
{
    const qn_sample_t *sample = &a->samples[index];
    qn_slot_row_t *row = &a->tables.rows[sample->slot];
    qn_sample_result_t *result = &a->ret_results[index];
    if (row->done) {
        *result = (qn_sample_result_t){.masked = 1};
        return;
    }
    uint32_t vocab = a->tables.vocab;
    const float *logits = a->logits + index * vocab;
    uint32_t id = choose(a, parts, index);
    *result = (qn_sample_result_t){.id = id, .stopped = stops(&a->tables, sample->slot, id)};
    if (row->logprobs || row->top_logprobs || row->logprob_id_count) {
        float log_sum = parts->logprobs.log_sum_exp(logits, vocab);
        result->logprob = logits[id] - log_sum;
        qn_cpu_alternatives(&parts->logprobs, &a->tables, sample->slot, logits, log_sum, row->top_logprobs,
                            a->ret_top + index * QN_ALTERNATIVES_MAX);
    }
    row->last_token = id;
    row->done = result->stopped;
    if (row->bad_id_count)
        a->tables
            .recent[(size_t)sample->slot * QN_BAD_SEQUENCE_TOKENS_MAX + sample->position % QN_BAD_SEQUENCE_TOKENS_MAX] =
            id;
    if (row->penalties && sample->position >= row->counted) {
        a->tables.counts[(size_t)sample->slot * vocab + id]++;
        row->counted = sample->position + 1;
    }
}

typedef struct {
    const qn_sampler_t *a;
    const qn_sampler_parts_t *parts;
} work_t;

static void sample_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const work_t *work = arguments;
    for (size_t index = begin; index < end; index++)
        sample_row(work->a, work->parts, index);
}

void qn_cpu_sampler_run(qn_stream_t *stream, const qn_sampler_t *arguments, const qn_sampler_parts_t *parts)
{
    qn_cpu_split(stream, arguments->sample_count, qn_grain(arguments->tables.vocab), sample_rows,
                 &(work_t){arguments, parts});
}

void qn_cpu_sampler(qn_stream_t *stream, const void *arguments)
{
    qn_sampler_parts_t parts = {.greatest = greatest, .draw = draw, .logprobs = QN_CPU_LOGPROB_REFERENCE};
    qn_cpu_sampler_run(stream, arguments, &parts);
}
