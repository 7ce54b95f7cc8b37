/* What is this?      What the forms about a run of tokens share.
 * State owned:       none; a form's.
 * Must never:        run a prompt that differs from the one that was given.
 * Read next:         tokens.h, forms.h; attention_scores.c, taps.c, pipeline.c. */
#include "services/frontend/research/tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/request/request_table.h"

#define EXAMPLE_PROMPT "The quick brown fox jumps over the lazy dog"

/* ---- tokens ---- */

static void encoded(form_t *form, call_t *call, const void *message)
{
    (void)call;
    const qn_tokenizer_encode_reply_t *reply = message;
    form_tokens_t *tokens = form->state;
    uint32_t *ids = qn_arena_zalloc(&form->arena, reply->ids_count + 1, sizeof *ids);
    tokens->texts = qn_arena_zalloc(&form->arena, reply->ids_count + 1, sizeof *tokens->texts);
    for (uint32_t i = 0; i < reply->ids_count; i++) {
        ids[i] = reply->ids[i];
        if (i < reply->tokens_count)
            tokens->texts[i] = qn_arena_strndup(&form->arena, reply->tokens[i].data, reply->tokens[i].bytes);
    }
    tokens->ids = ids;
    tokens->count = reply->ids_count;
    if (tokens->count == 0)
        form_fail(form, 400, "prompt", "prompt: it has no tokens");
    else
        tokens->next(form);
}

static void encode(form_t *form, const char *text, size_t bytes)
{
    qn_tokenizer_encode_t message = {.text = {.data = text, .bytes = (uint32_t)bytes},
                                     .add_special_tokens = true,
                                     .parse_special_tokens = true};
    if (bytes > QN_TOKENIZER_ENCODE_TEXT_MAX)
        form_fail(form, 400, "prompt", "prompt: %zu bytes; %d are possible here", bytes, QN_TOKENIZER_ENCODE_TEXT_MAX);
    else
        form_call(form, QN_METHOD_TOKENIZER_ENCODE, &message, encoded);
}

static void living(form_t *form, call_t *call, const void *message)
{
    (void)call;
    const qn_scheduler_tokens_reply_t *reply = message;
    form_tokens_t *tokens = form->state;
    uint32_t count = reply->computed_tokens < reply->ids_count ? reply->computed_tokens : reply->ids_count;
    uint32_t *ids = qn_arena_zalloc(&form->arena, count + 1, sizeof *ids);
    if (count) memcpy(ids, reply->ids, count * sizeof *ids);
    tokens->ids = ids;
    tokens->count = count;
    if (count == 0)
        form_fail(form, 409, "request", "request: nothing of it has been computed yet; ask again when it has a token");
    else
        tokens->next(form);
}

/* The name that its client gave it, or that it was answered in x-request-id. */
static void find_living(form_t *form, const json_t *name)
{
    const request_table_t *table = form->frontend->table;
    form_tokens_t *tokens = form->state;
    for (uint32_t i = 0; json_is_string(name) && i < request_table_count(table); i++) {
        const exchange_t *exchange = request_table_at(table, i);
        if (exchange->kind == EXCHANGE_GENERATION && strcmp(exchange->client_id, json_string_value(name)) == 0)
            tokens->request = exchange->first_id;
    }
    qn_scheduler_tokens_t message = {.request = tokens->request};
    if (tokens->request)
        form_call(form, QN_METHOD_SCHEDULER_TOKENS, &message, living);
    else
        form_fail(form, 404, "request", "request: none of this name runs; it is the x-request-id of one that does");
}

static bool read_ids(form_t *form, const json_t *value)
{
    form_tokens_t *tokens = form->state;
    uint32_t vocab = form->frontend->model.vocab_size;
    size_t count = json_array_size(value);
    uint32_t *ids = qn_arena_zalloc(&form->arena, count + 1, sizeof *ids);
    if (!json_is_array(value) || count == 0) {
        form_fail(form, 400, "input_ids", "input_ids must be a list of at least one token id");
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(value, i);
        json_int_t number = json_is_integer(id) ? json_integer_value(id) : -1;
        if (number < 0 || number > UINT32_MAX || (vocab && number >= vocab)) {
            char text[64];
            json_fields_show(id, text, sizeof text);
            form_fail(form, 400, "input_ids", "input_ids[%zu] is %s; the vocabulary has %u ids, from 0", i, text,
                      vocab);
            return false;
        }
        ids[i] = (uint32_t)number;
    }
    tokens->ids = ids;
    tokens->count = (uint32_t)count;
    return true;
}

static const json_t *given(const form_t *form, const char *name)
{
    const json_t *value = json_object_get(form->body, name);
    return value && !json_is_null(value) ? value : NULL;
}

void form_find_tokens(form_t *form, void (*next)(form_t *form))
{
    static const uint32_t EXAMPLE_IDS[] = {1, 2, 3, 4, 5};
    const json_t *prompt = given(form, "prompt"), *ids = given(form, "input_ids"), *request = given(form, "request");
    form_tokens_t *tokens = form->state;
    tokens->next = next;
    if ((prompt != NULL) + (ids != NULL) + (request != NULL) > 1)
        form_fail(form, 400, prompt ? "prompt" : "input_ids",
                  "prompt, input_ids and request: one of them, not several");
    else if (prompt && !json_is_string(prompt))
        form_fail(form, 400, "prompt", "prompt must be a string, not %s", json_fields_type(prompt));
    else if (prompt)
        encode(form, json_string_value(prompt), json_string_length(prompt));
    else if (request)
        find_living(form, request);
    else if (ids && read_ids(form, ids))
        next(form);
    else if (!ids && form->frontend->model.has_text)
        encode(form, EXAMPLE_PROMPT, strlen(EXAMPLE_PROMPT));
    else if (!ids) {
        tokens->ids = EXAMPLE_IDS;
        tokens->count = 5;
        next(form);
    }
}

