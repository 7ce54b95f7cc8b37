/* What is this?      Every CUDA kernel against the plain CPU reference: types, odd sizes, planted outliers, poisoned
 *                    outputs; and, where it is promised, the same bits alone and in a batch.
 * State owned:       device memory of the check at hand.
 * Must never:        pass on an output that was not written: outputs are filled with NaN first.
 * Read next:         check_attention.c, check_sampling.c; tests/gpu/run.sh. */
#include "tests/gpu/check.h"

check_t check_begin(const char *op, qn_scalar_t activations, bool deterministic)
{
    check_t check = {.op = op, .activations = activations, .random = {20240601}};
    must_ok(qn_stream_create(&(qn_stream_options_t){0}, &check.cpu));
    must_ok(qn_cuda_stream_create(&(qn_cuda_options_t){.activations = activations,
                                                       .deterministic = deterministic,
                                                       .dependent_launch = true,
                                                       .max_sequences = 256,
                                                       .heads = 64,
                                                       .kv_heads = 8,
                                                       .head_dim = 256},
                                  &check.gpu));
    arena_make(&check.arena, (size_t)1 << 30);
    return check;
}

void check_next(check_t *check)
{
    must_ok(qn_cuda_stream_wait(check->gpu));
    check->arena.used = 0;
    held_free(&check->held);
}

unsigned check_end(check_t *check)
{
    check_next(check);
    printf("%-18s %-5s %5u cases  worst %8.2e of %8.2e allowed  %s\n", check->op,
           check->activations == QN_SCALAR_F32 ? "f32" : "bf16", check->cases, check->worst, check->allowed,
           check->failures ? "FAILED" : "ok");
    qn_cuda_stream_destroy(&check->gpu);
    qn_stream_destroy(&check->cpu);
    must(cudaFree(check->arena.base), "free");
    return check->failures;
}

float *check_values(check_t *check, size_t count, float deviation, uint32_t outliers, qn_scalar_t scalar)
{
    float *values = hold(&check->held, count * sizeof *values);
    fill(&check->random, values, count, deviation, outliers, scalar);
    return values;
}

void *check_push(check_t *check, const float *values, size_t count, qn_scalar_t scalar)
{
    return push(&check->arena, encode(&check->held, values, count, scalar), count * qn_scalar_bytes(scalar));
}

void *check_poison(check_t *check, size_t bytes)
{
    void *memory = arena_take(&check->arena, bytes);
    must(cudaMemset(memory, 0xff, bytes), "poison");
    must(cudaDeviceSynchronize(), "poison");
    return memory;
}

pair_t check_weight(check_t *check, size_t count, float deviation, uint32_t outliers, qn_scalar_t scalar)
{
    void *bytes = encode(&check->held, check_values(check, count, deviation, outliers, scalar), count, scalar);
    void *device = push(&check->arena, bytes, count * qn_scalar_bytes(scalar));
    return (pair_t){{.data = bytes, .scalar = scalar}, {.data = device, .scalar = scalar}};
}

void check_failed(check_t *check, const char *what)
{
    if (check->failures++ < 8) printf("  %s %s: %s\n", check->op, check->label, what);
}

void check_compare(check_t *check, const void *device, qn_scalar_t scalar, const float *want, size_t count,
                   double relative, double absolute)
{
    check->cases++;
    must_ok(qn_cuda_stream_wait(check->gpu));
    void *bytes = hold(&check->held, count * qn_scalar_bytes(scalar));
    pull(bytes, device, count * qn_scalar_bytes(scalar));
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        double got = qn_load(bytes, scalar, i);
        double size = fabs(want[i]) + (check->terms ? fabs(check->terms[i]) : 0);
        double error = fabs(got - want[i]) / (relative * size + absolute);
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error, at = i;
    }
    check->terms = NULL;
    if (worst * relative > check->worst) check->worst = worst * relative, check->allowed = relative;
    if (worst <= 1) return;
    char text[160];
    snprintf(text, sizeof text, "element %zu of %zu is %g, not %g", at, count, qn_load(bytes, scalar, at), want[at]);
    check_failed(check, text);
}

