/* What generation_parse.c, generation_completions.c and generation_generate.c share; not for others. */
#ifndef QN_FRONTEND_GENERATION_INTERNAL_H
#define QN_FRONTEND_GENERATION_INTERNAL_H

#include "services/frontend/request/generation.h"
#include "services/frontend/request/json_fields.h"

/* A member that this server knows and cannot do. Neutral values (null, false, "", [], {}, and `neutral`) pass. */
typedef struct {
    const char *name;
    const char *why;
    const char *neutral; /* a string value that means "off", or NULL */
} generation_unsupported_t;

typedef struct {
    const json_t *root;
    const generation_limits_t *limits;
    generation_t *generation; /* under construction */
    http_error_t *error;
} generation_parser_t;

bool generation_completions(generation_parser_t *parser);
bool generation_generate(generation_parser_t *parser);

/* All return false with the parser's error written. `prefix` is "" or "sampling_params.". */
bool generation_refuse_unsupported(generation_parser_t *parser, const json_t *object, const char *prefix,
                                   const generation_unsupported_t *rows, size_t count);
/* stop, stop_token_ids, logit_bias, top_k of `object`. */
bool generation_sampling_lists(generation_parser_t *parser, const json_t *object, const char *prefix);
/* A name of a request, which headers echo: 1 to QN_CLIENT_REQUEST_MAX printable ASCII characters without spaces. */
bool generation_is_name(const json_t *value);
/* Such a name; absent leaves *ret_text as it is. */
bool generation_name(generation_parser_t *parser, const json_t *object, const char *name, const char **ret_text);
bool generation_salt(generation_parser_t *parser, const json_t *object);
/* A string or list of strings into prompts. */
bool generation_text_prompts(generation_parser_t *parser, const json_t *value, const char *param);
/* A list of ids or a list of such lists into prompts. */
bool generation_id_prompts(generation_parser_t *parser, const json_t *value, const char *param);

#endif
