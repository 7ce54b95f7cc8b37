/* Attention under masks: against the rules written down directly, for every implementation, both cache types and ways of
 * cutting a sequence into runs; what is counted as read; the weights. And the blend of rows. */
#include "tests/unit/kernel_check.h"

#define POSITIONS 70
#define HEADS 4
#define LAYERS 3
#define ALL .layer_to = UINT32_MAX, .head_to = UINT32_MAX

typedef struct {
    const char *what;
    uint32_t window; /* the model's */
    float softcap;
    qn_scalar_t scalar;
    uint32_t block_tokens, mask_count;
    qn_mask_t masks[3];
} mask_case_t;

static const mask_case_t CASES[] = {
    {"none", 0, 0, QN_SCALAR_F32, 16, 0, {{0}}},
    {"top_k", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_TOP_K, .k = 5, ALL}}},
    {"top_k of one", 0, 0, QN_SCALAR_BF16, 16, 1, {{QN_MASK_TOP_K, .k = 1, ALL}}},
    {"top_k of more than there are", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_TOP_K, .k = 1000, ALL}}},
    {"threshold", 0, 30, QN_SCALAR_F32, 16, 1, {{QN_MASK_THRESHOLD, .value = 0.02f, ALL}}},
    {"threshold that none reaches", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_THRESHOLD, .value = 1, ALL}}},
    {"ratio", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_RATIO, .value = 0.8f, ALL}}},
    {"ratio 0.7", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_RATIO, .value = 0.7f, ALL}}},
    {"window", 0, 0, QN_SCALAR_BF16, 16, 1, {{QN_MASK_WINDOW, .window = 9, ALL}}},
    {"window within the model's", 33, 0, QN_SCALAR_F32, 7, 1, {{QN_MASK_WINDOW, .window = 40, ALL}}},
    {"sinks", 0, 0, QN_SCALAR_F32, 16, 1, {{QN_MASK_SINK_WINDOW, .sinks = 4, .window = 8, ALL}}},
    {"two spans",
     0,
     0,
     QN_SCALAR_F32,
     16,
     2,
     {{QN_MASK_SINK_WINDOW, .sinks = 2, .window = 40, ALL}, {QN_MASK_SINK_WINDOW, .sinks = 60, .window = 3, ALL}}},
    {"blocks", 0, 0, QN_SCALAR_F32, 8, 1, {{QN_MASK_BLOCK_TOP_K, .k = 2, ALL}}},
    {"blocks of one token", 0, 0, QN_SCALAR_F32, 1, 1, {{QN_MASK_BLOCK_TOP_K, .k = 3, ALL}}},
    {"top_k and threshold",
     0,
     0,
     QN_SCALAR_F32,
     16,
     2,
     {{QN_MASK_TOP_K, .k = 32, ALL}, {QN_MASK_THRESHOLD, .value = 0.02f, ALL}}},
    {"window, blocks and ratio",
     0,
     0,
     QN_SCALAR_F32,
     4,
     3,
     {{QN_MASK_WINDOW, .window = 30, ALL}, {QN_MASK_BLOCK_TOP_K, .k = 4, ALL}, {QN_MASK_RATIO, .value = 0.5f, ALL}}},
    {"one head",
     0,
     0,
     QN_SCALAR_F32,
     16,
     1,
     {{QN_MASK_TOP_K, .k = 2, .layer_from = 1, .layer_to = 2, .head_from = 2, .head_to = 3}}},
    {"another layer",
     0,
     0,
     QN_SCALAR_F32,
     16,
     1,
     {{QN_MASK_TOP_K, .k = 2, .layer_from = 2, .layer_to = 3, .head_to = UINT32_MAX}}},
};
#define CASE_COUNT (sizeof CASES / sizeof *CASES)

typedef struct {
    const mask_case_t *c;
    uint32_t dim;
    qn_kv_t kv;
    float *values; /* of the cache, as read */
    uint32_t table[POSITIONS];
    float *q;
} world_t;

