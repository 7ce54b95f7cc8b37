/* Plain kernels of every operation that an object may have, written from kernels/plugin.h alone: whether it says what is
 * needed. FAULT makes the RMSNorm wrong in one way. */
#include "kernels/plugin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef FAULT
#define FAULT 0
#endif
#define FAULT_NUMBERS 1 /* wrong from width 100 on */
#define FAULT_END 2     /* writes behind the end */
#define FAULT_DEALING 3 /* depends on `first` */
#define FAULT_CRASH 4
#define FAULT_HANG 5
#define FAULT_EXIT 6
#define FAULT_FORMAT 7 /* reads bf16 as f32 */
#define FAULT_ABI 8
#define FAULT_NAME 9
#define FAULT_OPERATION 10

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float number(const void *data, uint32_t format, uint64_t i)
{
    return format == QN_PLUGIN_F32 ? ((const float *)data)[i] : from_bf16(((const uint16_t *)data)[i]);
}

static void rmsnorm(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_rmsnorm_t *a = arguments;
    uint32_t format = FAULT == FAULT_FORMAT ? QN_PLUGIN_F32 : a->format;
    if (FAULT == FAULT_CRASH && a->width == 37) *(volatile int *)0 = 1;
    if (FAULT == FAULT_EXIT && a->width == 37) _Exit(0);
    for (volatile int hang = FAULT == FAULT_HANG; hang;)
        ;
    for (uint64_t row = first; row < (uint64_t)first + count; row++) {
        const float *x = a->x + row * a->width;
        double sum = 0;
        for (uint32_t i = 0; i < a->width; i++)
            sum += (double)x[i] * x[i];
        double scale = 1 / sqrt(sum / a->width + a->eps);
        if (FAULT == FAULT_NUMBERS && a->width >= 100) scale *= 1.01;
        if (FAULT == FAULT_DEALING) scale *= 1 + 1e-7 * first;
        for (uint32_t i = 0; i < a->width; i++) {
            double y = x[i] * scale * ((double)a->weight_offset + number(a->weight, format, i));
            a->out[row * a->width + i] = (float)(y + (a->residual ? a->residual[row * a->width + i] : 0));
        }
        if (FAULT == FAULT_END && a->width == 37) a->out[row * a->width + a->width] = 0;
    }
}

static void layernorm(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_layernorm_t *a = arguments;
    for (uint64_t row = first; row < (uint64_t)first + count; row++) {
        const float *x = a->x + row * a->width;
        double mean = 0, variance = 0;
        for (uint32_t i = 0; i < a->width; i++)
            mean += (double)x[i] / a->width;
        for (uint32_t i = 0; i < a->width; i++)
            variance += (x[i] - mean) * (x[i] - mean) / a->width;
        for (uint32_t i = 0; i < a->width; i++) {
            double y = (x[i] - mean) / sqrt(variance + a->eps) * number(a->weight, a->format, i);
            a->out[row * a->width + i] = (float)(y + (a->bias ? number(a->bias, a->format, i) : 0));
        }
    }
}

static double bend(uint32_t kind, double x)
{
    switch (kind) {
    case QN_PLUGIN_SILU: return x / (1 + exp(-x));
    case QN_PLUGIN_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case QN_PLUGIN_GELU: return x / 2 * (1 + erf(x / sqrt(2)));
    default: return x > 0 ? x : 0;
    }
}

static void activation(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_activation_t *a = arguments;
    uint64_t end = ((uint64_t)first + count) * a->width;
    for (uint64_t i = (uint64_t)first * a->width; i < end; i++)
        a->out[i] = (float)(bend(a->kind, a->gate[i]) * (a->up ? a->up[i] : 1));
}

static void softcap(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_softcap_t *a = arguments;
    for (uint64_t i = (uint64_t)first * a->width; i < ((uint64_t)first + count) * a->width; i++)
        a->x[i] = a->cap * tanhf(a->x[i] / a->cap);
}

/* Element (row of the panel, input), as kernels/weight_layout.h says. */
static double weight_at(const qn_plugin_matmul_t *a, const uint8_t *panel, uint32_t row, uint32_t m)
{
    uint32_t padded = (a->inputs + 63) / 64 * 64;
    switch (a->format) {
    case QN_PLUGIN_F32: return ((const float *)(const void *)panel)[(uint64_t)m * 16 + row];
    case QN_PLUGIN_BF16:
        return from_bf16(((const uint16_t *)(const void *)panel)[((uint64_t)(m / 2) * 16 + row) * 2 + m % 2]);
    case QN_PLUGIN_INT8: {
        const float *scales = (const void *)(panel + (uint64_t)padded * 16);
        return ((int)panel[((uint64_t)(m / 4) * 16 + row) * 4 + m % 4] - 128) * (double)scales[row];
    }
    default: {
        uint32_t groups = (a->inputs + a->group - 1) / a->group, g = m / a->group, at = m % a->group, c = at / 8,
                 j = at % 8;
        const uint16_t *scales = (const void *)(panel + (uint64_t)groups * (a->group / 8) * 64);
        uint8_t byte = panel[(((uint64_t)g * (a->group / 8) + c) * 16 + row) * 4 + j % 4];
        return ((j < 4 ? byte & 15 : byte >> 4) - 8) * (double)from_bf16(scales[g * 16 + row]);
    }
    }
}

