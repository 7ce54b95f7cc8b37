/* Attention over the paged cache: against the reference and against a direct softmax, for odd shapes, windows, both
 * cache types; and the same bits for every way of cutting a sequence into runs. */
#include "tests/unit/kernel_check.h"

#ifdef QN_CHECKED
#define POSITIONS 270 /* a checked build is slow, and work grows with the square: two of the vector kernels' chunks */
#else
#define POSITIONS 530 /* three of their chunks of 256 */
#endif
#define SLOTS 2

typedef struct {
    uint32_t heads, kv_heads, dim, block_tokens, window;
    qn_scalar_t scalar;
    float softcap;
    bool outliers;
} shape_t;

#define F32 QN_SCALAR_F32
#define BF16 QN_SCALAR_BF16

/* Head dimensions of published models and odd ones; groups of 1 to 60 heads, beyond one tile's rows; block sizes from
 * one token to more than there are; windows below, at and beyond chunk limits. */
static const shape_t SHAPES[] = {
    {4, 2, 32, 16, 0, F32, 0, false},   {4, 2, 64, 16, 0, BF16, 0, false},    {6, 1, 16, 1, 0, F32, 0, false},
    {2, 2, 80, 7, 0, BF16, 0, false},   {4, 2, 128, 32, 24, F32, 0, false},   {1, 1, 256, 128, 1, F32, 0, false},
    {3, 1, 48, 64, 65, BF16, 0, false}, {1, 1, 512, 16, 130, F32, 0, false},  {2, 2, 96, 1024, 0, F32, 30, true},
    {14, 2, 64, 16, 0, BF16, 0, true},  {4, 2, 100, 3, 257, BF16, 50, false}, {5, 1, 40, 16, 256, F32, 0, true},
    {60, 1, 8, 16, 0, BF16, 5, false},  {3, 3, 36, 5, 265, F32, 0, false},    {2, 1, 34, 16, 0, BF16, 0, false},
    {2, 1, 1, 16, 0, F32, 0, false},    {3, 1, 256, 16, 64, BF16, 50, true},  {3, 3, 112, 64, 0, BF16, 0, false},
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

typedef struct {
    shape_t shape;
    qn_kv_t kv;
    uint32_t tables[SLOTS][POSITIONS];
    float *q; /* [SLOTS * POSITIONS, H, D]: one query for every position */
} world_t;

/* Layer 1 of 2 is used, blocks are handed out in a scattered order. */
static void make_world(world_t *w, const shape_t *shape)
{
    w->shape = *shape;
    uint32_t table_blocks = (POSITIONS + shape->block_tokens - 1) / shape->block_tokens, blocks = table_blocks * SLOTS;
    size_t elements = (size_t)2 * 2 * blocks * shape->block_tokens * shape->kv_heads * shape->dim;
    float *values = check_values(elements, 5, shape->outliers);
    w->kv = (qn_kv_t){.data = (void *)check_weight(values, elements, shape->scalar).data,
                      .scalar = shape->scalar,
                      .layers = 2,
                      .blocks = blocks,
                      .block_tokens = shape->block_tokens,
                      .kv_heads = shape->kv_heads,
                      .head_dim = shape->dim};
    free(values);
    for (uint32_t s = 0; s < SLOTS; s++)
        for (uint32_t i = 0; i < table_blocks; i++)
            w->tables[s][i] = (table_blocks - 1 - i) * SLOTS + (s + i) % SLOTS;
    /* With outliers among the keys, scores would leave one position alone in every softmax. */
    w->q = check_values((size_t)SLOTS * POSITIONS * shape->heads * shape->dim, 6, false);
    for (size_t i = 0; shape->outliers && i < (size_t)SLOTS * POSITIONS * shape->heads * shape->dim; i++)
        w->q[i] *= 0.003f;
}

static void free_world(world_t *w)
{
    free(w->kv.data);
    free(w->q);
}

static void attend(const world_t *w, const qn_kernel_t *kernel, qn_stream_t *stream, const qn_run_t *runs,
                   uint32_t run_count, const float *q, float *out)
{
    kernel->launch(stream, &(qn_attention_t){.kv = w->kv,
                                             .tables = {.block_tables = (uint32_t *)w->tables,
                                                        .slots = SLOTS,
                                                        .table_blocks = POSITIONS},
                                             .runs = runs,
                                             .run_count = run_count,
                                             .layer = 1,
                                             .heads = w->shape.heads,
                                             .window = w->shape.window,
                                             .scale = 1 / sqrtf((float)w->shape.dim),
                                             .softcap = w->shape.softcap,
                                             .q = q,
                                             .out = out});
}

/* Every position of every slot as one run each. */
static float *attend_all(const world_t *w, const char *name, uint32_t threads)
{
    size_t count = (size_t)SLOTS * POSITIONS * w->shape.heads * w->shape.dim;
    float *out = malloc(count * sizeof *out);
    qn_run_t runs[SLOTS];
    for (uint32_t s = 0; s < SLOTS; s++)
        runs[s] = (qn_run_t){.slot = s, .tokens = POSITIONS, .first = s * POSITIONS};
    qn_stream_t *stream = check_stream(threads);
    attend(w, check_kernel(QN_OP_ATTENTION_PREFILL, name), stream, runs, SLOTS, w->q, out);
    qn_stream_destroy(&stream);
    return out;
}

static bool runs_here(const char *name, const shape_t *shape)
{
    const qn_kernel_t *kernel = check_kernel(QN_OP_ATTENTION_DECODE, name);
    qn_kernel_case_t wanted = {.heads = shape->heads, .kv_heads = shape->kv_heads, .head_dim = shape->dim};
    if (kernel && kernel->accepts) assert_true(kernel->accepts(&wanted));
    return kernel != NULL;
}

/* Softmax written down directly for one query. */
static void direct(const world_t *w, uint32_t slot, uint32_t position, uint32_t head, double *ret)
{
    const shape_t *s = &w->shape;
    uint32_t begin = s->window && position + 1 > s->window ? position + 1 - s->window : 0;
    uint32_t kv_head = head / (s->heads / s->kv_heads);
    const float *q = w->q + (((size_t)slot * POSITIONS + position) * s->heads + head) * s->dim;
    double total = 0, weights[POSITIONS];
    for (uint32_t d = 0; d < s->dim; d++)
        ret[d] = 0;
    for (uint32_t p = begin; p <= position; p++) {
        size_t at = qn_kv_offset(&w->kv, 1, 0, w->tables[slot][p / s->block_tokens], p % s->block_tokens);
        double score = 0;
        for (uint32_t d = 0; d < s->dim; d++)
            score += (double)q[d] * qn_load(w->kv.data, s->scalar, at + (size_t)kv_head * s->dim + d);
        score /= sqrt(s->dim);
        if (s->softcap > 0) score = s->softcap * tanh(score / s->softcap);
        total += weights[p] = exp(score);
    }
    for (uint32_t p = begin; p <= position; p++) {
        size_t at = qn_kv_offset(&w->kv, 1, 1, w->tables[slot][p / s->block_tokens], p % s->block_tokens);
        for (uint32_t d = 0; d < s->dim; d++)
            ret[d] += weights[p] / total * qn_load(w->kv.data, s->scalar, at + (size_t)kv_head * s->dim + d);
    }
}

/* Positions at which the reference, which takes its time, is asked: around vectors, blocks and chunks, and others. */
static const uint32_t AT[] = {0,
                              1,
                              7,
                              8,
                              15,
                              16,
                              17,
                              63,
                              64,
                              65,
                              100,
                              127,
                              128,
                              250,
                              255,
                              256,
                              257,
#if POSITIONS > 513
                              300,
                              383,
                              511,
                              512,
                              513,
#endif
                              POSITIONS - 2,
                              POSITIONS - 1};
#define AT_COUNT (sizeof AT / sizeof AT[0])

/* The reference at AT in both slots; other rows are left as they come. */
static float *reference_at(const world_t *w)
{
    float *out = malloc((size_t)SLOTS * POSITIONS * w->shape.heads * w->shape.dim * sizeof *out);
    qn_stream_t *stream = check_stream(2);
    for (size_t a = 0; a < AT_COUNT; a++) {
        qn_run_t runs[SLOTS];
        for (uint32_t s = 0; s < SLOTS; s++)
            runs[s] = (qn_run_t){.slot = s, .position = AT[a], .tokens = 1, .first = s * POSITIONS + AT[a]};
        attend(w, check_kernel(QN_OP_ATTENTION_DECODE, "reference"), stream, runs, SLOTS, w->q, out);
    }
    qn_stream_destroy(&stream);
    return out;
}

static size_t row_of(const world_t *w, uint32_t slot, size_t at)
{
    return ((size_t)slot * POSITIONS + AT[at]) * w->shape.heads * w->shape.dim;
}

static void test_attention_reference_is_softmax(void **state)
{
    (void)state;
    world_t *w = malloc(sizeof *w);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        make_world(w, &SHAPES[i]);
        float *out = reference_at(w);
        double want[512];
        for (size_t a = 0; a < AT_COUNT; a++) {
            uint32_t head = w->shape.heads - 1, slot = a % SLOTS;
            direct(w, slot, AT[a], head, want);
            for (uint32_t d = 0; d < w->shape.dim; d++) {
                double got = out[row_of(w, slot, a) + (size_t)head * w->shape.dim + d];
                assert_true(fabs(got - want[d]) < 1e-6 * (w->shape.outliers ? 1000 : 1));
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
        float *want = reference_at(w), bound = SHAPES[i].outliers ? 2e-3f : 2e-6f; /* of values to 1000, and to 1 */
        for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
            if (!runs_here(CHECK_FAST[k], &SHAPES[i])) continue;
            float *got = attend_all(w, CHECK_FAST[k], 2);
            for (size_t n = 0; n < AT_COUNT * SLOTS; n++)
                for (size_t e = 0; e < (size_t)w->shape.heads * w->shape.dim; e++) {
                    size_t at = row_of(w, n % SLOTS, n / SLOTS) + e;
                    if (!(fabsf(got[at] - want[at]) < bound))
                        fail_msg("%s shape %zu: [%zu] is %g, reference %g", CHECK_FAST[k], i, at, (double)got[at],
                                 (double)want[at]);
                }
            free(got);
        }
        free(want);
        free_world(w);
    }
    free(w);
}

/* Tokens of a run, and from the start of one run to the next: runs of one token go through attention.decode. */
typedef struct {
    uint32_t tokens, every;
} pieces_t;

#ifdef QN_CHECKED
static const pieces_t PIECES[] = {{1, 17}, {7, 50}}; /* a checked build is slow: not all positions */
#else
static const pieces_t PIECES[] = {{1, 1}, {7, 7}, {64, 64}, {250, 250}};
#endif
#define PIECES_COUNT (sizeof PIECES / sizeof PIECES[0])

/* Runs both slots in pieces and compares each with the same positions of `whole`. */
static void expect_pieces_alike(const world_t *w, const char *name, pieces_t pieces, uint32_t threads,
                                const float *whole)
{
    size_t row = (size_t)w->shape.heads * w->shape.dim;
    float *out = malloc(SLOTS * POSITIONS * row * sizeof *out);
    qn_stream_t *stream = check_stream(threads);
    for (uint32_t p = 0; p < POSITIONS; p += pieces.every) {
        uint32_t tokens = POSITIONS - p < pieces.tokens ? POSITIONS - p : pieces.tokens;
        qn_run_t runs[SLOTS];
        for (uint32_t s = 0; s < SLOTS; s++)
            runs[s] = (qn_run_t){.slot = s, .position = p, .tokens = tokens, .first = s * POSITIONS + p};
        qn_op_t op = tokens == 1 ? QN_OP_ATTENTION_DECODE : QN_OP_ATTENTION_PREFILL;
        attend(w, check_kernel(op, name), stream, runs, SLOTS, w->q, out);
        for (uint32_t s = 0; s < SLOTS; s++)
            if (memcmp(out + runs[s].first * row, whole + runs[s].first * row, tokens * row * sizeof *out) != 0)
                fail_msg("%s heads %u dim %u: slot %u position %u in pieces of %u differs", name, w->shape.heads,
                         w->shape.dim, s, p, pieces.tokens);
    }
    qn_stream_destroy(&stream);
    free(out);
}

/* Whole prompts on one thread against every other way: in pieces, alone, on three threads, as decode. */
static void test_attention_any_chunk_and_thread_count_gives_the_same_bits(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"reference", "avx2", "avx512"};
    world_t *w = malloc(sizeof *w);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        make_world(w, &SHAPES[i]);
        for (size_t n = i == 5 ? 0 : 1; n < 3; n++) { /* the reference, which takes its time, at a small shape */
            if (!runs_here(NAMES[n], &SHAPES[i])) continue;
            float *whole = attend_all(w, NAMES[n], 1);
            for (size_t p = 0; p < PIECES_COUNT; p++)
                expect_pieces_alike(w, NAMES[n], PIECES[p], 3, whole);
            free(whole);
        }
        free_world(w);
    }
    free(w);
}

