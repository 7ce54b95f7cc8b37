/* In which format each tensor is kept: what model.layout and model.quantize say, applied to its use. */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_FORMAT_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/err.h"
#include "common/model/model_tensors.h"
#include "kernels/weight_layout.h"
#include "qn_messages.h"

typedef enum { WEIGHTS_QUANTIZE_NONE, WEIGHTS_QUANTIZE_INT8, WEIGHTS_QUANTIZE_INT4 } weights_quantize_t;

/* Of all weights; all zero is "as the checkpoint has them". */
typedef struct {
    qn_layout_t layout;          /* of the matrices of products, embedding and head */
    weights_quantize_t quantize; /* NONE unless layout is PANELS */
    uint32_t group;              /* INT4: 32 or 64, else 0 */
} weights_format_t;

/* From model.layout, model.quantize, model.quantize_group and compute.backend. QN_ERR_CONFIG: they contradict each
 * other. */
qn_err_t weights_format_choose(const qn_config_values_t *config, weights_format_t *ret_format);

/* Of one tensor whose source holds f32 (or f16, which becomes f32) or bf16: `wide` says which. */
void weights_format_of(const weights_format_t *format, const qn_model_tensor_t *tensor, bool wide,
                       qn_weight_t *ret_weight);

/* The wire's word for it. */
qn_dtype_t weights_format_dtype(qn_scalar_t scalar);

#endif
