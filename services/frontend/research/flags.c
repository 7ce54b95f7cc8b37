/* What is this?      GET and PUT /flags: the configuration as flags of an experiment, a value each.
 * State owned:       the form's.
 * Must never:        change anything when one of the flags cannot change.
 * Read next:         schemas/frontend/frontend_config_set.fbs, common/config/config_keys.c (which keys are live). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/research/forms.h"

/* {"flags": {"frontend.mode": {"value": "production", "live": true, "note": null}, ...}} */
static void took_keys(form_t *form, call_t *call, const void *message)
{
    const qn_frontend_config_get_reply_t *reply = message;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_key(&writer, "flags");
    json_put_open(&writer, '{');
    for (uint32_t i = 0; i < reply->keys_count; i++) {
        const qn_configuration_key_t *key = &reply->keys[i];
        json_put_key(&writer, key->key.data);
        json_put_open(&writer, '{');
        json_put_key(&writer, "value");
        json_put_text(&writer, key->value.data ? key->value.data : "", key->value.bytes);
        json_put_member_bool(&writer, "live", key->live);
        json_put_member_string(&writer, "note",
                               key->live ? NULL : "read at start: set it in the file or with --set, and restart");
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, '}');
    json_put_close(&writer, '}');
    form_answer(form, call, reply, &data);
}

const char form_flags_get_query[] = "{}", form_flags_get_reply[] = "{\"type\":\"object\"}";
const char form_flags_set_request[] = "{\"type\":\"object\",\"minProperties\":1,\"maxProperties\":64,"
                                      "\"additionalProperties\":{\"type\":[\"string\",\"integer\",\"boolean\"]}}";
const char form_flags_set_example[] = "{\"frontend.strict_fields\":false}";
const char form_flags_set_reply[] = "{\"type\":\"object\"}";

void form_flags_get(form_t *form)
{
    if (form_read(form, NULL, 0, NULL, NULL))
        form_call(form, QN_METHOD_FRONTEND_CONFIG_GET, &(qn_frontend_config_get_t){0}, took_keys);
}

/* A value as on the command line; NULL: it has no such form. From the form's arena. */
static const char *value_text(form_t *form, const json_t *value)
{
    char number[32];
    if (json_is_string(value)) return json_string_value(value);
    if (json_is_boolean(value)) return json_is_true(value) ? "true" : "false";
    if (!json_is_integer(value)) return NULL;
    snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    return qn_arena_strndup(&form->arena, number, strlen(number));
}

void form_flags_set(form_t *form)
{
    size_t count = json_object_size(form->body), used = 0;
    const char *key;
    json_t *value;
    if (count == 0 || count > QN_FRONTEND_CONFIG_SET_SET_MAX) {
        form_fail(form, 400, NULL, "The body is {\"KEY\": value, ...}, 1 to %d keys; GET /flags shows them.",
                  QN_FRONTEND_CONFIG_SET_SET_MAX);
        return;
    }
    qn_config_change_t *changes = qn_arena_zalloc(&form->arena, count, sizeof *changes);
    json_object_foreach(form->body, key, value)
    {
        const char *text = value_text(form, value);
        if (!text || strlen(text) > QN_CONFIG_CHANGE_VALUE_MAX || strlen(key) > QN_CONFIG_CHANGE_KEY_MAX) {
            form_fail(form, 400, key, "%.64s must be a string, an integer or a boolean, and not long.", key);
            return;
        }
        changes[used++] = (qn_config_change_t){.key = qn_text(key), .value = qn_text(text)};
    }
    qn_frontend_config_set_t message = {.set = changes, .set_count = (uint32_t)count};
    form_call(form, QN_METHOD_FRONTEND_CONFIG_SET, &message, took_keys);
}
