/* What is this?      The sampler in vectors. It differs from the reference in how it looks at the whole vocabulary: once
 *                    or twice, for the greatest value and for the sum of weights, and to collect a short list that
 *                    surely holds every id that top-k and top-p can keep. What follows works on that list.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, sampler.c, logprobs_body.h. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/sampling/logprobs_body.h"
#include "kernels/cpu/sampling/philox.h"
#include "kernels/cpu/sampling/sampler.h"

#define STRETCHES_MAX ((QN_VOCAB_MAX + STRETCH - 1) / STRETCH)
#define LEVELS 5 /* candidates within 1, 2, 4, 8 and 16 of the best (their weights' logarithms) */

static uint32_t greatest(const float *values, uint32_t vocab)
{
    if (isnan(values[0])) return 0;
    uint32_t stretch = 0;
    float best = -INFINITY;
    for (uint32_t v = 0; v < vocab; v += STRETCH) {
        float here = greatest_of(values + v, smaller(vocab - v, STRETCH));
        if (here > best) {
            best = here;
            stretch = v;
        }
    }
    while (values[stretch] != best)
        stretch++;
    return stretch;
}

/* ---- weights ---- */

typedef struct {
    const float *values;
    uint32_t vocab;
    float best, inverse; /* the greatest value; 1 / temperature */
    float min_p;
    double mass;          /* of all weights */
    double above[LEVELS]; /* of those at each level or above */
    double stretches[STRETCHES_MAX];
} survey_t;

/* The logarithm of a weight: 0 for the best. */
VEC_INLINE vec_t distance(const survey_t *s, uint32_t v, uint32_t end)
{
    return vec_mul(vec_sub(load_logits(s->values + v, end - v), vec_set(s->best)), vec_set(s->inverse));
}

VEC_INLINE vec_t weight_of(const survey_t *s, vec_t logarithm)
{
    vec_t weight = vec_exp_weight(logarithm);
    return vec_less(weight, vec_set(s->min_p), vec_zero(), weight);
}

static void add_stretch(survey_t *s, uint32_t first)
{
    uint32_t end = smaller(s->vocab, first + STRETCH);
    vec_t total = vec_zero(), above[LEVELS];
    for (int j = 0; j < LEVELS; j++)
        above[j] = vec_zero();
    for (uint32_t v = first; v < end; v += VEC_LANES) {
        vec_t logarithm = distance(s, v, end), weight = weight_of(s, logarithm);
        total = vec_add(total, weight);
        for (int j = 0; j < LEVELS; j++)
            above[j] = vec_add(above[j], vec_less(logarithm, vec_set(-(float)(1 << j)), vec_zero(), weight));
    }
    s->stretches[first / STRETCH] = vec_sum(total);
    s->mass += s->stretches[first / STRETCH];
    for (int j = 0; j < LEVELS; j++)
        s->above[j] += vec_sum(above[j]);
}

/* ---- short lists ---- */

/* Ids whose logarithm is at least `level`, ascending. False: there are more than the list can hold, a quarter of the
 * vocabulary (its values, weights and ids share half of the scratch). */
static bool collect(const survey_t *s, float level, float *scratch, qn_candidates_t *ret_list)
{
    uint32_t room = s->vocab / 4, count = 0;
    float *values = scratch + s->vocab, *weights = values + room;
    uint32_t *ids = (uint32_t *)(void *)(weights + room);
    for (uint32_t v = 0; v < s->vocab; v += VEC_LANES) {
        vec_t logarithm = distance(s, v, s->vocab);
        uint32_t keep = vec_not_below(logarithm, vec_set(level));
        if (!keep) continue;
        if (count + VEC_LANES > room) return false;
        float logarithms[VEC_LANES], found[VEC_LANES];
        vec_store(logarithms, logarithm);
        vec_store(found, weight_of(s, logarithm));
        for (; keep; keep &= keep - 1, count++) {
            uint32_t lane = (uint32_t)__builtin_ctz(keep);
            values[count] = logarithms[lane];
            weights[count] = found[lane];
            ids[count] = v + lane;
        }
    }
    *ret_list = (qn_candidates_t){.values = values, .weights = weights, .ids = ids, .count = count};
    return true;
}

