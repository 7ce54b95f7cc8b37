/* What is this?      The fused launches against their parts on the GPU, bit by bit; the parts are checked against the
 *                    reference elsewhere.
 * State owned:       none.
 * Must never:        compare what fused.h calls scratch.
 * Read next:         kernels/fused.h, kernels/cuda/matmul/matmul_skinny.cu, kernels/cuda/attention/attention_decode.cu. */
#include "tests/gpu/check.h"

/* ---- norm_matmul ---- */

typedef struct {
    uint32_t tokens, inputs, outputs[QN_MATMUL_PARTS];
    bool norm, gated, residual, bias, logits;
    qn_activation_t kind;
} product_shape_t;

static const product_shape_t PRODUCTS[] = {
    {1, 2048, {2048, 512, 512}, true, false, false, false, false, 0},
    {3, 1032, {520, 64, 72}, true, false, false, true, false, 0},
    {8, 4096, {4096, 1024, 1024}, true, false, false, false, false, 0},
    {9, 2048, {600, 64, 64}, true, false, false, false, false, 0},
    {1, 2048, {8192, 8192}, true, true, false, false, false, QN_ACTIVATION_SILU},
    {5, 1040, {700, 700}, true, true, false, true, false, QN_ACTIVATION_GELU_TANH},
    {8, 520, {77, 77}, true, true, false, false, false, QN_ACTIVATION_GELU},
    {4, 2048, {3000, 3000}, false, true, false, false, false, QN_ACTIVATION_SILU},
    {17, 1040, {300, 300}, true, true, false, false, false, QN_ACTIVATION_SILU},
    {2, 512, {40, 40}, true, true, false, false, false, QN_ACTIVATION_RELU},
    {1, 8192, {2048}, false, false, true, false, false, 0},
    {6, 1000, {300}, false, false, true, true, false, 0},
    {1, 2048, {30011}, true, false, false, false, true, 0},
    {7, 1032, {3001}, true, false, false, false, true, 0},
    {12, 2048, {3001}, true, false, false, false, true, 0},
};

static const product_shape_t WIDE_PRODUCTS[] = {
    {17, 2048, {600, 64, 64}, true, false, false, true, false, 0},
    {33, 1040, {300, 300}, true, true, false, true, false, QN_ACTIVATION_SILU},
    {64, 2048, {4100, 4100}, true, true, false, false, false, QN_ACTIVATION_GELU_TANH},
    {130, 520, {8192, 8192}, false, true, false, false, false, QN_ACTIVATION_GELU},
    {250, 1032, {384, 384}, true, true, false, false, false, QN_ACTIVATION_SILU},
    {100, 3072, {2048}, false, false, true, true, false, 0},
    {70, 1032, {30004}, true, false, false, false, true, 0},
};

static void same_outputs(check_t *check, const void *got, const void *want, size_t bytes)
{
    void *one = hold(&check->held, bytes), *other = hold(&check->held, bytes);
    pull(one, got, bytes);
    pull(other, want, bytes);
    check->cases++;
    if (memcmp(one, other, bytes) == 0) return;
    size_t at = 0;
    while (((char *)one)[at] == ((char *)other)[at])
        at++;
    char text[96];
    snprintf(text, sizeof text, "not the parts' bits from byte %zu of %zu on", at, bytes);
    check_failed(check, text);
}

/* The launch with outputs of its own: all parts', or the activation's. */
static void make_outputs(check_t *check, const product_shape_t *shape, const float *const *residuals,
                         qn_norm_matmul_t *a)
{
    size_t scalar = shape->logits ? 4 : 2;
    a->norm.out = check_poison(check, (size_t)shape->tokens * shape->inputs * 2);
    if (shape->norm) a->matmul.x = a->norm.out;
    for (uint32_t p = 0; p < a->matmul.part_count; p++) {
        qn_matmul_part_t *part = &a->matmul.parts[p];
        size_t count = (size_t)shape->tokens * shape->outputs[p];
        part->out = check_poison(check, count * scalar);
        if (shape->residual) part->residual = part->out = check_push(check, residuals[p], count, QN_SCALAR_BF16);
    }
    if (shape->gated)
        a->activation = (qn_activate_t){.gate = a->matmul.parts[0].out,
                                        .up = a->matmul.parts[1].out,
                                        .tokens = shape->tokens,
                                        .width = shape->outputs[0],
                                        .kind = shape->kind,
                                        .out = check_poison(check, (size_t)shape->tokens * shape->outputs[0] * 2)};
}

