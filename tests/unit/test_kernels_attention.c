/* Attention over the paged cache: against the reference and against a direct softmax, for odd shapes, windows, both
 * cache types; and the same bits for every way of cutting a sequence into runs. */
#include "tests/unit/kernel_check.h"

#define POSITIONS 140
#define SLOTS 3

typedef struct {
    uint32_t heads, kv_heads, dim, block_tokens, window;
    qn_scalar_t scalar;
} shape_t;

static const shape_t SHAPES[] = {
    { 4, 2, 32, 16, 0, QN_SCALAR_F32 }, { 4, 2, 64, 16, 0, QN_SCALAR_BF16 }, { 6, 1, 16, 1, 0, QN_SCALAR_F32 },
    { 2, 2, 80, 7, 0, QN_SCALAR_BF16 }, { 8, 2, 128, 32, 24, QN_SCALAR_F32 }, { 1, 1, 256, 128, 1, QN_SCALAR_F32 },
    { 3, 1, 48, 64, 65, QN_SCALAR_BF16 }, { 2, 1, 512, 16, 130, QN_SCALAR_F32 },
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

typedef struct {
    shape_t shape;
    qn_kv_t kv;
    uint32_t tables[SLOTS][POSITIONS];
    float *q;                 /* [SLOTS * POSITIONS, H, D]: one query for every position */
} world_t;

/* Layer 1 of 2 is used, blocks are handed out in a scattered order. */
static void make_world(world_t *w, const shape_t *shape)
{
    w->shape = *shape;
    uint32_t table_blocks = (POSITIONS + shape->block_tokens - 1) / shape->block_tokens, blocks = table_blocks * SLOTS;
    size_t elements = (size_t)2 * 2 * blocks * shape->block_tokens * shape->kv_heads * shape->dim;
    float *values = check_values(elements, 5, false);
    w->kv = (qn_kv_t){ .data = (void *)check_weight(values, elements, shape->scalar).data, .scalar = shape->scalar,
                       .layers = 2, .blocks = blocks, .block_tokens = shape->block_tokens,
                       .kv_heads = shape->kv_heads, .head_dim = shape->dim };
    free(values);
    for (uint32_t s = 0; s < SLOTS; s++)
        for (uint32_t i = 0; i < table_blocks; i++) w->tables[s][i] = (table_blocks - 1 - i) * SLOTS + (s + i) % SLOTS;
    w->q = check_values((size_t)SLOTS * POSITIONS * shape->heads * shape->dim, 6, false);
}

static void free_world(world_t *w)
{
    free(w->kv.data);
    free(w->q);
}

static void attend(const world_t *w, const qn_kernel_t *kernel, qn_stream_t *stream, const qn_run_t *runs,
                   uint32_t run_count, const float *q, float *out)
{
    kernel->launch(stream, &(qn_attention_t){
        .kv = w->kv, .tables = { .block_tables = (uint32_t *)w->tables, .slots = SLOTS, .table_blocks = POSITIONS },
        .runs = runs, .run_count = run_count, .layer = 1, .heads = w->shape.heads, .window = w->shape.window,
        .scale = 1 / sqrtf((float)w->shape.dim), .q = q, .out = out });
}

/* Every position of every slot as one run each. */
static float *attend_all(const world_t *w, const char *name, uint32_t threads)
{
    size_t count = (size_t)SLOTS * POSITIONS * w->shape.heads * w->shape.dim;
    float *out = malloc(count * sizeof *out);
    qn_run_t runs[SLOTS];
    for (uint32_t s = 0; s < SLOTS; s++)
        runs[s] = (qn_run_t){ .slot = s, .tokens = POSITIONS, .first = s * POSITIONS };
    qn_stream_t *stream = check_stream(threads);
    attend(w, check_kernel(QN_OP_ATTENTION_PREFILL, name), stream, runs, SLOTS, w->q, out);
    qn_stream_destroy(&stream);
    return out;
}

static bool runs_here(const char *name, const shape_t *shape)
{
    const qn_kernel_t *kernel = check_kernel(QN_OP_ATTENTION_DECODE, name);
    qn_kernel_case_t wanted = { .head_dim = shape->dim };
    return kernel && (!kernel->accepts || kernel->accepts(&wanted));
}

/* Softmax written down directly for one query. */
static void direct(const world_t *w, uint32_t slot, uint32_t position, uint32_t head, double *ret)
{
    const shape_t *s = &w->shape;
    uint32_t begin = s->window && position + 1 > s->window ? position + 1 - s->window : 0;
    uint32_t kv_head = head / (s->heads / s->kv_heads);
    const float *q = w->q + (((size_t)slot * POSITIONS + position) * s->heads + head) * s->dim;
    double total = 0, weights[POSITIONS];
    for (uint32_t d = 0; d < s->dim; d++) ret[d] = 0;
    for (uint32_t p = begin; p <= position; p++) {
        size_t at = qn_kv_offset(&w->kv, 1, 0, w->tables[slot][p / s->block_tokens], p % s->block_tokens);
        double score = 0;
        for (uint32_t d = 0; d < s->dim; d++)
            score += (double)q[d] * qn_load(w->kv.data, s->scalar, at + (size_t)kv_head * s->dim + d);
        total += weights[p] = exp(score / sqrt(s->dim));
    }
    for (uint32_t p = begin; p <= position; p++) {
        size_t at = qn_kv_offset(&w->kv, 1, 1, w->tables[slot][p / s->block_tokens], p % s->block_tokens);
        for (uint32_t d = 0; d < s->dim; d++)
            ret[d] += weights[p] / total * qn_load(w->kv.data, s->scalar, at + (size_t)kv_head * s->dim + d);
    }
}

static void test_attention_reference_is_softmax(void **state)
{
    (void)state;
    static const uint32_t AT[] = { 0, 1, 15, 16, 63, 64, 139 };
    world_t *w = malloc(sizeof *w);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        make_world(w, &SHAPES[i]);
        float *out = attend_all(w, "reference", 2);
        double want[512];
        for (size_t a = 0; a < sizeof AT / sizeof AT[0]; a++) {
            uint32_t head = w->shape.heads - 1, slot = a % SLOTS;
            direct(w, slot, AT[a], head, want);
            for (uint32_t d = 0; d < w->shape.dim; d++) {
                size_t at = (((size_t)slot * POSITIONS + AT[a]) * w->shape.heads + head) * w->shape.dim + d;
                assert_true(fabs(out[at] - want[d]) < 1e-6);
            }
        }
        free(out);
        free_world(w);
    }
    free(w);
}