/* All ids, as the reference has them. values may be the scratch's first half. */
static qn_candidates_t take_all(const survey_t *s, float *scratch)
{
    qn_candidates_t all = {.values = scratch, .weights = scratch + s->vocab, .count = s->vocab};
    for (uint32_t v = 0; v < s->vocab; v += VEC_LANES) {
        uint32_t count = smaller(s->vocab - v, VEC_LANES);
        vec_t logarithm = distance(s, v, s->vocab);
        vec_store_some(all.values + v, logarithm, count);
        vec_store_some(all.weights + v, weight_of(s, logarithm), count);
    }
    return all;
}

/* A level that at least k ids reach: the k-th greatest of many stretches' maxima is one. */
static bool level_of_top_k(const survey_t *s, uint32_t k, float *scratch, float *ret_level)
{
    const uint32_t piece = 64;
    uint32_t count = (s->vocab + piece - 1) / piece;
    if (k > count / 2) return false;
    float *maxima = scratch + s->vocab, *kept = maxima + count;
    for (uint32_t i = 0; i < count; i++) {
        maxima[i] = greatest_of(s->values + i * piece, smaller(s->vocab - i * piece, piece));
        kept[i] = 1;
    }
    qn_cpu_keep_best(&(qn_candidates_t){.values = maxima, .weights = kept, .count = count}, false, k);
    float lowest = INFINITY;
    for (uint32_t i = 0; i < count; i++)
        if (kept[i] > 0 && maxima[i] < lowest) lowest = maxima[i];
    *ret_level = (lowest - s->best) * s->inverse;
    return true;
}

/* ---- the draw ---- */

/* With every id a candidate: the stretch first, then the id in it. */
static uint32_t draw_from_all(const survey_t *s, double left)
{
    uint32_t first = 0, chosen = UINT32_MAX;
    while (first + STRETCH < s->vocab && left >= s->stretches[first / STRETCH]) {
        left -= s->stretches[first / STRETCH];
        first += STRETCH;
    }
    for (uint32_t v = first; v < s->vocab; v += VEC_LANES) {
        float weights[VEC_LANES];
        vec_store(weights, weight_of(s, distance(s, v, s->vocab)));
        for (uint32_t i = 0; i < VEC_LANES; i++) {
            if (weights[i] == 0) continue;
            chosen = v + i;
            left -= weights[i];
            if (left < 0) return chosen;
        }
    }
    return chosen;
}

static void survey(survey_t *s)
{
    s->mass = 0;
    for (int j = 0; j < LEVELS; j++)
        s->above[j] = 0;
    for (uint32_t v = 0; v < s->vocab; v += STRETCH)
        add_stretch(s, v);
}

/* The nearest level above which there is enough for top-p; a little more, for sums in another order. */
static bool level_of_top_p(const survey_t *s, float top_p, float *ret_level)
{
    for (int j = 0; j < LEVELS; j++) {
        *ret_level = -(float)(1 << j);
        if (s->above[j] > top_p * s->mass * 1.0001) return true;
    }
    return false;
}

static uint32_t draw(const qn_slot_row_t *row, uint32_t position, const float *values, float *scratch, uint32_t vocab)
{
    survey_t s = {.values = values,
                  .vocab = vocab,
                  .best = greatest_value(values, vocab),
                  .inverse = 1 / row->temperature,
                  .min_p = row->min_p};
    bool top_k = row->top_k && row->top_k < vocab;
    float level;
    qn_candidates_t list;
    if (top_k && level_of_top_k(&s, row->top_k, scratch, &level) && collect(&s, level, scratch, &list)) {
        double mass = 0;
        for (uint32_t i = 0; i < list.count; i++)
            mass += list.weights[i];
        return qn_cpu_draw_candidate(row, position, &list, mass);
    }
    survey(&s);
    if (!top_k && row->top_p >= 1) return draw_from_all(&s, qn_philox_uniform(row->seed, position) * s.mass);
    if (top_k || !level_of_top_p(&s, row->top_p, &level) || !collect(&s, level, scratch, &list))
        list = take_all(&s, scratch);
    return qn_cpu_draw_candidate(row, position, &list, s.mass);
}

void KERNEL(qn_cpu_sampler)(qn_stream_t *stream, const void *arguments)
{
    qn_sampler_parts_t parts = {.greatest = greatest, .draw = draw, .logprobs = LOGPROB_PARTS};
    qn_cpu_sampler_run(stream, arguments, &parts);
}
