/* The forward pass: from token ids to the residual stream after the last layer, and from rows of it to logits. */
#ifndef QN_COMPUTE_FORWARD_FORWARD_H
#define QN_COMPUTE_FORWARD_FORWARD_H

#include "services/compute/model.h"
#include "services/compute/executor/scratch.h"

/* Everything a launch needs; borrowed, outlives the calls. */
typedef struct {
    const model_t *model;
    const scratch_t *scratch;
    qn_kernel_set_t kernels;
    qn_stream_t *stream;
    qn_kv_t kv;
    uint64_t (*now_ns)(void); /* for step_times_t only; NULL where launches return before they are done */
    void (*mark)(void *context, uint64_t *sum); /* there, in a step that is sampled; NULL in all others */
    void *mark_context;
} forward_t;

/* A part of the step begins, and is over: its time is added to *sum, now or when the device has passed it. */
static inline uint64_t forward_begin(const forward_t *forward)
{
    if (__builtin_expect(forward->mark != NULL, 0)) forward->mark(forward->mark_context, NULL);
    return forward->now_ns ? forward->now_ns() : 0;
}

static inline void forward_lap(const forward_t *forward, uint64_t *since, uint64_t *sum)
{
    if (__builtin_expect(forward->mark != NULL, 0)) forward->mark(forward->mark_context, sum);
    if (!forward->now_ns) return;
    uint64_t now_ns = forward->now_ns();
    *sum += now_ns - *since;
    *since = now_ns;
}

/* Runs of one token, the others, and the others' tokens as runs of one token each: attention takes those in place of
 * the others if there are any. */
typedef struct {
    uint32_t tokens, decode_runs, prefill_runs, token_runs;
} forward_batch_t;

/* Runs all layers over scratch->token_ids: scratch->x holds [T, E] before the final norm. Adds to *times. */
void forward_layers(const forward_t *forward, const forward_batch_t *batch, step_times_t *times);
/* Logits of rows[0..count) of `source` [.., E], or with NULL of its first `count`, into scratch->logits; count ≤ R. All on
 * the device. Adds to *times. */
void forward_logits(const forward_t *forward, const void *source, const uint32_t *rows, uint32_t count,
                    step_times_t *times);

#endif