/* Relative error of one rounding to the type, with some room; sums are checked with an absolute part besides. */
double check_rounding(qn_scalar_t scalar) { return scalar == QN_SCALAR_F32 ? 2e-5 : 6e-3; }

/* ---- rows ---- */

static void check_rows(check_t *check, qn_scalar_t table_scalar, uint32_t width, uint32_t count, bool plain)
{
    enum { TABLE = 50 };
    snprintf(check->label, sizeof check->label, "width %u count %u table %u", width, count, table_scalar);
    pair_t table = check_weight(check, (size_t)TABLE * width, 1, 500, table_scalar);
    pair_t position_table = check_weight(check, (size_t)TABLE * width, 1, 500, table_scalar);
    uint32_t *rows = hold(&check->held, count * sizeof *rows), *positions = hold(&check->held, count * sizeof *rows);
    for (uint32_t i = 0; i < count; i++)
        rows[i] = random_below(&check->random, TABLE), positions[i] = random_below(&check->random, TABLE);
    float *want = hold(&check->held, (size_t)count * width * sizeof *want);
    qn_embedding_t a = {.table = table.host,
                        .ids = rows,
                        .positions = positions,
                        .tokens = count,
                        .width = width,
                        .multiplier = plain ? 1 : 48.5f,
                        .out = want};
    if (!plain) a.position_table = position_table.host;
    qn_cpu_embedding(check->cpu, &a);
    a.table = table.device;
    if (!plain) a.position_table = position_table.device;
    a.ids = push(&check->arena, rows, count * sizeof *rows);
    a.positions = push(&check->arena, positions, count * sizeof *rows);
    a.out = check_poison(check, (size_t)count * width * 4);
    qn_cuda_embedding(check->gpu, &a);
    check_compare(check, a.out, check->activations, want, (size_t)count * width, check_rounding(check->activations),
                  plain ? 0 : 1e-4);
    if (table_scalar == check->activations && plain) {
        void *out = check_poison(check, (size_t)count * width * 4);
        qn_cuda_gather_rows(
            check->gpu,
            &(qn_gather_rows_t){.x = table.device.data, .rows = a.ids, .row_count = count, .width = width, .out = out});
        check_compare(check, out, check->activations, want, (size_t)count * width, 1e-9, 0);
    }
    check_next(check);
}

static unsigned check_embedding(qn_scalar_t activations)
{
    static const uint32_t WIDTHS[] = {1, 8, 30, 64, 2048, 5000};
    check_t check = check_begin("embedding, gather", activations, false);
    for (unsigned i = 0; i < 6; i++)
        for (unsigned scalar = 0; scalar < 4; scalar++)
            check_rows(&check, (qn_scalar_t)(scalar % 2), WIDTHS[i], 37, scalar < 2);
    return check_end(&check);
}

/* Plain; or as Gemma has it: offset weights, and the result added to the residual. Both also in place. */
static void check_norm(check_t *check, qn_scalar_t weight_scalar, uint32_t rows, uint32_t width, bool gemma)
{
    size_t count = (size_t)rows * width;
    snprintf(check->label, sizeof check->label, "rows %u width %u gemma %d", rows, width, gemma);
    pair_t weight = check_weight(check, width, 1, 100, weight_scalar);
    float *x = check_values(check, count, 1, 300, check->activations), *want = hold(&check->held, count * sizeof *want);
    float *residual = check_values(check, count, 2, 300, check->activations);
    qn_rmsnorm_t a = {.x = x, .weight = weight.host, .rows = rows, .width = width, .eps = 1e-5f, .out = want};
    if (gemma) a.residual = residual, a.weight_offset = 1;
    qn_cpu_rmsnorm(check->cpu, &a);
    a.x = check_push(check, x, count, check->activations);
    a.weight = weight.device;
    if (gemma) a.residual = check_push(check, residual, count, check->activations);
    a.out = check_poison(check, count * 4);
    qn_cuda_rmsnorm(check->gpu, &a);
    double absolute = gemma ? check_rounding(check->activations) : 1e-9; /* the sum may cancel */
    check_compare(check, a.out, check->activations, want, count, check_rounding(check->activations), absolute);
    a.out = gemma ? (void *)a.residual : (void *)a.x;
    qn_cuda_rmsnorm(check->gpu, &a);
    check_compare(check, a.out, check->activations, want, count, check_rounding(check->activations), absolute);
    check_next(check);
}

