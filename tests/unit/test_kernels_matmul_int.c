/* The integer products, twice over: against plain C that does the same whole-number arithmetic, to the bit; and against
 * the reference, which multiplies the exact weights with the exact activations, within what rounding activations to
 * their steps can cost. */
#include "kernels/cpu/matmul/quantise_rows.h"
#include "kernels/fused.h"
#include "kernels/weight_layout.h"
#include "tests/unit/kernel_check.h"

typedef struct {
    uint32_t tokens, inputs, outputs;
} shape_t;
typedef struct {
    const char *name;
    qn_scalar_t scalar;
    uint32_t group;
} format_t;

static const format_t FORMATS[] = {
    {"int8", QN_SCALAR_INT8, 0},
    {"int4/32", QN_SCALAR_INT4, 32},
    {"int4/64", QN_SCALAR_INT4, 64},
};
#define FORMAT_COUNT (sizeof FORMATS / sizeof FORMATS[0])

static const shape_t SHAPES[] = {
    {1, 1, 1},    {1, 31, 15},   {1, 63, 17},   {1, 65, 16},   {1, 100, 33},   {1, 1300, 48},
    {2, 64, 32},  {3, 32, 31},   {4, 100, 1},   {5, 63, 15},   {6, 128, 40},   {7, 65, 17},
    {8, 576, 64}, {9, 31, 16},   {10, 1, 50},   {11, 96, 47},  {12, 1025, 33}, {13, 100, 17},
    {24, 64, 16}, {25, 511, 80}, {70, 130, 65}, {97, 513, 15}, {200, 64, 18},  {14, 2600, 20},
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

/* ---- operands ---- */

typedef struct {
    shape_t shape;
    float *x, *residual;
    qn_weight_t weight, bias;
    float *bias_values;
    void *scratch;
} operands_t;

static void *owned_aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    assert_non_null(memory);
    memset(memory, 0xa5, bytes);
    return memory;
}

/* Outliers in both, a row of x that is zero, and an output whose weights are. */
static qn_weight_t make_weight(const shape_t *shape, const format_t *format, uint64_t seed)
{
    uint64_t bytes, panels = qn_panel_count(shape->outputs);
    float *rows = check_values(panels * QN_PANEL_ROWS * shape->inputs, seed, true);
    if (shape->outputs > 2) memset(rows + 2 * (size_t)shape->inputs, 0, shape->inputs * sizeof *rows);
    assert_int_equal(qn_weight_bytes(format->scalar, QN_LAYOUT_PANELS, format->group, shape->outputs, shape->inputs,
                                     &bytes),
                     QN_OK);
    void *data = owned_aligned(bytes);
    qn_weight_pack(format->scalar, format->group, shape->outputs, shape->inputs, 0, panels, rows, data);
    free(rows);
    return (qn_weight_t){.data = data, .scalar = format->scalar, .layout = QN_LAYOUT_PANELS, .group = format->group};
}

static operands_t make_operands(const shape_t *shape, const format_t *format, uint64_t seed)
{
    operands_t o = {.shape = *shape, .weight = make_weight(shape, format, seed)};
    o.x = check_values((size_t)shape->tokens * shape->inputs, seed + 1, true);
    if (shape->tokens > 4) memset(o.x + 4 * (size_t)shape->inputs, 0, shape->inputs * sizeof *o.x);
    o.residual = check_values((size_t)shape->tokens * shape->outputs, seed + 2, false);
    o.bias_values = check_values(shape->outputs, seed + 3, false);
    o.bias = check_weight(o.bias_values, shape->outputs, seed % 2 ? QN_SCALAR_BF16 : QN_SCALAR_F32);
    o.scratch = owned_aligned(qn_matmul_scratch_bytes(shape->tokens, shape->inputs));
    return o;
}

static void free_operands(operands_t *o)
{
    free(o->x);
    free(o->residual);
    free(o->bias_values);
    free(o->scratch);
    free((void *)o->weight.data);
    free((void *)o->bias.data);
}

static qn_matmul_part_t part_of(const operands_t *o, uint32_t first, bool extras, float *out)
{
    return (qn_matmul_part_t){.weight = o->weight,
                              .bias = extras ? o->bias : (qn_weight_t){0},
                              .outputs = o->shape.outputs,
                              .out = out,
                              .residual = extras ? o->residual + (size_t)first * o->shape.outputs : NULL};
}

