/* What is this?      Mixture of experts: the choice of experts, their products, and the weighted sum of what they say.
 * State owned:       none.
 * Must never:        let a token's experts depend on the other tokens; leave an index unwritten, whatever the logits.
 * Read next:         kernels.h (moe_route's order), matmul.c. */
#include <math.h>

#include "kernels/cpu/cpu.h"

/* ---- the choice ---- */

/* NaN counts as the least, so that a choice is made in any case. */
static double logit_of(const float *logits, uint32_t expert)
{
    return isnan(logits[expert]) ? -INFINITY : logits[expert];
}

/* The expert that follows `before` in descending order, ties to the lower; the first one when `before` is X. */
static uint32_t next_expert(const float *logits, uint32_t experts, uint32_t before)
{
    uint32_t best = experts;
    for (uint32_t e = 0; e < experts; e++) {
        double logit = logit_of(logits, e);
        if (before < experts) {
            double last = logit_of(logits, before);
            if (logit > last || (logit == last && e <= before)) continue;
        }
        if (best == experts || logit > logit_of(logits, best)) best = e;
    }
    return best;
}

/* Leaves the chosen experts in ret_places, where group_by_expert finds them. */
static void choose_experts(const qn_moe_route_t *a, size_t token)
{
    const float *logits = (const float *)a->logits + token * a->experts;
    float *weights = a->ret_weights + token * a->per_token;
    uint32_t *chosen = a->ret_places + token * a->per_token;
    for (uint32_t i = 0; i < a->per_token; i++)
        chosen[i] = next_expert(logits, a->experts, i ? chosen[i - 1] : a->experts);
    double greatest = logit_of(logits, chosen[0]), total = 0;
    uint32_t counted = a->normalise ? a->per_token : a->experts;
    for (uint32_t i = 0; i < counted; i++)
        total += exp(logit_of(logits, a->normalise ? chosen[i] : i) - greatest);
    for (uint32_t i = 0; i < a->per_token; i++)
        weights[i] = (float)(exp(logit_of(logits, chosen[i]) - greatest) / total);
}

static void choose_for_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    for (size_t t = begin; t < end; t++)
        choose_experts(arguments, t);
}

/* A counting sort, in place: offsets[e] is first where expert e's places begin, and walks to where they end, which is
 * where those of e + 1 begin; a shift by one makes it a beginning again. */
static void group_by_expert(const qn_moe_route_t *a)
{
    size_t places = (size_t)a->tokens * a->per_token;
    memset(a->ret_offsets, 0, ((size_t)a->experts + 1) * sizeof *a->ret_offsets);
    for (size_t i = 0; i < places; i++)
        a->ret_offsets[a->ret_places[i] + 1]++;
    for (uint32_t e = 0; e < a->experts; e++)
        a->ret_offsets[e + 1] += a->ret_offsets[e];
    for (size_t i = 0; i < places; i++) {
        uint32_t place = a->ret_offsets[a->ret_places[i]]++;
        a->ret_places[i] = place;
        a->ret_rows[place] = (uint32_t)(i / a->per_token);
    }
    memmove(a->ret_offsets + 1, a->ret_offsets, a->experts * sizeof *a->ret_offsets);
    a->ret_offsets[0] = 0;
}

void qn_cpu_moe_route(qn_stream_t *stream, const void *arguments)
{
    const qn_moe_route_t *a = arguments;
    QN_ASSERT(a->per_token >= 1 && a->per_token <= a->experts);
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)a->experts * (a->per_token + 10)), choose_for_tokens, a);
    group_by_expert(a);
}

/* ---- the products ---- */

/* One launch of `launch` per expert that has tokens. */
static void multiply_experts(qn_stream_t *stream, const qn_expert_matmul_t *a,
                             void (*launch)(qn_stream_t *stream, const void *arguments))
{
    _Static_assert(QN_EXPERT_PARTS <= QN_MATMUL_PARTS, "an expert's parts are those of one product");
    for (uint32_t e = 0; e < a->experts; e++) {
        size_t first = a->offsets[e];
        if (a->offsets[e + 1] == first) continue;
        qn_matmul_t product = {.x = (const float *)a->x + first * a->inputs,
                               .tokens = a->offsets[e + 1] - (uint32_t)first,
                               .inputs = a->inputs,
                               .part_count = a->part_count,
                               .scratch = a->scratch};
        for (uint32_t p = 0; p < a->part_count; p++)
            product.parts[p] = (qn_matmul_part_t){.weight = a->weights[p][e],
                                                  .outputs = a->outputs,
                                                  .out = (float *)a->out[p] + first * a->outputs};
        launch(stream, &product);
    }
}

void qn_cpu_expert_matmul(qn_stream_t *stream, const void *arguments)
{
    multiply_experts(stream, arguments, qn_cpu_matmul);
}

void qn_cpu_expert_matmul_avx2(qn_stream_t *stream, const void *arguments)
{
    multiply_experts(stream, arguments, qn_cpu_matmul_avx2);
}

void qn_cpu_expert_matmul_avx512(qn_stream_t *stream, const void *arguments)
{
    multiply_experts(stream, arguments, qn_cpu_matmul_avx512);
}

void qn_cpu_expert_matmul_avx512bf16(qn_stream_t *stream, const void *arguments)
{
    multiply_experts(stream, arguments, qn_cpu_matmul_avx512bf16);
}

void qn_cpu_expert_matmul_vnni(qn_stream_t *stream, const void *arguments)
{
    multiply_experts(stream, arguments, qn_cpu_matmul_vnni);
}

/* ---- the sum ---- */

#define COMBINE_STRIP 64 /* sums of one token that stay in the first-level cache while its choices are added */

static void combine_strip(const qn_moe_combine_t *a, size_t token, size_t first, size_t count)
{
    const float *residual = (const float *)a->residual + token * a->width + first;
    float *out = (float *)a->out + token * a->width + first;
    double sums[COMBINE_STRIP];
    for (size_t i = 0; i < count; i++)
        sums[i] = residual[i];
    for (uint32_t choice = 0; choice < a->per_token; choice++) {
        size_t assignment = token * a->per_token + choice;
        const float *x = (const float *)a->x + (size_t)a->places[assignment] * a->width + first;
        double weight = a->weights[assignment];
        for (size_t i = 0; i < count; i++)
            sums[i] += weight * x[i];
    }
    for (size_t i = 0; i < count; i++)
        out[i] = (float)sums[i];
}

static void combine_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_moe_combine_t *a = arguments;
    for (size_t t = begin; t < end; t++)
        for (size_t first = 0; first < a->width; first += COMBINE_STRIP)
            combine_strip(a, t, first, a->width - first < COMBINE_STRIP ? a->width - first : COMBINE_STRIP);
}

void qn_cpu_moe_combine(qn_stream_t *stream, const void *arguments)
{
    const qn_moe_combine_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)a->per_token * a->width), combine_tokens, a);
}
