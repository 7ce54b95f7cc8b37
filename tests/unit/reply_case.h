/* Builds an exchange as if the services had answered, for the tests of the reply writers. */
#ifndef QN_TESTS_UNIT_REPLY_CASE_H
#define QN_TESTS_UNIT_REPLY_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

static inline exchange_t *reply_case(request_table_t *table, generation_api_t api, const char *body)
{
    generation_limits_t limits = {.requests_max = 4096};
    generation_t generation = {0};
    http_error_t error;
    if (!generation_parse(api, body, strlen(body), &limits, &generation, &error)) fail_msg("%s", error.message);
    exchange_t *exchange = request_table_open_generation(table, &generation);
    exchange->route = api == GENERATION_COMPLETIONS ? ROUTE_COMPLETIONS : ROUTE_GENERATE;
    strcpy(exchange->client_id, "abc");
    exchange->created_s = 1700000000;
    return exchange;
}

/* A token that adds its own bytes to the output. */
static inline void reply_case_token(choice_t *choice, uint32_t id, float logprob, const char *piece)
{
    uint32_t bytes = (uint32_t)strlen(piece);
    reply_buffer_append(&choice->text, piece, bytes);
    token_log_add(&choice->tokens, id, logprob, json_utf8_characters(choice->text.data, choice->text.bytes), piece,
                  (uint16_t)bytes);
}

static inline void reply_case_end(choice_t *choice, choice_finish_t finish, uint32_t prompt_tokens)
{
    choice_end_t end = {.finish = finish, .prompt_tokens = prompt_tokens, .generated_tokens = choice->tokens.count};
    choice_end(choice, &end);
}

static inline json_t *reply_case_parse(reply_buffer_t *out)
{
    json_error_t error;
    json_t *root = json_loadb(out->data, out->bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("%s in %.*s", error.text, (int)out->bytes, out->data);
    reply_buffer_fini(out);
    return root;
}

/* Member by path: "choices.0.text". */
static inline json_t *reply_case_at(json_t *root, const char *path)
{
    char copy[128];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *save = NULL, *step = strtok_r(copy, ".", &save); step; step = strtok_r(NULL, ".", &save)) {
        root = json_is_array(root) ? json_array_get(root, (size_t)atoi(step)) : json_object_get(root, step);
        if (!root) fail_msg("no %s in %s", step, path);
    }
    return root;
}

/* The value at the path, as compact JSON, equals `expected`. */
static inline void reply_case_expect(json_t *root, const char *path, const char *expected)
{
    char *text = json_dumps(reply_case_at(root, path), JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    if (strcmp(text, expected) != 0) fail_msg("%s is %s, not %s", path, text, expected);
    free(text);
}

#endif
