/* What is this?      The sampler: from logits to the next token, one row at a time.
 * State owned:       none; it writes last_token, done and counts of the row's slot.
 * Must never:        depend on another row, a clock or an address: only logits, parameters, seed, position, counts.
 * Read next:         philox.h, logprobs.c; vLLM's v1/sample/sampler.py, whose order of steps this follows. */
#include <math.h>

#include "kernels/cpu/logprobs.h"
#include "kernels/cpu/philox.h"

#define GREEDY_TEMPERATURE 1e-5f

/* One row's candidates: value (a logit) and weight (its unnormalised probability, 0 = not a candidate). */
typedef struct {
    float *values, *weights;  /* [V] */
    uint32_t vocab;
} candidates_t;

static uint32_t greatest(const float *values, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t v = 1; v < vocab; v++)
        if (values[v] > values[best]) best = v;
    return best;
}

/* ---- changes to the logits ---- */

static void add_bias(const qn_slot_tables_t *tables, uint32_t slot, float *values)
{
    const qn_bias_entry_t *bias = tables->bias + (size_t)slot * QN_LOGIT_BIAS_MAX;
    for (uint32_t i = 0; i < tables->rows[slot].bias_count; i++) values[bias[i].id] += bias[i].bias;
}

static void forbid_stop(const qn_slot_tables_t *tables, uint32_t slot, float *values)
{
    const uint32_t *stop = tables->stop_ids + (size_t)slot * QN_STOP_IDS_MAX;
    for (uint32_t i = 0; i < tables->rows[slot].stop_count; i++) values[stop[i]] = -INFINITY;
}

