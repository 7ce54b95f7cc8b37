/* What is this?      Device time of attention.prefill, each implementation, over the shapes of Llama-3.2-1B and
 *                    Llama-3.1-8B: one long prompt, its last chunk, many short prompts. Operations are those of the
 *                    causal triangle alone; the percentage is of 790 TFLOP/s.
 * State owned:       device memory.
 * Must never:        time with scores that are all alike.
 * Read next:         kernels/cuda/attention/attention_wgmma.cu, attention_prefill.cu. */
#include "tests/gpu/timing.h"

#define BLOCK 16

typedef struct {
    const char *name;
    uint32_t runs, position, tokens; /* of each run */
} prompts_t;

typedef struct {
    timing_t *timing;
    qn_attention_t attention;
    void (*kernel)(qn_stream_t *, const void *);
} launch_t;

static void launch_attention(void *context, unsigned index)
{
    (void)index;
    launch_t *l = context;
    l->kernel(l->timing->stream, &l->attention);
}

/* Blocks of a run lie in falling order. */
static qn_attention_t make_prompts(timing_t *timing, const model_shape_t *m, const prompts_t *prompts)
{
    uint32_t each = (prompts->position + prompts->tokens + BLOCK - 1) / BLOCK, blocks = each * prompts->runs;
    uint32_t *table = malloc((size_t)blocks * 4);
    qn_run_t *runs = malloc(prompts->runs * sizeof *runs);
    if (!table || !runs) exit(70);
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = blocks - 1 - i;
    for (uint32_t i = 0; i < prompts->runs; i++)
        runs[i] = (qn_run_t){.slot = i,
                             .position = prompts->position,
                             .tokens = prompts->tokens,
                             .first = i * prompts->tokens};
    size_t row = (size_t)m->heads * m->head_dim * 2, tokens = (size_t)prompts->runs * prompts->tokens;
    timing->arena.used = 0;
    void *cache = arena_take(&timing->arena, (size_t)2 * blocks * BLOCK * m->kv_heads * m->head_dim * 2);
    void *q = arena_take(&timing->arena, tokens * row), *out = arena_take(&timing->arena, tokens * row);
    qn_attention_t a = {.kv = {cache, QN_SCALAR_BF16, 1, blocks, BLOCK, m->kv_heads, m->head_dim},
                        .tables = {.block_tables = push(&timing->arena, table, (size_t)blocks * 4),
                                   .table_blocks = each},
                        .runs = push(&timing->arena, runs, prompts->runs * sizeof *runs),
                        .run_count = prompts->runs,
                        .heads = m->heads,
                        .scale = 1 / sqrtf((float)m->head_dim),
                        .q = q,
                        .out = out};
    free(table), free(runs);
    return a;
}

static void time_prompts(timing_t *timing, const model_shape_t *m, const prompts_t *prompts)
{
    static const struct {
        const char *name;
        void (*kernel)(qn_stream_t *, const void *);
    } KERNELS[] = {{"attention mma", qn_cuda_attention_mma}, {"attention wgmma", qn_cuda_attention_wgmma}};
    launch_t launch = {.timing = timing, .attention = make_prompts(timing, m, prompts)};
    double seen = prompts->position + (prompts->tokens + 1) / 2.0;
    double operations = 4.0 * prompts->runs * prompts->tokens * seen * m->heads * m->head_dim;
    char shape[80];
    snprintf(shape, sizeof shape, "%s %s", m->name, prompts->name);
    for (unsigned i = 0; i < sizeof KERNELS / sizeof KERNELS[0]; i++) {
        launch.kernel = KERNELS[i].kernel;
        timing_print(KERNELS[i].name, shape, timing_run(timing, 4, launch_attention, &launch), 0, operations);
    }
}

void time_prompt_attention(void)
{
    static const prompts_t PROMPTS[] = {{"8192", 1, 0, 8192},
                                        {"2048", 1, 0, 2048},
                                        {"2048 at 6144", 1, 6144, 2048},
                                        {"16 of 512", 16, 0, 512},
                                        {"64 of 20 at 1000", 64, 1000, 20}};
    static const model_shape_t *const MODELS[] = {&LLAMA_1B, &LLAMA_8B};
    timing_t timing;
    timing_make(&timing,
                &(qn_cuda_options_t){.activations = QN_SCALAR_BF16,
                                     .dependent_launch = true,
                                     .max_sequences = 64,
                                     .heads = 32,
                                     .kv_heads = 8,
                                     .head_dim = 128},
                (size_t)1 << 30);
    timing_fill(&timing, 1);
    for (unsigned m = 0; m < 2; m++)
        for (unsigned i = 0; i < sizeof PROMPTS / sizeof PROMPTS[0]; i++)
            time_prompts(&timing, MODELS[m], &PROMPTS[i]);
    timing_free(&timing);
}