static void test_attention_every_shape_agrees_with_reference(void **state)
{
    (void)state;
    world_t *w = malloc(sizeof *w);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        make_world(w, &SHAPES[i]);
        float *want = attend_all(w, "reference", 2);
        for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
            if (!runs_here(CHECK_FAST[k], &SHAPES[i])) continue;
            float *got = attend_all(w, CHECK_FAST[k], 2);
            for (size_t e = 0; e < (size_t)SLOTS * POSITIONS * w->shape.heads * w->shape.dim; e++)
                if (!(fabsf(got[e] - want[e]) < 2e-6f))
                    fail_msg("%s shape %zu: [%zu] is %g, reference %g", CHECK_FAST[k], i, e, (double)got[e],
                             (double)want[e]);
            free(got);
        }
        free(want);
        free_world(w);
    }
    free(w);
}

/* Runs every position of every slot in pieces of `piece`, single tokens through attention.decode. */
static float *attend_pieces(const world_t *w, const char *name, uint32_t piece, uint32_t threads)
{
    size_t row = (size_t)w->shape.heads * w->shape.dim;
    float *out = malloc(SLOTS * POSITIONS * row * sizeof *out);
    qn_stream_t *stream = check_stream(threads);
    for (uint32_t p = 0; p < POSITIONS; p += piece) {
        uint32_t tokens = POSITIONS - p < piece ? POSITIONS - p : piece;
        qn_run_t runs[SLOTS];
        for (uint32_t s = 0; s < SLOTS; s++)
            runs[s] = (qn_run_t){ .slot = s, .position = p, .tokens = tokens, .first = s * POSITIONS + p };
        qn_op_t op = tokens == 1 ? QN_OP_ATTENTION_DECODE : QN_OP_ATTENTION_PREFILL;
        attend(w, check_kernel(op, name), stream, runs, SLOTS, w->q, out);
    }
    qn_stream_destroy(&stream);
    return out;
}

static void test_attention_any_chunk_and_thread_count_gives_the_same_bits(void **state)
{
    (void)state;
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    static const uint32_t PIECES[] = { 1, 7, 64 };
    world_t *w = malloc(sizeof *w);
    for (size_t i = 0; i < 5; i++) {
        make_world(w, &SHAPES[i]);
        for (size_t n = 0; n < 3; n++) {
            if (!runs_here(NAMES[n], &SHAPES[i])) continue;
            float *whole = attend_all(w, NAMES[n], 1);
            for (size_t p = 0; p < 3; p++) {
                float *pieces = attend_pieces(w, NAMES[n], PIECES[p], 3);
                assert_memory_equal(pieces, whole,
                                    (size_t)SLOTS * POSITIONS * w->shape.heads * w->shape.dim * sizeof *whole);
                free(pieces);
            }
            free(whole);
        }
        free_world(w);
    }
    free(w);
}

/* Scores of +-10^4 overflow a naive softmax; the greatest takes all. */
static void test_attention_huge_scores_stay_finite(void **state)
{
    (void)state;
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    world_t *w = malloc(sizeof *w);
    make_world(w, &SHAPES[0]);
    for (size_t i = 0; i < (size_t)SLOTS * POSITIONS * 4 * 32; i++) w->q[i] *= 1e5f;
    for (size_t n = 0; n < 3; n++) {
        if (!runs_here(NAMES[n], &SHAPES[0])) continue;
        float *out = attend_all(w, NAMES[n], 2);
        for (size_t i = 0; i < (size_t)SLOTS * POSITIONS * 4 * 32; i++) assert_true(fabsf(out[i]) <= 1.0001f);
        free(out);
    }
    free_world(w);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_reference_is_softmax),
        cmocka_unit_test(test_attention_every_shape_agrees_with_reference),
        cmocka_unit_test(test_attention_any_chunk_and_thread_count_gives_the_same_bits),
        cmocka_unit_test(test_attention_huge_scores_stay_finite),
    };
    return cmocka_run_group_tests_name("kernels_attention", tests, NULL, NULL);
}