static const uint32_t NORM_WIDTHS[] = {3, 32, 64, 100, 128, 512, 520, 2048, 3001, 4096, 16384};
#define NORM_WIDTH_COUNT (sizeof NORM_WIDTHS / sizeof NORM_WIDTHS[0])

static unsigned check_rmsnorm(qn_scalar_t activations)
{
    check_t check = check_begin("rmsnorm", activations, false);
    for (unsigned i = 0; i < NORM_WIDTH_COUNT; i++)
        for (unsigned scalar = 0; scalar < 4; scalar++)
            for (uint32_t rows = 1; rows < 40; rows += 12)
                check_norm(&check, (qn_scalar_t)(scalar % 2), rows, NORM_WIDTHS[i], scalar >= 2);
    return check_end(&check);
}

/* Rows far from zero: their variance is small beside their squares. */
static void check_layer(check_t *check, qn_scalar_t weight_scalar, uint32_t rows, uint32_t width, bool with_bias)
{
    size_t count = (size_t)rows * width;
    snprintf(check->label, sizeof check->label, "rows %u width %u bias %d", rows, width, with_bias);
    pair_t weight = check_weight(check, width, 1, 100, weight_scalar),
           bias = check_weight(check, width, 1, 0, weight_scalar);
    float *x = check_values(check, count, 1, 300, check->activations), *want = hold(&check->held, count * sizeof *want);
    for (size_t i = 0; i < count; i++)
        x[i] = as_scalar(x[i] + 8, check->activations);
    qn_layernorm_t a = {.x = x, .weight = weight.host, .rows = rows, .width = width, .eps = 1e-5f, .out = want};
    if (with_bias) a.bias = bias.host;
    qn_cpu_layernorm(check->cpu, &a);
    a.x = check_push(check, x, count, check->activations);
    a.weight = weight.device;
    if (with_bias) a.bias = bias.device;
    a.out = check_poison(check, count * 4);
    qn_cuda_layernorm(check->gpu, &a);
    double relative = check_rounding(check->activations);
    check_compare(check, a.out, check->activations, want, count, relative, relative);
    a.out = (void *)a.x;
    qn_cuda_layernorm(check->gpu, &a);
    check_compare(check, a.out, check->activations, want, count, relative, relative);
    check_next(check);
}

static unsigned check_layernorm(qn_scalar_t activations)
{
    check_t check = check_begin("layernorm", activations, false);
    for (unsigned i = 1; i < NORM_WIDTH_COUNT; i++)
        for (unsigned scalar = 0; scalar < 4; scalar++)
            check_layer(&check, (qn_scalar_t)(scalar % 2), 1 + i, NORM_WIDTHS[i], scalar < 2);
    return check_end(&check);
}

static void check_gate(check_t *check, qn_activation_t kind, uint32_t tokens, uint32_t width, bool gated)
{
    size_t count = (size_t)tokens * width;
    snprintf(check->label, sizeof check->label, "kind %d tokens %u width %u gated %d", kind, tokens, width, gated);
    float *gate = check_values(check, count, 2, 100, check->activations);
    float *up = check_values(check, count, 1, 100, check->activations), *want = hold(&check->held, count * 4);
    qn_activate_t a = {
        .gate = gate, .up = gated ? up : NULL, .tokens = tokens, .width = width, .kind = kind, .out = want};
    qn_cpu_activation(check->cpu, &a);
    a.gate = a.out = check_push(check, gate, count, check->activations);
    if (gated) a.up = check_push(check, up, count, check->activations);
    qn_cuda_activation(check->gpu, &a);
    /* The reference forms 1 + tanh, which is 0 or has no digits left far below zero. */
    check_compare(check, a.out, check->activations, want, count, check_rounding(check->activations), 1e-5);
    check_next(check);
}

