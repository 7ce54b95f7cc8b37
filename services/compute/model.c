/* What is this?      The binding of tensors by name.
 * State owned:       the layer table; the bytes are memory's.
 * Must never:        compute; accept a shape that the kernels would read past.
 * Read next:         common/model_tensors.h (what there must be), executor.c (the order it is used in). */
#include "services/compute/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare_names(const void *a, const void *b)
{
    const model_tensor_t *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static int compare_to_name(const void *name, const void *tensor)
{
    return strcmp(name, (*(const model_tensor_t *const *)tensor)->name);
}

/* "[512, 128]"; a long shape is cut. */
static const char *format_shape(const uint64_t *shape, uint32_t rank, char ret_text[64])
{
    int used = snprintf(ret_text, 64, "[");
    for (uint32_t i = 0; i < rank && used < 40; i++)
        used += snprintf(ret_text + used, 64 - (size_t)used, "%s%" PRIu64, i ? ", " : "", shape[i]);
    snprintf(ret_text + used, 64 - (size_t)used, "]");
    return ret_text;
}

static qn_err_t check_tensor(const qn_model_tensor_t *want, const model_tensor_t *have, uint64_t base_bytes)
{
    if (!have->supported)
        return qn_fail(QN_ERR_UNSUPPORTED, "tensor %s: only f32 and bf16 weights are computed", want->name);
    uint64_t count = 1;
    bool same = have->rank == want->rank;
    for (uint32_t i = 0; same && i < want->rank; i++) {
        same = have->shape[i] == want->shape[i];
        count *= want->shape[i];  /* two extents of the configuration, each below 2^20 */
    }
    if (!same) {
        char wanted[64], found[64];
        return qn_fail(QN_ERR_INVALID, "tensor %s: its shape is %s, config.json asks for %s", want->name,
                       format_shape(have->shape, have->rank, found), format_shape(want->shape, want->rank, wanted));
    }
    if (have->bytes != count * qn_scalar_bytes(have->scalar) || have->offset % 16 || have->bytes > base_bytes
        || have->offset > base_bytes - have->bytes)
        return qn_fail(QN_ERR_INVALID, "tensor %s: %" PRIu64 " bytes at %" PRIu64 " do not fit the weights region of "
                       "%" PRIu64 " bytes", want->name, have->bytes, have->offset, base_bytes);
    return QN_OK;
}

static qn_weight_t *place_of(model_t *model, const qn_model_tensor_t *want)
{
    if (want->layer != QN_TENSOR_NO_LAYER) return &model->layers[want->layer].weights[want->role];
    if (want->role == QN_TENSOR_EMBEDDING) return &model->embedding;
    return want->role == QN_TENSOR_FINAL_NORM ? &model->final_norm : &model->head;
}

static qn_err_t bind_all(model_t *model, const model_tensor_t **sorted, size_t count, const char *base,
                         uint64_t base_bytes)
{
    size_t wanted = qn_model_tensor_count(&model->config);
    for (size_t i = 0; i < wanted; i++) {
        qn_model_tensor_t want;
        qn_model_tensor_at(&model->config, i, &want);
        const model_tensor_t **found = bsearch(want.name, sorted, count, sizeof *sorted, compare_to_name);
        if (!found)
            return qn_fail(QN_ERR_INVALID, "tensor %s is missing from the checkpoint; %s needs it", want.name,
                           model->config.architecture_name);
        qn_err_t err = check_tensor(&want, *found, base_bytes);
        if (err) return err;
        *place_of(model, &want) = (qn_weight_t){ .data = base + (*found)->offset, .scalar = (*found)->scalar };
    }
    if (model->config.tie_embeddings) model->head = model->embedding;
    return QN_OK;
}

qn_err_t model_bind(const qn_model_config_t *config, const model_tensor_t *tensors, size_t tensor_count,
                    const void *base, uint64_t base_bytes, model_t **ret_model)
{
    model_t *model = calloc(1, sizeof *model);
    const model_tensor_t **sorted = calloc(tensor_count ? tensor_count : 1, sizeof *sorted);
    if (model) model->layers = calloc(config->layers, sizeof *model->layers);
    qn_err_t err = QN_OK;
    if (!model || !sorted || !model->layers) {
        err = qn_fail(QN_ERR_NO_MEMORY, "no memory to bind %zu tensors", tensor_count);
    } else {
        model->config = *config;
        for (size_t i = 0; i < tensor_count; i++) sorted[i] = &tensors[i];
        qsort(sorted, tensor_count, sizeof *sorted, compare_names);
        err = bind_all(model, sorted, tensor_count, base, base_bytes);
    }
    free(sorted);
    if (err) model_destroy(&model);
    else *ret_model = model;
    return err;
}

void model_destroy(model_t **model)
{
    if (!*model) return;
    free((*model)->layers);
    free(*model);
    *model = NULL;
}