/* The parts' product; `wide`: by name. */
static void multiply_parts(check_t *check, const qn_norm_matmul_t *parts, bool wide)
{
    qn_norm_matmul_t product = {.matmul = parts->matmul, .logits = true};
    if (!parts->logits)
        (wide ? qn_cuda_matmul_wide : qn_cuda_matmul)(check->gpu, &parts->matmul);
    else if (wide)
        qn_cuda_norm_matmul_wide(check->gpu, &product);
    else
        qn_cuda_matmul_logits(check->gpu, &parts->matmul);
}

static void check_norm_matmul(check_t *check, const product_shape_t *shape, bool wide)
{
    snprintf(check->label, sizeof check->label, "norm_matmul T %u M %u O %u norm %d gated %d", shape->tokens,
             shape->inputs, shape->outputs[0], shape->norm, shape->gated);
    size_t count = (size_t)shape->tokens * shape->inputs;
    void *x = check_push(check, check_values(check, count, 1, 500, QN_SCALAR_BF16), count, QN_SCALAR_BF16);
    qn_norm_matmul_t fused = {.matmul = {.x = x, .tokens = shape->tokens, .inputs = shape->inputs},
                              .logits = shape->logits};
    const float *residuals[QN_MATMUL_PARTS] = {0};
    if (shape->norm)
        fused.norm = (qn_rmsnorm_t){.x = x,
                                    .rows = shape->tokens,
                                    .width = shape->inputs,
                                    .eps = 1e-5f,
                                    .weight = check_weight(check, shape->inputs, 1, 100, QN_SCALAR_BF16).device,
                                    .weight_offset = shape->gated ? 1 : 0};
    for (uint32_t p = 0; p < QN_MATMUL_PARTS && shape->outputs[p]; p++) {
        size_t o = shape->outputs[p];
        qn_matmul_part_t *part = &fused.matmul.parts[fused.matmul.part_count++];
        part->outputs = (uint32_t)o;
        part->weight =
            check_weight(check, o * shape->inputs, 1 / sqrtf((float)shape->inputs), 1000, QN_SCALAR_BF16).device;
        if (shape->bias) part->bias = check_weight(check, o, 1, 50, QN_SCALAR_BF16).device;
        residuals[p] = check_values(check, shape->tokens * o, 1, 300, QN_SCALAR_BF16);
    }
    qn_norm_matmul_t parts = fused;
    make_outputs(check, shape, residuals, &fused);
    make_outputs(check, shape, residuals, &parts);
    (wide ? qn_cuda_norm_matmul_wide : qn_cuda_norm_matmul)(check->gpu, &fused);
    if (shape->norm) qn_cuda_rmsnorm(check->gpu, &parts.norm);
    multiply_parts(check, &parts, wide);
    if (shape->gated) qn_cuda_activation(check->gpu, &parts.activation);
    must_ok(qn_cuda_stream_wait(check->gpu));
    size_t rows = shape->tokens, scalar = shape->logits ? 4 : 2;
    if (shape->gated) same_outputs(check, fused.activation.out, parts.activation.out, rows * shape->outputs[0] * 2);
    for (uint32_t p = 0; p < fused.matmul.part_count && !shape->gated; p++)
        same_outputs(check, fused.matmul.parts[p].out, parts.matmul.parts[p].out, rows * shape->outputs[p] * scalar);
    check_next(check);
}

/* ---- decode_attention ---- */

#define RUNS_MAX 16

typedef struct {
    uint32_t heads, kv_heads, head_dim, block_tokens, window;
    float softcap;
    bool qk_norm, rope;
} head_shape_t;

typedef struct {
    void (*fused)(qn_stream_t *, const void *), (*attention)(qn_stream_t *, const void *);
    bool (*accepts)(const qn_kernel_case_t *); /* NULL: all */
} kernel_pair_t;

static const kernel_pair_t KERNELS[] = {
    {qn_cuda_decode_attention, qn_cuda_attention_decode, NULL},
    {qn_cuda_decode_attention_resident, qn_cuda_attention_resident, qn_cuda_resident_accepts},
};

