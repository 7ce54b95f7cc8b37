/* What is this?      The binding of tensors by name.
 * State owned:       the layer table; the bytes are memory's.
 * Must never:        compute; accept a shape that the kernels would read past.
 * Read next:         common/model/model_tensors.h (what there must be), executor.c (the order it is used in). */
#include "services/compute/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/weight_layout.h"

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

static qn_err_t check_shape(const qn_model_tensor_t *want, const model_tensor_t *have)
{
    bool same = have->rank == want->rank;
    for (uint32_t i = 0; same && i < want->rank; i++)
        same = have->shape[i] == want->shape[i];
    if (same) return QN_OK;
    char wanted[64], found[64];
    return qn_fail(QN_ERR_INVALID, "tensor %s: its shape is %s, config.json asks for %s", want->name,
                   format_shape(have->shape, have->rank, found), format_shape(want->shape, want->rank, wanted));
}

/* Norms, biases and the like are read as rows; products and tables in any format, but numbers without scales. */
static qn_err_t check_format(const qn_model_tensor_t *want, const model_tensor_t *have)
{
    bool packed = have->layout == QN_LAYOUT_PANELS;
    bool quantised = have->scalar == QN_SCALAR_INT8 || have->scalar == QN_SCALAR_INT4;
    if (!have->supported)
        return qn_fail(QN_ERR_UNSUPPORTED, "tensor %s: only f32, bf16, int8 and int4 weights are computed", want->name);
    if (packed && want->use == QN_TENSOR_PLAIN)
        return qn_fail(QN_ERR_INVALID, "tensor %s: it is packed in panels, but is read as rows", want->name);
    if (quantised && !packed)
        return qn_fail(QN_ERR_INVALID, "tensor %s: int8 and int4 are computed in panels only", want->name);
    if (have->scalar == QN_SCALAR_INT4 && have->group != 32 && have->group != 64)
        return qn_fail(QN_ERR_UNSUPPORTED, "tensor %s: a scale of %" PRIu32 " inputs; int4 has groups of 32 or 64",
                       want->name, have->group);
    return QN_OK;
}

static qn_err_t check_tensor(const qn_model_tensor_t *want, const model_tensor_t *have, uint64_t base_bytes)
{
    uint64_t bytes = 0, inputs = want->rank == 2 ? want->shape[1] : 1;
    qn_err_t err = check_format(want, have);
    if (!err) err = check_shape(want, have);
    if (!err) err = qn_weight_bytes(have->scalar, have->layout, have->group, want->shape[0], inputs, &bytes);
    if (err) return err;
    if (have->bytes != bytes || have->offset % 16 || bytes > base_bytes || have->offset > base_bytes - bytes)
        return qn_fail(QN_ERR_INVALID,
                       "tensor %s: %" PRIu64 " bytes at %" PRIu64 " do not fit the weights region of "
                       "%" PRIu64 " bytes",
                       want->name, have->bytes, have->offset, base_bytes);
    return QN_OK;
}

static qn_weight_t *place_of(model_t *model, const qn_model_tensor_t *want)
{
    if (want->expert != QN_TENSOR_NO_EXPERT) {
        model_expert_part_t part = want->role == QN_TENSOR_EXPERT_GATE ? MODEL_EXPERT_GATE
                                   : want->role == QN_TENSOR_EXPERT_UP ? MODEL_EXPERT_UP
                                                                       : MODEL_EXPERT_DOWN;
        return &model->experts[model_expert_at(&model->config, want->layer, part) + want->expert];
    }
    model_layer_t *layer = want->layer == QN_TENSOR_NO_LAYER ? &model->outer : &model->layers[want->layer];
    return &layer->weights[want->role];
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
        *place_of(model, &want) = (qn_weight_t){.data = base + (*found)->offset,
                                                .scalar = (*found)->scalar,
                                                .layout = (*found)->layout,
                                                .group = (*found)->group};
    }
    qn_weight_t *outer = model->outer.weights;
    if (model->config.tie_embeddings) outer[QN_TENSOR_HEAD] = outer[QN_TENSOR_EMBEDDING];
    return QN_OK;
}

/* Memory keeps a head where the checkpoint has one that is not the embedding, whatever config.json says of it. */
static bool has_own_head(const qn_model_config_t *config, const model_tensor_t **sorted, size_t count)
{
    qn_model_config_t untied = *config;
    qn_model_tensor_t head;
    untied.tie_embeddings = false;
    qn_model_tensor_at(&untied, qn_model_tensor_count(&untied) - 1, &head);
    return bsearch(head.name, sorted, count, sizeof *sorted, compare_to_name) != NULL;
}

qn_err_t model_bind(const qn_model_config_t *config, const model_tensor_t *tensors, size_t tensor_count,
                    const void *base, uint64_t base_bytes, model_t **ret_model)
{
    model_t *model = calloc(1, sizeof *model);
    const model_tensor_t **sorted = calloc(tensor_count ? tensor_count : 1, sizeof *sorted);
    if (model) model->layers = calloc(config->layers, sizeof *model->layers);
    if (model) model->experts = calloc(model_expert_count(config) + 1, sizeof *model->experts);
    qn_err_t err = QN_OK;
    if (!model || !sorted || !model->layers || !model->experts) {
        err = qn_fail(QN_ERR_NO_MEMORY, "no memory to bind %zu tensors", tensor_count);
    } else {
        model->config = *config;
        for (size_t i = 0; i < tensor_count; i++)
            sorted[i] = &tensors[i];
        qsort(sorted, tensor_count, sizeof *sorted, compare_names);
        if (has_own_head(config, sorted, tensor_count)) model->config.tie_embeddings = false;
        err = bind_all(model, sorted, tensor_count, base, base_bytes);
    }
    free(sorted);
    if (err)
        model_destroy(&model);
    else
        *ret_model = model;
    return err;
}

void model_destroy(model_t **model)
{
    if (!*model) return;
    free((*model)->layers);
    free((*model)->experts);
    free(*model);
    *model = NULL;
}
