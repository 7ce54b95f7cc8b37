/* How kernels are timed: launches are captured into a graph, whose replays the device times; the median counts. */
#ifndef QN_TESTS_GPU_TIMING_H
#define QN_TESTS_GPU_TIMING_H

#include "tests/gpu/gpu_test.h"

typedef struct {
    const char *name;
    uint32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
} model_shape_t;

extern const model_shape_t LLAMA_1B, LLAMA_8B;

typedef struct {
    qn_stream_t *stream;
    qn_cuda_mark_t *from, *to;
    arena_t arena;
    random_t random;
} timing_t;

void timing_make(timing_t *timing, const qn_cuda_options_t *options, size_t bytes);
/* Random bf16 values all over the arena. */
void timing_fill(timing_t *timing, float deviation);
void timing_free(timing_t *timing);
/* Microseconds of one launch: calls launch(context, 0 .. launches) under capture. */
double timing_run(timing_t *timing, unsigned launches, void (*launch)(void *context, unsigned index), void *context);
/* `bytes` and `operations` of one launch; 0: not shown. */
void timing_print(const char *op, const char *shape, double us, double bytes, double operations);

/* Attention of prompts by itself (time_prompts.c). */
void time_prompt_attention(void);
/* From the page cache to the device, and weights made on it (time_load.c). */
void time_load(void);
/* Decode attention by itself (time_attention.c); `few`: the two batches that matter most. */
void time_attention(bool few);
/* Whole decode and prefill steps of both models; prefill alone (time_step.c). */
void time_steps(void);
void time_prefills(void);

#endif