static unsigned check_activation(qn_scalar_t activations)
{
    check_t check = check_begin("activation", activations, false);
    for (int kind = QN_ACTIVATION_SILU; kind <= QN_ACTIVATION_RELU; kind++)
        for (int gated = 0; gated < 2; gated++) {
            check_gate(&check, (qn_activation_t)kind, 1, 1, gated);
            check_gate(&check, (qn_activation_t)kind, 3, 172, gated);
            check_gate(&check, (qn_activation_t)kind, 1, 8192, gated);
            check_gate(&check, (qn_activation_t)kind, 33, 1001, gated);
        }
    return check_end(&check);
}

static unsigned check_softcap(void)
{
    check_t check = check_begin("softcap", QN_SCALAR_F32, false);
    for (uint32_t rows = 1; rows < 9; rows += 7) {
        size_t count = (size_t)rows * 32003;
        float *x = check_values(&check, count, 20, 500, QN_SCALAR_F32);
        qn_softcap_t a = {.x = check_push(&check, x, count, QN_SCALAR_F32), .rows = rows, .width = 32003, .cap = 30};
        qn_cuda_softcap(check.gpu, &a);
        void *device = a.x;
        a.x = x;
        qn_cpu_softcap(check.cpu, &a);
        check_compare(&check, device, QN_SCALAR_F32, x, count, 1e-6, 1e-7);
        check_next(&check);
    }
    return check_end(&check);
}

/* ---- rope and the cache ---- */

/* Dynamic scaling: angles of lengths on both sides of the original context. */
static void check_dynamic_angles(check_t *check, uint32_t tokens, uint32_t dim)
{
    snprintf(check->label, sizeof check->label, "dynamic, tokens %u dim %u", tokens, dim);
    uint32_t *positions = hold(&check->held, tokens * 4), *lengths = hold(&check->held, tokens * 4);
    for (uint32_t t = 0; t < tokens; t++) {
        positions[t] = random_below(&check->random, 3000);
        lengths[t] = positions[t] + 1 + random_below(&check->random, 2000);
    }
    float *angles = hold(&check->held, (size_t)tokens * dim * 4);
    qn_rope_angles_t a = {.positions = positions,
                          .lengths = lengths,
                          .theta = 10000,
                          .factor = 4,
                          .original_positions = 2048,
                          .scale = 1,
                          .tokens = tokens,
                          .head_dim = dim,
                          .out = angles};
    qn_cpu_rope_angles(check->cpu, &a);
    a.positions = push(&check->arena, positions, tokens * 4);
    a.lengths = push(&check->arena, lengths, tokens * 4);
    a.out = check_poison(check, (size_t)tokens * dim * 4);
    qn_cuda_rope_angles(check->gpu, &a);
    /* One unit in the last place of a frequency times a position in the thousands. */
    check_compare(check, a.out, QN_SCALAR_F32, angles, (size_t)tokens * dim, 1e-6, 1e-3);
    check_next(check);
}

