/* The tensors a model of a given configuration consists of: names as in Hugging Face checkpoints, shapes, roles. The
 * one list: memory checks a checkpoint against it (and invents one for load_format dummy), compute binds kernels by
 * it. */
#ifndef QN_COMMON_MODEL_TENSORS_H
#define QN_COMMON_MODEL_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/model_config.h"

typedef enum {
    QN_TENSOR_EMBEDDING,          /* [V, E] */
    QN_TENSOR_ATTENTION_NORM,     /* [E]    input_layernorm */
    QN_TENSOR_Q, QN_TENSOR_K, QN_TENSOR_V,                      /* [H*D, E], [K*D, E], [K*D, E] */
    QN_TENSOR_Q_BIAS, QN_TENSOR_K_BIAS, QN_TENSOR_V_BIAS,       /* [H*D], [K*D], [K*D] */
    QN_TENSOR_Q_NORM, QN_TENSOR_K_NORM,                         /* [D] */
    QN_TENSOR_OUTPUT,             /* [E, H*D] */
    QN_TENSOR_OUTPUT_BIAS,        /* [E] */
    QN_TENSOR_MLP_NORM,           /* [E]    post_attention_layernorm */
    QN_TENSOR_GATE, QN_TENSOR_UP, QN_TENSOR_DOWN,               /* [F, E], [F, E], [E, F] */
    QN_TENSOR_GATE_BIAS, QN_TENSOR_UP_BIAS, QN_TENSOR_DOWN_BIAS, /* [F], [F], [E] */
    QN_TENSOR_FINAL_NORM,         /* [E] */
    QN_TENSOR_HEAD,               /* [V, E]; absent when the embedding is tied to it */
    QN_TENSOR_ROLE_COUNT
} qn_tensor_role_t;

#define QN_TENSOR_NO_LAYER UINT32_MAX

typedef struct {
    char name[QN_NAME_MAX];       /* "model.layers.3.self_attn.q_proj.weight" */
    qn_tensor_role_t role;
    uint32_t layer;               /* QN_TENSOR_NO_LAYER for embedding, final norm and head */
    uint32_t rank;                /* 1 or 2 */
    uint64_t shape[2];            /* row-major, [out, in] for products */
} qn_model_tensor_t;

/* How many tensors the model has. */
size_t qn_model_tensor_count(const qn_model_config_t *config);
/* Tensor `index` < count: embedding, then layer by layer, then final norm and head. */
void qn_model_tensor_at(const qn_model_config_t *config, size_t index, qn_model_tensor_t *ret_tensor);

#endif