/* Tokens [first, first + tokens) of the product, into `out` with a guard word behind it. */
static void multiply(const qn_kernel_t *kernel, qn_stream_t *stream, const operands_t *o, uint32_t first,
                     uint32_t tokens, bool extras, float *out)
{
    size_t count = (size_t)tokens * o->shape.outputs;
    out[count] = 1234.5f;
    kernel->launch(stream, &(qn_matmul_t){.x = o->x + (size_t)first * o->shape.inputs,
                                          .tokens = tokens,
                                          .inputs = o->shape.inputs,
                                          .part_count = 1,
                                          .parts = {part_of(o, first, extras, out)},
                                          .scratch = o->scratch});
    assert_true(out[count] == 1234.5f);
}

static float *new_output(const shape_t *shape)
{
    return malloc(((size_t)shape->tokens * shape->outputs + 1) * sizeof(float));
}

/* ---- the same arithmetic in plain C ---- */

static uint32_t group_of(const qn_weight_t *weight)
{
    return weight->scalar == QN_SCALAR_INT8 ? QN_QUANTISE_INT8 : weight->group;
}

/* The whole number that stands for a weight, as weight_layout.h lays it out. */
static int whole_weight(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t input)
{
    const uint8_t *panel =
        (const uint8_t *)weight->data + output / 16 * qn_panel_bytes(weight->scalar, weight->group, inputs);
    uint64_t row = output % 16;
    if (weight->scalar == QN_SCALAR_INT8) return panel[input / 4 * 64 + row * 4 + input % 4] - 128;
    uint64_t at = input / weight->group * weight->group * 8 + input % weight->group / 8 * 64 + row * 4 + input % 4;
    return (input % 8 < 4 ? panel[at] & 15 : panel[at] >> 4) - 8;
}

static float scale_of(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t group)
{
    const uint8_t *scales = (const uint8_t *)weight->data +
                            output / 16 * qn_panel_bytes(weight->scalar, weight->group, inputs) +
                            qn_panel_scales(weight->scalar, weight->group, inputs);
    if (weight->scalar == QN_SCALAR_INT8) return ((const float *)(const void *)scales)[output % 16];
    return qn_bf16_to_f32(((const uint16_t *)(const void *)scales)[group * 16 + output % 16]);
}

/* int8: the step of x[first .. end), and the byte that stands for zero, less 128. */
static float range_of(const float *x, uint32_t first, uint32_t end, int *ret_zero)
{
    float above = 0, below = 0, step = 1 / 254.9f;
    for (uint32_t m = first; m < end; m++) {
        above = fmaxf(above, x[m]);
        below = fmaxf(below, -x[m]);
    }
    float scale = fmaf(above, step, below * step);
    if (scale < 1e-30f * step) return 0;
    *ret_zero = (int)nearbyintf(below * (1 / scale)) - 128;
    return scale;
}

/* Quantises x[0 .. count) and multiplies: one step of an output's float chain. */
static float add_group(const operands_t *o, const float *x, uint32_t output, uint32_t group, float sum)
{
    uint32_t size = group_of(&o->weight), first = group * size, inputs = o->shape.inputs;
    uint32_t end = inputs - first < size ? inputs : first + size;
    bool int8 = o->weight.scalar == QN_SCALAR_INT8;
    float greatest = 0, scale, inverse;
    int dot = 0, zero = 0;
    for (uint32_t m = first; m < end; m++)
        greatest = fmaxf(greatest, fabsf(x[m]));
    scale = int8 ? range_of(x, first, end, &zero) : greatest < 1e-30f ? 0 : greatest / 127.0f;
    if (scale == 0) return sum;
    inverse = int8 ? 1 / scale : 127.0f / greatest;
    for (uint32_t m = first; m < end; m++) {
        int q = (int)nearbyintf(x[m] * inverse);
        assert_in_range(q + zero + 128, 0, 255);
        dot += q * whole_weight(&o->weight, inputs, output, m);
    }
    if (int8) return fmaf((float)dot, scale, sum);
    return fmaf((float)dot * scale_of(&o->weight, inputs, output, group), scale, sum);
}