static void check_rotation(check_t *check, uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t dim)
{
    snprintf(check->label, sizeof check->label, "tokens %u heads %u/%u dim %u", tokens, heads, kv_heads, dim);
    size_t q_count = (size_t)tokens * heads * dim, k_count = (size_t)tokens * kv_heads * dim;
    uint32_t *positions = hold(&check->held, tokens * sizeof *positions);
    float *frequencies = hold(&check->held, dim / 2 * sizeof *frequencies);
    for (uint32_t t = 0; t < tokens; t++)
        positions[t] = random_below(&check->random, 131072);
    for (uint32_t i = 0; i < dim / 2; i++)
        frequencies[i] = powf(500000, -2.0f * (float)i / (float)dim);
    float *angles = hold(&check->held, (size_t)tokens * dim * 4);
    qn_rope_angles_t angle = {.positions = positions,
                              .frequencies = frequencies,
                              .scale = 1.25f,
                              .tokens = tokens,
                              .head_dim = dim,
                              .out = angles};
    qn_cpu_rope_angles(check->cpu, &angle);
    angle.positions = push(&check->arena, positions, tokens * sizeof *positions);
    angle.frequencies = push(&check->arena, frequencies, dim / 2 * sizeof *frequencies);
    angle.out = check_poison(check, (size_t)tokens * dim * 4);
    qn_cuda_rope_angles(check->gpu, &angle);
    check_compare(check, angle.out, QN_SCALAR_F32, angles, (size_t)tokens * dim, 1e-6, 1e-6);

    float *q = check_values(check, q_count, 1, 300, check->activations);
    float *k = check_values(check, k_count, 1, 300, check->activations);
    void *q_device = check_push(check, q, q_count, check->activations);
    void *k_device = check_push(check, k, k_count, check->activations);
    qn_cpu_rope(check->cpu, &(qn_rope_t){.angles = angles,
                                         .q = q,
                                         .k = k,
                                         .tokens = tokens,
                                         .heads = heads,
                                         .kv_heads = kv_heads,
                                         .head_dim = dim});
    qn_cuda_rope(check->gpu, &(qn_rope_t){.angles = angle.out,
                                          .q = q_device,
                                          .k = k_device,
                                          .tokens = tokens,
                                          .heads = heads,
                                          .kv_heads = kv_heads,
                                          .head_dim = dim});
    double rounding = check_rounding(check->activations), absolute = rounding / 10;
    check_compare(check, q_device, check->activations, q, q_count, rounding, absolute);
    check_compare(check, k_device, check->activations, k, k_count, rounding, absolute);
    check_next(check);
}

static unsigned check_rope(qn_scalar_t activations)
{
    check_t check = check_begin("rope", activations, false);
    check_rotation(&check, 1, 32, 8, 64);
    check_rotation(&check, 17, 28, 4, 128);
    check_rotation(&check, 5, 3, 1, 80);
    check_rotation(&check, 5, 3, 1, 18);
    check_dynamic_angles(&check, 40, 64);
    check_dynamic_angles(&check, 7, 18);
    return check_end(&check);
}

/* The whole region is compared, so a write beside the named rows shows. */
static void check_cache(check_t *check, qn_scalar_t kv_scalar, uint32_t kv_heads, uint32_t dim)
{
    enum { LAYERS = 2, BLOCKS = 9, P = 5, TOKENS = 11, COPIES = 5 };
    snprintf(check->label, sizeof check->label, "kv %u heads %u dim %u", kv_scalar, kv_heads, dim);
    size_t row = (size_t)kv_heads * dim, count = (size_t)LAYERS * 2 * BLOCKS * P * row;
    float *cache = check_values(check, count, 1, 0, kv_scalar);
    void *host = encode(&check->held, cache, count, kv_scalar);
    qn_kv_t kv = {host, kv_scalar, LAYERS, BLOCKS, P, kv_heads, dim}, on_device = kv;
    on_device.data = push(&check->arena, host, count * qn_scalar_bytes(kv_scalar));
    float *k = check_values(check, TOKENS * row, 1, 100, check->activations);
    float *v = check_values(check, TOKENS * row, 1, 100, check->activations);
    int64_t rows[TOKENS];
    for (int t = 0; t < TOKENS; t++)
        rows[t] = t == 4 ? -1 : (t * 7 + 3) % (BLOCKS * P);
    qn_kv_write_t write = {.kv = kv, .layer = 1, .tokens = TOKENS, .k = k, .v = v, .kv_rows = rows};
    qn_cpu_kv_write(check->cpu, &write);
    write = (qn_kv_write_t){.kv = on_device,
                            .layer = 1,
                            .tokens = TOKENS,
                            .k = check_push(check, k, TOKENS * row, check->activations),
                            .v = check_push(check, v, TOKENS * row, check->activations),
                            .kv_rows = push(&check->arena, rows, sizeof rows)};
    qn_cuda_kv_write(check->gpu, &write);
    static const qn_copy_t COPY[COPIES] = {{0, 3}, {3, 5}, {1, 0}, {5, 8}, {2, 1}};
    qn_cpu_block_copy(check->cpu, &(qn_block_copy_args_t){kv, COPY, COPIES});
    const qn_copy_t *copies = push(&check->arena, COPY, sizeof COPY);
    qn_cuda_block_copy(check->gpu, &(qn_block_copy_args_t){on_device, copies, COPIES});
    decode(host, count, kv_scalar, cache);
    check_compare(check, on_device.data, kv_scalar, cache, count, 1e-9, 0);
    check_next(check);
}

