/* What is this?      Asks the server under load for its model.
 * State owned:       none.
 * Must never:        guess a vocabulary.
 * Read next:         load_prompts.h, which draws ids from what is told here. */
#include "tools/bench/load_server.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "tools/cli.h"

#define ASK_TIMEOUT_MS 60000

static uint32_t count_of(const json_t *object, const char *name, uint32_t most)
{
    const json_t *value = json_object_get(object, name);
    json_int_t count = json_integer_value(value);
    if (!json_is_integer(value) || count < 0) return 0;
    return count > most ? most : (uint32_t)count;
}

/* Keeps `special_ids` in order and without repeats. */
static void add_special(load_server_t *server, const json_t *value)
{
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < 0 || id >= server->vocab_size) return;
    size_t at = 0;
    while (at < server->special_count && server->special_ids[at] < id)
        at++;
    if ((at < server->special_count && server->special_ids[at] == id) || server->special_count == LOAD_SPECIAL_IDS_MAX)
        return;
    memmove(server->special_ids + at + 1, server->special_ids + at,
            (server->special_count - at) * sizeof *server->special_ids);
    server->special_ids[at] = (uint32_t)id;
    server->special_count++;
}

static void take_quintet(const json_t *reply, load_server_t *server)
{
    const char *name = json_string_value(json_object_get(reply, "served_model_name"));
    snprintf(server->model, sizeof server->model, "%s", name ? name : "");
    server->vocab_size = count_of(reply, "vocab_size", QN_VOCAB_MAX);
    server->max_model_len = count_of(reply, "max_model_len", QN_PROMPT_TOKENS_MAX);
    server->is_quintet = true;
    add_special(server, json_object_get(reply, "bos_id"));
    const json_t *ends = json_object_get(reply, "eos_ids");
    for (size_t i = 0; i < json_array_size(ends); i++)
        add_special(server, json_array_get(ends, i));
}

static void take_others(const json_t *reply, load_server_t *server)
{
    const json_t *model = json_array_get(json_object_get(reply, "data"), 0);
    const char *name = json_string_value(json_object_get(model, "id"));
    snprintf(server->model, sizeof server->model, "%s", name ? name : "");
    server->max_model_len = count_of(model, "max_model_len", QN_PROMPT_TOKENS_MAX);
}

int load_server_ask(http_client_t *client, load_server_t *ret_server)
{
    load_server_t server = {0};
    http_reply_t reply;
    http_call_t call = {.method = "GET", .path = "/model_info", .timeout_ms = ASK_TIMEOUT_MS};
    qn_err_t err = http_client_call(client, &call, &reply);
    bool has_info = !err && reply.status == 200 && json_object_get(reply.json, "vocab_size");
    if (has_info) {
        take_quintet(reply.json, &server);
    } else if (!err && (reply.status == 200 || reply.status == 404 || reply.status == 405)) {
        http_reply_fini(&reply);
        call.path = "/v1/models";
        err = http_client_call(client, &call, &reply);
        take_others(reply.json, &server);
    }
    int status = http_client_explain(client, err, &reply);
    if (status == EX_OK && !server.model[0])
        status = cli_fail(EX_PROTOCOL, "the answer of %s%s names no model: is it a server of a language model?",
                          http_client_url(client), call.path);
    http_reply_fini(&reply);
    if (status == EX_OK) *ret_server = server;
    return status;
}