static const head_shape_t HEADS[] = {
    {4, 4, 32, 16, 0, 0, false, true},    {32, 8, 64, 16, 0, 0, false, true},
    {14, 2, 64, 5, 70, 0, false, true},   {8, 8, 96, 32, 0, 0, true, true},
    {32, 8, 128, 16, 0, 0, true, true},   {28, 4, 128, 16, 129, 30, false, true},
    {20, 1, 128, 16, 0, 0, false, false}, {8, 4, 256, 16, 100, 50, true, true},
    {6, 3, 80, 16, 0, 0, true, true}, /* by its parts */
    {14, 2, 64, 32, 70, 20, true, true},  {16, 2, 128, 64, 0, 0, false, false},
};

/* What both sides start from: launches get copies. */
typedef struct {
    qn_decode_attention_t a;
    float *q, *k, *v;
    void *cache;
    size_t q_count, k_count, cache_bytes;
} attention_case_t;

static void make_case(check_t *check, const head_shape_t *shape, uint32_t runs, const uint32_t *positions,
                      attention_case_t *c)
{
    uint32_t P = shape->block_tokens, blocks = 0, longest = 0, dim = shape->head_dim;
    for (uint32_t i = 0; i < runs; i++) {
        blocks += positions[i] / P + 1;
        if (positions[i] / P + 1 > longest) longest = positions[i] / P + 1;
    }
    qn_kv_t kv = {NULL, QN_SCALAR_BF16, 2, blocks, P, shape->kv_heads, dim};
    uint32_t *table = hold(&check->held, (size_t)runs * longest * 4), next = blocks;
    qn_run_t *list = hold(&check->held, runs * sizeof *list);
    int64_t *rows = hold(&check->held, runs * 8);
    for (uint32_t i = 0; i < runs; i++) {
        list[i] = (qn_run_t){.slot = runs - 1 - i, .position = positions[i], .tokens = 1, .first = i};
        uint32_t *own = table + (size_t)list[i].slot * longest;
        for (uint32_t b = 0; b <= positions[i] / P; b++)
            own[b] = --next;
        rows[i] = i == 2 ? -1 : (int64_t)own[positions[i] / P] * P + positions[i] % P; /* run 2 has ended */
    }
    float *angles = hold(&check->held, (size_t)runs * dim * 4);
    for (uint32_t i = 0; i < runs * dim; i++)
        angles[i] = cosf((float)i);
    c->q_count = (size_t)runs * shape->heads * dim, c->k_count = (size_t)runs * shape->kv_heads * dim;
    c->q = check_values(check, c->q_count, 1.5f, 200, QN_SCALAR_BF16);
    c->k = check_values(check, c->k_count, 1, 200, QN_SCALAR_BF16);
    c->v = check_values(check, c->k_count, 1, 200, QN_SCALAR_BF16);
    size_t cache_count = (size_t)4 * blocks * P * shape->kv_heads * dim;
    c->cache_bytes = cache_count * 2;
    c->cache =
        encode(&check->held, check_values(check, cache_count, 1, 0, QN_SCALAR_BF16), cache_count, QN_SCALAR_BF16);
    c->a.attention = (qn_attention_t){.kv = kv,
                                      .layer = 1,
                                      .heads = shape->heads,
                                      .window = shape->window,
                                      .scale = 1 / sqrtf((float)dim),
                                      .softcap = shape->softcap,
                                      .run_count = runs,
                                      .runs = push(&check->arena, list, runs * sizeof *list),
                                      .tables = {.block_tables = push(&check->arena, table, (size_t)runs * longest * 4),
                                                 .slots = runs,
                                                 .table_blocks = longest}};
    c->a.write = (qn_kv_write_t){.kv = kv, .layer = 1, .tokens = runs, .kv_rows = push(&check->arena, rows, runs * 8)};
    c->a.rope = (qn_rope_t){.tokens = runs, .heads = shape->heads, .kv_heads = shape->kv_heads, .head_dim = dim};
    if (shape->rope) c->a.rope.angles = push(&check->arena, angles, (size_t)runs * dim * 4);
    if (shape->qk_norm) {
        c->a.q_norm = (qn_rmsnorm_t){.rows = runs * shape->heads,
                                     .width = dim,
                                     .eps = 1e-6f,
                                     .weight_offset = 1,
                                     .weight = check_weight(check, dim, 1, 0, QN_SCALAR_BF16).device};
        c->a.k_norm = (qn_rmsnorm_t){.rows = runs * shape->kv_heads,
                                     .width = dim,
                                     .eps = 1e-5f,
                                     .weight = check_weight(check, dim, 1, 0, QN_SCALAR_F32).device};
    }
}

