/* A Hugging Face model directory as memory describes it to others: its configuration, name and length limit. */
#ifndef QN_MEMORY_WEIGHTS_MODEL_DIRECTORY_H
#define QN_MEMORY_WEIGHTS_MODEL_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/err.h"
#include "common/model/generation_config.h"
#include "common/model/model_config.h"

#define MODEL_DIRECTORY_TEXT_MAX (1u << 20) /* bytes of config.json, as ModelDescription.config_json */

typedef struct {
    char path[QN_PATH_MAX];
    char id[256];      /* in the HTTP API */
    char *config_text; /* owned: config.json as it stands */
    size_t config_bytes;
    qn_model_config_t config;
    qn_generation_config_t generation;
    qn_model_warnings_t warnings; /* of the two files; the loader adds the checkpoint's */
    uint32_t max_model_len;       /* tokens of prompt and answer; what was asked for, or what the model says */
    bool max_model_len_asked;     /* it was asked for, so it must not be made smaller */
} model_directory_t;

/* Reads config.json and generation_config.json of model.path. QN_ERR_NOT_FOUND, QN_ERR_INVALID, QN_ERR_UNSUPPORTED (see
 * model_config.h), QN_ERR_CONFIG (model.max_model_len beyond what the model can). Returns owned. */
qn_err_t model_directory_read(const qn_config_values_t *values, model_directory_t **ret_directory);
void model_directory_free(model_directory_t **directory);

#endif
