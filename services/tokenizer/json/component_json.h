/* The components of a tokenizer.json (normalizer, pre_tokenizer, post_processor, decoder) from a parsed
 * tree into their immutable forms. Every failure names the JSON path and, for a type this build does not
 * have, the type. */
#ifndef QN_TOKENIZER_JSON_COMPONENT_JSON_H
#define QN_TOKENIZER_JSON_COMPONENT_JSON_H

#include <jansson.h>

#include "services/tokenizer/tokenizer_data.h"

/* Each takes a borrowed JSON value (null: the component is absent) and fills a zeroed component. */
qn_err_t normalizer_json_load(const json_t *json, normalizer_t *normalizer);
qn_err_t pretokenizer_json_load(const json_t *json, pretokenizer_t *pretokenizer);
qn_err_t template_json_load(const json_t *json, token_template_t *template);
qn_err_t decoder_json_load(const json_t *json, decoder_t *decoder);

/* Shared by the loaders. `where` is the path of the object. Members that are missing or of another type
 * fail, unless a default is given. */
qn_err_t component_json_type(const json_t *json, const char *where, const char **ret);
qn_err_t component_json_bool(const json_t *json, const char *where, const char *key, int fallback, bool *ret);
qn_err_t component_json_string(const json_t *json, const char *where, const char *key, const char **ret,
                               size_t *ret_bytes);
/* A string of exactly one character. */
qn_err_t component_json_character(const json_t *json, const char *where, const char *key, uint32_t *ret);
/* {"String": …} or {"Regex": …}; *ret is owned. */
qn_err_t component_json_pattern(const json_t *json, const char *where, pattern_t **ret);
qn_err_t component_json_unsupported(const char *where, const char *what, const char *type);

#endif
