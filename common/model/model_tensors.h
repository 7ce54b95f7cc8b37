/* The tensors a model of a given configuration consists of: names as in Hugging Face checkpoints, shapes, roles. The
 * one list: memory checks a checkpoint against it (and makes one for load_format dummy), compute binds kernels by
 * it. */
#ifndef QN_COMMON_MODEL_MODEL_TENSORS_H
#define QN_COMMON_MODEL_MODEL_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/model_config.h"

typedef enum {
    QN_TENSOR_EMBEDDING,           /* [V, E] */
    QN_TENSOR_POSITIONS,           /* [max_positions, E] (GPT-2) */
    QN_TENSOR_ATTENTION_NORM,      /* [E] */
    QN_TENSOR_ATTENTION_NORM_BIAS, /* [E] */
    QN_TENSOR_Q,
    QN_TENSOR_K,
    QN_TENSOR_V, /* [H*D, E], [K*D, E], [K*D, E] */
    QN_TENSOR_Q_BIAS,
    QN_TENSOR_K_BIAS,
    QN_TENSOR_V_BIAS, /* [H*D], [K*D], [K*D] */
    QN_TENSOR_Q_NORM,
    QN_TENSOR_K_NORM,              /* [D] */
    QN_TENSOR_OUTPUT,              /* [E, H*D] */
    QN_TENSOR_OUTPUT_BIAS,         /* [E] */
    QN_TENSOR_POST_ATTENTION_NORM, /* [E]   of the attention's output (Gemma 2) */
    QN_TENSOR_MLP_NORM,            /* [E]    before the MLP */
    QN_TENSOR_MLP_NORM_BIAS,       /* [E] */
    QN_TENSOR_GATE,
    QN_TENSOR_UP,
    QN_TENSOR_DOWN, /* [F, E], [F, E], [E, F] */
    QN_TENSOR_GATE_BIAS,
    QN_TENSOR_UP_BIAS,
    QN_TENSOR_DOWN_BIAS, /* [F], [F], [E] */
    QN_TENSOR_ROUTER,    /* [X, E] */
    QN_TENSOR_EXPERT_GATE,
    QN_TENSOR_EXPERT_UP,
    QN_TENSOR_EXPERT_DOWN,     /* per expert; as GATE, UP, DOWN */
    QN_TENSOR_POST_MLP_NORM,   /* [E]    of the MLP's output (Gemma 2) */
    QN_TENSOR_FINAL_NORM,      /* [E] */
    QN_TENSOR_FINAL_NORM_BIAS, /* [E] */
    QN_TENSOR_HEAD,            /* [V, E]; absent when the embedding is tied to it */
    QN_TENSOR_ROLE_COUNT
} qn_tensor_role_t;

#define QN_TENSOR_NO_LAYER UINT32_MAX
#define QN_TENSOR_NO_EXPERT UINT32_MAX

/* What memory may do to a tensor at load. */
typedef enum {
    QN_TENSOR_PLAIN,   /* kept as it is: norms, biases, routers, position tables */
    QN_TENSOR_PRODUCT, /* a matrix of a product: may be packed and quantised to what model.quantize says */
    QN_TENSOR_OUTER,   /* embedding and head: may be packed; quantised to int8 at the least */
} qn_tensor_use_t;

typedef struct {
    char name[QN_NAME_MAX];   /* in the weights region: "model.layers.3.self_attn.q_proj.weight" */
    char source[QN_NAME_MAX]; /* in the checkpoint; the name, but where one source tensor holds several (GPT-2) */
    qn_tensor_role_t role;
    qn_tensor_use_t use;
    uint32_t layer;          /* QN_TENSOR_NO_LAYER for embedding, final norm and head */
    uint32_t expert;         /* QN_TENSOR_NO_EXPERT but for expert tensors */
    uint32_t rank;           /* 1 or 2 */
    uint64_t shape[2];       /* row-major, [out, in] for products */
    bool transposed;         /* the source is [in, out] (GPT-2's Conv1D) */
    uint64_t source_outputs; /* outputs of the source: shape[0], or more where it holds several tensors */
    uint64_t source_first;   /* the first of them that is this tensor's */
} qn_model_tensor_t;

/* How many tensors the model has. */
size_t qn_model_tensor_count(const qn_model_config_t *config);
/* Tensor `index` < count: embedding, then layer by layer (experts in order), then final norm and head. Takes
 * time in the number of layers at most. */
void qn_model_tensor_at(const qn_model_config_t *config, size_t index, qn_model_tensor_t *ret_tensor);
/* What a source is called in a checkpoint of the model without its head: the name without "model." or "transformer."
 * in front. Returns view of `source`; NULL when it has no such name. */
const char *qn_model_tensor_bare_source(const char *source);

#endif