static float emulate(const operands_t *o, uint32_t token, uint32_t output, bool extras)
{
    const float *x = o->x + (size_t)token * o->shape.inputs;
    uint32_t groups = (o->shape.inputs + group_of(&o->weight) - 1) / group_of(&o->weight);
    float sum = 0, scale = 1, bias = extras ? o->bias_values[output] : 0;
    for (uint32_t g = 0; g < groups; g++)
        sum = add_group(o, x, output, g, sum);
    if (o->weight.scalar == QN_SCALAR_INT8) scale = scale_of(&o->weight, o->shape.inputs, output, 0);
    float value = fmaf(sum, scale, bias);
    return extras ? value + o->residual[(size_t)token * o->shape.outputs + output] : value;
}

/* Half a step of every activation, against the magnitude of its weight; and the rounding of a float32 sum. */
static double allowed_error(const operands_t *o, uint32_t token, uint32_t output)
{
    const float *x = o->x + (size_t)token * o->shape.inputs;
    uint32_t size = group_of(&o->weight), inputs = o->shape.inputs;
    double step_error = 0, magnitude = 3;
    for (uint32_t first = 0; first < inputs; first += size) {
        uint32_t end = inputs - first < size ? inputs : first + size;
        double greatest = 0, least = 0, weights = 0;
        for (uint32_t m = first; m < end; m++) {
            double w = fabs((double)qn_weight_get(&o->weight, inputs, output, m));
            greatest = fmax(greatest, (double)x[m]);
            least = fmin(least, (double)x[m]);
            weights += w;
            magnitude += fabs((double)x[m]) * w;
        }
        double step = o->weight.scalar == QN_SCALAR_INT8 ? (greatest - least) / 254.9 : fmax(greatest, -least) / 127;
        step_error += step / 2 * weights;
    }
    return step_error + magnitude * 1e-6;
}

/* ---- tests ---- */

static const qn_kernel_t *integer_kernel(void) { return check_kernel(QN_OP_MATMUL, "vnni"); }

static void check_shape(const qn_kernel_t *kernel, const shape_t *shape, const format_t *format, bool extras)
{
    operands_t o = make_operands(shape, format, shape->inputs * 131 + shape->outputs + extras);
    qn_stream_t *stream = check_stream(2);
    float *want = new_output(shape), *got = new_output(shape);
    multiply(check_kernel(QN_OP_MATMUL, "reference"), stream, &o, 0, shape->tokens, extras, want);
    multiply(kernel, stream, &o, 0, shape->tokens, extras, got);
    for (uint32_t t = 0; t < shape->tokens; t++)
        for (uint32_t i = 0; i < shape->outputs; i++) {
            size_t at = (size_t)t * shape->outputs + i;
            float same = emulate(&o, t, i, extras);
            double allowed = allowed_error(&o, t, i), error = fabs((double)got[at] - want[at]);
            if (got[at] == same && error <= allowed) continue;
            fail_msg("%s %s T %u M %u O %u: [%u, %u] is %.9g, plain C %.9g, reference %.9g, allowed %g", kernel->name,
                     format->name, shape->tokens, shape->inputs, shape->outputs, t, i, (double)got[at], (double)same,
                     (double)want[at], allowed);
        }
    qn_stream_destroy(&stream);
    free(want);
    free(got);
    free_operands(&o);
}

static void test_matmul_int_every_shape_is_plain_c_to_the_bit_and_near_the_reference(void **state)
{
    (void)state;
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        for (size_t i = 0; i < SHAPE_COUNT; i++)
            for (int extras = 0; extras < 2; extras++)
                check_shape(kernel, &SHAPES[i], &FORMATS[f], extras);
}

static void test_matmul_int_every_token_count_is_plain_c(void **state)
{
    (void)state;
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        for (uint32_t tokens = 1; tokens <= 70; tokens++)
            check_shape(kernel, &(shape_t){tokens, 70, 17}, &FORMATS[f], tokens % 2);
}

/* Each row alone, in pieces, and with other thread counts: the same bits as in the whole batch. */
static void check_rows_alone(const qn_kernel_t *kernel, const shape_t *shape, const format_t *format)
{
    static const uint32_t PIECES[] = {1, 3, 8, 13, 1000};
    operands_t o = make_operands(shape, format, 99);
    float *whole = new_output(shape), *part = new_output(shape);
    qn_stream_t *one = check_stream(1), *three = check_stream(3);
    multiply(kernel, three, &o, 0, shape->tokens, true, whole);
    for (size_t p = 0; p < sizeof PIECES / sizeof *PIECES; p++)
        for (uint32_t t = 0; t < shape->tokens; t += PIECES[p]) {
            uint32_t tokens = shape->tokens - t < PIECES[p] ? shape->tokens - t : PIECES[p];
            multiply(kernel, one, &o, t, tokens, true, part);
            assert_memory_equal(part, whole + (size_t)t * shape->outputs, tokens * shape->outputs * sizeof *part);
        }
    qn_stream_destroy(&one);
    qn_stream_destroy(&three);
    free(whole);
    free(part);
    free_operands(&o);
}