static unsigned check_kv(qn_scalar_t activations)
{
    check_t check = check_begin("kv_write, copy", activations, false);
    for (unsigned scalar = 0; scalar < 2; scalar++) {
        check_cache(&check, (qn_scalar_t)scalar, 8, 128);
        check_cache(&check, (qn_scalar_t)scalar, 3, 6);
        check_cache(&check, (qn_scalar_t)scalar, 1, 1);
    }
    return check_end(&check);
}

/* ---- products ---- */

typedef struct {
    const char *name;
    void (*launch)(qn_stream_t *, const void *);
    bool logits;
} product_case_t;

static const product_case_t PRODUCTS[] = {
    {"cuda", qn_cuda_matmul, false},          {"plain", qn_cuda_matmul_plain, false},
    {"skinny", qn_cuda_matmul_skinny, false}, {"blas", qn_cuda_matmul_blas, false},
    {"wide", qn_cuda_matmul_wide, false},     {"logits", qn_cuda_matmul_logits, true},
};

typedef struct {
    uint32_t tokens, inputs, outputs[QN_MATMUL_PARTS];
} product_shape_t;

static void check_product(check_t *check, const product_case_t *product, const product_shape_t *shape,
                          qn_scalar_t weight_scalar)
{
    uint32_t parts = 0, t = shape->tokens, m = shape->inputs;
    while (parts < QN_MATMUL_PARTS && shape->outputs[parts])
        parts++;
    snprintf(check->label, sizeof check->label, "%s T %u M %u O %u,%u,%u weights %u", product->name, t, m,
             shape->outputs[0], shape->outputs[1], shape->outputs[2], weight_scalar);
    float *x = check_values(check, (size_t)t * m, 1, 500, check->activations);
    qn_matmul_t host = {.x = x, .tokens = t, .inputs = m, .part_count = parts}, device = host;
    device.x = check_push(check, x, (size_t)t * m, check->activations);
    qn_scalar_t out = product->logits ? QN_SCALAR_F32 : check->activations;
    float *wants[QN_MATMUL_PARTS], *terms = NULL;
    for (uint32_t p = 0; p < parts; p++) {
        size_t o = shape->outputs[p], count = t * o;
        pair_t weight = check_weight(check, o * m, 1 / sqrtf((float)m), 1000, weight_scalar);
        pair_t bias = check_weight(check, o, 1, 50, weight_scalar);
        wants[p] = hold(&check->held, count * 4);
        host.parts[p] = (qn_matmul_part_t){.weight = weight.host, .out = wants[p], .outputs = (uint32_t)o};
        device.parts[p] = host.parts[p];
        device.parts[p].weight = weight.device;
        device.parts[p].out = check_poison(check, count * 4);
        if (p != 1 && !product->logits) host.parts[p].bias = bias.host, device.parts[p].bias = bias.device;
        if (p != 0 || product->logits) continue;
        /* in place, as the residual stream is */
        float *residual = check_values(check, count, 1, 300, out);
        memcpy(wants[p], residual, count * 4);
        /* Where the library adds them, the product, the bias and the residual are rounded one by one. */
        terms = hold(&check->held, count * 4);
        for (size_t i = 0; i < count; i++)
            terms[i] = 2 * fabsf(residual[i]) + fabsf(qn_load(bias.host.data, weight_scalar, i % o));
        host.parts[p].residual = wants[p];
        device.parts[p].residual = device.parts[p].out = check_push(check, residual, count, out);
    }
    qn_cpu_matmul(check->cpu, &host);
    product->launch(check->gpu, &device);
    /* Outliers of x meet outliers of the weights: the error is that of the greatest products. */
    bool rounds = product->launch == qn_cuda_matmul || product->launch == qn_cuda_matmul_blas || product->logits;
    for (uint32_t p = 0; p < parts; p++) {
        if (p == 0 && rounds) check->terms = terms;
        check_compare(check, device.parts[p].out, out, wants[p], (size_t)t * shape->outputs[p],
                      check_rounding(out) * (rounds ? 1.6 : 1), out == QN_SCALAR_F32 ? 2e-3 : 6e-3);
    }
    check_next(check);
}

