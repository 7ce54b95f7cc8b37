/* What is this?      The frontend's own methods: its requests and the configuration.
 * State owned:       none; frontend_t.changed is replaced here.
 * Must never:        show a prompt or a key to somebody who did not ask for it.
 * Read next:         common/daemon/calls.h, schemas/frontend/, request_table.h, common/config/config.h. */
#include <stdlib.h>
#include <string.h>

#include "services/frontend/methods/call.h"
#include "services/frontend/methods/own_faults.h"

/* ---- requests ---- */

static uint32_t tokens_of(const exchange_t *exchange)
{
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < exchange->choice_count; i++)
        tokens += exchange->choices[i].tokens.count;
    return tokens;
}

static qn_shown_request_t show_request(const exchange_t *exchange, uint64_t now_ns)
{
    uint64_t first_ns = exchange->first_token_ns;
    return (qn_shown_request_t){
        .id = qn_text(exchange->client_id),
        .route = qn_text(router_name(exchange->route)),
        .first_id = exchange->first_id,
        .age_ms = now_ns > exchange->received_ns ? (now_ns - exchange->received_ns) / 1000000 : 0,
        .sequences = exchange->choice_count,
        .ended = exchange->ended_count,
        .prompts = exchange->generation.prompt_count,
        .tokens = tokens_of(exchange),
        .stream = exchange->generation.stream,
        .research = exchange->research,
        .first_token_ms = first_ns ? (float)(first_ns - exchange->received_ns) / 1e6f : 0,
    };
}

static qn_call_outcome_t method_requests(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const frontend_t *frontend = state;
    const qn_frontend_requests_t *asked = message;
    qn_frontend_requests_reply_t *reply = ret_reply;
    qn_shown_request_t *rows = qn_arena_zalloc(call->arena, asked->limit, sizeof *rows);
    reply->total = request_table_count(frontend->table);
    for (uint32_t i = asked->offset; i < reply->total && reply->requests_count < asked->limit; i++)
        rows[reply->requests_count++] = show_request(request_table_at(frontend->table, i), call->began_ns);
    reply->requests = rows;
    reply->sequences = request_table_active(frontend->table);
    reply->queue_limit = (uint32_t)frontend->config->frontend.queue_limit;
    reply->calls = frontend->calls.count;
    return QN_CALL_DONE;
}

/* ---- configuration ---- */

static const char *kind_name(qn_config_kind_t kind)
{
    switch (kind) {
    case QN_CONFIG_STRING: return "string";
    case QN_CONFIG_COUNT: return "count";
    case QN_CONFIG_BYTES: return "bytes";
    case QN_CONFIG_BOOL: return "bool";
    case QN_CONFIG_LISTEN: return "listen";
    case QN_CONFIG_ENDPOINT: return "endpoint";
    case QN_CONFIG_SERVICES: return "services";
    }
    return "string";
}

/* A key that chooses a policy. */
static bool is_policy(const char *key)
{
    static const char *const names[] = {"scheduler.policy", "scheduler.batching", "scheduler.admission",
                                        "memory.eviction"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(key, names[i]) == 0) return true;
    return false;
}

static const qn_config_t *config_in_force(const frontend_t *frontend)
{
    return frontend->changed ? frontend->changed : qn_daemon_config(frontend->daemon);
}

/* Texts longer than a reply's field are cut: no key of the table comes near. */
static qn_text_t text_at_most(const char *text, uint32_t bytes)
{
    qn_text_t view = qn_text(text ? text : "");
    if (view.bytes > bytes) view.bytes = bytes;
    return view;
}

static qn_configuration_key_t show_key(const qn_config_t *config, const qn_config_key_t *key, qn_arena_t *arena)
{
    char *value = qn_config_get_text(config, key->key);
    const char *copy = value ? qn_arena_strndup(arena, value, strlen(value)) : "";
    free(value);
    return (qn_configuration_key_t){
        .key = qn_text(key->key),
        .value = text_at_most(copy, QN_CONFIGURATION_KEY_VALUE_MAX),
        .default_value = text_at_most(key->default_text, QN_CONFIGURATION_KEY_DEFAULT_VALUE_MAX),
        .origin = text_at_most(qn_config_origin(config, key->key), QN_CONFIGURATION_KEY_ORIGIN_MAX),
        .kind = qn_text(kind_name(key->kind)),
        .choices = qn_text(key->choices),
        .min = key->min,
        .max = key->max,
        .live = qn_config_is_live(key->key),
        .help = text_at_most(key->help, QN_CONFIGURATION_KEY_HELP_MAX),
    };
}

static void show_keys(const frontend_t *frontend, qn_text_t prefix, qn_arena_t *arena,
                      qn_frontend_config_get_reply_t *reply)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    qn_configuration_key_t *rows = qn_arena_zalloc(arena, count, sizeof *rows);
    for (size_t i = 0; i < count; i++)
        if (!prefix.bytes || strncmp(keys[i].key, prefix.data, prefix.bytes) == 0)
            rows[reply->keys_count++] = show_key(config_in_force(frontend), &keys[i], arena);
    reply->keys = rows;
}

static qn_call_outcome_t method_config_get(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    show_keys(state, ((const qn_frontend_config_get_t *)message)->prefix, call->arena, ret_reply);
    return QN_CALL_DONE;
}

static qn_call_outcome_t method_config_set(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    frontend_t *frontend = state;
    const qn_frontend_config_set_t *asked = message;
    qn_config_t *changed = NULL;
    size_t at_fault = 0;
    const char **keys = qn_arena_zalloc(call->arena, (size_t)asked->set_count + 1, sizeof *keys);
    const char **values = qn_arena_zalloc(call->arena, (size_t)asked->set_count + 1, sizeof *values);
    for (uint32_t i = 0; i < asked->set_count; i++) {
        keys[i] = asked->set[i].key.data;
        values[i] = asked->set[i].value.data;
    }
    qn_err_t err =
        qn_config_change(config_in_force(frontend), keys, values, asked->set_count, "set live", &changed, &at_fault);
    if (err)
        return qn_call_fail(call, err == QN_ERR_UNSUPPORTED ? 409 : 400, asked->set_count ? keys[at_fault] : NULL,
                            "%.400s; nothing was changed%s", qn_err_text(),
                            err == QN_ERR_UNSUPPORTED && is_policy(keys[at_fault])
                                ? "; PUT /policies/{kind} does it live"
                                : "");
    frontend->config = qn_config_values(changed);
    qn_config_free(&frontend->changed);
    frontend->changed = changed;
    show_keys(frontend, (qn_text_t){0}, call->arena, ret_reply);
    return QN_CALL_DONE;
}

const qn_method_row_t frontend_methods[] = {
    {QN_METHOD_FRONTEND_REQUESTS, method_requests},
    {QN_METHOD_FRONTEND_CONFIG_GET, method_config_get},
    {QN_METHOD_FRONTEND_CONFIG_SET, method_config_set},
    {QN_METHOD_FRONTEND_PROFILE_START, frontend_method_profile_start},
    {QN_METHOD_FRONTEND_PROFILE_STOP, frontend_method_profile_stop},
    {QN_METHOD_FRONTEND_FAULTS_GET, frontend_method_faults_get},
    {QN_METHOD_FRONTEND_FAULTS_SET, frontend_method_faults_set},
    {QN_METHOD_NONE, NULL},
};