static void test_matmul_int_rows_alone_and_together_have_the_same_bits(void **state)
{
    (void)state;
    static const shape_t BIG[] = {{70, 256, 96}, {13, 100, 37}, {6, 1353, 16}, {99, 6000, 40}};
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        for (size_t i = 0; i < 4; i++)
            check_rows_alone(kernel, &BIG[i], &FORMATS[f]);
}

/* Parts of one launch may be in any format; floats go through the float product. */
static void test_matmul_int_parts_of_three_formats_give_what_three_launches_give(void **state)
{
    (void)state;
    static const format_t MIXED[][QN_MATMUL_PARTS] = {
        {{"int8", QN_SCALAR_INT8, 0}, {"int8", QN_SCALAR_INT8, 0}, {"int8", QN_SCALAR_INT8, 0}},
        {{"int4/32", QN_SCALAR_INT4, 32}, {"int8", QN_SCALAR_INT8, 0}, {"int4/64", QN_SCALAR_INT4, 64}},
        {{"bf16", QN_SCALAR_BF16, 0}, {"int4/32", QN_SCALAR_INT4, 32}, {"f32", QN_SCALAR_F32, 0}},
    };
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    qn_stream_t *stream = check_stream(3);
    for (size_t i = 0; i < 3; i++) {
        operands_t o[QN_MATMUL_PARTS];
        float *single[QN_MATMUL_PARTS], *joint[QN_MATMUL_PARTS];
        qn_matmul_t a = {.tokens = 14, .inputs = 150, .part_count = QN_MATMUL_PARTS};
        for (uint32_t p = 0; p < QN_MATMUL_PARTS; p++) {
            shape_t shape = {14, 150, 50 - 17 * p};
            o[p] = make_operands(&shape, &MIXED[i][p], 7 + p);
            if (p) memcpy(o[p].x, o[0].x, 14 * 150 * sizeof(float));
            single[p] = new_output(&shape);
            joint[p] = new_output(&shape);
            multiply(kernel, stream, &o[p], 0, 14, true, single[p]);
            a.parts[p] = part_of(&o[p], 0, true, joint[p]);
        }
        a.x = o[0].x;
        a.scratch = o[0].scratch;
        kernel->launch(stream, &a);
        for (uint32_t p = 0; p < QN_MATMUL_PARTS; p++) {
            assert_memory_equal(joint[p], single[p], 14 * o[p].shape.outputs * sizeof(float));
            free(joint[p]);
            free(single[p]);
            free_operands(&o[p]);
        }
    }
    qn_stream_destroy(&stream);
}

static void test_matmul_int_residual_may_be_the_output(void **state)
{
    (void)state;
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    shape_t shape = {13, 140, 50};
    qn_stream_t *stream = check_stream(2);
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        operands_t o = make_operands(&shape, &FORMATS[f], 3);
        float *want = new_output(&shape), *got = new_output(&shape);
        multiply(kernel, stream, &o, 0, 13, true, want);
        memcpy(got, o.residual, 13 * 50 * sizeof *got);
        qn_matmul_part_t part = part_of(&o, 0, true, got);
        part.residual = got;
        kernel->launch(stream, &(qn_matmul_t){.x = o.x,
                                              .tokens = 13,
                                              .inputs = 140,
                                              .part_count = 1,
                                              .parts = {part},
                                              .scratch = o.scratch});
        assert_memory_equal(got, want, 13 * 50 * sizeof *got);
        free(want);
        free(got);
        free_operands(&o);
    }
    qn_stream_destroy(&stream);
}