/* The last position of the second slot, alone or beside the first's. */
static void attend_ends(qn_op_t op, const char *name, const qn_kv_t *kv, uint32_t *tables, uint32_t heads,
                        const uint32_t lengths[2], bool alone, uint32_t threads, const float *q, float *out)
{
    qn_run_t runs[2] = {{.slot = 0, .position = lengths[0] - 1, .tokens = 1, .first = 0},
                        {.slot = 1, .position = lengths[1] - 1, .tokens = 1, .first = 1}};
    qn_stream_t *stream = check_stream(threads);
    check_kernel(op, name)->launch(
        stream, &(qn_attention_t){.kv = *kv,
                                  .tables = {.block_tables = tables, .slots = 2, .table_blocks = kv->blocks / 2},
                                  .runs = runs + alone,
                                  .run_count = 2 - alone,
                                  .heads = heads,
                                  .scale = 1 / sqrtf((float)kv->head_dim),
                                  .q = q,
                                  .out = out});
    qn_stream_destroy(&stream);
}

/* A long sequence of a wide model: its chunks outgrow the memory that threads share and are merged in waves, which
 * begin elsewhere when a run stands before it. A prefill of one token knows no waves. */
static void test_attention_decode_of_a_long_sequence_is_the_same_alone_and_on_any_threads(void **state)
{
    (void)state;
    enum { H = 128, D = 256, P = 64, BLOCKS = 2 * 125 };
    static const uint32_t LENGTHS[2] = {1500, 8000};
    size_t elements = (size_t)2 * BLOCKS * P * D, row = H * D;
    float *values = check_values(elements, 3, false), *q = check_values(2 * row, 4, false);
    qn_kv_t kv = {.data = (void *)check_weight(values, elements, BF16).data,
                  .scalar = BF16,
                  .layers = 1,
                  .blocks = BLOCKS,
                  .block_tokens = P,
                  .kv_heads = 1,
                  .head_dim = D};
    uint32_t tables[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++)
        tables[i] = BLOCKS - 1 - i;
    float *want = malloc(2 * row * sizeof *want), *got = malloc(2 * row * sizeof *got);
#ifdef QN_CHECKED
    static const uint32_t THREADS[] = {3};
#else
    static const uint32_t THREADS[] = {1, 3};
#endif
    for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
        if (!check_kernel(QN_OP_ATTENTION_DECODE, CHECK_FAST[k])) continue;
        attend_ends(QN_OP_ATTENTION_PREFILL, CHECK_FAST[k], &kv, tables, H, LENGTHS, false, 1, q, want);
        for (size_t t = 0; t < sizeof THREADS / sizeof THREADS[0]; t++) {
            attend_ends(QN_OP_ATTENTION_DECODE, CHECK_FAST[k], &kv, tables, H, LENGTHS, false, THREADS[t], q, got);
            assert_memory_equal(got, want, 2 * row * sizeof *got);
            attend_ends(QN_OP_ATTENTION_DECODE, CHECK_FAST[k], &kv, tables, H, LENGTHS, true, THREADS[t], q, got);
            assert_memory_equal(got + row, want + row, row * sizeof *got);
        }
    }
    free(values), free(q), free(kv.data), free(want), free(got);
}

/* Scores of +-10^4 overflow a naive softmax; the greatest takes all. */
static void test_attention_huge_scores_stay_finite(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"reference", "avx2", "avx512"};
    world_t *w = malloc(sizeof *w);
    make_world(w, &SHAPES[0]);
    for (size_t i = 0; i < (size_t)SLOTS * POSITIONS * 4 * 32; i++)
        w->q[i] *= 1e5f;
    for (size_t n = 0; n < 3; n++) {
        if (!runs_here(NAMES[n], &SHAPES[0])) continue;
        float *out = attend_all(w, NAMES[n], 2);
        for (size_t i = 0; i < (size_t)SLOTS * POSITIONS * 4 * 32; i++)
            assert_true(fabsf(out[i]) <= 1.0001f);
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
        cmocka_unit_test(test_attention_decode_of_a_long_sequence_is_the_same_alone_and_on_any_threads),
        cmocka_unit_test(test_attention_huge_scores_stay_finite),
    };
    return cmocka_run_group_tests_name("kernels_attention", tests, NULL, NULL);
}
