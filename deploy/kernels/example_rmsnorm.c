/* An example of a kernel in a shared object: RMSNorm in plain C, with sums in four lanes for a compiler to vectorise.
 *
 *     make && build/quintet kernel check build/kernels/example_rmsnorm.so
 *     curl -d '{"path": "example_rmsnorm.so"}' localhost:8000/kernels/load
 *     curl -X PUT -d '{"implementation": "example"}' localhost:8000/kernels/rmsnorm
 *
 * Contract: kernels/plugin.h. */
#include "kernels/plugin.h"

#include <math.h>
#include <string.h>

#define LANES 4

/* Element `i` of a norm's weights. */
static float weight_at(const qn_plugin_rmsnorm_t *a, uint32_t i)
{
    if (a->format == QN_PLUGIN_F32) return ((const float *)a->weight)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)a->weight)[i] << 16; /* bf16: the upper half of a float */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Each lane adds every fourth square in ascending order: the same sum whatever rows stand beside this one. */
static double sum_of_squares(const float *x, uint32_t width)
{
    double lanes[LANES] = {0}, rest = 0;
    uint32_t whole = width / LANES * LANES;
    for (uint32_t i = 0; i < whole; i += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++)
            lanes[lane] += (double)x[i + lane] * x[i + lane];
    for (uint32_t i = whole; i < width; i++)
        rest += (double)x[i] * x[i];
    return lanes[0] + lanes[1] + (lanes[2] + lanes[3]) + rest;
}

static void rmsnorm(const void *arguments, uint32_t first, uint32_t count)
{
    const qn_plugin_rmsnorm_t *a = arguments;
    for (uint64_t row = first; row < (uint64_t)first + count; row++) {
        const float *x = a->x + row * a->width;
        const float *residual = a->residual ? a->residual + row * a->width : NULL;
        float *out = a->out + row * a->width; /* may be x: each element is read before it is written */
        float scale = (float)(1 / sqrt(sum_of_squares(x, a->width) / a->width + a->eps));
        for (uint32_t i = 0; i < a->width; i++) {
            float normed = x[i] * scale * (a->weight_offset + weight_at(a, i));
            out[i] = residual ? normed + residual[i] : normed;
        }
    }
}

static const qn_plugin_kernel_t kernels[] = {
    {.operation = "rmsnorm", .name = "example", .formats = QN_PLUGIN_F32 | QN_PLUGIN_BF16, .run = rmsnorm},
};

const qn_kernel_plugin_t *qn_kernel_plugin(void)
{
    static const qn_kernel_plugin_t plugin = {.abi = QN_KERNEL_PLUGIN_ABI, .count = 1, .kernels = kernels};
    return &plugin;
}
