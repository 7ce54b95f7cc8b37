/* What is this?      Experts on the GPU against the reference: routing with ties, products of experts with none, few
 *                    and many places, and the weighted sum; and an expert's bits beside those of the skinny product.
 * State owned:       none.
 * Must never:        leave out an expert without places.
 * Read next:         kernels/cuda/moe.cu, kernels/cuda/matmul/expert_matmul.cu. */
#include "tests/gpu/check.h"

static void same_words(check_t *check, const void *device, const uint32_t *want, size_t count, const char *what)
{
    must_ok(qn_cuda_stream_wait(check->gpu));
    uint32_t *got = hold(&check->held, count * 4);
    pull(got, device, count * 4);
    check->cases++;
    for (size_t i = 0; i < count; i++)
        if (got[i] != want[i]) {
            char text[160];
            snprintf(text, sizeof text, "%s: %u at %zu, not %u", what, got[i], i, want[i]);
            check_failed(check, text);
            return;
        }
}

/* ---- moe_route ---- */

static void check_route(check_t *check, uint32_t tokens, uint32_t experts, uint32_t per_token, bool normalise)
{
    snprintf(check->label, sizeof check->label, "route T %u X %u A %u", tokens, experts, per_token);
    size_t count = (size_t)tokens * experts, places = (size_t)tokens * per_token;
    float *logits = check_values(check, count, 2, 100, check->activations);
    for (size_t i = 0; i < count; i++)
        if (random_below(&check->random, 2))
            logits[i] = as_scalar(rintf(logits[i] * 2) / 2, check->activations); /* ties */
    logits[count - 1] = NAN;
    qn_moe_route_t a = {.logits = logits,
                        .tokens = tokens,
                        .experts = experts,
                        .per_token = per_token,
                        .normalise = normalise,
                        .ret_weights = hold(&check->held, places * 4),
                        .ret_places = hold(&check->held, places * 4),
                        .ret_rows = hold(&check->held, places * 4),
                        .ret_offsets = hold(&check->held, (experts + 1) * 4)};
    qn_cpu_moe_route(check->cpu, &a);
    qn_moe_route_t d = a;
    d.logits = check_push(check, logits, count, check->activations);
    d.ret_weights = check_poison(check, places * 4), d.ret_places = check_poison(check, places * 4);
    d.ret_rows = check_poison(check, places * 4), d.ret_offsets = check_poison(check, (experts + 1) * 4);
    qn_cuda_moe_route(check->gpu, &d);
    same_words(check, d.ret_offsets, a.ret_offsets, experts + 1, "offsets");
    same_words(check, d.ret_places, a.ret_places, places, "places");
    same_words(check, d.ret_rows, a.ret_rows, places, "rows");
    check_compare(check, d.ret_weights, QN_SCALAR_F32, a.ret_weights, places, 1e-5, 1e-30);
    check_next(check);
}

static void check_routes(check_t *check)
{
    static const uint32_t SHAPES[][3] = {{1, 8, 2},     {1, 128, 8},    {7, 60, 4},    {32, 128, 8},
                                         {33, 128, 8},  {64, 8, 2},     {200, 128, 8}, {1000, 64, 6},
                                         {3, 1024, 10}, {100, 1024, 1}, {2, 5, 5},     {9000, 16, 2}};
    for (unsigned i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++)
        for (int normalise = 0; normalise < 2; normalise++)
            check_route(check, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2], normalise);
}

/* ---- expert_matmul ---- */

typedef struct {
    uint32_t places, inputs, outputs, experts, parts;
} expert_shape_t;

/* Some experts have none, one has many. */
static uint32_t *make_offsets(check_t *check, const expert_shape_t *shape)
{
    uint32_t *offsets = hold(&check->held, (shape->experts + 1) * 4);
    for (uint32_t i = 0; i < shape->places; i++) {
        uint32_t expert = random_below(&check->random, shape->experts);
        if (random_below(&check->random, 4) == 0) expert = shape->experts / 2;
        offsets[expert + 1]++;
    }
    for (uint32_t e = 0; e < shape->experts; e++)
        offsets[e + 1] += offsets[e];
    return offsets;
}