bool form_read_positions(form_t *form, uint32_t count, uint32_t *ret_from, uint32_t *ret_to)
{
    const json_t *value = given(form, "positions");
    *ret_from = 0;
    *ret_to = count;
    if (!value) return true;
    json_int_t from = json_integer_value(json_array_get(value, 0)), to = json_integer_value(json_array_get(value, 1));
    bool pair = json_array_size(value) == 2 && json_is_integer(json_array_get(value, 0)) &&
                json_is_integer(json_array_get(value, 1));
    if (!pair || from < 0 || from >= to || to > count) {
        form_fail(form, 400, "positions", "positions is [from, to) with 0 <= from < to <= %u", count);
        return false;
    }
    *ret_from = (uint32_t)from;
    *ret_to = (uint32_t)to;
    return true;
}

uint32_t form_inline_values(const form_t *form) { return (uint32_t)form->frontend->config->frontend.max_inline_values; }

/* ---- masks ---- */

bool form_read_masks(form_t *form, const qn_mask_row_t **ret_rows, uint32_t *ret_count)
{
    const json_t *value = given(form, "sparsity_mask");
    const served_model_t *model = &form->frontend->model;
    mask_list_t list = {.count = 0};
    http_error_t error;
    *ret_count = 0;
    if (!value) return true;
    if (!mask_parse(value, "sparsity_mask.", model->layers, model->heads, NULL, &list, &error)) {
        form_fail(form, error.status, error.param, "%s", error.message);
        return false;
    }
    qn_mask_row_t *rows = qn_arena_zalloc(&form->arena, list.count + 1, sizeof *rows);
    for (uint32_t i = 0; i < list.count; i++)
        rows[i] = mask_row(&list.rules[i]);
    *ret_rows = rows;
    *ret_count = list.count;
    return true;
}

/* ---- tensors ---- */

void form_put_handle(json_writer_t *writer, const qn_tapped_tensor_t *tensor, const qn_workspace_handle_t *handle)
{
    json_put_open(writer, '{');
    json_put_member_unsigned(writer, "region", handle->region);
    json_put_member_unsigned(writer, "epoch", handle->epoch);
    json_put_member_unsigned(writer, "offset", tensor->offset);
    json_put_member_unsigned(writer, "bytes", tensor->bytes);
    json_put_key(writer, "shape");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < tensor->shape_count; i++)
        json_put_unsigned(writer, tensor->shape[i]);
    json_put_close(writer, ']');
    json_put_member_string(writer, "dtype", qn_dtype_enum.names[tensor->dtype]);
    json_put_member_unsigned(writer, "lease", handle->lease);
    json_put_member_unsigned(writer, "lifetime_ms", handle->lifetime_ms);
    json_put_member_unsigned(writer, "region_bytes", handle->region_bytes);
    json_put_key(writer, "fd_socket");
    json_put_text(writer, handle->fd_socket.data, handle->fd_socket.bytes);
    json_put_close(writer, '}');
}

void form_put_summary(json_writer_t *writer, const qn_tapped_tensor_t *tensor)
{
    const struct {
        const char *name;
        float value;
    } ROWS[] = {{"min", tensor->min},
                {"max", tensor->max},
                {"mean", tensor->mean},
                {"std", tensor->std},
                {"zeros", tensor->zeros}};
    json_put_open(writer, '{');
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        json_put_key(writer, ROWS[i].name);
        json_put_float(writer, ROWS[i].value);
    }
    json_put_member_unsigned(writer, "nan_count", tensor->nan_count);
    json_put_close(writer, '}');
}

void form_put_nested(json_writer_t *writer, const float *values, const uint64_t *shape, uint32_t rank)
{
    uint64_t each = 1;
    for (uint32_t i = 1; i < rank; i++)
        each *= shape[i];
    json_put_open(writer, '[');
    for (uint64_t i = 0; i < shape[0]; i++) {
        if (rank == 1)
            json_put_float(writer, values[i]);
        else
            form_put_nested(writer, values + i * each, shape + 1, rank - 1);
    }
    json_put_close(writer, ']');
}

void form_put_tensor(json_writer_t *writer, const qn_tapped_tensor_t *tensor, const float *values,
                     const qn_workspace_handle_t *handle)
{
    json_put_key(writer, "shape");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < tensor->shape_count; i++)
        json_put_unsigned(writer, tensor->shape[i]);
    json_put_close(writer, ']');
    json_put_member_string(writer, "dtype", qn_dtype_enum.names[tensor->dtype]);
    json_put_key(writer, "summary");
    form_put_summary(writer, tensor);
    json_put_key(writer, handle ? "handle" : "values");
    if (handle)
        form_put_handle(writer, tensor, handle);
    else
        form_put_nested(writer, values + tensor->value_offset, tensor->shape, tensor->shape_count);
}
