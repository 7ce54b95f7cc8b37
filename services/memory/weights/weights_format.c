/* What is this?      The choice of formats: configuration and use of a tensor in, scalar and layout out.
 * State owned:       none.
 * Must never:        choose what the backend cannot read; quantise a norm, a bias or a router.
 * Read next:         kernels/weight_layout.h for the formats, weights.c for the places. */
#include "services/memory/weights/weights_format.h"

#include <string.h>

#include "common/assert.h"

qn_err_t weights_format_choose(const qn_config_values_t *config, weights_format_t *ret_format)
{
    const char *layout = config->model.layout, *quantize = config->model.quantize;
    bool cuda = strcmp(config->compute.backend, "cuda") == 0, quantized = strcmp(quantize, "none") != 0;
    if (cuda && quantized)
        return qn_fail(QN_ERR_CONFIG,
                       "model.quantize is %s, but compute.backend cuda computes with the checkpoint's "
                       "numbers only: set model.quantize to none",
                       quantize);
    if (cuda && strcmp(layout, "panels") == 0)
        return qn_fail(QN_ERR_CONFIG, "model.layout is panels, which only the CPU reads, but compute.backend is cuda: "
                                      "leave model.layout at auto");
    if (quantized && strcmp(layout, "rows") == 0)
        return qn_fail(QN_ERR_CONFIG,
                       "model.quantize is %s, which needs model.layout panels, but that is rows: leave "
                       "model.layout at auto",
                       quantize);
    weights_format_t format = {.layout = cuda || strcmp(layout, "rows") == 0 ? QN_LAYOUT_ROWS : QN_LAYOUT_PANELS};
    if (strcmp(quantize, "int8") == 0) format.quantize = WEIGHTS_QUANTIZE_INT8;
    if (strcmp(quantize, "int4") == 0) {
        format.quantize = WEIGHTS_QUANTIZE_INT4;
        format.group = strcmp(config->model.quantize_group, "64") == 0 ? 64 : 32;
    }
    *ret_format = format;
    return QN_OK;
}

void weights_format_of(const weights_format_t *format, const qn_model_tensor_t *tensor, bool wide,
                       qn_weight_t *ret_weight)
{
    qn_weight_t weight = {.scalar = wide ? QN_SCALAR_F32 : QN_SCALAR_BF16};
    if (tensor->use != QN_TENSOR_PLAIN) {
        weight.layout = format->layout;
        if (format->quantize != WEIGHTS_QUANTIZE_NONE) weight.scalar = QN_SCALAR_INT8;
        if (format->quantize == WEIGHTS_QUANTIZE_INT4 && tensor->use == QN_TENSOR_PRODUCT) {
            weight.scalar = QN_SCALAR_INT4;
            weight.group = format->group;
        }
    }
    *ret_weight = weight;
}

qn_dtype_t weights_format_dtype(qn_scalar_t scalar)
{
    switch (scalar) {
    case QN_SCALAR_F32: return QN_DTYPE_F32;
    case QN_SCALAR_BF16: return QN_DTYPE_BF16;
    case QN_SCALAR_INT8: return QN_DTYPE_I8;
    case QN_SCALAR_INT4: return QN_DTYPE_I4;
    }
    QN_ASSERT(!"a scalar without a dtype");
    return QN_DTYPE_F32;
}
