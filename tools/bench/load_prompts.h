/* The requests of a load as bodies of POST /v1/completions: random token ids, or the lines of a file. Bodies are written
 * as text: a long prompt is thousands of numbers, and the load's own work must not show in the figures. */
#ifndef QN_TOOLS_BENCH_LOAD_PROMPTS_H
#define QN_TOOLS_BENCH_LOAD_PROMPTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/limits.h"
#include "tools/bench/load_plan.h"

#define LOAD_LINES_MAX 1000000
#define LOAD_FILE_BYTES_MAX (1u << 30)
#define LOAD_SPECIAL_IDS_MAX (QN_STOP_IDS_MAX + 1)

/* ---- files ---- */

/* A line: a JSON string, or an object with one of prompt, text, input_ids (a prompt) or prompt_tokens (how many random
 * ones), with max_tokens, and with arrival in a trace. */
typedef struct {
    char *prompt;           /* owned; JSON text; NULL: random ids */
    uint32_t prompt_tokens; /* 0: only the server knows */
    uint32_t max_tokens;    /* 0: not said */
    double arrival_s;
} load_line_t;

typedef struct {
    load_line_t *items; /* owned; in the order of arrival */
    size_t count, capacity;
} load_lines_t;

/* Takes the lines of a text; `path` is for messages. `is_trace`: each line has its arrival. Failures name the line and
 * what is wrong with it: QN_ERR_INVALID, QN_ERR_LIMIT. Free with load_lines_fini, after a failure, too. */
qn_err_t load_lines_parse(const char *path, const char *text, size_t bytes, bool is_trace, load_lines_t *ret_lines);
void load_lines_fini(load_lines_t *lines);

/* ---- requests ---- */

/* Embedded by the caller. load_prompts_check says whether it makes sense. */
typedef struct {
    uint64_t seed;
    uint32_t vocab_size;                        /* 0: not known; then every line has a prompt */
    uint32_t max_model_len;                     /* 0: not known */
    uint32_t special_ids[LOAD_SPECIAL_IDS_MAX]; /* ascending, each once, below vocab_size; never in a random prompt */
    size_t special_count;
    load_length_t prompt, output;
    uint32_t prefix_tokens; /* in front of the random ids of `prefix_share` (0 .. 1) of the requests, the same ones */
    double prefix_share;
    uint32_t user_count;  /* 0: no users */
    const json_t *fields; /* borrowed; further members of the body; may be NULL */
    load_lines_t lines;   /* owned; empty: random prompts */
} load_prompts_t;

typedef struct {
    char *body; /* owned */
    size_t bytes;
    uint32_t prompt_tokens; /* 0: only the server knows */
    uint32_t max_tokens;
    bool clipped; /* a length was bounded by the model's */
} load_request_t;

/* QN_ERR_INVALID, with the option's name in the text, when lengths do not fit into the model or there is no vocabulary to
 * draw from. */
qn_err_t load_prompts_check(const load_prompts_t *prompts);
/* Request number `index`; the same each time it is asked for. `purpose`: LOAD_FOR_REQUESTS or LOAD_FOR_WARMUP, whose prompts
 * differ, except for the shared prefix and the lines of a file. QN_ERR_NO_MEMORY. */
qn_err_t load_prompts_make(const load_prompts_t *prompts, load_purpose_t purpose, uint64_t index,
                           load_request_t *ret_request);

#endif