/* Results of a long prompt are written past the caches. */
static void test_matmul_int_streamed_results_are_those_of_short_prompts(void **state)
{
    (void)state;
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    shape_t shape = {270, 40, 4096};
    operands_t o = make_operands(&shape, &FORMATS[0], 17);
    size_t bytes = ((size_t)shape.tokens * shape.outputs + 1) * sizeof(float);
    float *whole = owned_aligned(bytes), *part = new_output(&shape);
    qn_stream_t *stream = check_stream(2);
    multiply(kernel, stream, &o, 0, shape.tokens, false, whole);
    for (uint32_t t = 0; t < shape.tokens; t += 90) {
        multiply(kernel, stream, &o, t, 90, false, part);
        assert_memory_equal(part, whole + (size_t)t * shape.outputs, 90 * shape.outputs * sizeof *part);
    }
    qn_stream_destroy(&stream);
    free(whole);
    free(part);
    free_operands(&o);
}

/* What is not a number must not come out as one, and must stay with its token. */
static void test_matmul_int_infinity_and_nan_show_in_their_token_alone(void **state)
{
    (void)state;
    static const float BAD[] = {INFINITY, -INFINITY, NAN};
    const qn_kernel_t *kernel = integer_kernel();
    if (!kernel) skip();
    shape_t shape = {3, 100, 20};
    qn_stream_t *stream = check_stream(1);
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        for (size_t b = 0; b < 3; b++) {
            operands_t o = make_operands(&shape, &FORMATS[f], 5);
            float *want = new_output(&shape), *got = new_output(&shape);
            multiply(kernel, stream, &o, 0, 3, false, want);
            o.x[shape.inputs + 70] = BAD[b];
            multiply(kernel, stream, &o, 0, 3, false, got);
            for (uint32_t i = 0; i < 20; i++)
                assert_false(isfinite(got[20 + i]));
            assert_memory_equal(got, want, 20 * sizeof *got);
            assert_memory_equal(got + 40, want + 40, 20 * sizeof *got);
            free(want);
            free(got);
            free_operands(&o);
        }
    qn_stream_destroy(&stream);
}

/* ---- with the norm before and the activation after ---- */

typedef struct {
    shape_t shape;
    format_t gate, up;
    qn_activation_t kind;
    bool norm, activates;
} fused_t;

/* Gate and up as `kernel` gives them, or the parts one after the other where it is NULL; what is left of the scratch
 * between the parts is not compared. */
static void launch_fused(const qn_kernel_t *kernel, qn_stream_t *stream, const fused_t *f, const operands_t *o,
                         float *normed, float *gate, float *up)
{
    qn_norm_matmul_t a = {.matmul = {.x = f->norm ? normed : o[0].x,
                                     .tokens = f->shape.tokens,
                                     .inputs = f->shape.inputs,
                                     .part_count = 2,
                                     .scratch = o[0].scratch,
                                     .parts = {part_of(&o[0], 0, false, gate), part_of(&o[1], 0, false, up)}}};
    for (uint32_t p = 0; p < 2; p++)
        a.matmul.parts[p].bias = o[p].bias;
    if (f->norm)
        a.norm = (qn_rmsnorm_t){.x = o[0].x,
                                .weight = {.data = o[1].x, .scalar = QN_SCALAR_F32},
                                .out = normed,
                                .rows = f->shape.tokens,
                                .width = f->shape.inputs,
                                .eps = 1e-6f};
    if (f->activates)
        a.activation = (qn_activate_t){
            .gate = gate, .up = up, .tokens = f->shape.tokens, .width = f->shape.outputs, .kind = f->kind, .out = gate};
    if (kernel) {
        kernel->launch(stream, &a);
        return;
    }
    qn_kernel_set_t set = {.chosen = {[QN_OP_RMSNORM] = check_kernel(QN_OP_RMSNORM, "avx512"),
                                      [QN_OP_MATMUL] = check_kernel(QN_OP_MATMUL, "vnni"),
                                      [QN_OP_ACTIVATION] = check_kernel(QN_OP_ACTIVATION, "avx512")}};
    qn_norm_matmul_parts(&set, stream, &a);
}

