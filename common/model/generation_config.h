/* What generation_config.json says about sampling when a request does not: the fields that vLLM and SGLang take over
 * (temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens). Its end tokens are model_config.h's. */
#ifndef QN_COMMON_MODEL_GENERATION_CONFIG_H
#define QN_COMMON_MODEL_GENERATION_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* Neutral values where the file says nothing: 1, 1, 0, 1, 0, 0. */
typedef struct {
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;      /* 0 = off */
    uint32_t max_tokens; /* 0 = not said */
} qn_generation_config_t;

#define QN_GENERATION_CONFIG_NEUTRAL ((qn_generation_config_t){.temperature = 1, .top_p = 1, .repetition_penalty = 1})

/* Parses generation_config.json, JSON as Python writes it (python_json.h); `text` NULL (there is no such file) gives the neutral values. do_sample is ignored, as
 * vLLM does: a client that wants greedy decoding says temperature 0.
 * QN_ERR_INVALID: not a JSON object, or a field is of the wrong type or out of range (the text names it). */
qn_err_t qn_generation_config_parse(const char *text, size_t bytes, qn_generation_config_t *ret_config);

#endif