/* [X] weights of both sides, one after the other in memory. */
static void make_experts(check_t *check, const expert_shape_t *shape, qn_scalar_t scalar, qn_weight_t **ret_host,
                         qn_weight_t **ret_device)
{
    size_t each = (size_t)shape->outputs * shape->inputs, bytes = each * qn_scalar_bytes(scalar);
    pair_t all = check_weight(check, each * shape->experts, 1 / sqrtf((float)shape->inputs), 1000, scalar);
    *ret_host = hold(&check->held, shape->experts * sizeof **ret_host);
    qn_weight_t *device = hold(&check->held, shape->experts * sizeof *device);
    for (uint32_t e = 0; e < shape->experts; e++) {
        (*ret_host)[e] = (qn_weight_t){.data = (const char *)all.host.data + e * bytes, .scalar = scalar};
        device[e] = (qn_weight_t){.data = (const char *)all.device.data + e * bytes, .scalar = scalar};
    }
    *ret_device = push(&check->arena, device, shape->experts * sizeof *device);
}

static void check_experts(check_t *check, const expert_shape_t *shape, qn_scalar_t scalar)
{
    snprintf(check->label, sizeof check->label, "experts places %u M %u O %u X %u parts %u weights %u", shape->places,
             shape->inputs, shape->outputs, shape->experts, shape->parts, scalar);
    size_t x_count = (size_t)shape->places * shape->inputs, out_count = (size_t)shape->places * shape->outputs;
    float *x = check_values(check, x_count, 1, 500, check->activations);
    qn_expert_matmul_t host = {.x = x,
                               .offsets = make_offsets(check, shape),
                               .places = shape->places,
                               .inputs = shape->inputs,
                               .experts = shape->experts,
                               .outputs = shape->outputs,
                               .part_count = shape->parts,
                               .scalar = scalar,
                               .scratch = hold(&check->held, qn_matmul_scratch_bytes(shape->places, shape->inputs))};
    qn_expert_matmul_t device = host;
    device.x = check_push(check, x, x_count, check->activations);
    device.offsets = push(&check->arena, host.offsets, (shape->experts + 1) * 4);
    for (uint32_t p = 0; p < shape->parts; p++) {
        qn_weight_t *host_weights, *device_weights;
        make_experts(check, shape, scalar, &host_weights, &device_weights);
        host.weights[p] = host_weights, device.weights[p] = device_weights;
        host.out[p] = hold(&check->held, out_count * 4), device.out[p] = check_poison(check, out_count * 4);
    }
    qn_cpu_expert_matmul(check->cpu, &host);
    qn_cuda_expert_matmul(check->gpu, &device);
    for (uint32_t p = 0; p < shape->parts; p++)
        check_compare(check, device.out[p], check->activations, host.out[p], out_count,
                      check_rounding(check->activations), check->activations == QN_SCALAR_F32 ? 2e-3 : 6e-3);
    check_next(check);
}

static const expert_shape_t EXPERTS[] = {
    {1, 64, 16, 4, 1},     {8, 2048, 768, 16, 2}, {8, 768, 2048, 16, 1}, {50, 136, 33, 8, 2},    {30, 1032, 100, 64, 2},
    {100, 256, 130, 4, 2}, {40, 264, 65, 4, 1},   {300, 264, 200, 4, 1}, {700, 1032, 300, 6, 2}, {257, 128, 128, 2, 2},
    {900, 72, 129, 3, 1},  {5, 30, 40, 3, 1},     {200, 33, 17, 2, 2},
};

/* ---- moe_combine ---- */