static void check_fused(const qn_kernel_t *kernel, const fused_t *f)
{
    operands_t o[2] = {make_operands(&f->shape, &f->gate, 23), make_operands(&f->shape, &f->up, 24)};
    size_t bytes = (size_t)f->shape.tokens * f->shape.outputs * sizeof(float);
    float *normed = owned_aligned((size_t)f->shape.tokens * f->shape.inputs * sizeof(float));
    float *outs[2][2];
    qn_stream_t *stream = check_stream(2);
    for (int i = 0; i < 4; i++)
        outs[i / 2][i % 2] = owned_aligned(bytes);
    launch_fused(NULL, stream, f, o, normed, outs[0][0], outs[0][1]);
    launch_fused(kernel, stream, f, o, normed, outs[1][0], outs[1][1]);
    assert_memory_equal(outs[1][0], outs[0][0], bytes);
    if (!f->activates) assert_memory_equal(outs[1][1], outs[0][1], bytes);
    qn_stream_destroy(&stream);
    for (int i = 0; i < 4; i++)
        free(outs[i / 2][i % 2]);
    free(normed);
    for (int p = 0; p < 2; p++)
        free_operands(&o[p]);
}

static void test_norm_matmul_int_has_the_bits_of_its_parts(void **state)
{
    (void)state;
    const qn_kernel_t *kernel = check_kernel(QN_OP_NORM_MATMUL, "vnni");
    if (!kernel) skip();
    static const shape_t FUSED[] = {{1, 100, 17}, {13, 256, 64}, {250, 70, 33}, {30, 1353, 16}};
    static const fused_t OTHERS[] = {
        {{270, 40, 4096}, {"int8", QN_SCALAR_INT8, 0}, {"int8", QN_SCALAR_INT8, 0}, QN_ACTIVATION_SILU, true, true},
        {{14, 150, 50}, {"int8", QN_SCALAR_INT8, 0}, {"int4", QN_SCALAR_INT4, 64}, QN_ACTIVATION_SILU, true, true},
        {{14, 150, 50}, {"bf16", QN_SCALAR_BF16, 0}, {"bf16", QN_SCALAR_BF16, 0}, QN_ACTIVATION_GELU, true, true},
        {{14, 150, 50}, {"int8", QN_SCALAR_INT8, 0}, {"int8", QN_SCALAR_INT8, 0}, QN_ACTIVATION_SILU, true, false},
    };
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++)
        check_fused(kernel, &OTHERS[i]);
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        for (size_t i = 0; i < 4 * sizeof FUSED / sizeof *FUSED; i++)
            check_fused(kernel, &(fused_t){FUSED[i / 4], FORMATS[f], FORMATS[f], (qn_activation_t)(i % 4),
                                           (f + i) % 3 == 0, true});
}

/* Who asks for another product, norm or activation gets it. */
static void test_norm_matmul_int_gives_way_to_chosen_parts(void **state)
{
    (void)state;
    if (!check_kernel(QN_OP_NORM_MATMUL, "vnni")) skip();
    static const struct {
        const char *choice;
        bool fused;
    } CASES[] = {
        {"", true},
        {"matmul=vnni", true},
        {"reference", false},
        {"matmul=avx512", false},
        {"rmsnorm=avx2", false},
        {"activation=reference", false},
        {"activation=avx2,norm_matmul=vnni", true},
    };
    const qn_kernel_case_t shape = {.heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 64,
                                    .hidden = 128,
                                    .intermediate = 256,
                                    .vocab = 100,
                                    .block_tokens = 16,
                                    .kv_scalar = QN_SCALAR_F32};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        qn_kernel_set_t set;
        assert_int_equal(qn_kernels_choose(CASES[i].choice, &shape, qn_kernels_isa(), &set), QN_OK);
        assert_true((set.chosen[QN_OP_NORM_MATMUL] != NULL) == CASES[i].fused);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_int_every_shape_is_plain_c_to_the_bit_and_near_the_reference),
        cmocka_unit_test(test_matmul_int_every_token_count_is_plain_c),
        cmocka_unit_test(test_matmul_int_rows_alone_and_together_have_the_same_bits),
        cmocka_unit_test(test_matmul_int_parts_of_three_formats_give_what_three_launches_give),
        cmocka_unit_test(test_matmul_int_residual_may_be_the_output),
        cmocka_unit_test(test_matmul_int_streamed_results_are_those_of_short_prompts),
        cmocka_unit_test(test_matmul_int_infinity_and_nan_show_in_their_token_alone),
        cmocka_unit_test(test_norm_matmul_int_has_the_bits_of_its_parts),
        cmocka_unit_test(test_norm_matmul_int_gives_way_to_chosen_parts),
    };
    return cmocka_run_group_tests_name("kernels_matmul_int", tests, NULL, NULL);
}
