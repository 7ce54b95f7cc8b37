/* What is this?      Text to ids and back, through a server or in this process.
 * State owned:       the open tokenizer, or the HTTP client.
 * Must never:        ask a server when a tokenizer file was named.
 * Read next:         services/tokenizer/tokenizer.h, http_client.h. */
#include "tools/client/token_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/assert.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/cli.h"
#include "tools/client/http_client.h"

#define CALL_TIMEOUT_MS 60000

struct token_source {
    tokenizer_t *tokenizer;       /* owned; NULL: ask the server */
    tokenizer_scratch_t *scratch; /* owned */
    tokenizer_tokens_t tokens;    /* owned */
    text_buffer_t text;           /* owned */
    http_client_t *client;        /* owned */
    http_reply_t reply;           /* owned; holds the text returned last */
};

int token_source_open(const char *tokenizer, const char *url, token_source_t **ret_source)
{
    token_source_t *source = calloc(1, sizeof *source);
    if (!source) return cli_fail(EX_OSERR, "no memory");
    qn_err_t err =
        tokenizer ? tokenizer_open(tokenizer, &source->tokenizer) : http_client_open(url, -1, &source->client);
    if (err) {
        free(source);
        return tokenizer ? cli_fail_err(err) : cli_usage("%s", qn_err_text());
    }
    if (tokenizer) source->scratch = tokenizer_scratch_open(source->tokenizer);
    *ret_source = source;
    return EX_OK;
}

void token_source_close(token_source_t **source)
{
    token_source_t *it = *source;
    if (!it) return;
    tokenizer_tokens_fini(&it->tokens);
    text_buffer_fini(&it->text);
    if (it->scratch) tokenizer_scratch_close(&it->scratch);
    tokenizer_close(&it->tokenizer);
    http_reply_fini(&it->reply);
    http_client_close(&it->client);
    free(it);
    *source = NULL;
}

void token_ids_add(token_ids_t *ids, uint32_t id)
{
    if (ids->count == ids->capacity) {
        ids->capacity = ids->capacity ? ids->capacity * 2 : 256;
        ids->items = realloc(ids->items, ids->capacity * sizeof *ids->items);
        QN_ASSERT(ids->items != NULL);
    }
    ids->items[ids->count++] = id;
}

int token_ids_parse(const char *argument, token_ids_t *ids)
{
    const char *at = argument + strspn(argument, "[], \t\n");
    while (*at) {
        char *end;
        unsigned long long id = strtoull(at, &end, 10);
        if (*at < '0' || *at > '9' || id > UINT32_MAX) return cli_usage("\"%s\" is no token id", argument);
        token_ids_add(ids, (uint32_t)id);
        at = end + strspn(end, "], \t\n");
    }
    return EX_OK;
}

void token_ids_fini(token_ids_t *ids)
{
    free(ids->items);
    *ids = (token_ids_t){0};
}

/* Calls the server; takes the body. EX_OK: source->reply has the answer. */
static int ask(token_source_t *source, const char *path, json_t *body)
{
    http_reply_fini(&source->reply);
    if (!body) return cli_fail(EX_DATAERR, "the text is not UTF-8");
    http_call_t call = {.method = "POST", .path = path, .body = body, .timeout_ms = CALL_TIMEOUT_MS};
    qn_err_t err = http_client_call(source->client, &call, &source->reply);
    json_decref(body);
    return http_client_explain(source->client, err, &source->reply);
}

static int wrong_answer(const token_source_t *source, const char *path)
{
    return cli_fail(EX_PROTOCOL, "the answer of %s%s is not what it should be: is it a Quintet server?",
                    http_client_url(source->client), path);
}

static int encode_by_server(token_source_t *source, const char *text, size_t bytes, bool add_special, token_ids_t *ids)
{
    json_t *prompt = json_stringn(text, bytes);
    json_t *body = prompt ? json_pack("{s:o, s:b}", "prompt", prompt, "add_special_tokens", (int)add_special) : NULL;
    int status = ask(source, "/tokenize", body);
    if (status) return status;
    const json_t *tokens = json_object_get(source->reply.json, "tokens");
    if (!json_is_array(tokens)) return wrong_answer(source, "/tokenize");
    for (size_t i = 0; i < json_array_size(tokens); i++)
        token_ids_add(ids, (uint32_t)json_integer_value(json_array_get(tokens, i)));
    return EX_OK;
}

int token_source_encode(token_source_t *source, const char *text, size_t bytes, bool add_special, token_ids_t *ids)
{
    ids->count = 0;
    if (!source->tokenizer) return encode_by_server(source, text, bytes, add_special, ids);
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (add_special ? TOKENIZER_ADD_SPECIAL : 0);
    qn_err_t err = tokenizer_encode(source->tokenizer, source->scratch, text, bytes, flags, &source->tokens);
    if (err) return cli_fail_err(err);
    for (size_t i = 0; i < source->tokens.count; i++)
        token_ids_add(ids, source->tokens.ids[i]);
    return EX_OK;
}

static int decode_by_server(token_source_t *source, const token_ids_t *ids, bool skip_special, const char **ret_text,
                            size_t *ret_bytes)
{
    json_t *tokens = json_array();
    for (size_t i = 0; i < ids->count; i++)
        json_array_append_new(tokens, json_integer(ids->items[i]));
    json_t *body = json_pack("{s:o, s:b}", "tokens", tokens, "skip_special_tokens", (int)skip_special);
    int status = ask(source, "/detokenize", body);
    if (status) return status;
    const json_t *text = json_object_get(source->reply.json, "prompt");
    if (!json_is_string(text)) return wrong_answer(source, "/detokenize");
    *ret_text = json_string_value(text);
    *ret_bytes = json_string_length(text);
    return EX_OK;
}

int token_source_decode(token_source_t *source, const token_ids_t *ids, bool skip_special, const char **ret_text,
                        size_t *ret_bytes)
{
    if (!source->tokenizer) return decode_by_server(source, ids, skip_special, ret_text, ret_bytes);
    source->text.length = 0;
    tokenizer_decode(source->tokenizer, ids->items, ids->count, skip_special ? TOKENIZER_SKIP_SPECIAL : 0,
                     &source->text);
    *ret_bytes = source->text.length;
    text_buffer_append(&source->text, "", 1);
    *ret_text = (const char *)source->text.bytes;
    return EX_OK;
}