static void check_combine(check_t *check, uint32_t tokens, uint32_t per_token, uint32_t width)
{
    snprintf(check->label, sizeof check->label, "combine T %u A %u E %u", tokens, per_token, width);
    size_t places = (size_t)tokens * per_token, count = (size_t)tokens * width;
    float *x = check_values(check, places * width, 1, 300, check->activations);
    float *residual = check_values(check, count, 1, 300, check->activations);
    float *weights = hold(&check->held, places * 4), *want = hold(&check->held, count * 4);
    uint32_t *at = hold(&check->held, places * 4);
    for (size_t i = 0; i < places; i++)
        weights[i] = random_uniform(&check->random), at[i] = (uint32_t)(places - 1 - i);
    qn_moe_combine_t a = {.x = x,
                          .weights = weights,
                          .places = at,
                          .residual = residual,
                          .tokens = tokens,
                          .per_token = per_token,
                          .width = width,
                          .out = want};
    qn_cpu_moe_combine(check->cpu, &a);
    a.x = check_push(check, x, places * width, check->activations);
    a.weights = push(&check->arena, weights, places * 4);
    a.places = push(&check->arena, at, places * 4);
    a.residual = a.out = check_push(check, residual, count, check->activations);
    qn_cuda_moe_combine(check->gpu, &a);
    check_compare(check, a.out, check->activations, want, count, check_rounding(check->activations),
                  check->activations == QN_SCALAR_F32 ? 1e-4 : 1e-3);
    check_next(check);
}

unsigned check_moe(qn_scalar_t activations)
{
    check_t check = check_begin("experts", activations, false);
    check_routes(&check);
    for (unsigned i = 0; i < sizeof EXPERTS / sizeof EXPERTS[0]; i++)
        for (unsigned scalar = 0; scalar < 2; scalar++)
            check_experts(&check, &EXPERTS[i], (qn_scalar_t)scalar);
    check_combine(&check, 1, 8, 2048);
    check_combine(&check, 37, 2, 4096);
    check_combine(&check, 5, 3, 33);
    return check_end(&check);
}

/* Deterministic: an expert's rows have the bits of the skinny product of its weights. */
unsigned check_moe_bits(void)
{
    static const expert_shape_t SHAPES[] = {{9, 2048, 100, 5, 1}, {80, 1160, 48, 3, 1}, {300, 520, 40, 2, 1}};
    check_t check = check_begin("experts, bits", QN_SCALAR_BF16, true);
    for (unsigned i = 0; i < 3; i++) {
        const expert_shape_t *shape = &SHAPES[i];
        qn_weight_t *host_weights, *weights;
        uint32_t *offsets = make_offsets(&check, shape);
        float *x = check_values(&check, (size_t)shape->places * shape->inputs, 1, 500, QN_SCALAR_BF16);
        const uint16_t *x_device = check_push(&check, x, (size_t)shape->places * shape->inputs, QN_SCALAR_BF16);
        size_t bytes = (size_t)shape->places * shape->outputs * 2;
        uint16_t *out = check_poison(&check, bytes), *want = check_poison(&check, bytes);
        make_experts(&check, shape, QN_SCALAR_BF16, &host_weights, &weights);
        qn_weight_t *copied = hold(&check.held, shape->experts * sizeof *copied);
        pull(copied, weights, shape->experts * sizeof *copied);
        qn_cuda_expert_matmul(check.gpu,
                              &(qn_expert_matmul_t){.x = x_device,
                                                    .offsets = push(&check.arena, offsets, (shape->experts + 1) * 4),
                                                    .places = shape->places,
                                                    .inputs = shape->inputs,
                                                    .experts = shape->experts,
                                                    .outputs = shape->outputs,
                                                    .weights = {weights},
                                                    .out = {out},
                                                    .part_count = 1,
                                                    .scalar = QN_SCALAR_BF16});
        for (uint32_t e = 0; e < shape->experts; e++) {
            size_t first = offsets[e];
            qn_cuda_matmul_skinny(check.gpu, &(qn_matmul_t){.x = x_device + first * shape->inputs,
                                                            .tokens = offsets[e + 1] - offsets[e],
                                                            .inputs = shape->inputs,
                                                            .part_count = 1,
                                                            .parts = {{.weight = copied[e],
                                                                       .out = want + first * shape->outputs,
                                                                       .outputs = shape->outputs}}});
        }
        must_ok(qn_cuda_stream_wait(check.gpu));
        void *one = hold(&check.held, bytes), *other = hold(&check.held, bytes);
        pull(one, out, bytes);
        pull(other, want, bytes);
        check.cases++;
        snprintf(check.label, sizeof check.label, "places %u X %u", shape->places, shape->experts);
        if (memcmp(one, other, bytes) != 0) check_failed(&check, "an expert's bits are not the skinny product's");
        check_next(&check);
    }
    return check_end(&check);
}
