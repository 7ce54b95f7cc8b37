/* A config.json from anywhere, then after a zero byte perhaps a generation_config.json. Parsing may refuse; what it
 * accepts must be within the bounds that memory and compute build on, and give a list of tensors of sound shapes. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/assert.h"
#include "common/model/generation_config.h"
#include "common/model/model_tensors.h"

static void check_shape(const qn_model_config_t *c)
{
    QN_ASSERT(c->layers >= 1 && c->layers <= QN_LAYERS_MAX && c->heads % c->kv_heads == 0);
    QN_ASSERT(c->head_dim >= 2 && c->head_dim % 2 == 0 && c->head_dim <= QN_HEAD_DIM_MAX);
    QN_ASSERT(c->hidden >= 1 && c->hidden <= QN_WIDTH_MAX && c->intermediate >= 1 && c->intermediate <= QN_WIDTH_MAX);
    QN_ASSERT(c->vocab >= 1 && c->vocab <= QN_VOCAB_MAX && c->max_positions <= QN_POSITIONS_MAX);
    QN_ASSERT(c->experts <= QN_EXPERTS_MAX && c->experts_per_token <= c->experts && c->eos_count <= QN_STOP_IDS_MAX);
    QN_ASSERT(isfinite(c->attention_scale) && c->attention_scale > 0 && isfinite(c->embedding_multiplier));
    for (uint32_t i = 0; i < c->eos_count; i++)
        QN_ASSERT(c->eos[i] < c->vocab);
    bool sparse = false;
    for (uint32_t i = 0; i < c->layers; i++)
        sparse = sparse || c->layer_is_sparse[i];
    QN_ASSERT(sparse == (c->experts > 0));
}

static void check_tensors(const qn_model_config_t *c)
{
    size_t count = qn_model_tensor_count(c), step = count / 64 + 1;
    for (size_t i = 0; i < count; i = i < count - 1 && i + step > count - 1 ? count - 1 : i + step) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(c, i, &tensor);
        QN_ASSERT(tensor.name[0] && tensor.source[0] && (tensor.rank == 1 || tensor.rank == 2));
        QN_ASSERT(tensor.shape[0] && (tensor.shape[1] != 0) == (tensor.rank == 2));
        QN_ASSERT(tensor.source_first + tensor.shape[0] <= tensor.source_outputs);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, 0, size);
    size_t bytes = end ? (size_t)(end - data) : size;
    const char *generation = end ? (const char *)end + 1 : NULL;
    qn_model_config_t config;
    qn_model_warnings_t warnings = {0};
    qn_generation_config_t sampling;
    if (generation && !qn_generation_config_parse(generation, size - bytes - 1, &sampling))
        QN_ASSERT(sampling.temperature >= 0 && sampling.top_p >= 0 && sampling.top_p <= 1 &&
                  sampling.top_k < QN_VOCAB_MAX);
    if (qn_model_config_parse((const char *)data, bytes, generation, end ? size - bytes - 1 : 0, &warnings, &config))
        return 0;
    QN_ASSERT(warnings.count <= QN_MODEL_WARNINGS_MAX);
    float frequencies[QN_HEAD_DIM_MAX / 2];
    check_shape(&config);
    check_tensors(&config);
    qn_rope_frequencies(&config.rope, config.head_dim, frequencies);
    for (uint32_t i = 0; i < config.head_dim / 2; i++)
        QN_ASSERT(isfinite(frequencies[i]));
    return 0;
}
