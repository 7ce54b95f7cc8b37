/* What is this?      Variants of a made case: what an operation's arguments may say beside its plain form.
 * State owned:       none; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, kernel_cases.h; services/compute/kernels/object_check.c, which runs them. */
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/bench/kernel_case_data.h"

static const char *const NORMS[] = {"plain", "residual, weight offset 1", "in place"};
static const char *const LAYER_NORMS[] = {"plain", "no bias", "in place"};
static const char *const ACTIVATIONS[] = {"silu", "gelu tanh", "gelu", "relu", "gelu without up", "silu in place"};
static const char *const PRODUCTS[] = {"plain", "bias, residual in place", "bf16 bias, residual"};
static const char *const ATTENTIONS[] = {"plain", "window 5", "softcap 3", "window 19, softcap 2"};
static const char *const SOFTCAPS[] = {"plain"};

#define COUNT_OF(list) (sizeof(list) / sizeof *(list))

static const struct {
    const char *const *names;
    size_t count;
} VARIANTS[QN_OP_COUNT] = {
    [QN_OP_RMSNORM] = {NORMS, COUNT_OF(NORMS)},
    [QN_OP_LAYERNORM] = {LAYER_NORMS, COUNT_OF(LAYER_NORMS)},
    [QN_OP_ACTIVATION] = {ACTIVATIONS, COUNT_OF(ACTIVATIONS)},
    [QN_OP_MATMUL] = {PRODUCTS, COUNT_OF(PRODUCTS)},
    [QN_OP_ATTENTION_PREFILL] = {ATTENTIONS, COUNT_OF(ATTENTIONS)},
    [QN_OP_ATTENTION_DECODE] = {ATTENTIONS, COUNT_OF(ATTENTIONS)},
    [QN_OP_SOFTCAP] = {SOFTCAPS, COUNT_OF(SOFTCAPS)},
};

size_t kernel_variant_count(qn_op_t op) { return VARIANTS[op].count; }

/* Both sides' arguments may be changed before anything was launched. */
static void *changeable(const void *arguments) { return (void *)(uintptr_t)arguments; }

/* The vector's numbers cut to bf16 where that is wanted. */
static qn_weight_t in_format(kernel_case_t *c, qn_weight_t vector, size_t count, qn_scalar_t format)
{
    if (format != QN_SCALAR_BF16 || !vector.data || vector.scalar != QN_SCALAR_F32) return vector;
    uint16_t *halves = case_hold(c, count * sizeof *halves);
    for (size_t i = 0; halves && i < count; i++)
        memcpy(&halves[i], (const char *)vector.data + 4 * i + 2, sizeof halves[i]);
    return (qn_weight_t){.data = halves, .scalar = QN_SCALAR_BF16};
}

/* A row of `x` becomes the output of itself, on each side in a copy. */
static void set_in_place(kernel_case_t *c, size_t output, size_t count, const void **x, void **out,
                         const void **exact_x, void **exact_out)
{
    float *tested = case_copy_activations(c, *x, count), *exact = case_copy_activations(c, *exact_x, count);
    *x = *out = tested;
    *exact_x = *exact_out = exact;
    c->outputs[output] = (kernel_output_t){tested, exact, count, false};
}

static void vary_rmsnorm(kernel_case_t *c, unsigned variant, qn_scalar_t format)
{
    qn_rmsnorm_t *a = changeable(c->arguments), *b = changeable(c->exact_arguments);
    size_t count = (size_t)a->rows * a->width;
    a->weight = b->weight = in_format(c, a->weight, a->width, format);
    if (variant == 1) a->residual = b->residual = case_activations(c, count, 9);
    if (variant == 1) a->weight_offset = b->weight_offset = 1;
    if (variant == 2) set_in_place(c, 0, count, &a->x, &a->out, &b->x, &b->out);
}

static void vary_layernorm(kernel_case_t *c, unsigned variant, qn_scalar_t format)
{
    qn_layernorm_t *a = changeable(c->arguments), *b = changeable(c->exact_arguments);
    a->weight = b->weight = in_format(c, a->weight, a->width, format);
    a->bias = b->bias = variant == 1 ? (qn_weight_t){0} : in_format(c, a->bias, a->width, format);
    if (variant == 2) set_in_place(c, 0, (size_t)a->rows * a->width, &a->x, &a->out, &b->x, &b->out);
}

static void vary_activation(kernel_case_t *c, unsigned variant)
{
    static const qn_activation_t KINDS[] = {QN_ACTIVATION_SILU, QN_ACTIVATION_GELU_TANH, QN_ACTIVATION_GELU,
                                            QN_ACTIVATION_RELU, QN_ACTIVATION_GELU,      QN_ACTIVATION_SILU};
    qn_activate_t *a = changeable(c->arguments), *b = changeable(c->exact_arguments);
    a->kind = b->kind = KINDS[variant];
    if (variant == 4) a->up = b->up = NULL;
    if (variant == 5) set_in_place(c, 0, (size_t)a->tokens * a->width, &a->gate, &a->out, &b->gate, &b->out);
}

static void vary_matmul(kernel_case_t *c, unsigned variant)
{
    qn_matmul_t *a = changeable(c->arguments), *b = changeable(c->exact_arguments);
    QN_ASSERT(a->tokens == b->tokens); /* variants are of small cases */
    for (uint32_t p = 0; variant > 0 && p < a->part_count; p++) {
        qn_matmul_part_t *to = &a->parts[p], *exact = &b->parts[p];
        size_t count = (size_t)a->tokens * to->outputs;
        to->bias = case_vector(c, to->outputs, 60 + p);
        to->bias = exact->bias = in_format(c, to->bias, to->outputs, variant == 2 ? QN_SCALAR_BF16 : QN_SCALAR_F32);
        float *residual = case_activations(c, count, 70 + p);
        to->residual = exact->residual = residual;
        if (variant == 2) continue;
        const void *exact_residual = residual;
        set_in_place(c, p, count, &to->residual, &to->out, &exact_residual, &exact->out);
        exact->residual = exact_residual;
    }
}

static void vary_attention(kernel_case_t *c, unsigned variant)
{
    qn_attention_t *a = changeable(c->arguments), *b = changeable(c->exact_arguments);
    a->window = b->window = variant == 1 ? 5 : variant == 3 ? 19 : 0;
    a->softcap = b->softcap = variant == 2 ? 3 : variant == 3 ? 2 : 0;
}

qn_err_t kernel_case_vary(kernel_case_t *made, unsigned variant, qn_scalar_t format)
{
    QN_ASSERT(variant < kernel_variant_count(made->op));
    size_t used = strlen(made->shape);
    snprintf(made->shape + used, sizeof made->shape - used, ", %s", VARIANTS[made->op].names[variant]);
    switch (made->op) {
    case QN_OP_RMSNORM: vary_rmsnorm(made, variant, format); break;
    case QN_OP_LAYERNORM: vary_layernorm(made, variant, format); break;
    case QN_OP_ACTIVATION: vary_activation(made, variant); break;
    case QN_OP_MATMUL: vary_matmul(made, variant); break;
    case QN_OP_ATTENTION_PREFILL:
    case QN_OP_ATTENTION_DECODE: vary_attention(made, variant); break;
    default: break;
    }
    return made->no_memory ? qn_fail(QN_ERR_NO_MEMORY, "no memory for %s %s", qn_op_name(made->op), made->shape)
                           : QN_OK;
}
