/* What generation_parse.c, generation_completions.c and generation_generate.c share; not for others. */
#ifndef QN_FRONTEND_REQUEST_GENERATION_INTERNAL_H
#define QN_FRONTEND_REQUEST_GENERATION_INTERNAL_H

#include "services/frontend/request/generation.h"
#include "services/frontend/request/json_fields.h"

/* A member that this server knows and cannot do. Neutral values (null, false, "", [], {}, and `neutral`) pass. */
typedef struct {
    const char *name;
    const char *why;
    const char *neutral; /* what means "off" besides: a string, a number or "true"; or NULL */
} generation_unsupported_t;

/* Known to both APIs and done by neither; `count` is written. */
const generation_unsupported_t *generation_unsupported_everywhere(size_t *ret_count);
bool generation_unsupported_name(const generation_unsupported_t *rows, size_t count, const char *name);
/* A name that is read by hand here or in the other API's sampling parameters: stop, logit_bias, ... */
bool generation_list_name(const char *name);

typedef struct {
    const json_t *root;
    const generation_limits_t *limits;
    generation_t *generation; /* under construction */
    http_error_t *error;
} generation_parser_t;

bool generation_completions(generation_parser_t *parser);
bool generation_generate(generation_parser_t *parser); /* /batch_generate, too */

/* generation_fields of the one API. */
const json_field_t *generation_completions_fields(unsigned index, size_t *ret_count, const char **ret_under);

/* All return false with the parser's error written. `prefix` is "" or "sampling_params.". */
bool generation_refuse_unsupported(generation_parser_t *parser, const json_t *object, const char *prefix,
                                   const generation_unsupported_t *rows, size_t count);
/* stop, stop_token_ids, logit_bias, allowed_token_ids, bad_words, top_k of `object`. */
bool generation_sampling_lists(generation_parser_t *parser, const json_t *object, const char *prefix);
/* Ids whose log-probabilities are wanted of every token: a list, or for SGLang one id. */
bool generation_logprob_ids(generation_parser_t *parser, const json_t *value, const char *param);
/* A name of a request, which headers echo: 1 to QN_CLIENT_REQUEST_MAX printable ASCII characters without spaces. */
bool generation_is_name(const json_t *value);
/* Such a name; absent leaves *ret_text as it is. */
bool generation_name(generation_parser_t *parser, const json_t *object, const char *name, const char **ret_text);
bool generation_salt(generation_parser_t *parser, const json_t *object);
/* What both APIs have for policies: user, deadline_ms; and adapter. */
bool generation_caller(generation_parser_t *parser, const json_t *object);
/* A name that generation_caller reads. */
bool generation_caller_name(const char *name);
/* sparsity_mask: an object or a list of them; "none": the session's does not hold either. */
bool generation_masks(generation_parser_t *parser, const json_t *object);
/* patches (patch_parse.h). */
bool generation_patches(generation_parser_t *parser, const json_t *object);
/* A string or list of strings into prompts. */
bool generation_text_prompts(generation_parser_t *parser, const json_t *value, const char *param);
/* A list of ids or a list of such lists into prompts. */
bool generation_id_prompts(generation_parser_t *parser, const json_t *value, const char *param);

#endif