static void make_world(world_t *w, const mask_case_t *c, uint32_t dim)
{
    uint32_t blocks = (POSITIONS + c->block_tokens - 1) / c->block_tokens;
    size_t elements = (size_t)LAYERS * 2 * blocks * c->block_tokens * 2 * dim;
    w->c = c;
    w->dim = dim;
    w->values = check_values(elements, 3, false);
    w->kv = (qn_kv_t){.data = (void *)check_weight(w->values, elements, c->scalar).data,
                      .scalar = c->scalar,
                      .layers = LAYERS,
                      .blocks = blocks,
                      .block_tokens = c->block_tokens,
                      .kv_heads = 2,
                      .head_dim = dim};
    for (uint32_t i = 0; i < blocks; i++)
        w->table[i] = blocks - 1 - i;
    w->q = check_values((size_t)POSITIONS * HEADS * dim, 4, false);
    for (size_t i = 0; i < (size_t)POSITIONS * HEADS * dim; i++)
        w->q[i] *= 6; /* scores that differ */
}

static void free_world(world_t *w)
{
    free(w->values);
    free(w->kv.data);
    free(w->q);
}

/* Attention of layer 1 over runs of `chunk` tokens. */
static void attend(const world_t *w, const char *name, uint32_t chunk, float *out, float *weights, uint64_t *read)
{
    qn_run_t runs[POSITIONS];
    uint32_t count = 0;
    for (uint32_t p = 0; p < POSITIONS; p += chunk)
        runs[count++] = (qn_run_t){.position = p, .first = p, .tokens = POSITIONS - p < chunk ? POSITIONS - p : chunk};
    qn_stream_t *stream = check_stream(chunk % 2 + 1);
    qn_probed_attention_t a = {.attention = {.kv = w->kv,
                                             .tables = {.block_tables = (uint32_t *)(uintptr_t)w->table,
                                                        .slots = 1,
                                                        .table_blocks = POSITIONS},
                                             .runs = runs,
                                             .run_count = count,
                                             .layer = 1,
                                             .heads = HEADS,
                                             .window = w->c->window,
                                             .scale = 1 / sqrtf((float)w->dim),
                                             .softcap = w->c->softcap,
                                             .q = w->q,
                                             .out = out},
                               .masks = w->c->masks,
                               .mask_count = w->c->mask_count,
                               .weight_columns = POSITIONS,
                               .ret_weights = weights,
                               .ret_read = read};
    check_kernel(QN_OP_ATTENTION_PROBED, name)->launch(stream, &a);
    qn_stream_destroy(&stream);
}

/* ---- the rules, one position after the other ---- */

static const float *cached(const world_t *w, uint32_t which, uint32_t p, uint32_t head)
{
    uint32_t P = w->c->block_tokens;
    return w->values + qn_kv_offset(&w->kv, 1, which, w->table[p / P], p % P) + (size_t)(head / 2) * w->dim;
}

static double score_of(const world_t *w, uint32_t row, uint32_t p, uint32_t head)
{
    double sum = 0;
    const float *q = w->q + ((size_t)row * HEADS + head) * w->dim, *key = cached(w, 0, p, head);
    for (uint32_t d = 0; d < w->dim; d++)
        sum += (double)q[d] * key[d];
    sum /= sqrt((double)w->dim);
    return w->c->softcap > 0 ? w->c->softcap * tanh(sum / w->c->softcap) : sum;
}

/* How many of the candidates come before `p` when the greatest come first. */
static uint32_t rank_of(const double *scores, const bool *candidates, uint32_t end, uint32_t p)
{
    uint32_t rank = 0;
    for (uint32_t o = 0; o < end; o++)
        rank += candidates[o] && (scores[o] > scores[p] || (scores[o] == scores[p] && o < p));
    return rank;
}