static void matmul(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_matmul_t *a = arguments;
    for (uint32_t p = first; p < first + count; p++)
        for (uint32_t row = 0; row < 16 && p * 16 + row < a->outputs; row++)
            for (uint32_t t = 0; t < a->tokens; t++) {
                uint32_t o = p * 16 + row;
                double sum = 0;
                for (uint32_t m = 0; m < a->inputs; m++)
                    sum += a->x[(uint64_t)t * a->inputs + m] *
                           weight_at(a, (const uint8_t *)a->weight + p * a->panel_bytes, row, m);
                if (a->bias) sum += number(a->bias, a->bias_format, o);
                if (a->residual) sum += a->residual[(uint64_t)t * a->outputs + o];
                a->out[(uint64_t)t * a->outputs + o] = (float)sum;
            }
}

static uint64_t key_at(const qn_plugin_attention_t *a, const qn_plugin_run_t *run, uint32_t p, uint32_t kv_head)
{
    uint64_t row = (uint64_t)run->table[p / a->block_tokens] * a->block_tokens + p % a->block_tokens;
    return (row * a->kv_heads + kv_head) * a->head_dim;
}

static double score(const qn_plugin_attention_t *a, const float *q, uint64_t key)
{
    double sum = 0;
    for (uint32_t d = 0; d < a->head_dim; d++)
        sum += (double)q[d] * number(a->keys, a->format, key + d);
    sum *= a->scale;
    return a->softcap != 0 ? a->softcap * tanh(sum / a->softcap) : sum;
}

static void attend(const qn_plugin_attention_t *a, const qn_plugin_run_t *run, uint32_t t, uint32_t head)
{
    uint32_t end = run->position + t + 1, begin = a->window && end > a->window ? end - a->window : 0;
    uint32_t kv_head = head / (a->heads / a->kv_heads);
    uint64_t row = ((uint64_t)(run->first + t) * a->heads + head) * a->head_dim;
    double best = -INFINITY, total = 0, sums[512] = {0};
    for (uint32_t p = begin; p < end; p++)
        best = fmax(best, score(a, a->q + row, key_at(a, run, p, kv_head)));
    for (uint32_t p = begin; p < end; p++) {
        uint64_t at = key_at(a, run, p, kv_head);
        double weight = exp(score(a, a->q + row, at) - best);
        total += weight;
        for (uint32_t d = 0; d < a->head_dim; d++)
            sums[d] += weight * number(a->values, a->format, at + d);
    }
    for (uint32_t d = 0; d < a->head_dim; d++)
        a->out[row + d] = (float)(sums[d] / total);
}

static void attention(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_attention_t *a = arguments;
    for (uint32_t item = first; item < first + count; item++)
        for (uint32_t t = 0; t < a->runs[item / a->heads].tokens; t++)
            attend(a, &a->runs[item / a->heads], t, item % a->heads);
}

static int fits_attention(const qn_plugin_shape_t *shape) { return shape->head_dim <= 512; }

#define NUMBERS (QN_PLUGIN_F32 | QN_PLUGIN_BF16)
static const qn_plugin_kernel_t kernels[] = {
    {FAULT == FAULT_OPERATION ? "rmsnrom" : "rmsnorm", FAULT == FAULT_NAME ? "avx2" : "plain", NUMBERS, 0, rmsnorm},
#if FAULT == 0
    {"layernorm", "plain", NUMBERS, 0, layernorm},
    {"activation", "plain", 0, 0, activation},
    {"softcap", "plain", 0, 0, softcap},
    {"matmul", "plain", NUMBERS | QN_PLUGIN_INT8 | QN_PLUGIN_INT4, 0, matmul},
    {"attention.prefill", "plain", NUMBERS, fits_attention, attention},
    {"attention.decode", "plain", NUMBERS, fits_attention, attention},
#endif
};

const qn_kernel_plugin_t *qn_kernel_plugin(void)
{
    static const qn_kernel_plugin_t plugin = {FAULT == FAULT_ABI ? 0 : QN_KERNEL_PLUGIN_ABI,
                                              sizeof kernels / sizeof kernels[0], kernels};
    (void)layernorm, (void)activation, (void)softcap, (void)matmul, (void)attention, (void)fits_attention;
    return &plugin;
}
