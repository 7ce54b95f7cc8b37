/* The model: every tensor of the weights region bound to its place in the network. */
#ifndef QN_COMPUTE_MODEL_H
#define QN_COMPUTE_MODEL_H

#include "common/err.h"
#include "common/model/model_config.h"
#include "common/model/model_tensors.h"
#include "kernels/kernels.h"

/* A tensor as memory lists it. */
typedef struct {
    const char *name; /* NUL-terminated */
    bool supported;   /* its type is one of qn_scalar_t */
    qn_scalar_t scalar;
    qn_layout_t layout;
    uint32_t group; /* int4 */
    const uint64_t *shape;
    uint32_t rank;
    uint64_t offset, bytes; /* in the region */
} model_tensor_t;

/* Indexed by qn_tensor_role_t; data is NULL where the model has no such tensor. */
typedef struct {
    qn_weight_t weights[QN_TENSOR_ROLE_COUNT];
} model_layer_t;

/* What each expert of a sparse layer has. */
typedef enum { MODEL_EXPERT_GATE, MODEL_EXPERT_UP, MODEL_EXPERT_DOWN, MODEL_EXPERT_PARTS } model_expert_part_t;

typedef struct {
    qn_model_config_t config;
    model_layer_t *layers; /* [L], owned */
    model_layer_t outer;   /* what is in no layer; the head is the embedding when tied */
    qn_weight_t *experts;  /* [L, MODEL_EXPERT_PARTS, X], owned */
} model_t;

/* Entries of `experts`. */
static inline size_t model_expert_count(const qn_model_config_t *config)
{
    return (size_t)config->layers * MODEL_EXPERT_PARTS * config->experts;
}

/* Where layer and part begin in an array like `experts`. */
static inline size_t model_expert_at(const qn_model_config_t *config, uint32_t layer, model_expert_part_t part)
{
    return ((size_t)layer * MODEL_EXPERT_PARTS + part) * config->experts;
}

/* Binds `tensors` of the region at `base` by name. Tensors that the architecture does not know are ignored. Keeps
 * pointers into the region, not the list. QN_ERR_INVALID: one is missing, of another shape or outside the region, or
 * packed where its kernel reads rows; QN_ERR_UNSUPPORTED: of a type that no kernel reads. The text names the tensor.
 * Returns owned. */
qn_err_t model_bind(const qn_model_config_t *config, const model_tensor_t *tensors, size_t tensor_count,
                    const void *base, uint64_t base_bytes, model_t **ret_model);
void model_destroy(model_t **model);

#endif
