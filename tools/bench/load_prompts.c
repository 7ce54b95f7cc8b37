/* What is this?      Bodies of a load's requests.
 * State owned:       none; a request is made of the seed and its number.
 * Must never:        put a special id into a random prompt: an end-of-sequence in it is another load than it says.
 * Read next:         load_plan.c (the numbers), load_engine.c (who sends the bodies). */
#include "tools/bench/load_prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS_MAX 11 /* of an id, with its comma */
#define REST_BYTES 512

/* ---- what fits ---- */

static bool draws_ids(const load_prompts_t *prompts)
{
    bool draws = !prompts->lines.count;
    for (size_t i = 0; i < prompts->lines.count && !draws; i++)
        draws = !prompts->lines.items[i].prompt;
    return draws;
}

static qn_err_t check_line(const load_prompts_t *prompts, size_t number)
{
    const load_line_t *line = &prompts->lines.items[number];
    uint64_t output = line->max_tokens ? line->max_tokens : 1, prompt = line->prompt_tokens;
    if (prompt + output > prompts->max_model_len)
        return qn_fail(QN_ERR_INVALID,
                       "request %zu of the file: %llu tokens of prompt and %llu of output are more than the "
                       "%u of the model",
                       number + 1, (unsigned long long)prompt, (unsigned long long)output, prompts->max_model_len);
    return QN_OK;
}

static qn_err_t check_lengths(const load_prompts_t *prompts)
{
    if (!prompts->max_model_len) return QN_OK;
    if (prompts->lines.count) {
        qn_err_t err = QN_OK;
        for (size_t i = 0; i < prompts->lines.count && !err; i++)
            err = check_line(prompts, i);
        return err;
    }
    uint64_t prompt = load_length_longest(&prompts->prompt), output = load_length_longest(&prompts->output);
    /* Lengths without a bound leave one token of each in any case. */
    uint64_t least = prompts->prefix_tokens + (prompt ? prompt : 1) + (output ? output : 1);
    if (least > prompts->max_model_len)
        return qn_fail(
            QN_ERR_INVALID,
            "--prompt-tokens, --output-tokens and --shared-prefix: %llu tokens together are more than the %u of "
            "the model",
            (unsigned long long)least, prompts->max_model_len);
    return QN_OK;
}

qn_err_t load_prompts_check(const load_prompts_t *prompts)
{
    if (draws_ids(prompts) && prompts->vocab_size <= prompts->special_count)
        return qn_fail(QN_ERR_INVALID,
                       "the server does not tell the size of its vocabulary: say --vocab-size N, or give prompts with "
                       "--prompts FILE");
    return check_lengths(prompts);
}

/* ---- a body ---- */

static char *put_number(char *at, uint32_t number)
{
    char digits[DIGITS_MAX];
    size_t count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        *at++ = digits[--count];
    return at;
}

/* An id that is not special: the numbers that are left over are counted through. */
static uint32_t draw_id(const load_prompts_t *prompts, load_random_t *random)
{
    uint32_t id = load_random_below(random, prompts->vocab_size - (uint32_t)prompts->special_count);
    for (size_t i = 0; i < prompts->special_count && prompts->special_ids[i] <= id; i++)
        id++;
    return id;
}

static char *put_ids(char *at, const load_prompts_t *prompts, load_random_t *random, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        at = put_number(at, draw_id(prompts, random));
        *at++ = ',';
    }
    return at;
}

/* How long the request is. `prefix` says whether the shared prefix stands in front. */
static load_request_t draw_lengths(const load_prompts_t *prompts, const load_line_t *line, load_random_t *random,
                                   bool prefix)
{
    uint32_t most = prompts->max_model_len ? prompts->max_model_len : 2 * QN_PROMPT_TOKENS_MAX;
    load_request_t request = {.prompt_tokens = line ? line->prompt_tokens : 0};
    bool output_clipped = false, prompt_clipped = false;
    /* Both draws happen in any case: what a request gets does not depend on what another option says. */
    uint32_t least_prompt = line ? (line->prompt_tokens ? line->prompt_tokens : 1) : prompts->prefix_tokens + 1;
    request.max_tokens = load_length_draw(&prompts->output, random, most - least_prompt, &output_clipped);
    if (line && line->max_tokens) {
        request.max_tokens = line->max_tokens;
        output_clipped = false;
    }
    if (!line) {
        uint32_t room = most - prompts->prefix_tokens - request.max_tokens;
        request.prompt_tokens = load_length_draw(&prompts->prompt, random, room, &prompt_clipped);
        if (prefix) request.prompt_tokens += prompts->prefix_tokens;
    }
    request.clipped = output_clipped || prompt_clipped;
    return request;
}

static char *put_prompt(char *at, const load_prompts_t *prompts, const load_line_t *line, load_random_t *random,
                        bool prefix, uint32_t tokens)
{
    if (line && line->prompt) return stpcpy(at, line->prompt);
    *at++ = '[';
    if (prefix) {
        load_random_t shared = load_random(prompts->seed, LOAD_FOR_PREFIX, 0);
        at = put_ids(at, prompts, &shared, prompts->prefix_tokens);
        tokens -= prompts->prefix_tokens;
    }
    at = put_ids(at, prompts, random, tokens);
    at[-1] = ']';
    return at;
}

static char *put_rest(char *at, const load_prompts_t *prompts, uint64_t index, uint32_t max_tokens, const char *fields)
{
    at += sprintf(at,
                  ",\"max_tokens\":%u,\"stream\":true,\"stream_options\":{\"include_usage\":true,"
                  "\"continuous_usage_stats\":true}",
                  max_tokens);
    if (!json_object_get(prompts->fields, "temperature")) at = stpcpy(at, ",\"temperature\":0");
    if (!json_object_get(prompts->fields, "ignore_eos")) at = stpcpy(at, ",\"ignore_eos\":true");
    if (prompts->user_count)
        at += sprintf(at, ",\"user\":\"u%llu\"", (unsigned long long)(index % prompts->user_count));
    /* "{...}" as ",..." and the end of the body. */
    if (fields && fields[1] != '}') {
        *at++ = ',';
        return stpcpy(at, fields + 1);
    }
    return stpcpy(at, "}");
}

qn_err_t load_prompts_make(const load_prompts_t *prompts, load_purpose_t purpose, uint64_t index,
                           load_request_t *ret_request)
{
    const load_line_t *line = prompts->lines.count ? &prompts->lines.items[index % prompts->lines.count] : NULL;
    load_random_t random = load_random(prompts->seed, purpose, index);
    bool prefix = load_random_unit(&random) <= prompts->prefix_share && prompts->prefix_tokens && !line;
    load_request_t request = draw_lengths(prompts, line, &random, prefix);
    char *fields = prompts->fields ? json_dumps(prompts->fields, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    size_t prompt_bytes =
        line && line->prompt ? strlen(line->prompt) : (size_t)request.prompt_tokens * DIGITS_MAX + sizeof "[]";
    request.body = malloc(prompt_bytes + (fields ? strlen(fields) : 0) + REST_BYTES);
    if (!request.body || (prompts->fields && !fields)) {
        free(fields);
        free(request.body);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for a request");
    }
    char *at = stpcpy(request.body, "{\"prompt\":");
    at = put_prompt(at, prompts, line, &random, prefix, request.prompt_tokens);
    at = put_rest(at, prompts, index, request.max_tokens, fields);
    request.bytes = (size_t)(at - request.body);
    free(fields);
    *ret_request = request;
    return QN_OK;
}