static uint32_t block_rank(const double *scores, const bool *candidates, uint32_t end, uint32_t block, uint32_t tokens)
{
    double best[POSITIONS];
    bool there[POSITIONS] = {false};
    for (uint32_t p = 0; p < end; p++) {
        if (!candidates[p]) continue;
        uint32_t b = p / tokens;
        best[b] = there[b] && best[b] > scores[p] ? best[b] : scores[p];
        there[b] = true;
    }
    return rank_of(best, there, (end + tokens - 1) / tokens, block);
}

static bool keeps(const mask_case_t *c, const qn_mask_t *mask, const double *scores, const bool *candidates,
                  uint32_t end, uint32_t p)
{
    uint32_t count = 0;
    double total = 0, best = -INFINITY;
    for (uint32_t o = 0; o < end; o++)
        if (candidates[o]) count++, total += exp(scores[o]), best = scores[o] > best ? scores[o] : best;
    switch (mask->kind) {
    case QN_MASK_TOP_K: return rank_of(scores, candidates, end, p) < mask->k;
    case QN_MASK_RATIO: {
        /* In tenths, exactly. */
        uint32_t kept_tenths = 10 - (uint32_t)lroundf(mask->value * 10), most = (count * kept_tenths + 9) / 10;
        return rank_of(scores, candidates, end, p) < (most ? most : 1);
    }
    case QN_MASK_THRESHOLD: return scores[p] == best || exp(scores[p]) / total >= (double)mask->value;
    case QN_MASK_BLOCK_TOP_K:
        return block_rank(scores, candidates, end, p / c->block_tokens, c->block_tokens) < mask->k;
    default: return true;
    }
}

static bool applies(const qn_mask_t *mask, uint32_t head)
{
    return mask->layer_from <= 1 && mask->layer_to > 1 && head >= mask->head_from && head < mask->head_to;
}

/* Fills in the weights of one row; returns how many rows of keys and values it takes. */
static uint64_t direct(const world_t *w, uint32_t row, uint32_t head, double *weights)
{
    const mask_case_t *c = w->c;
    uint32_t end = row + 1;
    double scores[POSITIONS], total = 0;
    bool candidates[POSITIONS], seen[POSITIONS];
    uint64_t read = 0;
    for (uint32_t p = 0; p < end; p++) {
        scores[p] = score_of(w, row, p, head);
        candidates[p] = !c->window || p + c->window >= end;
        for (uint32_t i = 0; i < c->mask_count; i++) {
            const qn_mask_t *mask = &c->masks[i];
            bool span = mask->kind == QN_MASK_WINDOW || mask->kind == QN_MASK_SINK_WINDOW;
            bool sink = mask->kind == QN_MASK_SINK_WINDOW && p < mask->sinks;
            if (applies(mask, head) && span && !sink && p + mask->window < end) candidates[p] = false;
        }
    }
    for (uint32_t p = 0; p < end; p++) {
        seen[p] = candidates[p];
        for (uint32_t i = 0; seen[p] && i < c->mask_count; i++)
            seen[p] = !applies(&c->masks[i], head) || keeps(c, &c->masks[i], scores, candidates, end, p);
        if (seen[p]) total += exp(scores[p]);
        read += candidates[p] + seen[p];
    }
    for (uint32_t p = 0; p < end; p++)
        weights[p] = seen[p] ? exp(scores[p]) / total : 0;
    return read;
}

static void check_rows(const world_t *w, const char *name, const float *out, const float *shown, const uint64_t *read)
{
    uint64_t expected_read = 0, all = 0;
    for (uint32_t row = 0; row < POSITIONS; row++)
        for (uint32_t head = 0; head < HEADS; head++) {
            double weights[POSITIONS];
            size_t at = (size_t)row * HEADS + head;
            expected_read += direct(w, row, head, weights);
            all += 2 * (w->c->window && row + 1 > w->c->window ? w->c->window : row + 1);
            for (uint32_t p = 0; p <= row; p++)
                if (fabs(weights[p] - (double)shown[at * POSITIONS + p]) > 2e-5)
                    fail_msg("%s, %s: row %u, head %u, position %u: weight %g, expected %g", w->c->what, name, row,
                             head, p, (double)shown[at * POSITIONS + p], weights[p]);
            for (uint32_t d = 0; d < w->dim; d++) {
                double sum = 0;
                for (uint32_t p = 0; p <= row; p++)
                    if (weights[p] > 0) sum += weights[p] * (double)cached(w, 1, p, head)[d];
                if (fabs(sum - (double)out[at * w->dim + d]) > 5e-5)
                    fail_msg("%s, %s: row %u, head %u, element %u: %g, expected %g", w->c->what, name, row, head, d,
                             (double)out[at * w->dim + d], sum);
            }
        }
    assert_int_equal(read[0], expected_read);
    assert_int_equal(read[1], all);
}