static const product_shape_t SHAPES[] = {
    {1, 64, {16}},
    {1, 2048, {2048, 512, 512}},
    {1, 8, {1}},
    {2, 4096, {33}},
    {3, 104, {257, 5}},
    {7, 1000, {100, 30, 7}},
    {8, 136, {20000}},
    {9, 136, {31}},
    {16, 264, {520, 17001}},
    {17, 96, {64, 128}},
    {33, 520, {130}},
    {40, 72, {18000}},
    {100, 256, {384, 64, 64}},
    {129, 1024, {512}},
    {5, 30, {40}},
    {20, 33, {17}},
    {3, 3080, {100}},
    /* of matmul_wide.cu: every number of segments and of columns, inputs and rows that end inside a tile */
    {24, 2048, {300, 100, 60}},
    {64, 1096, {132, 4100}},
    {65, 4096, {128}},
    {160, 200, {8500}},
    {161, 712, {1004, 256}},
    {200, 520, {2600}},
    {256, 136, {4232}},
    {257, 328, {700}},
};

static bool takes(const product_case_t *product, const product_shape_t *shape, qn_scalar_t weights, qn_scalar_t act)
{
    if (product->launch == qn_cuda_matmul_skinny)
        return weights == QN_SCALAR_BF16 && act == QN_SCALAR_BF16 && shape->inputs % 8 == 0;
    if (product->launch == qn_cuda_matmul_wide)
        return weights == QN_SCALAR_BF16 && act == QN_SCALAR_BF16 && shape->inputs % 8 == 0 &&
               (shape->outputs[0] | shape->outputs[1] | shape->outputs[2]) % 4 == 0;
    return product->launch != qn_cuda_matmul_blas || weights == act;
}

static unsigned check_matmul(qn_scalar_t activations)
{
    check_t check = check_begin("matmul", activations, false);
    for (unsigned i = 0; i < sizeof PRODUCTS / sizeof PRODUCTS[0]; i++)
        for (unsigned s = 0; s < sizeof SHAPES / sizeof SHAPES[0]; s++)
            for (unsigned weights = 0; weights < 2; weights++)
                if (takes(&PRODUCTS[i], &SHAPES[s], (qn_scalar_t)weights, activations))
                    check_product(&check, &PRODUCTS[i], &SHAPES[s], (qn_scalar_t)weights);
    return check_end(&check);
}

/* Deterministic: row t of any batch has the bits of that row alone. So it is for `wide` in any mode. */
static void check_rows_alone(check_t *check, void (*launch)(qn_stream_t *, const void *), uint32_t outputs,
                             const uint32_t *batches, unsigned count, unsigned times)
{
    enum { ROWS = 300, M = 1160 };
    size_t O = outputs;
    pair_t weight = check_weight(check, O * M, 0.02f, 1000, QN_SCALAR_BF16);
    float *x = check_values(check, (size_t)ROWS * M, 1, 500, QN_SCALAR_BF16);
    uint16_t *x_device = check_push(check, x, (size_t)ROWS * M, QN_SCALAR_BF16);
    uint16_t *all = check_poison(check, ROWS * O * 2), *one = check_poison(check, O * 2);
    uint16_t *want = hold(&check->held, O * 2), *got = hold(&check->held, O * 2);
    for (unsigned j = 0; j < times * count; j++) { /* a race does not show each time */
        qn_matmul_t a = {.x = x_device,
                         .tokens = batches[j % count],
                         .inputs = M,
                         .part_count = 1,
                         .parts = {{.weight = weight.device, .out = all, .outputs = outputs}}};
        launch(check->gpu, &a);
        uint32_t row = a.tokens - 1;
        a.x = x_device + (size_t)row * M, a.tokens = 1, a.parts[0].out = one;
        launch(check->gpu, &a);
        must_ok(qn_cuda_stream_wait(check->gpu));
        pull(got, all + row * O, O * 2);
        pull(want, one, O * 2);
        check->cases++;
        snprintf(check->label, sizeof check->label, "%u outputs, row %u of %u", outputs, row, row + 1);
        if (memcmp(got, want, O * 2) != 0) check_failed(check, "a row's bits depend on the batch");
    }
    check_next(check);
}

