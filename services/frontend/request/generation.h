/* A typed request for generated text, whichever API it came through, and its parser from JSON. Knows no HTTP and no
 * message of the other services; handlers.c turns it into Encode messages. */
#ifndef QN_FRONTEND_REQUEST_GENERATION_H
#define QN_FRONTEND_REQUEST_GENERATION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/model/generation_config.h"
#include "common/limits.h"
#include "common/probe/probe.h"
#include "services/frontend/http/http_error.h"
#include "services/frontend/request/json_fields.h"
#include "services/frontend/request/unknown_fields.h"

typedef enum {
    GENERATION_COMPLETIONS, /* POST /v1/completions: OpenAI, vLLM */
    GENERATION_GENERATE,    /* POST /generate: SGLang, and the plain form */
    GENERATION_BATCH,       /* POST /batch_generate: the plain form of several prompts */
} generation_api_t;

#define GENERATION_NONE (-1)      /* logprobs not asked for */
#define QN_CLIENT_REQUEST_MAX 256 /* bytes of x-request-id, rid, cache_salt; as in encode.fbs */

typedef struct {
    const char *data; /* NULL: absent */
    size_t bytes;
} generation_text_t;

/* Text or ids. */
typedef struct {
    generation_text_t text;
    const uint32_t *ids;
    uint32_t id_count;
    const char *rid; /* SGLang's name of this prompt's request, or NULL */
} generation_prompt_t;

typedef struct {
    uint32_t id;
    float bias;
} generation_bias_t;

#define GENERATION_BAD_WORDS_MAX 64

/* All pointers are views of `arena`. */
typedef struct generation {
    generation_api_t api;
    generation_prompt_t *prompts;
    uint32_t prompt_count;
    bool is_list;           /* the prompt was a list: SGLang then answers with a list */
    bool plain;             /* prompt or prompts, sampling fields beside it; not in sampling_params */
    const char *request_id; /* "request_id" or "rid" of the body, or NULL */

    uint32_t n, best_of; /* choices shown, choices generated per prompt; best_of ≥ n */
    uint32_t max_tokens, min_tokens;
    uint64_t seed;
    bool seed_given;
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k; /* 0: off */
    bool ignore_eos, skip_special, add_special, include_stop;
    generation_text_t stop[QN_STOP_STRINGS_MAX];
    uint32_t stop_count;
    uint32_t stop_ids[QN_STOP_IDS_MAX];
    uint32_t stop_id_count;
    const generation_bias_t *bias;
    uint32_t bias_count;
    bool allow_only; /* allowed_token_ids: `bias` names all ids that may be generated */
    generation_text_t bad_words[GENERATION_BAD_WORDS_MAX];
    uint32_t bad_word_count;
    const uint32_t *logprob_ids; /* every token's report has their log-probabilities */
    uint32_t logprob_id_count;   /* at most QN_LOGPROB_IDS_MAX; 0 without logprobs */
    int32_t priority;
    uint32_t truncate_prompt_tokens;
    generation_text_t cache_salt;
    generation_text_t user, adapter; /* whose request it is, for policies; absent: {NULL, 0} */
    generation_text_t model;         /* the served model's name, when the request names one */
    uint32_t deadline_ms;            /* 0: none */
    const qn_mask_rule_t *masks;     /* sparsity_mask */
    uint32_t mask_count;
    const qn_tap_point_t *patches; /* what is put at points of the network */
    uint32_t patch_count;
    const float *patch_values;
    uint32_t patch_value_count;
    bool own_masks; /* it was given, if only to say that there is none: not the session's */

    bool stream, include_usage, continuous_usage;
    bool echo, return_token_ids, tokens_as_ids;
    int32_t logprobs;          /* alternatives per generated token; GENERATION_NONE */
    int32_t prompt_logprobs;   /* the same for prompt tokens (vLLM's field, or echo with logprobs) */
    bool show_prompt_logprobs; /* vLLM's prompt_logprobs was given */
    int32_t logprob_start;     /* SGLang: first prompt position shown; -1: none */
    bool text_in_logprobs;     /* SGLang: third element of a logprob entry */
    bool discard_output;       /* max_tokens 0: the prompt runs, nothing is generated or shown */

    const struct generation *variants; /* SGLang's lists: what differs per prompt; [prompt_count] or NULL */
    unknown_fields_t unknown;
    qn_arena_t arena; /* owned */
} generation_t;

/* What holds for prompt `prompt`: its variant, or all of them the same. */
static inline const generation_t *generation_for(const generation_t *generation, uint32_t prompt)
{
    return generation->variants ? &generation->variants[prompt] : generation;
}

/* What parsing needs to know of the server. */
typedef struct {
    const char *model;               /* the model served; NULL or "": any name is right */
    uint32_t vocab_size;             /* 0: not known yet, ids are checked further on */
    uint32_t max_model_len;          /* 0: not known yet */
    uint32_t layers, heads;          /* 0: not known yet */
    uint32_t default_max_tokens;     /* 0: the API's own default (16 for completions, 128 for generate) */
    uint32_t requests_max;           /* prompts × best_of at most */
    qn_generation_config_t defaults; /* of the model, or neutral; max_tokens is in default_max_tokens */
    bool strict;                     /* unknown fields are refused */
    const uint32_t *eos_ids;         /* of the model */
    uint32_t eos_id_count;
} generation_limits_t;

/* The typed fields of an API by table, for its documentation: index 0, 1, ...; NULL: no more. *ret_under: the member in
 * which they stand, NULL for the body itself. */
const json_field_t *generation_fields(generation_api_t api, unsigned index, size_t *ret_count, const char **ret_under);

/* Parses a body. True: *ret_generation is filled in and owns its arena (generation_fini). False: *ret_error says why,
 * with the field in `param`. Blocks never; cost is linear in the body. */
bool generation_parse(generation_api_t api, const char *body, size_t bytes, const generation_limits_t *limits,
                      generation_t *ret_generation, http_error_t *ret_error);
/* Accepts a zeroed one. */
void generation_fini(generation_t *generation);

/* What this API calls a field that another service refused by the name that OpenAI's has: "stop_token_ids" is
 * "sampling_params.stop_token_ids" for SGLang's. Returns `name` or a static text. */
const char *generation_field_name(const generation_t *generation, const char *name);

/* 400 for a body with unknown fields when `strict`. */
bool generation_check_unknown(const unknown_fields_t *unknown, bool strict, http_error_t *ret_error);

/* A list of token ids, read into an arena; shared with /detokenize. False: *ret_error. */
bool generation_parse_ids(const json_t *list, const char *param, uint32_t vocab_size, qn_arena_t *arena,
                          const uint32_t **ret_ids, uint32_t *ret_count, http_error_t *ret_error);
/* 404 for a `model` that is not served here. */
bool generation_check_model(const json_t *root, const char *model, http_error_t *ret_error);

#endif