static void penalise(const qn_slot_tables_t *tables, uint32_t slot, float *values)
{
    const qn_slot_row_t *row = &tables->rows[slot];
    const uint32_t *counts = tables->counts + (size_t)slot * tables->vocab;
    for (uint32_t v = 0; v < tables->vocab; v++) {
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

static void change_logits(const qn_slot_tables_t *tables, const qn_sample_t *sample, float *values)
{
    const qn_slot_row_t *row = &tables->rows[sample->slot];
    add_bias(tables, sample->slot, values);
    if (below_min_tokens(row, sample->position)) forbid_stop(tables, sample->slot, values);
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

/* Radix selection, eight bits of the key at a time: the key at which the target is reached, and what lies above it.
 * `by_mass`: candidates weigh their weight, else 1. */
static uint32_t select_key(const candidates_t *c, bool by_mass, double target, double *ret_above)
{
    uint32_t prefix = 0, mask = 0;
    double above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        double bins[256] = { 0 };
        for (uint32_t v = 0; v < c->vocab; v++) {
            uint32_t key = sort_key(c->values[v]);
            if (c->weights[v] > 0 && (key & mask) == prefix)
                bins[key >> shift & 255] += by_mass ? (double)c->weights[v] : 1;
        }
        uint32_t chosen = 0;
        for (uint32_t b = 256; b-- > 0;) {
            if (bins[b] == 0) continue;
            chosen = b;
            if (above + bins[b] >= target) break;
            above += bins[b];
        }
        /* Rounding may leave the target unreached: then the lowest bin is the last one kept. */
        prefix |= chosen << shift;
        mask |= 255u << shift;
    }
    *ret_above = above;
    return prefix;
}

static void keep_best(candidates_t *c, bool by_mass, double target)
{
    double reached;
    uint32_t last = select_key(c, by_mass, target, &reached);
    for (uint32_t v = 0; v < c->vocab; v++) {
        uint32_t key = sort_key(c->values[v]);
        if (key > last || c->weights[v] == 0) continue;
        if (key == last && reached < target) reached += by_mass ? (double)c->weights[v] : 1;
        else c->weights[v] = 0;
    }
}

static double mass(const candidates_t *c)
{
    double sum = 0;
    for (uint32_t v = 0; v < c->vocab; v++) sum += c->weights[v];
    return sum;
}

/* ---- the draw ---- */

static void weigh(const qn_slot_row_t *row, candidates_t *c)
{
    float best = -INFINITY;
    for (uint32_t v = 0; v < c->vocab; v++) {
        c->values[v] /= row->temperature;
        best = c->values[v] > best ? c->values[v] : best;
    }
    for (uint32_t v = 0; v < c->vocab; v++) {
        float weight = expf(c->values[v] - best);
        c->weights[v] = weight >= row->min_p ? weight : 0;  /* the best weighs 1; also drops NaN */
    }
}

static uint32_t draw(const qn_slot_row_t *row, uint32_t position, candidates_t *c)
{
    weigh(row, c);
    if (row->top_k && row->top_k < c->vocab) keep_best(c, false, row->top_k);
    if (row->top_p < 1) keep_best(c, true, row->top_p * mass(c));
    double left = qn_philox_uniform(row->seed, position) * mass(c);
    uint32_t chosen = UINT32_MAX;
    for (uint32_t v = 0; v < c->vocab; v++) {
        if (c->weights[v] == 0) continue;
        chosen = v;
        left -= c->weights[v];
        if (left < 0) break;
    }
    return chosen != UINT32_MAX ? chosen : greatest(c->values, c->vocab);
}

static uint32_t choose(const qn_sampler_t *a, size_t index)
{
    const qn_sample_t *sample = &a->samples[index];
    const qn_slot_row_t *row = &a->tables.rows[sample->slot];
    uint32_t vocab = a->tables.vocab;
    const float *logits = a->logits + index * vocab;
    bool greedy = row->temperature < GREEDY_TEMPERATURE;
    bool plain = !row->bias_count && !row->penalties && !below_min_tokens(row, sample->position);
    if (greedy && plain) return greatest(logits, vocab);
    float *scratch = a->scratch + index * 2 * vocab;
    candidates_t candidates = { .values = scratch, .weights = scratch + vocab, .vocab = vocab };
    memcpy(candidates.values, logits, vocab * sizeof *logits);
    change_logits(&a->tables, sample, candidates.values);
    return greedy ? greatest(candidates.values, vocab) : draw(row, sample->position, &candidates);
}

static bool stops(const qn_slot_tables_t *tables, uint32_t slot, uint32_t id)
{
    const uint32_t *stop = tables->stop_ids + (size_t)slot * QN_STOP_IDS_MAX;
    for (uint32_t i = 0; i < tables->rows[slot].stop_count; i++)
        if (stop[i] == id) return true;
    return false;
}

static void sample_row(const qn_sampler_t *a, size_t index)
{
    const qn_sample_t *sample = &a->samples[index];
    qn_slot_row_t *row = &a->tables.rows[sample->slot];
    qn_sample_result_t *result = &a->ret_results[index];
    if (row->done) {
        *result = (qn_sample_result_t){ .masked = 1 };
        return;
    }
    uint32_t vocab = a->tables.vocab;
    const float *logits = a->logits + index * vocab;
    uint32_t id = choose(a, index);
    *result = (qn_sample_result_t){ .id = id, .stopped = stops(&a->tables, sample->slot, id) };
    if (row->logprobs || row->top_logprobs) {
        float log_sum = qn_cpu_log_sum_exp(logits, vocab);
        result->logprob = logits[id] - log_sum;
        qn_cpu_top_logprobs(logits, vocab, log_sum, row->top_logprobs, a->ret_top + index * QN_TOP_LOGPROBS_MAX);
    }
    row->last_token = id;
    row->done = result->stopped;
    if (row->penalties && sample->position >= row->counted) {
        a->tables.counts[(size_t)sample->slot * vocab + id]++;
        row->counted = sample->position + 1;
    }
}

static void sample_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    for (size_t index = begin; index < end; index++) sample_row(arguments, index);
}

void qn_cpu_sampler(qn_stream_t *stream, const void *arguments)
{
    const qn_sampler_t *a = arguments;
    qn_cpu_split(stream, a->sample_count, qn_grain(4 * (size_t)a->tables.vocab), sample_rows, a);
}
