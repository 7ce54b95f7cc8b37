/* What the sampler's implementations share. For files in kernels/cpu/ only. */
#ifndef QN_KERNELS_CPU_SAMPLING_SAMPLER_H
#define QN_KERNELS_CPU_SAMPLING_SAMPLER_H

#include "kernels/cpu/sampling/logprobs.h"

/* Candidates for the next token: value (a logit over the temperature) and weight (its unnormalised probability, 0 = not
 * a candidate), by ascending id. */
typedef struct {
    float *values, *weights; /* [count] */
    const uint32_t *ids;     /* [count]; NULL: candidate i is id i */
    uint32_t count;
} qn_candidates_t;

/* Keeps the best candidates until their number, or with `by_mass` their weights, reach `target`; ties to the lower id;
 * the others' weights become 0. */
void qn_cpu_keep_best(qn_candidates_t *candidates, bool by_mass, double target);
/* Top-k and top-p of the row (top-p of `mass`, or of what top-k leaves), then the draw. UINT32_MAX: no candidate. */
uint32_t qn_cpu_draw_candidate(const qn_slot_row_t *row, uint32_t position, qn_candidates_t *candidates, double mass);

/* The parts of the work that touch the whole vocabulary. */
typedef struct {
    /* The greatest value, ties to the lower id; NaN loses, but at id 0 it wins. */
    uint32_t (*greatest)(const float *values, uint32_t vocab);
    /* Draws by temperature, min-p, top-k and top-p. scratch: [2, V], values may be its first half. UINT32_MAX: there
     * is no candidate. */
    uint32_t (*draw)(const qn_slot_row_t *row, uint32_t position, const float *values, float *scratch, uint32_t vocab);
    qn_logprob_parts_t logprobs;
} qn_sampler_parts_t;

void qn_cpu_sampler_run(qn_stream_t *stream, const qn_sampler_t *arguments, const qn_sampler_parts_t *parts);

#endif
