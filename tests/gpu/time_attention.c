/* What is this?      Device time of decode attention by itself, every implementation over batches of equal and of ragged
 *                    lengths; percentages are of 4.54 TB/s for the keys and values that are read.
 * State owned:       device memory.
 * Must never:        read the same layer's cache twice in a row: the second-level cache would hold it.
 * Read next:         kernels/cuda/attention/attention_decode.cu, kernels/cuda/attention/attention_resident.cu. */
#include "tests/gpu/timing.h"

#define BLOCK 16
#define LAUNCHES 12

typedef struct {
    timing_t timing;
    qn_decode_attention_t launch;
    void (*kernel)(qn_stream_t *, const void *);
    bool fused; /* the kernel takes all of `launch`, else its attention */
    double positions;
} attention_t;

static void launch_attention(void *context, unsigned index)
{
    attention_t *t = context;
    t->launch.attention.layer = t->launch.write.layer = index % t->launch.attention.kv.layers;
    t->kernel(t->timing.stream, t->fused ? (const void *)&t->launch : &t->launch.attention);
}

/* Every block once, in random order. */
static uint32_t *shuffled(random_t *random, uint32_t blocks)
{
    uint32_t *order = malloc(blocks * sizeof *order);
    if (!order) exit(70);
    for (uint32_t i = 0; i < blocks; i++)
        order[i] = i;
    for (uint32_t i = blocks; i > 1; i--) {
        uint32_t other = random_below(random, i), kept = order[i - 1];
        order[i - 1] = order[other], order[other] = kept;
    }
    return order;
}

/* Runs of `length` positions, or of an eighth of it to nearly twice as much. */
static void make_runs(attention_t *t, uint32_t runs, uint32_t length, bool ragged)
{
    arena_t *arena = &t->timing.arena;
    uint32_t table_blocks = 2 * length / BLOCK + 1, next = 0;
    uint32_t *order = shuffled(&t->timing.random, runs * table_blocks);
    uint32_t *table = calloc((size_t)runs * table_blocks, sizeof *table);
    qn_run_t *list = calloc(runs, sizeof *list);
    int64_t *rows = calloc(runs, sizeof *rows);
    if (!list || !table || !rows) exit(70);
    t->positions = 0;
    for (uint32_t i = 0; i < runs; i++) {
        uint32_t positions = ragged ? length / 8 + random_below(&t->timing.random, length * 7 / 4) : length;
        list[i] = (qn_run_t){.slot = i, .position = positions - 1, .tokens = 1, .first = i};
        for (uint32_t b = 0; b * BLOCK < positions; b++)
            table[(size_t)i * table_blocks + b] = order[next++];
        rows[i] = (int64_t)order[next - 1] * BLOCK + (positions - 1) % BLOCK;
        t->positions += positions;
    }
    t->launch.attention.kv.blocks = runs * table_blocks;
    t->launch.attention.runs = push(arena, list, runs * sizeof *list);
    t->launch.attention.tables =
        (qn_slot_tables_t){.block_tables = push(arena, table, (size_t)runs * table_blocks * sizeof *table),
                           .slots = runs,
                           .table_blocks = table_blocks};
    t->launch.write.kv_rows = push(arena, rows, runs * sizeof *rows);
    free(order), free(table), free(list), free(rows);
}

static void make_attention(attention_t *t, const model_shape_t *m, uint32_t runs, uint32_t length, bool ragged)
{
    size_t blocks = (size_t)runs * (2 * length / BLOCK + 1);
    size_t layer = 2 * blocks * BLOCK * m->kv_heads * m->head_dim * 2;
    size_t layers = ((size_t)768 << 20) / layer + 2, rows = (size_t)runs * (m->heads + 2 * m->kv_heads) * m->head_dim;
    *t = (attention_t){0};
    timing_make(&t->timing,
                &(qn_cuda_options_t){.activations = QN_SCALAR_BF16,
                                     .dependent_launch = true,
                                     .max_sequences = 256,
                                     .heads = m->heads,
                                     .kv_heads = m->kv_heads,
                                     .head_dim = m->head_dim},
                layers * layer + rows * 8 + ((size_t)64 << 20));
    timing_fill(&t->timing, 1);
    arena_t *arena = &t->timing.arena;
    make_runs(t, runs, length, ragged);
    qn_kv_t kv = {arena_take(arena, layers * layer),
                  QN_SCALAR_BF16,
                  (uint32_t)layers,
                  (uint32_t)blocks,
                  BLOCK,
                  m->kv_heads,
                  m->head_dim};
    size_t q = (size_t)runs * m->heads * m->head_dim * 2, k = (size_t)runs * m->kv_heads * m->head_dim * 2;
    qn_attention_t *a = &t->launch.attention;
    a->kv = t->launch.write.kv = kv;
    a->heads = m->heads, a->run_count = runs, a->scale = 1 / sqrtf((float)m->head_dim);
    a->q = arena_take(arena, q), a->out = arena_take(arena, q);
    t->launch.write.k = arena_take(arena, k), t->launch.write.v = arena_take(arena, k);
    t->launch.write.tokens = runs;
    t->launch.rope = (qn_rope_t){.angles = arena_take(arena, (size_t)runs * m->head_dim * 4),
                                 .q = (void *)(uintptr_t)a->q,
                                 .k = (void *)(uintptr_t)t->launch.write.k,
                                 .tokens = runs,
                                 .heads = m->heads,
                                 .kv_heads = m->kv_heads,
                                 .head_dim = m->head_dim};
}

static void time_kernel(attention_t *t, const char *name, const char *shape,
                        void (*kernel)(qn_stream_t *, const void *), bool fused)
{
    const qn_kv_t *kv = &t->launch.attention.kv;
    t->kernel = kernel, t->fused = fused;
    double us = timing_run(&t->timing, LAUNCHES, launch_attention, t);
    timing_print(name, shape, us, t->positions * kv->kv_heads * kv->head_dim * 4, 0);
}

static void time_batch(const model_shape_t *model, uint32_t runs, uint32_t length, bool ragged)
{
    attention_t t;
    char shape[64];
    make_attention(&t, model, runs, length, ragged);
    snprintf(shape, sizeof shape, "%s N %u len %u%s", model->name, runs, length, ragged ? " ragged" : "");
    time_kernel(&t, "attention splits", shape, qn_cuda_attention_splits, false);
    time_kernel(&t, "attention resident", shape, qn_cuda_attention_resident, false);
    time_kernel(&t, "fused splits", shape, qn_cuda_decode_attention_splits, true);
    time_kernel(&t, "fused resident", shape, qn_cuda_decode_attention_resident, true);
    timing_free(&t.timing);
}

void time_attention(bool few)
{
    static const model_shape_t *const MODELS[] = {&LLAMA_1B, &LLAMA_8B};
    static const uint32_t BATCHES[] = {64, 256, 1, 8, 16, 32, 128};
    for (unsigned m = 0; m < 2; m++) {
        for (unsigned i = 0; i < (few ? 2 : 7); i++)
            time_batch(MODELS[m], BATCHES[i], 1024, false);
        if (few) continue;
        time_batch(MODELS[m], 64, 1024, true);
        time_batch(MODELS[m], 256, 256, true);
        time_batch(MODELS[m], 4, 32768, false);
    }
}