/* Small enough for a sanitizer: one segment and several, tiles that end inside, more stages than the ring has. */
static unsigned check_product_few(void)
{
    static const product_shape_t FEW[] = {{9, 1096, {300}},
                                          {33, 520, {132, 64, 8}},
                                          {70, 1032, {200, 68}},
                                          {160, 840, {136}}};
    static const product_case_t WIDE = {"wide", qn_cuda_matmul_wide, false};
    check_t check = check_begin("matmul, few", QN_SCALAR_BF16, false);
    for (unsigned i = 0; i < sizeof FEW / sizeof FEW[0]; i++)
        check_product(&check, &WIDE, &FEW[i], QN_SCALAR_BF16);
    return check_end(&check);
}

static unsigned check_product_bits(void)
{
    static const uint32_t FEW[] = {2, 8, 9, 16, 17, 32, 33, 70}, WIDE[] = {9, 33, 64, 65, 129, 161, 200, 256, 257, 300};
    check_t check = check_begin("matmul, bits", QN_SCALAR_BF16, true);
    check_rows_alone(&check, qn_cuda_matmul, 17000, FEW, sizeof FEW / sizeof FEW[0], 10);
    for (uint32_t outputs = 2000; outputs <= 20000; outputs *= 2) /* as many segments as there are, and fewer, to one */
        check_rows_alone(&check, qn_cuda_matmul_wide, outputs, WIDE, sizeof WIDE / sizeof WIDE[0], 2);
    return check_end(&check);
}

/* ---- all of them ---- */

typedef struct {
    const char *name;
    unsigned (*check)(qn_scalar_t);
} typed_check_t;
typedef struct {
    const char *name;
    unsigned (*check)(void);
} plain_check_t;

static const typed_check_t TYPED[] = {
    {"embedding", check_embedding},   {"rmsnorm", check_rmsnorm},     {"layernorm", check_layernorm},
    {"activation", check_activation}, {"rope", check_rope},           {"kv", check_kv},
    {"matmul", check_matmul},         {"attention", check_attention}, {"moe", check_moe},
};
static const plain_check_t PLAIN[] = {
    {"softcap", check_softcap},
    {"fused", check_fused},
    {"moe_bits", check_moe_bits},
    {"fill", check_fill},
    {"memory", check_memory},
    {"matmul_bits", check_product_bits},
    {"matmul_few", check_product_few},
    {"attention_bits", check_attention_bits},
    {"attention_named", check_attention_named},
    {"attention_few", check_attention_few},
    {"slots", check_slots},
    {"logprobs", check_logprobs},
    {"sampler", check_sampler},
    {"lost", check_lost},
};

static bool wanted(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return argc == 1;
}

/* usage: check_kernels [NAME...] */
int main(int argc, char **argv)
{
    unsigned failures = 0;
    if (argc == 2 && strcmp(argv[1], "lost_in_child") == 0) return (int)check_lost_in_child();
    for (size_t i = 0; i < sizeof TYPED / sizeof TYPED[0]; i++) {
        if (!wanted(argc, argv, TYPED[i].name)) continue;
        failures += TYPED[i].check(QN_SCALAR_BF16) + TYPED[i].check(QN_SCALAR_F32);
    }
    for (size_t i = 0; i < sizeof PLAIN / sizeof PLAIN[0]; i++)
        if (wanted(argc, argv, PLAIN[i].name)) failures += PLAIN[i].check();
    if (failures)
        printf("%u checks FAILED\n", failures);
    else
        printf("all checks passed\n");
    return failures ? 1 : 0;
}