static void test_masks_every_rule_is_what_it_says(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"reference", "avx2", "avx512"};
    static const uint32_t DIMS[] = {32, 20};
    for (size_t i = 0; i < CASE_COUNT * 2; i++) {
        world_t w;
        make_world(&w, &CASES[i / 2], DIMS[i % 2]);
        size_t rows = (size_t)POSITIONS * HEADS;
        float *out = malloc(rows * w.dim * sizeof *out), *shown = malloc(rows * POSITIONS * sizeof *shown);
        for (size_t n = 0; n < 3; n++) {
            uint64_t read[2 * POSITIONS] = {0};
            if (!check_kernel(QN_OP_ATTENTION_PROBED, NAMES[n])) continue;
            memset(shown, 0, rows * POSITIONS * sizeof *shown);
            attend(&w, NAMES[n], POSITIONS, out, shown, read);
            check_rows(&w, NAMES[n], out, shown, read);
        }
        free(out);
        free(shown);
        free_world(&w);
    }
}

static void test_masks_bits_do_not_depend_on_the_cut(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"reference", "avx2", "avx512"};
    static const uint32_t CHUNKS[] = {1, 7, 64};
    for (size_t i = 0; i < CASE_COUNT * 3; i++) {
        world_t w;
        make_world(&w, &CASES[i / 3], 32);
        size_t bytes = (size_t)POSITIONS * HEADS * 32 * sizeof(float);
        float *whole = malloc(bytes), *cut = malloc(bytes);
        const char *name = NAMES[i % 3];
        for (size_t c = 0; check_kernel(QN_OP_ATTENTION_PROBED, name) && c < 3; c++) {
            attend(&w, name, POSITIONS, whole, NULL, NULL);
            attend(&w, name, CHUNKS[c], cut, NULL, NULL);
            assert_memory_equal(whole, cut, bytes);
        }
        free(whole);
        free(cut);
        free_world(&w);
    }
}

static void test_blend_reads_only_what_counts(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4}, y[4] = {10, 20, 30, 40}, out[4], nothing[4] = {NAN, NAN, NAN, NAN};
    const struct {
        qn_blend_t a;
        float want[4];
    } ROWS[] = {
        {{.x = x, .x_factor = 1}, {1, 2, 3, 4}},
        {{.x = nothing, .y = y, .y_factor = 2}, {20, 40, 60, 80}},
        {{.x = x, .x_factor = 1, .y = y, .y_factor = 1}, {11, 22, 33, 44}},
        {{.x = x, .x_factor = 1, .y = y, .y_factor = -1, .y_is_row = true}, {-9, -18, -7, -16}},
        {{.x = nothing, .y = nothing}, {0, 0, 0, 0}},
    };
    qn_stream_t *stream = check_stream(1);
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        qn_blend_t a = ROWS[i].a;
        a.rows = 2;
        a.width = 2;
        a.out = out;
        check_kernel(QN_OP_BLEND, "reference")->launch(stream, &a);
        assert_memory_equal(out, ROWS[i].want, sizeof out);
    }
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks_every_rule_is_what_it_says),
        cmocka_unit_test(test_masks_bits_do_not_depend_on_the_cut),
        cmocka_unit_test(test_blend_reads_only_what_counts),
    };
    return cmocka_run_group_tests_name("masks", tests, NULL, NULL);
}