/* The launch with arrays of its own. */
static qn_decode_attention_t own_arrays(check_t *check, const attention_case_t *c, bool qk_norm)
{
    qn_decode_attention_t a = c->a;
    void *q = check_push(check, c->q, c->q_count, QN_SCALAR_BF16);
    void *k = check_push(check, c->k, c->k_count, QN_SCALAR_BF16);
    void *v = check_push(check, c->v, c->k_count, QN_SCALAR_BF16);
    a.attention.kv.data = a.write.kv.data = push(&check->arena, c->cache, c->cache_bytes);
    a.attention.q = a.rope.q = q, a.rope.k = k, a.write.k = k, a.write.v = v;
    if (qk_norm) a.q_norm.x = a.q_norm.out = q, a.k_norm.x = a.k_norm.out = k;
    a.attention.out = check_poison(check, c->q_count * 2);
    return a;
}

static void check_decode_attention(check_t *check, const kernel_pair_t *kernels, const head_shape_t *shape,
                                   uint32_t runs, const uint32_t *positions)
{
    attention_case_t c = {0};
    qn_kernel_case_t as_chosen = {.heads = shape->heads,
                                  .kv_heads = shape->kv_heads,
                                  .head_dim = shape->head_dim,
                                  .block_tokens = shape->block_tokens,
                                  .kv_scalar = QN_SCALAR_BF16};
    if (kernels->accepts && !kernels->accepts(&as_chosen)) return;
    snprintf(check->label, sizeof check->label, "decode_attention H %u K %u D %u window %u, %u runs from %u",
             shape->heads, shape->kv_heads, shape->head_dim, shape->window, runs, positions[0]);
    make_case(check, shape, runs, positions, &c);
    qn_decode_attention_t fused = own_arrays(check, &c, shape->qk_norm), parts = own_arrays(check, &c, shape->qk_norm);
    kernels->fused(check->gpu, &fused);
    if (shape->qk_norm) qn_cuda_rmsnorm(check->gpu, &parts.q_norm), qn_cuda_rmsnorm(check->gpu, &parts.k_norm);
    if (shape->rope) qn_cuda_rope(check->gpu, &parts.rope);
    qn_cuda_kv_write(check->gpu, &parts.write);
    kernels->attention(check->gpu, &parts.attention);
    must_ok(qn_cuda_stream_wait(check->gpu));
    same_outputs(check, fused.write.kv.data, parts.write.kv.data, c.cache_bytes);
    size_t row = (size_t)shape->heads * shape->head_dim * 2;
    for (uint32_t i = 0; i < runs; i++) /* what a run that has ended gets is nobody's */
        if (i != 2)
            same_outputs(check, (char *)fused.attention.out + i * row, (char *)parts.attention.out + i * row, row);
    check_next(check);
}

static const uint32_t LENGTHS[] = {0, 1, 200, 63, 64, 65, 127, 128, 511, 1023, 1500, 4095, 4096, 5000};
#define LENGTH_COUNT (sizeof LENGTHS / sizeof LENGTHS[0])

unsigned check_fused(void)
{
    unsigned failures = 0;
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        check_t check = check_begin(deterministic ? "fused, deterministic" : "fused", QN_SCALAR_BF16, deterministic);
        for (unsigned i = 0; i < sizeof PRODUCTS / sizeof PRODUCTS[0]; i++)
            if (deterministic || PRODUCTS[i].tokens <= 8) check_norm_matmul(&check, &PRODUCTS[i], false);
        for (unsigned i = 0; i < sizeof WIDE_PRODUCTS / sizeof WIDE_PRODUCTS[0] && !deterministic; i++)
            check_norm_matmul(&check, &WIDE_PRODUCTS[i], true);
        for (unsigned i = 0; i < 2 * sizeof HEADS / sizeof HEADS[0]; i++) {
            const head_shape_t *shape = &HEADS[i / 2];
            for (unsigned l = 0; l < LENGTH_COUNT; l++)
                check_decode_attention(&check, &KERNELS[i % 2], shape, 1, &LENGTHS[l]);
            check_decode_attention(&check, &KERNELS[i % 2], shape, 4, LENGTHS);
            check_decode_attention(&check, &KERNELS[i % 2], shape, LENGTH_COUNT, LENGTHS);
        }
        failures += check_end(&check);
    }
    return failures;
}
